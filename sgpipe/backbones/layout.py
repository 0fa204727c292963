"""How a generator is built, in the few numbers and names that probing, training and sampling need."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sgpipe.backbones.config import Backbone
from sgpipe.backbones.source import part_configs
from sgpipe.errors import ModelError, ParamsError


@dataclass(frozen=True)
class Layout:
    """Blocks, widths and module names of a diffusion transformer, and how images become its tokens.

    A double-stream block has image and text streams with weights of their own and joint attention (MM-DiT); a
    single-stream block has one of both. An SD3 transformer has double-stream blocks only.
    """

    family: str
    double_blocks: int
    single_blocks: int
    hidden: int
    heads: int
    text_width: int
    pooled_width: int
    latent_channels: int
    patch: int
    """Side, in latents, of the square that is one image token."""
    vae_factor: int
    """Pixels per latent along a side."""
    guidance: bool
    """The transformer takes the guidance scale as an input (guidance-distilled)."""
    double_block: str
    """Module name of double-stream block `{index}`."""
    single_block: str
    image_projections: tuple[str, ...]
    """Query, key, value and output of the image stream, within a double-stream block."""
    text_projections: tuple[str, ...]

    @property
    def head_width(self) -> int:
        """Channels of one attention head."""
        return self.hidden // self.heads

    @property
    def pixels_per_token(self) -> int:
        """Side of the pixels that one image token covers."""
        return self.patch * self.vae_factor

    def grid(self, resolution: int) -> int:
        """Image tokens along a side of a square image. Raises `ParamsError` if the resolution is no multiple of a token."""
        if resolution % self.pixels_per_token:
            raise ParamsError(
                f"backbone.resolution: got {resolution}; this model needs a multiple of {self.pixels_per_token} "
                f"({self.vae_factor} pixels per latent, {self.patch} latents per token)"
            )
        return resolution // self.pixels_per_token

    def latent_shape(self, resolution: int) -> tuple[int, int, int]:
        """`(channels, height, width)` of the latents of a square image."""
        side = self.grid(resolution) * self.patch
        return self.latent_channels, side, side


_SIZES = (
    "num_layers",
    "num_attention_heads",
    "attention_head_dim",
    "joint_attention_dim",
    "pooled_projection_dim",
    "in_channels",
)


def _is_size(value: object) -> bool:
    return isinstance(value, int) and value >= 1


def flux_layout(transformer: dict[str, Any], vae: dict[str, Any]) -> Layout:
    """The layout of a FLUX pipeline from its config.json files. Raises `ModelError` if the two do not fit together."""
    kind, patch = transformer.get("_class_name"), 2
    odd = [f"{name} {transformer[name]!r}" for name in _SIZES if not _is_size(transformer[name])]
    if odd:
        raise ModelError(f"transformer/config.json: {', '.join(odd)}: a whole number from 1 is needed")
    channels, latents = transformer["in_channels"], vae["latent_channels"]
    if kind != "FluxTransformer2DModel" or channels != latents * patch**2 or transformer["patch_size"] != 1:
        raise ModelError(
            f"{kind} of {channels} input channels and patch size {transformer['patch_size']} on a VAE of {latents} channels: "
            f"a text-to-image FluxTransformer2DModel is needed, of patch size 1 and {latents} × 2 × 2 = {latents * 4} channels"
        )
    return Layout(
        family="flux",
        double_blocks=transformer["num_layers"],
        single_blocks=transformer["num_single_layers"],
        hidden=transformer["num_attention_heads"] * transformer["attention_head_dim"],
        heads=transformer["num_attention_heads"],
        text_width=transformer["joint_attention_dim"],
        pooled_width=transformer["pooled_projection_dim"],
        latent_channels=latents,
        patch=patch,
        vae_factor=2 ** (len(vae["block_out_channels"]) - 1),
        guidance=transformer["guidance_embeds"],
        double_block="transformer_blocks.{index}",
        single_block="single_transformer_blocks.{index}",
        image_projections=("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"),
        text_projections=("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out"),
    )


LAYOUTS = {"FluxPipeline": flux_layout}
"""By the pipeline's class, as model_index.json names it."""


def layout_of(folder: Path, model: str) -> Layout:
    """The layout of the pipeline `model` from the files in its folder. Raises `ModelError`."""
    configs = part_configs(folder, ("", "transformer", "vae"))
    kind = configs[""].get("_class_name")
    if kind not in LAYOUTS:
        raise ModelError(
            f"backbone.model: {model} is a {kind}; valid: {', '.join(LAYOUTS)} and its local copies"
        )
    try:
        return LAYOUTS[kind](configs["transformer"], configs["vae"])
    except KeyError as error:
        raise ModelError(
            f"{folder}: a config.json lacks {error}; save the pipeline with this version of diffusers"
        ) from None
    except (TypeError, ValueError) as error:
        raise ModelError(
            f"{folder}: a config.json holds a value of the wrong kind ({error}); fetch the checkpoint again"
        ) from None


def read_layout(folder: Path, backbone: Backbone) -> Layout:
    """The layout of a pipeline folder, checked against what params.yaml says of it. Raises `ModelError` or `ParamsError`."""
    layout = layout_of(folder, backbone.model)
    found, said = ((of.double_blocks, of.single_blocks) for of in (layout, backbone))
    if found != said:
        raise ParamsError(
            f"backbone: {backbone.model} has {found[0]} double and {found[1]} single blocks, params.yaml says {said[0]} and "
            f"{said[1]}; set backbone.double_blocks and backbone.single_blocks"
        )
    layout.grid(backbone.resolution)
    return layout
