"""A forward block by block: graph tokens join the text at any block, and what is equal for several conditions is computed once.

The blocks before the one at which tokens enter see z_t, t and the prompt alone, so that their rows are the same for every graph
(and, as long as nothing is adapted there, for the base). Cost: a forward of k conditions of one sample takes ℓ blocks once and the
others k times.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from sgpipe.backbones.base import TextCondition


@dataclass(frozen=True)
class Rows:
    """What stands before a block: image rows `[B, N, D]`, text rows `[B, T, D]`, and the vector `[B, D]` of t and pooled text."""

    image: Tensor
    text: Tensor
    vector: Tensor
    grid: tuple[int, int]
    """Height and width of the latents."""
    block: int = 0
    """The block that comes next, of all in the order in which they run."""

    def taken(self, samples: Tensor) -> "Rows":
        """Of these samples `[n]` of the batch, each as often as it is named."""
        image, text, vector = (part[samples.to(part.device)] for part in (self.image, self.text, self.vector))
        return replace(self, image=image, text=text, vector=vector)


class BlockForward(ABC):
    """The parts of a transformer's forward, each in the operations of diffusers' own."""

    def __init__(self, transformer: Any) -> None:
        self.transformer = transformer

    @property
    @abstractmethod
    def blocks(self) -> list[Any]:
        """All of them, in the order in which they run."""

    @abstractmethod
    def embedded(self, latents: Tensor, t: Tensor, prompt: "TextCondition", guidance: float | None) -> Rows:
        """Rows before the first block, of a condition without rows before the prompt's."""

    @abstractmethod
    def arguments(self, rows: Rows, condition: "TextCondition") -> tuple[Any, ...]:
        """What every block is handed beside image and text, for text rows that are those of `condition`."""

    @abstractmethod
    def velocity(self, rows: Rows) -> Tensor:
        """v `[B, C, h, w]` of the rows after the last block."""

    def run(self, rows: Rows, condition: "TextCondition", stop: int) -> Rows:
        """Rows before block `stop`, of those before an earlier one."""
        image, text, more = rows.image, rows.text, self.arguments(rows, condition)
        again = torch.is_grad_enabled() and self.transformer.gradient_checkpointing
        for block in self.blocks[rows.block : stop]:
            given = (image, text, *more)
            text, image = self.transformer._gradient_checkpointing_func(block, *given) if again else block(*given)
        return replace(rows, image=image, text=text, block=stop)

    def prefix(self, latents: Tensor, t: Tensor, condition: "TextCondition", guidance: float | None, stop: int) -> Rows:
        """Rows before block `stop`, which nothing has entered that comes later than the first block.

        Of kB conditions of B latents, whose prompts are the same k times over, the first B are taken.
        """
        prompt = condition.prompt.first(len(latents))
        return self.run(self.embedded(latents, t, prompt, guidance), prompt, stop)

    def finished(self, rows: Rows, condition: "TextCondition", of: Tensor | None = None) -> Tensor:
        """v `[n, C, h, w]` of B prefixes under n conditions.

        Condition i is one of the prefix `of[i]`, whose prompt it has; by default of i modulo B. Raises `ValueError` for rows that
        would have entered within the prefix.
        """
        if condition.before is not None and condition.enter < rows.block:
            raise ValueError(f"rows that enter at block {condition.enter} cannot join a prefix of {rows.block} blocks")
        count = len(condition.states)
        if of is None:
            rows = self.run(rows, condition.prompt.first(len(rows.text)), max(condition.enter, rows.block))
            of = torch.arange(count) % len(rows.text)
        if count != len(rows.text) or not torch.equal(of, torch.arange(count)):
            rows = rows.taken(of)
        rows = self.run(rows, condition.prompt, max(condition.enter, rows.block))
        if condition.before is not None:
            graph = self.transformer.context_embedder(condition.states[:, : condition.prepended])
            rows = replace(rows, text=torch.cat([graph, rows.text], dim=1))
        return self.velocity(self.run(rows, condition, len(self.blocks)))
