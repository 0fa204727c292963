"""A generator with what an arm adds to it: velocities, samples, and everything that is trained."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sgpipe.arms.kinds.base import Adapter, InjectionMode, Prompts
from sgpipe.backbones.base import TextCondition
from sgpipe.backbones.blockwise import Rows
from sgpipe.backbones.denoiser import Denoiser
from sgpipe.backbones.rectified_flow import is_within
from sgpipe.errors import ModelError
from sgpipe.graph_encoder.open_vocabulary import NameTable
from sgpipe.graphs.scene_graph import SceneGraph
from sgpipe.relations.predicates import PREDICATES

CLASSES = "relation classes of the adapter"
"""What messages call the classes that an adapter was trained with."""


@dataclass
class ArmModel:
    """`precision` is that of matrix products in `velocity`; None leaves them to the weights.

    `times` are the bounds of those at which the adapter works in sampling, `classes` the relation classes that it was trained with.
    """

    denoiser: Denoiser
    adapter: Adapter
    guidance: float | None = None
    precision: torch.dtype | None = None
    times: tuple[float, float] = (0.0, 1.0)
    classes: Sequence[str] = PREDICATES

    @property
    def mode(self) -> InjectionMode:
        """How it is told graphs."""
        return self.adapter.mode

    def trainable(self) -> dict[str, nn.Parameter]:
        """Everything that is trained, as `<group>.<name>`.

        Raises `ModelError` for a weight of the transformer or of the adapter that requires a gradient and is in no group of
        `Adapter.parameters`: no optimiser would ever change it.
        """
        found = {
            f"{group}.{name}": weight for group, weights in self.adapter.parameters().items() for name, weight in weights.items()
        }
        held = {id(weight) for weight in found.values()}
        every = [
            *(("transformer." + name, weight) for name, weight in self.denoiser.transformer.named_parameters()),
            *_weights(vars(self.adapter), type(self.adapter).__name__),
        ]
        left = [name for name, weight in every if weight.requires_grad and id(weight) not in held]
        if left:
            raise ModelError(
                f"trainable weights that no optimiser would train: {', '.join(left[:5])}{' …' if len(left) > 5 else ''}; give them "
                f"in {type(self.adapter).__name__}.parameters, or freeze them"
            )
        return found

    def condition(self, graphs: Sequence[SceneGraph], texts: Sequence[str], text: TextCondition, names: NameTable) -> TextCondition:
        """What the transformer reads for prompts `texts` (encoded: `text`), each with its graph.

        Raises `DataError` for a graph with a relation class that the adapter does not know.
        """
        for graph in graphs:
            graph.check_predicates(self.classes, CLASSES)
        return self.adapter.condition(Prompts(graphs, texts, text.to(self.denoiser.device), names))

    def velocity(self, latents: Tensor, t: Tensor, condition: TextCondition) -> Tensor:
        """v_θ(z_t, t, condition) `[B, C, h, w]`, as in training: one forward; see `Denoiser.velocity`."""
        with self._autocast():
            return self.denoiser.velocity(latents, t, condition, self.guidance)

    def prefix(self, latents: Tensor, t: Tensor, condition: TextCondition) -> Rows:
        """Rows behind the blocks that are the base's whatever the graph (`Adapter.untouched`), as `velocity` computes them."""
        with self._autocast():
            return self.denoiser.prefix(latents, t, condition, self.adapter.untouched, self.guidance)

    def finished(self, prefix: Rows, condition: TextCondition, of: Tensor) -> Tensor:
        """v_θ of prefixes under conditions of theirs, as `velocity` computes it; see `BlockForward.finished`."""
        with self._autocast():
            return self.denoiser.finished(prefix, condition, of)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.denoiser.device.type, self.precision, enabled=self.precision is not None)

    def sample(
        self,
        condition: TextCondition,
        plain: TextCondition,
        seeds: Sequence[int],
        resolution: int,
        steps: int,
        guidance: float | None,
        unconditional: TextCondition | None = None,
    ) -> Tensor:
        """Samples `[N, C, h, w]` of `condition`; where the adapter does not work the base steps, with `plain` prompts.

        `unconditional` is the empty prompt's encoding, for classifier-free guidance (see `Denoiser.velocity`). With an empty graph
        it is what it is without one (see `Adapter.condition`); what the adapter changes in the transformer stays on in both
        forwards, as it does in a pipeline of diffusers that has loaded it.
        """

        def velocity(latents: Tensor, t: Tensor) -> Tensor:
            if is_within(t[0].item(), *self.times):
                return self.denoiser.velocity(latents, t, condition, guidance, unconditional)
            with self.off():
                return self.denoiser.velocity(latents, t, plain, guidance, unconditional)

        return self.denoiser.sample(plain, seeds, resolution, steps, velocity=velocity)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Evaluation mode within the body: no dropout, and no random number is taken; afterwards as before."""
        parts = [self.denoiser.transformer, *self.adapter.modules()]
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
        """Within the body the transformer is the base: under plain prompts the model is, to the bit."""
        with self.adapter.off():
            yield


def _weights(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    """Tensors in modules, mappings and sequences of an adapter, each with where it is."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, nn.Module):
        yield from ((f"{name}.{own}", weight) for own, weight in value.named_parameters())
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield from _weights(each, f"{name}.{key}")
    elif isinstance(value, list | tuple):
        for index, each in enumerate(value):
            yield from _weights(each, f"{name}[{index}]")
