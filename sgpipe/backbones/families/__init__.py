"""The families of diffusion transformers that this project knows, by their pipeline's class."""

from pathlib import Path

import torch
from torch import nn

from sgpipe.backbones.base import Family, Layout, TextEncoders
from sgpipe.backbones.config import Backbone
from sgpipe.backbones.families.flux import Flux
from sgpipe.backbones.families.flux2 import Flux2, Flux2Klein
from sgpipe.backbones.families.krea2 import Krea2
from sgpipe.backbones.families.qwen_image import QwenImage
from sgpipe.backbones.families.sd3 import StableDiffusion3
from sgpipe.backbones.families.unknown import refusal
from sgpipe.backbones.families.z_image import ZImage
from sgpipe.backbones.source import locate, part_configs, snapshot_folder
from sgpipe.backbones.truncation import Tokenizers
from sgpipe.errors import ModelError, ParamsError

_KNOWN: tuple[Family, ...] = (Flux(), StableDiffusion3(), Flux2(), Flux2Klein(), QwenImage(), ZImage(), Krea2())
FAMILIES = {family.pipeline: family for family in _KNOWN}


def family_of(folder: Path) -> Family:
    """The family of a pipeline folder, with its settings. Raises `ModelError` for another, saying why or where one would start."""
    index = part_configs(folder, ("",))[""]
    kind = index.get("_class_name")
    if kind not in FAMILIES:
        raise ModelError(f"backbone.model: {folder} is a {kind}; valid: {', '.join(FAMILIES)} ({refusal(folder, index)})")
    return FAMILIES[kind].configured(index)


def family_of_backbone(backbone: Backbone) -> Family:
    """The family of `backbone.model`. Raises `ModelError` where its model_index.json is not there."""
    folder = snapshot_folder(backbone.model, backbone.revision)
    return family_of(locate(backbone, ("scheduler",)) if folder is None else folder)


def open_text_encoders(backbone: Backbone, device: torch.device, offload: str = "none") -> TextEncoders:
    """The text encoders of `backbone.model`, of whatever family it is."""
    return family_of_backbone(backbone).text_encoders(backbone, device, offload)


def open_tokenizers(backbone: Backbone) -> Tokenizers:
    """The tokenizers of `backbone.model`, of whatever family it is. Raises `ModelError` for a pipeline without them."""
    return family_of_backbone(backbone).tokenizers(backbone)


def pipeline_parts(backbone: Backbone) -> tuple[str, ...]:
    """The folders of `backbone.model` that sampling reads."""
    return ("transformer", "vae", "scheduler", *family_of_backbone(backbone).text_parts)


def family_of_transformer(transformer: nn.Module) -> Family:
    """The family of a transformer by its class. Raises `ModelError` for a wrapped one, or a class that is not known."""
    by_class = {family.transformer: family for family in FAMILIES.values()}
    names = [kind.__name__ for kind in type(transformer).__mro__]
    found = next((by_class[name] for name in names if name in by_class), None)
    if found is None:
        raise ModelError(
            f"concept maps are made in a {' or '.join(by_class)}; got {names[0]}: unwrap it (peft: get_base_model(), accelerate: "
            "unwrap_model())"
        )
    return found


def check_variant(family: Family, variant: str) -> None:
    """Raises `ParamsError` for a definition of concept maps that the family does not offer."""
    if variant not in family.map_variants:
        raise ParamsError(f"maps.variant: got {variant}; valid for a {family.pipeline}: {', '.join(family.map_variants)}")


def layout_of(folder: Path) -> Layout:
    """The layout of a pipeline folder. Raises `ModelError`."""
    configs = part_configs(folder, ("transformer", "vae"))
    try:
        return family_of(folder).layout(configs["transformer"], configs["vae"])
    except KeyError as error:
        raise ModelError(f"{folder}: a config.json lacks {error}; save the pipeline with this version of diffusers") from None
    except (TypeError, ValueError) as error:
        raise ModelError(f"{folder}: a config.json holds a value of the wrong kind ({error}); fetch the checkpoint again") from None


def read_layout(folder: Path, backbone: Backbone) -> Layout:
    """The layout of a pipeline folder, checked against what params.yaml says of it. Raises `ModelError` or `ParamsError`."""
    layout = layout_of(folder)
    found, said = ((of.double_blocks, of.single_blocks) for of in (layout, backbone))
    if found != said:
        raise ParamsError(
            f"backbone: {backbone.model} has {found[0]} double and {found[1]} single blocks, params.yaml says {said[0]} and "
            f"{said[1]}; set backbone.double_blocks and backbone.single_blocks"
        )
    layout.grid(backbone.resolution)
    return layout
