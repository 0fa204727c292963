"""The transformer of a pipeline as a velocity field over image-shaped latents, and sampling along it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Self

import torch
from torch import Tensor, nn

from sgpipe.backbones.base import Family, Layout, TextCondition, Velocity
from sgpipe.backbones.config import Backbone
from sgpipe.backbones.families import family_of, read_layout
from sgpipe.backbones.loading import load_module, load_plain, place
from sgpipe.backbones.rectified_flow import euler_step, noise
from sgpipe.backbones.source import locate
from sgpipe.errors import ModelError


@dataclass(frozen=True)
class Denoiser:
    """A diffusion transformer of any family, with its layout and its scheduler's configuration.

    Callers see latents as images, `[B, C, h, w]`, and times in [0, 1]; packing, positions and units of time are the family's.
    """

    family: Family
    transformer: nn.Module
    layout: Layout
    scheduler: Mapping[str, Any]
    device: torch.device

    @classmethod
    def load(cls, backbone: Backbone, device: torch.device, offload: str = "none") -> Self:
        """Transformer and scheduler of `backbone.model`; no encoder is loaded. Raises `ModelError` or `ParamsError`."""
        folder = locate(backbone, ("transformer", "vae", "scheduler"))
        family, layout = family_of(folder), read_layout(folder, backbone)
        transformer = load_module(backbone, "transformer", device)
        family.prepare(transformer)
        place(transformer, device, offload)
        return cls(family, transformer, layout, dict(load_plain(backbone, "scheduler").config), device)

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the weights that are not quantised, and of latents on their way through."""
        return next(weight.dtype for weight in self.transformer.parameters() if weight.is_floating_point())

    def velocity(self, latents: Tensor, t: Tensor, condition: TextCondition, guidance: float | None = None) -> Tensor:
        """v_θ(z_t, t, condition) `[B, C, h, w]` for latents `[B, C, h, w]` at times `[B]`.

        `guidance` is the scale that a guidance-distilled transformer takes as an input. Raises `ModelError` if it is missing
        there, or given to a transformer that takes none. Gradients flow if they are enabled.
        """
        if (guidance is None) == self.layout.guidance:
            need = "needs a guidance scale (FLUX.1-dev: 3.5, FLUX.2-dev: 4)" if self.layout.guidance else "takes no guidance"
            raise ModelError(f"guidance: got {guidance}; this transformer {need}")
        latents, condition = latents.to(self.device, self.dtype), condition.to(self.device, self.dtype)
        return self.family.velocity(self.transformer, latents, t.to(self.device), condition, guidance)

    @torch.no_grad()
    def sample(
        self,
        prompts: TextCondition,
        seeds: Sequence[int],
        resolution: int,
        steps: int,
        guidance: float | None = None,
        velocity: Velocity | None = None,
    ) -> Tensor:
        """Latents `[B, C, h, w]` by Euler steps from t = 1 to 0, without gradients.

        `velocity` of states and times is that of `prompts`, unless another is given. The noise of an image depends on its seed
        alone, so an image does not depend on the batch it is drawn in (but for rounding).
        """
        latents = noise(seeds, self.layout.latent_shape(resolution)).to(self.device, self.dtype)
        times = self.family.sigmas(steps, self.layout, resolution, self.scheduler)
        prompts = prompts.to(self.device, self.dtype)
        for t, t_next in pairwise(times.tolist()):
            at = torch.full([len(latents)], t)
            v = velocity(latents, at) if velocity else self.velocity(latents, at, prompts, guidance)
            latents = euler_step(latents, v, t, t_next)
        return latents
