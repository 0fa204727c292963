"""Kind `t2i_adapter`: a light convolutional adapter of a layout image (T2I-Adapter, Mou et al. 2024), for a transformer.

The network is diffusers' `T2IAdapter`, of one scale, since all blocks of a transformer work on one grid of tokens. Its features
`[B, C, h, w]`, one position a token, go through a 1×1 convolution for each chosen block, zero at first, and are added to the image
rows behind that block, ω times; several adapters are composed by adding theirs, each with its ω, as in the paper. The paper adds
to the scales of a U-Net's encoder; for transformers diffusers has no such adapter. Folder `t2i_adapter` is what `T2IAdapter` loads.
"""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

from msgspec import Meta, Struct

from sgpipe.arms.kinds.base import Base, Sections
from sgpipe.arms.kinds.layout import Arrows, LayoutAdapter, LayoutOptions, LayoutSettings
from sgpipe.errors import ModelError, ParamsError
from sgpipe.params.blocks import Blocks

if TYPE_CHECKING:
    from torch import Tensor, nn

    from sgpipe.graphs.scene_graph import SceneGraph

FOLDER, WEIGHTS, HEADS = "t2i_adapter", "diffusion_pytorch_model.safetensors", "heads.safetensors"
DEPTHS = 4
"""Blocks that features enter behind where none are named, evenly spread from the first."""
Depths = Annotated[Blocks, Meta(description="double-stream blocks that features are added behind")]
Channels = Annotated[int, Meta(ge=1, description="width C of the adapter")]
ResBlocks = Annotated[int, Meta(ge=1, description="residual blocks of the adapter")]
Omega = Annotated[float, Meta(description="ω, by which features are multiplied in sampling; training takes 1")]


class T2iAdapterOptions(LayoutOptions, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How large it is, and where it enters."""

    blocks: Annotated[
        Blocks | None, Meta(description="double-stream blocks that features are added behind; null takes four, evenly spread")
    ] = None
    channels: Channels = 128
    res_blocks: ResBlocks = 2
    weight: Omega = 1.0


class Part(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One adapter of a composition."""

    arrows: Arrows
    blocks: Depths
    channels: Channels
    res_blocks: ResBlocks
    weight: Omega


class T2iAdapterSettings(LayoutSettings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The adapters; training makes one, `compose` several."""

    parts: Annotated[tuple[Part, ...], Meta(min_length=1)]


def _folder(folder: Path, number: int) -> Path:
    """Of the adapter of this number, named so that diffusers' `MultiAdapter` finds all by the first."""
    return folder / (FOLDER if number == 0 else f"{FOLDER}_{number}")


class T2iAdapter(LayoutAdapter):
    """A layout image through convolutions, whose features are added to the image rows behind chosen blocks."""

    options = T2iAdapterOptions
    settings = T2iAdapterSettings

    def __init__(self, settings: T2iAdapterSettings, base: Base) -> None:
        import torch
        from diffusers import T2IAdapter
        from torch import nn

        self.check(base)
        layout, made = base.denoiser.layout, nn.ModuleList()
        for part in settings.parts:
            for index in part.blocks.resolve(layout.double_blocks, "blocks"):
                if layout.lacking & {f"{layout.double_block.format(index=index)}.{name}" for name in layout.text_projections}:
                    raise ParamsError(f"blocks: got {part.blocks}; nothing can be added behind block {index}: name others")
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(base.seed)
                network = T2IAdapter(
                    channels=[part.channels], num_res_blocks=part.res_blocks, downscale_factor=layout.pixels_per_token
                )
            width: Any = base.denoiser.transformer.inner_dim
            heads = nn.ModuleDict({str(index): nn.Conv2d(part.channels, width, 1) for index in part.blocks.indices or ()})
            for weight in heads.parameters():
                nn.init.zeros_(weight)
            made.append(nn.ModuleDict({"network": network, "heads": heads}))
        super().__init__(settings, base, made)
        self.parts = settings.parts

    @classmethod
    def resolve(cls, key: str, options: T2iAdapterOptions, sections: Sections) -> T2iAdapterSettings:
        """The options, blocks as indices. Raises `ParamsError` for blocks that the transformer lacks, or none."""
        count = sections.backbone.double_blocks
        evenly = Blocks(tuple(sorted({index * (count - 1) // DEPTHS for index in range(DEPTHS)})))
        indices = (options.blocks or evenly).resolve(count, f"{key}.blocks")
        if not indices:
            raise ParamsError(f"{key}.blocks: got none; name the blocks that features are added behind, or null")
        part = Part(
            arrows=options.arrows,
            blocks=Blocks(indices),
            channels=options.channels,
            res_blocks=options.res_blocks,
            weight=options.weight,
        )
        return T2iAdapterSettings(boxes=options.boxes, parts=(part,))

    @classmethod
    def build(cls, settings: T2iAdapterSettings, base: Base) -> Self:
        return cls(settings, base)

    def parameters(self) -> dict[str, dict[str, "nn.Parameter"]]:
        """All of the adapter."""
        return {"t2i_adapter": dict(self.module.named_parameters())}

    def residuals(
        self, layouts: "Sequence[SceneGraph]", latents: "Tensor", inputs: Mapping[str, Any]
    ) -> "Sequence[Sequence[Tensor] | None]":
        import numpy as np
        import torch

        from sgpipe.graphs.layouts import layout_image

        dtype = next(self.module.parameters()).dtype
        side = latents.shape[-1] * self.denoiser.layout.vae_factor
        added: list[Tensor] = [latents.new_zeros(())] * self.denoiser.layout.double_blocks
        for part, module in zip(self.parts, self.module, strict=True):
            pixels = np.stack([layout_image(layout, side, part.arrows) for layout in layouts])
            images = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(latents.device, dtype) / 255
            (features,) = module["network"](images)
            weight = 1.0 if self.module.training else part.weight
            for index, head in module["heads"].items():
                added[int(index)] = added[int(index)] + weight * head(features).flatten(2).transpose(1, 2)
        return [added, *[None] * (len(self.denoiser.family.residual_inputs) - 1)]

    def save(self, folder: Path) -> None:
        """Write what diffusers' `T2IAdapter.from_pretrained` takes, and the convolutions beside it."""
        from sgpipe.backbones.strict import write_tensors

        for number, module in enumerate(self.module):
            own = _folder(folder, number)
            module["network"].save_config(own)
            write_tensors(module["network"].state_dict(), own / WEIGHTS, {"format": "pt"})
            write_tensors(module["heads"].state_dict(), own / HEADS, {"format": "pt"})

    @classmethod
    def load(cls, settings: T2iAdapterSettings, base: Base, folder: Path) -> Self:
        from sgpipe.arms.lora import load_tensors
        from sgpipe.graph_encoder.checkpoints import load_strictly

        made = cls(settings, base)
        for number, module in enumerate(made.module):
            for name, file in (("network", WEIGHTS), ("heads", HEADS)):
                path = _folder(folder, number) / file
                load_strictly(module[name], load_tensors(path), path)
        made.module.to(base.denoiser.dtype)
        return made


def compose(adapters: Mapping[Path, float], out: Path) -> None:
    """Write an adapter's folder that adds the features of several, each as many times as its ω here says.

    Raises `ModelError` for a folder of another kind, and for adapters of different bases or relation classes.
    """
    from sgpipe.arms.adapter import ABOUT, RELATIONS, read_about
    from sgpipe.arms.coverage import TRAINED_ON
    from sgpipe.arms.resolve import Arm
    from sgpipe.params.load import to_builtins
    from sgpipe.runs.atomic import new_folder, write_json

    about = {folder: read_about(folder) for folder in adapters}
    first = about[next(iter(adapters))]
    parts: list[tuple[Path, Part]] = []
    for folder, each in about.items():
        arm = Arm.read(each, str(folder / ABOUT))
        if not isinstance(arm.settings, T2iAdapterSettings):
            raise ModelError(f"{folder}: arm of kind {arm.kind}; adapters of kind t2i_adapter can be composed")
        if each["base"] != first["base"]:
            raise ModelError(f"{folder}: trained on another base than {next(iter(adapters))}; give adapters of one base")
        if each.get(RELATIONS) != first.get(RELATIONS):
            raise ModelError(
                f"{folder}: trained with other relation classes than {next(iter(adapters))}; give adapters of one list"
            )
        scaled = (_scaled(part, adapters[folder]) for part in arm.settings.parts)
        parts += [(_folder(folder, number), part) for number, part in enumerate(scaled)]
    settings = T2iAdapterSettings(boxes=first["settings"]["boxes"], parts=tuple(part for _, part in parts))
    seen = [each[TRAINED_ON] for each in about.values()]
    together = {name: sorted(set().union(*(each[name] for each in seen))) for name in ("names", "predicates")}
    trained_on = {**together, "triples": max(each["triples"] for each in seen)}
    made_of = {str(folder): {"weight": weight, "arm": about[folder]["arm"]} for folder, weight in adapters.items()}
    with new_folder(out) as new:
        for number, (folder, _) in enumerate(parts):
            shutil.copytree(folder, _folder(new, number))
        facts = {"arm": "+".join(each["arm"] for each in about.values()), "composed_of": made_of, TRAINED_ON: trained_on}
        write_json({**first, **facts, "settings": to_builtins(settings)}, new / ABOUT, digits=None)


def _scaled(part: Part, weight: float) -> Part:
    from msgspec.structs import replace

    return replace(part, weight=part.weight * weight)
