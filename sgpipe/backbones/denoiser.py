"""The transformer of a pipeline as a velocity field over image-shaped latents, and sampling along it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from sgpipe.backbones.config import Backbone
from sgpipe.backbones.layout import Layout, read_layout
from sgpipe.backbones.loading import load_module, load_plain, place
from sgpipe.backbones.rectified_flow import euler_step, euler_times, noise
from sgpipe.backbones.source import locate
from sgpipe.backbones.text import Prompts
from sgpipe.errors import ModelError


def pack(latents: Tensor) -> Tensor:
    """Latents `[B, C, 2h, 2w]` to FLUX's image tokens `[B, h·w, 4C]`: each 2 × 2 square is one token, channel-major."""
    batch, channels, height, width = latents.shape
    squares = latents.reshape(batch, channels, height // 2, 2, width // 2, 2)
    return squares.permute(0, 2, 4, 1, 3, 5).reshape(batch, height * width // 4, 4 * channels)


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """FLUX's image tokens `[B, h·w, 4C]` to latents `[B, C, height, width]`, the inverse of `pack`."""
    batch, _, channels = tokens.shape
    squares = tokens.reshape(batch, height // 2, width // 2, channels // 4, 2, 2)
    return squares.permute(0, 3, 1, 4, 2, 5).reshape(batch, channels // 4, height, width)


def image_ids(height: int, width: int, like: Tensor) -> Tensor:
    """Positions `[h·w, 3]` of image tokens for the rotary embedding: (0, row, column); text tokens have (0, 0, 0)."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    ids = torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).reshape(-1, 3)
    return ids.to(like)


Velocity = Callable[[Tensor, Tensor], Tensor]
"""v `[B, C, h, w]` of latents `[B, C, h, w]` at times `[B]`."""


@dataclass(frozen=True)
class Step:
    """One Euler step from `t` to `t_next`: latents before it, the velocity there, and latents after it, all `[B, C, h, w]`."""

    index: int
    t: float
    t_next: float
    before: Tensor
    velocity: Tensor
    after: Tensor


@dataclass(frozen=True)
class Denoiser:
    """A FLUX transformer with its layout and its scheduler's configuration.

    Callers see latents as images, `[B, C, h, w]`, and times in [0, 1]; packing, positions and units of time stay in here.
    """

    transformer: nn.Module
    layout: Layout
    scheduler: Mapping[str, Any]
    device: torch.device

    @classmethod
    def load(cls, backbone: Backbone, device: torch.device, offload: str = "none") -> Self:
        """Transformer and scheduler of `backbone.model`; no encoder is loaded. Raises `ModelError` or `ParamsError`."""
        layout = read_layout(locate(backbone, ("transformer", "vae", "scheduler")), backbone)
        transformer = load_module(backbone, "transformer", device)
        place(transformer, device, offload)
        return cls(transformer, layout, dict(load_plain(backbone, "scheduler").config), device)

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the weights that are not quantised, and of latents on their way through."""
        return next(weight.dtype for weight in self.transformer.parameters() if weight.is_floating_point())

    def velocity(
        self,
        latents: Tensor,
        t: Tensor,
        prompts: Prompts,
        guidance: float | None = None,
        attention: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """v_θ(z_t, t, prompt) `[B, C, h, w]` for latents `[B, C, h, w]` at times `[B]`.

        `attention` goes to every attention as `joint_attention_kwargs` (a mask over text and image, for instance).

        `guidance` is the scale that a guidance-distilled transformer takes as an input. Raises `ModelError` if it is missing
        there, or given to a transformer that takes none. Gradients flow if they are enabled.
        """
        if (guidance is None) == self.layout.guidance:
            need = "needs a guidance scale (FLUX.1-dev: 3.5)" if self.layout.guidance else "takes no guidance"
            raise ModelError(f"guidance: got {guidance}; this transformer {need}")
        dtype, device = self.dtype, self.device
        height, width = latents.shape[-2:]
        tokens = pack(latents.to(device, dtype))
        prompts = prompts.to(device, dtype)
        # FluxPipeline hands over 1000 t in the precision of the latents, divided by 1000
        times = (t.to(device, torch.float32) * 1000).to(dtype) / 1000
        scale = None
        if guidance is not None:
            scale = torch.full([len(latents)], guidance, device=device, dtype=torch.float32)
        velocity = self.transformer(
            hidden_states=tokens,
            encoder_hidden_states=prompts.encoder_hidden_states,
            pooled_projections=prompts.pooled_projections,
            timestep=times,
            guidance=scale,
            img_ids=image_ids(height // 2, width // 2, tokens),
            txt_ids=tokens.new_zeros(prompts.encoder_hidden_states.shape[1], 3),
            joint_attention_kwargs=dict(attention) if attention else None,
            return_dict=False,
        )[0]
        return unpack(velocity, height, width)

    def trajectory(
        self,
        prompts: Prompts,
        seeds: Sequence[int],
        resolution: int,
        steps: int,
        guidance: float | None = None,
        attention: Mapping[str, Tensor] | None = None,
        velocity: Velocity | None = None,
    ) -> Iterator[Step]:
        """Euler sampling from t = 1 to 0, step by step, without gradients; the last step's `after` is the sample.

        `velocity` of states and times is that of `prompts`, unless another is given.

        The noise of a picture depends on its seed alone, so a picture does not depend on the batch it is drawn in (but for
        rounding). What an observer of the transformer has seen in a step can be read when the step is yielded.
        """
        shape = self.layout.latent_shape(resolution)
        latents = noise(seeds, shape).to(self.device, self.dtype)
        times = euler_times(steps, self.layout.grid(resolution) ** 2, self.scheduler)
        prompts = prompts.to(self.device, self.dtype)
        for index, (t, t_next) in enumerate(zip(times[:-1].tolist(), times[1:].tolist(), strict=True)):
            at = torch.full([len(latents)], t)
            with torch.no_grad():
                v = (
                    velocity(latents, at)
                    if velocity
                    else self.velocity(latents, at, prompts, guidance, attention)
                )
            after = euler_step(latents, v, t, t_next)
            yield Step(index, t, t_next, latents, v, after)
            latents = after

    def sample(
        self,
        prompts: Prompts,
        seeds: Sequence[int],
        resolution: int,
        steps: int,
        guidance: float | None = None,
        attention: Mapping[str, Tensor] | None = None,
        velocity: Velocity | None = None,
    ) -> Tensor:
        """The latents `[B, C, h, w]` at the end of the trajectory."""
        *_, last = self.trajectory(prompts, seeds, resolution, steps, guidance, attention, velocity)
        return last.after
