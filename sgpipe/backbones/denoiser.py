"""The transformer of a pipeline as a velocity field over image-shaped latents, and sampling along it."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Self

import torch
from torch import Tensor, nn

from sgpipe.backbones.base import Family, Layout, TextCondition, Velocity
from sgpipe.backbones.blockwise import Rows
from sgpipe.backbones.config import Backbone
from sgpipe.backbones.families import family_of, read_layout
from sgpipe.backbones.loading import load_module, load_plain, place
from sgpipe.backbones.rectified_flow import euler_step, noise
from sgpipe.backbones.source import locate
from sgpipe.errors import ModelError
from sgpipe.runs.progress import tick


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

    def velocity(
        self,
        latents: Tensor,
        t: Tensor,
        condition: TextCondition,
        guidance: float | None = None,
        unconditional: TextCondition | None = None,
        aside: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> Tensor:
        """v_θ(z_t, t, condition) `[B, C, h, w]` for latents `[B, C, h, w]` at times `[B]`.

        `guidance` is the scale that a guidance-distilled transformer takes as an input. Elsewhere one above 1 is classifier-free
        guidance (Ho & Salimans 2022): `Family.guided` of this velocity and that of `unconditional`, the one row of the empty
        prompt; None and 1 are one forward. It runs a second forward of B samples, within `aside`, rather than one of 2B: the empty
        prompt's rows need no padding and no mask beside graph tokens, so that they are the same whatever the batch is given, and a
        step takes the memory of an unguided one. Residuals are in both, as in diffusers' ControlNet pipelines.
        Raises `ModelError` if a scale or `unconditional` is missing where it is needed, or the scale is not valid. Gradients flow
        if they are enabled.
        """
        scale = self.layout.classifier_free(guidance)
        if self.layout.guidance and guidance is None:
            raise ModelError("guidance: got None; this transformer needs a guidance scale (FLUX.1-dev: 3.5, FLUX.2-dev: 4)")
        latents, t = latents.to(self.device, self.dtype), t.to(self.device)
        taken = guidance if self.layout.guidance else None

        def forward(given: TextCondition) -> Tensor:
            if given.before is not None:
                blocks, given = self.family.by_blocks(self.transformer), given.to(self.device, self.dtype)
                return blocks.finished(blocks.prefix(latents, t, given, taken, given.enter), given)
            return self.family.velocity(self.transformer, latents, t, given.to(self.device, self.dtype), taken)

        if scale is None:
            return forward(condition)
        if unconditional is None:
            raise ModelError(f"guidance: got {scale:g}; classifier-free guidance needs the condition of the empty prompt, too")
        velocity = forward(condition)
        with aside():
            empty = replace(TextCondition.cat([unconditional] * len(latents)), residuals=condition.residuals)
            return self.family.guided(velocity, forward(empty), scale)

    def prefix(self, latents: Tensor, t: Tensor, condition: TextCondition, stop: int, guidance: float | None = None) -> Rows:
        """Rows before block `stop` of latents `[B, C, h, w]` at times `[B]` under prompts; what enters the text there is left out.

        Raises `ParamsError` for a family whose forward is not known block by block.
        """
        blocks, latents = self.family.by_blocks(self.transformer), latents.to(self.device, self.dtype)
        return blocks.prefix(latents, t.to(self.device), condition.to(self.device, self.dtype), guidance, stop)

    def finished(self, prefix: Rows, condition: TextCondition, of: Tensor | None = None) -> Tensor:
        """v `[n, C, h, w]` of prefixes under n conditions (see `BlockForward.finished`): `velocity`, but for rounding."""
        return self.family.by_blocks(self.transformer).finished(prefix, condition.to(self.device, self.dtype), of)

    @torch.no_grad()
    def sample(
        self,
        prompts: TextCondition,
        seeds: Sequence[int],
        resolution: int,
        steps: int,
        guidance: float | None = None,
        velocity: Velocity | None = None,
        unconditional: TextCondition | None = None,
        aside: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> Tensor:
        """Latents `[B, C, h, w]` by Euler steps from t = 1 to 0, without gradients.

        `velocity` of states and times is that of `prompts`, guided as `Denoiser.velocity` says, unless another is given. The noise
        of an image depends on its seed alone, so an image does not depend on the batch it is drawn in (but for rounding).
        """
        dtype = torch.float32 if self.family.float32_latents else self.dtype
        latents = noise(seeds, self.layout.latent_shape(resolution)).to(self.device, dtype)
        times = self.family.sigmas(steps, self.layout, resolution, self.scheduler)
        prompts = prompts.to(self.device, self.dtype)
        for t, t_next in pairwise(times.tolist()):
            at = torch.full([len(latents)], t)
            v = velocity(latents, at) if velocity else self.velocity(latents, at, prompts, guidance, unconditional, aside)
            latents = euler_step(latents, v, t, t_next)
            tick(len(latents))
        return latents
