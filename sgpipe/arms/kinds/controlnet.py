"""Kind `controlnet`: a layout image through a ControlNet (Zhang et al. 2023) of the transformer's family, diffusers' own class.

Its first blocks start as copies of the transformer's, what joins it on as zeros, so that untrained it changes nothing. Folder
`controlnet` of the adapter is what `FluxControlNetModel` or `SD3ControlNetModel` loads.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

from msgspec import Meta

from sgpipe.arms.kinds.base import Base, Sections
from sgpipe.arms.kinds.layout import Arrows, LayoutAdapter, LayoutOptions, LayoutSettings
from sgpipe.errors import ParamsError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from sgpipe.graphs.scene_graph import SceneGraph

FOLDER, WEIGHTS = "controlnet", "diffusion_pytorch_model.safetensors"
REMEMBERED = 2048
"""Layouts whose latents are kept, so that an epoch encodes what the one before it did not show."""
Blocks = Annotated[int, Meta(ge=1, description="double-stream blocks of the ControlNet, copies of the transformer's first ones")]
SingleBlocks = Annotated[int, Meta(ge=0, description="single-stream blocks, likewise")]


class ControlNetOptions(LayoutOptions, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How large it is."""

    blocks: Blocks = 4
    single_blocks: SingleBlocks = 0


class ControlNetSettings(LayoutSettings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """As the options."""

    arrows: Arrows
    blocks: Blocks
    single_blocks: SingleBlocks


class ControlNet(LayoutAdapter):
    """A layout image, encoded by the VAE, through a ControlNet whose outputs are spread over the transformer's blocks."""

    options = ControlNetOptions
    settings = ControlNetSettings

    def __init__(self, settings: ControlNetSettings, base: Base) -> None:
        from sgpipe.backbones.loading import load_module

        self.check(base)
        denoiser = base.denoiser
        super().__init__(settings, base, denoiser.family.controlnet(denoiser.transformer, settings.blocks, settings.single_blocks))
        self.vae, self.arrows = load_module(base.backbone, "vae").to(denoiser.device), settings.arrows
        self._encoded: dict[Any, Any] = {}

    @classmethod
    def resolve(cls, key: str, options: ControlNetOptions, sections: Sections) -> ControlNetSettings:
        """The options. Raises `ParamsError` for more blocks than the transformer has."""
        for name in ("blocks", "single_blocks"):
            asked, there = getattr(options, name), getattr(sections.backbone, f"double_{name}" if name == "blocks" else name)
            if asked > there:
                raise ParamsError(f"{key}.{name}: got {asked}; the transformer has {there} to copy")
        return ControlNetSettings(
            boxes=options.boxes, arrows=options.arrows, blocks=options.blocks, single_blocks=options.single_blocks
        )

    @classmethod
    def build(cls, settings: ControlNetSettings, base: Base) -> Self:
        return cls(settings, base)

    def parameters(self) -> dict[str, dict[str, "nn.Parameter"]]:
        """All of the ControlNet."""
        return {"controlnet": dict(self.module.named_parameters())}

    def residuals(
        self, layouts: "Sequence[SceneGraph]", latents: "Tensor", inputs: Mapping[str, Any]
    ) -> "Sequence[Sequence[Tensor] | None]":
        dtype = next(self.module.parameters()).dtype
        control = self._latents(layouts, latents.shape[-1]).to(latents.device, dtype)
        states = ("hidden_states", "encoder_hidden_states", "pooled_projections")
        given = {**inputs, **{name: inputs[name].to(dtype) for name in states}, "joint_attention_kwargs": None}
        return self.module(**given, controlnet_cond=self.denoiser.family.image_input(control))

    def _latents(self, layouts: "Sequence[SceneGraph]", side: int) -> "Tensor":
        """The mode of the VAE's posterior of the layout images, `[B, C, side, side]`, as the transformer sees latents."""
        import torch

        from sgpipe.backbones.images import encode
        from sgpipe.graphs.layouts import layout_image

        family, pixels = self.denoiser.family, side * self.denoiser.layout.vae_factor
        new = [layout for layout in dict.fromkeys(layouts) if (layout, side) not in self._encoded]
        if new:
            if len(self._encoded) + len(new) > REMEMBERED:
                self._encoded = {key: value for key, value in self._encoded.items() if key[0] in layouts}
            with torch.autocast(self.denoiser.device.type, enabled=False):
                mean, _ = encode(family, self.vae, [layout_image(layout, pixels, self.arrows) for layout in new])
            made = family.normalised(family.statistics(self.vae), mean)
            self._encoded |= {(layout, side): each for layout, each in zip(new, made, strict=True)}
        return torch.stack([self._encoded[layout, side] for layout in layouts])

    def save(self, folder: Path) -> None:
        """Write what diffusers' `from_pretrained` takes."""
        from sgpipe.backbones.strict import write_tensors

        self.module.save_config(folder / FOLDER)
        write_tensors(self.module.state_dict(), folder / FOLDER / WEIGHTS, {"format": "pt"})

    @classmethod
    def load(cls, settings: ControlNetSettings, base: Base, folder: Path) -> Self:
        from torch import nn

        from sgpipe.arms.lora import load_tensors
        from sgpipe.graph_encoder.checkpoints import load_strictly

        made = cls(settings, base)
        path = folder / FOLDER / WEIGHTS
        load_strictly(made.module, load_tensors(path), path)
        nn.Module.to(made.module, base.denoiser.dtype)  # diffusers' own `to` warns of every cast
        return made
