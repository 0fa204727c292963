"""The published name of each tensor of diffusers' `UNet2DConditionModel` and `VQModel`, one for one.

The published state dict is that of latent-diffusion (Rombach et al. 2022). Its `input_blocks` and `output_blocks` are numbered
through all levels, three per level; `output_blocks` begin at the deepest level, `decoder.up` ends there.
"""

import re
from typing import Final

PREDICTOR, EMA, FIRST_STAGE, ENCODER = "model.diffusion_model.", "model_ema.", "first_stage_model.", "cond_stage_model."
LOCAL: Final = "context_local_mlp.0."
"""The Linear of the local rows: part of the published U-Net, and a module beside diffusers' one."""

_PLAIN: Final = {
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2", "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0", "conv_out": "out.2",
}  # fmt: skip
_RESNET: Final = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
_ATTENTION: Final = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_PER_LEVEL: Final = 3


def ema_name(name: str) -> str:
    """The averaged tensor of one of the predictor's, both without their prefix: all dots go."""
    return "diffusion_model" + name.replace(".", "")


def unet_name(name: str) -> str:
    """Published name, without prefix, of a tensor of `UNet2DConditionModel`."""
    stem, _, leaf = name.rpartition(".")
    if stem in _PLAIN:
        return f"{_PLAIN[stem]}.{leaf}"
    side, rest = name.split("_", 1)  # down_blocks.<level>…, up_blocks.<level>…, mid_block…
    if side == "mid":
        _, kind, number, rest = rest.split(".", 3)
        place = 1 if kind == "attentions" else 2 * int(number)
        return f"middle_block.{place}.{_unet_inner(kind, rest)}"
    _, level, kind, number, rest = rest.split(".", 4)
    blocks, first = ("input_blocks", 1) if side == "down" else ("output_blocks", 0)
    block = first + _PER_LEVEL * int(level) + int(number)
    if kind == "downsamplers":
        return f"{blocks}.{block + 2}.0.{rest.replace('conv.', 'op.')}"
    if kind == "upsamplers":
        return f"{blocks}.{block + 2}.2.{rest}"
    return f"{blocks}.{block}.{int(kind == 'attentions')}.{_unet_inner(kind, rest)}"


def _unet_inner(kind: str, rest: str) -> str:
    """Within a residual block, whose names differ, or a transformer, whose names are the same."""
    stem, _, leaf = rest.rpartition(".")
    return rest if kind == "attentions" else f"{_RESNET[stem]}.{leaf}"


def first_stage_name(name: str, levels: int) -> str:
    """Published name, without prefix, of a tensor of a `VQModel` of `levels` resolutions."""
    side, _, rest = name.partition(".")
    if found := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d)\.(.+)", rest):
        kind, number, inner = found.groups()
        part = "attn_1" if kind == "attentions" else f"block_{int(number) + 1}"
        return f"{side}.mid.{part}.{_first_stage_inner(kind, inner)}"
    if found := re.fullmatch(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d)\.(.+)", rest):
        way, number, kind, index, inner = found.groups()
        level = int(number) if way == "down" else levels - 1 - int(number)
        if kind.endswith("samplers"):
            return f"{side}.{way}.{level}.{way}sample.{inner}"
        part = "attn" if kind == "attentions" else "block"
        return f"{side}.{way}.{level}.{part}.{index}.{_first_stage_inner(kind, inner)}"
    return name.replace("conv_norm_out", "norm_out")


def _first_stage_inner(kind: str, rest: str) -> str:
    stem, _, leaf = rest.rpartition(".")
    return f"{_ATTENTION[stem]}.{leaf}" if kind == "attentions" else rest.replace("conv_shortcut", "nin_shortcut")


def is_kernel(name: str) -> bool:
    """Whether a tensor of `VQModel`, a matrix there, is a 1 × 1 kernel in the published first stage: projections of attention."""
    return bool(re.search(r"attentions\.\d+\.to_\w+(\.0)?\.weight$", name))
