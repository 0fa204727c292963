"""Activation patching (Vig et al. 2020; Meng et al. 2022): rows that a block hands on in one run are put into another.

Two runs of an item start from the same noise. In a forward of the recipient at z_t a block's rows are replaced by those of the
donor *at the same z_t*; so all that is copied is what the donor is told, and not where its sample has got to. With v_r and v_d the
velocities of the two runs and v_p the patched one,

    effect = Σ ⟨v_p − v_r, v_d − v_r⟩ / Σ ‖v_d − v_r‖²      (0: nothing, 1: the donor's velocity)

with sums over the items. A sample is patched at every step at which the runs are told different things, and judged: does its
direction follow the donor? Contrasts: `denoising` puts g⁺ into g⁻, `noising` g⁻ into g⁺; `control` puts the g⁺ of another triple
of the same relation into g⁻, and is measured against the item's own two runs; `null` is the recipient's own rows, and must be 0.

Cost: at a step the blocks up to the patched one run once for all rows and contrasts, those after it for each of them. Samples
need one and a half forwards more for each further patched step.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

import torch
from torch import Tensor

from sgpipe.backbones.block_states import Block, BlockRows, resuming
from sgpipe.localisation.config import Contrast, Rows
from sgpipe.localisation.pairs import RUNS
from sgpipe.localisation.runs import Recorded, Runs, sample_of

Kind = Contrast | Literal["null"]
PATCHED: Final[Mapping[Kind, tuple[str, str]]] = {
    "denoising": ("negative", "positive"),
    "noising": ("positive", "negative"),
    "control": ("negative", "other"),
    "null": ("negative", "negative"),
}
"""Recipient and donor of each contrast."""


class Place(NamedTuple):
    """What is patched: a contrast, and which rows."""

    contrast: Kind
    rows: tuple[Rows, ...]


@dataclass(frozen=True)
class Chosen:
    """Rows of a batch that are replaced: the image's, and text rows by their place in a block."""

    image: Tensor
    """`[B]`, bool."""
    all_text: Tensor
    """`[B]`, bool: every text row of a block, padding too."""
    pooled: Tensor
    """`[B]`, bool: no rows, but the pooled vector."""
    text: list[tuple[Tensor, Tensor]]
    """Of each sample the places of the recipient's rows, and of the donor's that replace them."""

    def patched(self, rows: BlockRows, donor: BlockRows) -> BlockRows:
        """`rows` with those of `donor` in place of the chosen ones; the others keep their bits."""
        image = torch.where(self.image.to(rows.image.device)[:, None, None], donor.image, rows.image)
        if rows.text is None or donor.text is None:
            return BlockRows(image, rows.text)
        text = torch.where(self.all_text.to(image.device)[:, None, None], donor.text, rows.text)
        for sample, (into, source) in enumerate(self.text):
            text[sample, into] = donor.text[sample, source]
        return BlockRows(image, text)


def chosen(runs: Runs, kinds: Sequence[tuple[Rows, ...]], recipients: Tensor, donors: Tensor) -> Chosen:
    """What is replaced in samples `recipients` `[B]` by `donors` `[B]`, for the rows `kinds[i]` of sample i.

    Raises `ParamsError` for rows that a run does not have. Words of unequal length are replaced as far as both go.
    """
    places = {kind: runs.conditions.places(kind) for several in set(kinds) for kind in several}
    image = torch.tensor(["image" in several for several in kinds])
    whole = torch.tensor(["text" in several for several in kinds])
    pooled = torch.tensor(["pooled" in several for several in kinds])
    text = []
    for several, into, source in zip(kinds, recipients.tolist(), donors.tolist(), strict=True):
        pairs = [pair for kind in several if kind != "text" for pair in zip(places[kind][into], places[kind][source], strict=False)]
        rows = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2)
        text.append((runs.text_places[into][rows[:, 0]], runs.text_places[source][rows[:, 1]]))
    return Chosen(image, whole, pooled, text)


class Effects(NamedTuple):
    """Of one block, one step and the places that were patched: terms `[places, items]` of the effect's two sums."""

    projected: Tensor
    """⟨v_p − v_r, v_d − v_r⟩."""
    squared: Tensor
    """‖v_d − v_r‖²."""


@dataclass(frozen=True)
class Batch:
    """The places times the items, flat: the items of the first place come first."""

    runs: Runs
    places: Sequence[Place]
    recipients: Tensor
    donors: Tensor
    items: Tensor

    @classmethod
    def of(cls, runs: Runs, places: Sequence[Place]) -> "Batch":
        def samples(end: int) -> Tensor:
            return torch.cat([sample_of(runs, PATCHED[place.contrast][end]) for place in places])

        return cls(runs, places, samples(0), samples(1), torch.arange(runs.items).repeat(len(places)))

    def parts(self) -> Iterator[tuple[Tensor, Chosen]]:
        """Places in the batch, at most `batch_size` at a time, and what is replaced there."""
        for part in torch.arange(len(self.items)).split(self.runs.batch_size):
            kinds = [self.places[each // self.runs.items].rows for each in part.tolist()]
            yield part, chosen(self.runs, kinds, self.recipients[part], self.donors[part])


class _Enough(Exception):
    """A forward is of no more use."""


def states_after(runs: Runs, block: int, latents: Tensor, step: int, samples: Tensor) -> BlockRows:
    """What a block hands on in a forward without intervention; those after it do not run."""
    held: list[BlockRows] = []

    def stop(run: Block, rows: BlockRows) -> BlockRows:
        held.append(run(rows))
        raise _Enough

    with suppress(_Enough):
        runs.velocity(latents, step, samples, {block: stop})
    return held[0]


class AtStep(NamedTuple):
    """The unpatched runs at one step: latents of every run's samples `[R·P, C, h, w]`, and of each recipient the records of all
    runs at its own latents; none where nothing tells the runs apart."""

    step: int
    latents: Tensor
    records: dict[str, Recorded]


def walk(runs: Runs, recipients: Sequence[str]) -> Iterator[AtStep]:
    """Sample every run, step by step, then give what they end at, as step `steps`."""
    every = torch.arange(len(RUNS) * runs.items)
    latents = runs.start(every)
    for step in range(runs.steps):
        records: dict[str, Recorded] = {}
        for recipient in recipients if step in runs.active else ():
            if records and step == runs.active[0]:  # all runs are where the noise has led them
                records[recipient] = next(iter(records.values()))
            else:
                own = latents[sample_of(runs, recipient)].repeat(len(RUNS), 1, 1, 1)
                records[recipient] = runs.record(own, step, every)
        yield AtStep(step, latents, records)
        velocity = torch.cat([runs.velocity(latents[part], step, part) for part in every.split(runs.batch_size)])
        latents = runs.next(latents, velocity, step)
    yield AtStep(runs.steps, latents, {})


def effects(runs: Runs, at: AtStep, block: int, places: Sequence[Place]) -> tuple[Effects, Tensor]:
    """Effects of patching a block at one step of the recipients' ways, and the patched velocities `[places · items, C, h, w]`."""
    batch = Batch.of(runs, places)
    velocities, projected, squared = [], [], []
    for part, choice in batch.parts():
        into = batch.recipients[part]
        names = [PATCHED[batch.places[each // runs.items].contrast][0] for each in part.tolist()]
        records = [at.records[name] for name in names]
        goals = torch.cat([sample_of(runs, "positive" if name == "negative" else "negative")[:1] for name in names])
        states = [record.blocks[block] for record in records]
        rows = choice.patched(_gather(states, into), _gather(states, batch.donors[part]))
        pooled_of = torch.where(choice.pooled, batch.donors[part], into)
        made = runs.velocity(at.latents[into], at.step, into, resuming(block, rows), pooled_of)
        own, goal = (
            torch.stack([record.velocity[each] for record, each in zip(records, samples.tolist(), strict=True)])
            for samples in (into, goals + batch.items[part])
        )
        aim, moved = (goal - own).float().flatten(1), (made - own).float().flatten(1)
        velocities.append(made)
        projected.append((moved * aim).sum(1))
        squared.append(aim.square().sum(1))
    shape = len(places), runs.items
    return Effects(torch.cat(projected).reshape(shape), torch.cat(squared).reshape(shape)), torch.cat(velocities)


def _gather(states: Sequence[BlockRows], samples: Tensor) -> BlockRows:
    """Sample i of `states[i]`."""
    images = torch.stack([rows.image[each] for rows, each in zip(states, samples.tolist(), strict=True)])
    texts = [rows.text[each] for rows, each in zip(states, samples.tolist(), strict=True) if rows.text is not None]
    return BlockRows(images, torch.stack(texts) if texts else None)


def patched_samples(
    runs: Runs, start: Tensor, block: int, places: Sequence[Place], first: Tensor, tick: Callable[[int], object] = lambda n: None
) -> Tensor:
    """Latents `[places · items, C, h, w]` of samples whose block is patched at every active step.

    `start` are the latents of every run's samples at the first active step, `first` the patched velocities there, as `effects`
    made them.
    """
    batch, ends = Batch.of(runs, places), []
    for part, choice in batch.parts():
        into, source = batch.recipients[part], batch.donors[part]
        latents = runs.next(start[into], first[part], runs.active[0])
        for step in range(runs.active[0] + 1, runs.steps):
            if step in runs.active:
                own, donor = (states_after(runs, block, latents, step, samples) for samples in (into, source))
                patched = resuming(block, choice.patched(own, donor))
                velocity = runs.velocity(latents, step, into, patched, torch.where(choice.pooled, source, into))
            else:
                velocity = runs.velocity(latents, step, into)
            latents = runs.next(latents, velocity, step)
        ends.append(latents)
        tick(len(part))
    return torch.cat(ends)
