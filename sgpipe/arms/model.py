"""A generator with its adapter: the transformer, LoRA inside it, and graph tokens beside its prompts."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from sgpipe.arms.conditioning import GraphConditioner
from sgpipe.backbones.base import TextCondition
from sgpipe.backbones.denoiser import Denoiser
from sgpipe.backbones.rectified_flow import is_within
from sgpipe.graph_encoder.open_vocabulary import NameTable
from sgpipe.graphs.scene_graph import SceneGraph

Way = Literal["words", "prepend", "residual"]
"""How a graph reaches the transformer: in the prompt's words alone, or by tokens before them or added to them."""


@dataclass
class GraphLora:
    """`conditioner` is None where graphs are not read (text alone); `weights` are LoRA's, by name, empty without LoRA.

    `precision` is that of matrix products in `velocity`; None leaves them to the weights. `times` are the bounds of those at which
    the adapter works in sampling.
    """

    denoiser: Denoiser
    conditioner: GraphConditioner | None
    weights: dict[str, nn.Parameter]
    guidance: float | None = None
    precision: torch.dtype | None = None
    times: tuple[float, float] = (0.0, 1.0)

    @property
    def way(self) -> Way:
        """How it is told graphs."""
        return "words" if self.conditioner is None else self.conditioner.params.injection

    def trainable(self) -> dict[str, nn.Parameter]:
        """Everything that is trained, by name: `lora.…` and `tokens.…`."""
        found = {f"lora.{name}": weight for name, weight in self.weights.items()}
        if self.conditioner is not None:
            own = self.conditioner.named_parameters()
            found |= {f"tokens.{name}": weight for name, weight in own if weight.requires_grad}
        return found

    def context(
        self, graphs: Sequence[SceneGraph] | None, texts: Sequence[str], text: TextCondition, names: NameTable
    ) -> TextCondition:
        """What the transformer reads for prompts `texts` (encoded: `text`), each with its graph."""
        text = text.to(self.denoiser.device)
        if self.conditioner is None or graphs is None:
            return text
        return self.conditioner(graphs, texts, text, names)

    def velocity(self, latents: Tensor, t: Tensor, condition: TextCondition) -> Tensor:
        """v_θ(z_t, t, condition) `[B, C, h, w]`; see `Denoiser.velocity`."""
        with torch.autocast(self.denoiser.device.type, self.precision, enabled=self.precision is not None):
            return self.denoiser.velocity(latents, t, condition, self.guidance)

    def acts(self, t: float) -> bool:
        """Whether the adapter works at time t of sampling."""
        return is_within(t, *self.times)

    def sample(
        self,
        condition: TextCondition,
        plain: TextCondition,
        seeds: Sequence[int],
        resolution: int,
        steps: int,
        guidance: float | None,
    ) -> Tensor:
        """Samples `[N, C, h, w]` of `condition`; where the adapter does not work the base steps, with `plain` prompts."""

        def velocity(latents: Tensor, t: Tensor) -> Tensor:
            if self.acts(t[0].item()):
                return self.denoiser.velocity(latents, t, condition, guidance)
            with self.off():
                return self.denoiser.velocity(latents, t, plain, guidance)

        return self.denoiser.sample(plain, seeds, resolution, steps, velocity=velocity)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Evaluation mode within the body: no dropout, and no random number is taken; afterwards as before."""
        parts = [part for part in (self.denoiser.transformer, self.conditioner) if part is not None]
        training = [module for part in parts for module in part.modules() if module.training]
        for module in training:
            module.training = False
        try:
            yield
        finally:
            for module in training:
                module.training = True

    @contextmanager
    def off(self) -> Iterator[None]:
        """LoRA is switched off within the body; together with `graphs=None` the model is the base, to the bit."""
        if not self.weights:
            yield
            return
        wanted = {name: weight.requires_grad for name, weight in self.weights.items()}
        self.denoiser.transformer.disable_adapters()  # type: ignore[operator]
        try:
            yield
        finally:
            self.denoiser.transformer.enable_adapters()  # type: ignore[operator]
            for name, weight in self.weights.items():
                weight.requires_grad_(wanted[name])
