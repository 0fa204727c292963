"""The releases that stand for the families in benchmarks, and transformers of theirs with random weights: narrow, or of few blocks.

A family that comes later needs one entry in `RELEASES`, and the release's config.json files in `sgpipe/doctor/published`.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import diffusers
import torch
from msgspec.structs import replace
from torch import Tensor

from sgpipe.attention_maps.config import Maps
from sgpipe.attention_maps.options import MapOptions
from sgpipe.backbones.base import Family, Layout, TextCondition
from sgpipe.backbones.denoiser import Denoiser
from sgpipe.backbones.families import FAMILIES
from sgpipe.backbones.families.krea2 import Krea2
from sgpipe.backbones.families.z_image import captions
from sgpipe.doctor.memory import build
from sgpipe.doctor.published import PUBLISHED
from sgpipe.params.blocks import Blocks, LayerGroup
from sgpipe.presets import FOLDER, preset_path, with_preset

Shapes = Mapping[str, tuple[float, float]]


def _prompt(text: TextCondition) -> dict[str, Any]:
    """Encoded prompts as arguments of a pipeline."""
    given = {"prompt_embeds": text.states}
    return given if text.pooled is None else {**given, "pooled_prompt_embeds": text.pooled}


def _list(text: TextCondition) -> dict[str, Any]:
    """Of Z-Image: a tensor of its own tokens for each prompt."""
    return {"prompt_embeds": captions(text)}


def _layered(text: TextCondition) -> dict[str, Any]:
    """Of Krea 2: a token's states of all layers, and the mask that its pipeline insists on."""
    layers = len(Krea2.layers)
    return {"prompt_embeds": text.states.unflatten(-1, (layers, -1)), "prompt_embeds_mask": text.attended}


def _heads_of_128(width: int) -> dict[str, Any]:
    return {"num_attention_heads": width // 128}


def _sd3(width: int) -> dict[str, Any]:
    return {"num_attention_heads": width // 64, "caption_projection_dim": width, "pos_embed_max_size": 64}


def _z_image(width: int) -> dict[str, Any]:
    return {"dim": width, "n_heads": width // 128, "n_kv_heads": width // 128}


def _krea2(width: int) -> dict[str, Any]:
    """Four query heads on one of keys and values, where there are four; MLPs, and the fusion of text, in proportion.

    The published fusion would take most of the time of a narrow transformer, and hide what maps cost.
    """
    heads = width // 128
    text = math.ceil(heads * 20 / 48)
    return {
        "num_attention_heads": heads,
        "num_key_value_heads": max(heads // 4, 1),
        "intermediate_size": width * 8 // 3,
        "text_hidden_dim": text * 128,
        "text_num_attention_heads": text,
        "text_num_key_value_heads": text,
        "text_intermediate_size": text * 128 * 27 // 10,
    }


@dataclass(frozen=True)
class Release:
    """A published model, and what a benchmark has to know of its family beside what `Family` says."""

    model: str
    """Hub id, under which `sgpipe/doctor/published` has its config.json files."""
    pipeline: str
    preset: str
    scheduler: Mapping[str, Any]
    """What the published scheduler_config.json says otherwise than FlowMatchEulerDiscreteScheduler."""
    few: Mapping[str, Any]
    """Changes to the transformer's configuration that leave three double-stream blocks and, where there are any, six single-stream
    ones: FLUX.1's proportion, and fewer than FLUX.2's, so that what double-stream blocks cost shows more. Refiners of text or image
    before them, one of each kind."""
    narrow: Callable[[int], Mapping[str, Any]] = _heads_of_128
    """Changes that make the rows of a block so wide, a multiple of 128."""
    shapes: Shapes = field(default_factory=dict)
    """Weights `[out, in]`, in units of the width, of the layout's projections that are not square, by the end of their name."""
    call: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of the pipeline for one conditional forward a step."""
    prompt: Callable[[TextCondition], dict[str, Any]] = _prompt
    guidance: float | None = None
    """Scale that a guidance-distilled transformer takes as an input."""
    groups: Mapping[str, str] | None = None
    """Layer groups of maps, where the preset is that of another size."""

    @property
    def family(self) -> Family:
        return FAMILIES[self.pipeline]

    @property
    def configs(self) -> dict[str, dict[str, Any]]:
        """The published config.json files by part."""
        return PUBLISHED[self.model]

    def layout(self, transformer: Mapping[str, Any]) -> Layout:
        """Of this configuration of the transformer on the published VAE."""
        return self.family.layout(transformer, self.configs["vae"])

    def sections(self, params: Path) -> dict[str, Any]:
        """The preset's sections of params.yaml, with the blocks, the layer groups and the guidance input of this release."""
        found = with_preset(params, preset_path(params.parent / FOLDER, self.preset))
        layout = self.layout(self.configs["transformer"])
        counts = {"double_blocks": layout.double_blocks, "single_blocks": layout.single_blocks}
        found["backbone"] = replace(found["backbone"], model=self.model, **counts)
        found["train"] = replace(found["train"], guidance=self.guidance)
        if self.groups is not None:
            found["maps"] = replace(found["maps"], groups={name: LayerGroup.parse(blocks) for name, blocks in self.groups.items()})
        return found


_FLUX2: Final[Shapes] = {"attn.to_qkv_mlp_proj": (3 + 2 * 3, 1), "single_transformer_blocks.attn.to_out": (1, 1 + 3)}
_KREA2: Final[Shapes] = {"attn.to_k": (1 / 4, 1), "attn.to_v": (1 / 4, 1)}
_DYNAMIC = {"use_dynamic_shifting": True, "base_shift": 0.5, "base_image_seq_len": 256}
RELEASES: Final[dict[str, Release]] = {
    "FLUX.1-schnell": Release(
        "black-forest-labs/FLUX.1-schnell",
        "FluxPipeline",
        "flux-schnell-vg",
        {"shift": 1.0},
        few={"num_layers": 3, "num_single_layers": 6},
        shapes={"proj_out": (1, 5)},
    ),
    "SD3.5-medium": Release(
        "stabilityai/stable-diffusion-3.5-medium",
        "StableDiffusion3Pipeline",
        "sd3.5-medium-vg",
        {"shift": 3.0},
        few={"num_layers": 3, "dual_attention_layers": [0, 1]},
        narrow=_sd3,
        call={"guidance_scale": 1.0},
    ),
    "FLUX.2-dev": Release(
        "black-forest-labs/FLUX.2-dev",
        "Flux2Pipeline",
        "flux2-klein-vg",
        {**_DYNAMIC, "shift": 3.0, "max_image_seq_len": 4096, "max_shift": 1.15},
        few={"num_layers": 3, "num_single_layers": 6},
        shapes=_FLUX2,
        call={"guidance_scale": 4.0},
        guidance=4.0,
        groups={"early": "0..2", "middle": "3..4", "late": "5..7"},
    ),
    "FLUX.2-klein-4B": Release(
        "black-forest-labs/FLUX.2-klein-4B",
        "Flux2KleinPipeline",
        "flux2-klein-vg",
        {**_DYNAMIC, "shift": 3.0, "max_image_seq_len": 4096, "max_shift": 1.15},
        few={"num_layers": 3, "num_single_layers": 6},
        shapes=_FLUX2,
        call={"guidance_scale": 1.0},
    ),
    "Qwen-Image": Release(
        "Qwen/Qwen-Image",
        "QwenImagePipeline",
        "qwen-image-vg",
        {**_DYNAMIC, "shift": 1.0, "shift_terminal": 0.02, "max_image_seq_len": 8192, "max_shift": 0.9},
        few={"num_layers": 3},
        call={"true_cfg_scale": 1.0},
    ),
    "Z-Image": Release(
        "Tongyi-MAI/Z-Image",
        "ZImagePipeline",
        "z-image-vg",
        {"shift": 3.0},
        few={"n_layers": 6, "n_refiner_layers": 1},
        narrow=_z_image,
        call={"guidance_scale": 0.0},
        prompt=_list,
    ),
    "Krea-2-Raw": Release(
        "krea/Krea-2-Raw",
        "Krea2Pipeline",
        "krea2-vg",
        {**_DYNAMIC, "max_image_seq_len": 6400, "max_shift": 1.15},
        few={"num_layers": 6, "num_layerwise_text_blocks": 1, "num_refiner_text_blocks": 1},
        narrow=_krea2,
        shapes=_KREA2,
        call={"guidance_scale": 0.0},
        prompt=_layered,
    ),
}


def width_of(transformer: Mapping[str, Any]) -> int:
    """Width D of the rows of a block, by a transformer's configuration."""
    return transformer["dim"] if "dim" in transformer else transformer["num_attention_heads"] * transformer["attention_head_dim"]


@dataclass(frozen=True)
class Random:
    """A release's transformer with random weights behind the seam, and random inputs of its shapes.

    `tokens` are those of a prompt, whose condition may have more rows (SD3: CLIP's).
    """

    release: Release
    denoiser: Denoiser
    tokens: int

    @classmethod
    def open(
        cls, release: Release, device: torch.device, dtype: torch.dtype, tokens: int, changes: Mapping[str, Any] | None = None
    ) -> "Random":
        """PyTorch's initial weights of seed 0, made on the device (`meta` included); `changes` to the published configuration."""
        config = release.configs["transformer"] | dict(changes or {})
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            torch.manual_seed(0)
            with torch.device(device):
                transformer = getattr(diffusers, config["_class_name"]).from_config(config)
        finally:
            torch.set_default_dtype(before)
        # as `from_pretrained` keeps them: Krea 2's norms
        kept = set(getattr(transformer, "_keep_in_fp32_modules", None) or ())
        for name, module in transformer.named_modules():
            if name.rpartition(".")[2] in kept:
                module.float()
        transformer.requires_grad_(False).eval()
        release.family.prepare(transformer)
        return cls(release, Denoiser(release.family, transformer, release.layout(config), release.scheduler, device), tokens)

    @property
    def layout(self) -> Layout:
        return self.denoiser.layout

    def text(self, lengths: tuple[int, ...], *, seed: int = 0) -> TextCondition:
        """The condition of prompts of these many tokens; a family of fixed length takes one length alone."""
        configs = self.release.configs | {"transformer": dict(self.denoiser.transformer.config)}
        draw = torch.Generator().manual_seed(seed)
        rows = []
        for tokens in lengths:
            count, pooled = self.release.family.condition_size(configs, tokens)
            states = self._random(1, count, self.layout.text_width, draw=draw)
            rows.append(TextCondition(states, None if pooled is None else self._random(1, pooled, draw=draw)))
        return TextCondition.cat(rows)

    def concepts(self, batch: int, count: int) -> Tensor:
        """Vectors `[batch, count, text width]` of concepts."""
        return self._random(batch, count, self.layout.text_width, draw=torch.Generator().manual_seed(1))

    def _random(self, *shape: int, draw: torch.Generator) -> Tensor:
        return torch.randn(shape, generator=draw).to(self.denoiser.device, self.denoiser.dtype)


def map_options(maps: Maps, real: Layout, layout: Layout) -> MapOptions:
    """The groups of section `maps` for a model of fewer blocks: block i of m stands for the middle of the i-th m-th of n.

    Raises `ValueError` for a group that none of the few blocks stands for.
    """
    groups: dict[str, LayerGroup] = {}
    for name, group in maps.groups.items():
        chosen = []
        for blocks, count, few in (
            (group.blocks, real.double_blocks, layout.double_blocks),
            (group.single_blocks, real.single_blocks, layout.single_blocks),
        ):
            wanted = blocks.resolve(count, f"maps.groups.{name}")
            chosen.append(Blocks(tuple(i for i in range(few) if (2 * i + 1) * count // (2 * few) in wanted)))
        if not any(each.indices for each in chosen):
            raise ValueError(f"maps.groups.{name}: got {group}, and no block of {layout.double_blocks} + {layout.single_blocks}")
        groups[name] = LayerGroup(*chosen)
    return MapOptions(groups, maps.normalisation, variant=maps.variant)


def double_alone(options: MapOptions) -> MapOptions | None:
    """Groups without their single-stream blocks; None where nothing is left."""
    groups = {name: LayerGroup.parse(group) for name, group in options.groups.items()}
    left = {name: LayerGroup(group.blocks) for name, group in groups.items() if group.blocks.indices != ()}
    return MapOptions(left, options.normalisation, variant=options.variant) if left else None


def checked_tensors(release: Release) -> tuple[int, int]:
    """How many weights of the real-size transformer, built of the published config.json on the meta device, have the shape that the
    layout and the configuration predict: those of all projections that the layout names in its blocks, D × D for the width D but
    for `Release.shapes`. And how many tensors its state dict has.

    Raises `ValueError` for a projection that is missing, has another shape, or is there though the layout says it is lacking.
    """
    config = release.configs["transformer"]
    layout, width = release.layout(config), width_of(config)
    found = build(config).state_dict()
    double = (*layout.image_projections, *layout.text_projections, *layout.second_projections)
    named = [
        (block.format(index=index), part)
        for block, count, parts in (
            (layout.double_block, layout.double_blocks, double),
            (layout.single_block, layout.single_blocks, layout.single_projections.values()),
        )
        for index in range(count)
        for part in parts
    ]
    wrong, checked = [], 0
    for block, part in named:
        name, stream = f"{block}.{part}", f"{block.rpartition('.')[0]}.{part}"
        weight = found.get(f"{name}.weight")
        out, into = next((units for end, units in release.shapes.items() if stream.endswith(end)), (1, 1))
        wanted = None if name in layout.lacking else (int(out * width), int(into * width))
        if (None if weight is None else tuple(weight.shape)) != wanted:
            wrong.append(f"{name}: {'none' if weight is None else list(weight.shape)}, not {wanted or 'none'}")
        checked += wanted is not None
    if wrong:
        raise ValueError(f"{release.model}: {len(wrong)} weights are not those of its layout: {'; '.join(wrong[:3])}")
    return checked, len(found)
