"""Which attention heads carry the relation into the image: attribution by gradient, confirmed by patching.

A head is its slice of the attention output of the image rows, before the output projection. With a_r and a_d its activations in
the two runs at the same z_t, and e(a) the effect of patching (`patching`), its attribution is the first-order estimate

    ⟨a_d − a_r, ∂e/∂a⟩ at a_r

of all heads at once, from one forward and one backward (attribution patching, Nanda 2023; Syed et al. 2023, 2310.10348). Those
that stand out are patched one by one; a set of heads, found on half of the triples, is patched as one on the other half.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sgpipe.backbones.block_states import resuming
from sgpipe.backbones.block_taps import BlockTap
from sgpipe.localisation.figures import Head
from sgpipe.localisation.patching import AtStep
from sgpipe.localisation.runs import Runs, sample_of

Outputs = dict[int, Tensor]
"""Of each block the image's attention output by head, `[B, N, H, d]`."""


@dataclass
class _Tapped:
    """A block's attention output in the present forward."""

    index: int
    tap: BlockTap
    patches: int
    image: slice = field(default_factory=lambda: slice(None))
    shape: tuple[int, int] = (0, 0)
    """Heads and their width."""

    def enter(self, block: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.image = self.tap.call(args, kwargs, self.patches).image

    def queries(self, module: Any, args: Any, made: Tensor) -> None:
        self.shape = tuple(self.tap.heads(made, "query").shape[-2:])  # type: ignore[assignment]

    def read(self, given: Tensor) -> Tensor:
        heads, width = self.shape
        return given[:, self.image, : heads * width].unflatten(-1, (heads, width))

    def written(self, given: Tensor, rows: Tensor) -> Tensor:
        made = given.clone()
        made[:, self.image, : rows.shape[-1] * rows.shape[-2]] = rows.flatten(-2)
        return made


@contextmanager
def _at_outputs(runs: Runs, blocks: Sequence[int], change: Any) -> Iterator[None]:
    """Within the body `change(index, rows)` sees the image's attention output `[B, N, H, d]` of these blocks; what it returns
    replaces it, unless that is None."""
    denoiser = runs.generator.denoiser
    taps, patches = denoiser.family.taps(denoiser.transformer).blocks, denoiser.layout.grid(runs.resolution) ** 2

    def output(tapped: _Tapped) -> Any:
        def hook(module: Any, args: tuple[Tensor, ...]) -> Any:
            rows = change(tapped.index, tapped.read(args[0]))
            return None if rows is None else (tapped.written(args[0], rows), *args[1:])

        return hook

    with ExitStack() as stack:
        for index in blocks:
            tapped = _Tapped(index, taps[index], patches)
            for handle in (
                tapped.tap.block.register_forward_pre_hook(tapped.enter, with_kwargs=True),
                tapped.tap.query.register_forward_hook(tapped.queries),
                tapped.tap.output.register_forward_pre_hook(output(tapped)),
            ):
                stack.callback(handle.remove)
        yield


def tapped_blocks(runs: Runs) -> list[int]:
    """Blocks whose heads can be told apart; those without a tap (FLUX.2's single-stream ones) cannot."""
    denoiser = runs.generator.denoiser
    return list(range(len(denoiser.family.taps(denoiser.transformer).blocks)))


def outputs(runs: Runs, latents: Tensor, step: int, samples: Tensor) -> Outputs:
    """Attention outputs of a forward without intervention."""
    found: Outputs = {}

    def keep(index: int, rows: Tensor) -> None:
        found[index] = rows.detach()

    with _at_outputs(runs, tapped_blocks(runs), keep):
        runs.velocity(latents, step, samples)
    return found


@dataclass(frozen=True)
class Compared:
    """The two runs of each item at g⁻'s latents: velocities, and the donor's attention outputs; recipients of the batch."""

    at: AtStep
    part: Tensor
    """Items of this batch."""
    recipient: Tensor
    donor: Tensor
    donors: Outputs

    @classmethod
    def of(cls, runs: Runs, at: AtStep) -> "Iterator[Compared]":
        """`batch_size` items at a time, g⁺ into g⁻."""
        for part in torch.arange(runs.items).split(runs.batch_size):
            recipient, donor = sample_of(runs, "negative")[part], sample_of(runs, "positive")[part]
            yield cls(at, part, recipient, donor, outputs(runs, at.latents[recipient], at.step, donor))

    @property
    def aim(self) -> tuple[Tensor, Tensor]:
        """v_r, and v_d − v_r."""
        velocity = self.at.records["negative"].velocity
        return velocity[self.recipient].float(), (velocity[self.donor] - velocity[self.recipient]).float()


def attributions(runs: Runs, at: AtStep) -> tuple[dict[Head, Tensor], Tensor]:
    """Of each head ⟨a_d − a_r, ∂⟨v, v_d − v_r⟩/∂a⟩ `[items]`, the estimate of an effect's upper sum; and its lower sum."""
    found: dict[Head, list[Tensor]] = {}
    squared = []
    for pair in Compared.of(runs, at):
        shifts: dict[int, Tensor] = {}
        held: Outputs = {}

        def watch(index: int, rows: Tensor, shifts: dict[int, Tensor] = shifts, held: Outputs = held) -> Tensor:
            held[index] = rows.detach()
            shifts[index] = torch.zeros_like(rows, requires_grad=True)
            return rows + shifts[index]

        with _at_outputs(runs, tapped_blocks(runs), watch):
            velocity = runs.velocity(at.latents[pair.recipient], at.step, pair.recipient, grad=True)
        own, aim = pair.aim
        gradients = torch.autograd.grad(((velocity.float() - own) * aim).sum(), list(shifts.values()))
        squared.append(aim.square().flatten(1).sum(1))
        for index, gradient in zip(shifts, gradients, strict=True):
            change = ((pair.donors[index] - held[index]) * gradient).float().sum(dim=(1, 3))
            for head, values in enumerate(change.unbind(1)):
                found.setdefault((index, head), []).append(values)
    return {head: torch.cat(parts) for head, parts in found.items()}, torch.cat(squared)


def patched_heads(runs: Runs, at: AtStep, sets: Mapping[str, Sequence[Head]]) -> dict[str, tuple[Tensor, Tensor]]:
    """Terms `[items]` of the two sums of an effect, for heads that are patched together, by the name of their set."""
    found: dict[str, list[tuple[Tensor, Tensor]]] = {}
    states = at.records["negative"].blocks
    for pair in Compared.of(runs, at):
        own, aim = pair.aim
        for name, heads in sets.items():
            by_block: dict[int, list[int]] = {}
            for block, head in heads:
                by_block.setdefault(block, []).append(head)

            def replace(
                index: int, rows: Tensor, by_block: dict[int, list[int]] = by_block, donors: Outputs = pair.donors
            ) -> Tensor:
                made = rows.clone()
                made[:, :, by_block[index]] = donors[index][:, :, by_block[index]]
                return made

            before = min(by_block) - 1
            around = resuming(before, states[before].take(pair.recipient)) if before >= 0 else {}
            with _at_outputs(runs, list(by_block), replace):
                velocity = runs.velocity(at.latents[pair.recipient], at.step, pair.recipient, around)
            moved = ((velocity.float() - own) * aim).flatten(1).sum(1)
            found.setdefault(name, []).append((moved, aim.square().flatten(1).sum(1)))
    return {name: tuple(torch.cat(terms) for terms in zip(*parts, strict=True)) for name, parts in found.items()}  # type: ignore[misc]
