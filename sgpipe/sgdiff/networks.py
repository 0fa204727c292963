"""SGDiff's two networks in diffusers' classes: the noise predictor with its Linear for local rows, and the VQ first stage.

The published sizes (official config_vg.yaml): a U-Net of base width 256 over three levels, a transformer after every residual
block, heads of width 32, cross-attention to 16 tokens of width 512; a first stage that maps 256 × 256 pixels to 4 × 32 × 32.
"""

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import UNet2DConditionModel, VQModel
from torch import Tensor, nn

HEAD_WIDTH = 32


@dataclass(frozen=True)
class PredictorConfig:
    """Sizes of the noise predictor; `context` is the width of its cross-attention and of the graph's vector, local rows have three
    times `context` (subject, predicate, object). The defaults are the published ones.
    """

    base: int = 256
    multipliers: tuple[int, ...] = (1, 2, 4)
    context: int = 512
    channels: int = 4

    def __post_init__(self) -> None:
        if self.base < 1 or self.base % HEAD_WIDTH:
            raise ValueError(f"base: got {self.base}; a multiple of {HEAD_WIDTH} is needed, the width of an attention head")


@dataclass(frozen=True)
class FirstStageConfig:
    """Sizes of the VQ first stage; attention is on the deepest level. The defaults are those of latent-diffusion's VQ-f8."""

    base: int = 128
    multipliers: tuple[int, ...] = (1, 2, 2, 4)
    codes: int = 16384
    channels: int = 4


class NoisePredictor(nn.Module):
    """ε of noisy latents `[B, 4, h, w]` at timesteps `[B]` under a context `[B, 16, C]`.

    The context is [Linear(local rows) | graph vector]: rows that a graph lacks are zero, become the bias and are attended to like
    any other, since there is no mask; the graph's vector passes through no layer.
    """

    def __init__(self, config: PredictorConfig) -> None:
        super().__init__()
        self.config = config
        widths = tuple(config.base * each for each in config.multipliers)
        levels = len(widths)
        self.unet: Any = UNet2DConditionModel(
            in_channels=config.channels,
            out_channels=config.channels,
            block_out_channels=widths,
            layers_per_block=2,
            down_block_types=("CrossAttnDownBlock2D",) * levels,
            up_block_types=("CrossAttnUpBlock2D",) * levels,
            cross_attention_dim=config.context,
            attention_head_dim=tuple(width // HEAD_WIDTH for width in widths),  # heads of each level, in spite of its name
            norm_eps=1e-5,
            freq_shift=0,
            flip_sin_to_cos=True,
        )
        self.local = nn.Linear(3 * config.context, config.context)

    def context(self, local: Tensor, pooled: Tensor) -> Tensor:
        """Tokens `[B, 15 + 1, C]` of local rows `[B, 15, 3·C]` and graph vectors `[B, C]`."""
        return torch.cat([self.local(local), pooled[:, None]], dim=1)

    def forward(self, latents: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
        """ε `[B, 4, h, w]`; the sinusoid of the timestep is in float32, as officially."""
        return self.unet(latents, timesteps, encoder_hidden_states=context, return_dict=False)[0]


def first_stage(config: FirstStageConfig) -> Any:
    """diffusers' `VQModel` of these sizes, with fresh weights."""
    levels = len(config.multipliers)
    return VQModel(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * (levels - 1) + ("AttnDownEncoderBlock2D",),
        up_block_types=("AttnUpDecoderBlock2D",) + ("UpDecoderBlock2D",) * (levels - 1),
        block_out_channels=tuple(config.base * each for each in config.multipliers),
        layers_per_block=2,
        latent_channels=config.channels,
        num_vq_embeddings=config.codes,
        vq_embed_dim=config.channels,
        scaling_factor=1.0,
    )
