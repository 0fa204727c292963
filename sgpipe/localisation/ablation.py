"""Ablation of blocks: what a sample loses without them.

Samples of g⁺ are taken with a block, or all blocks of a group, changed in every forward:

- `skip`: the block's rows go on as they came.
- `text`: the image rows are updated as if the block's text were zero; its text rows go on as they would have. So that no other
  block is touched (compare "zeroing the text" in *Unraveling MMDiT*, 2601.02211, where it hurts more than leaving out the block).
- `graph`: the same of the graph tokens alone.
- `mean`: what the block adds to each row is replaced by its mean over the samples of g⁺ and g⁻ of the shard at this step.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sgpipe.backbones.block_states import Around, Block, BlockRows
from sgpipe.localisation.config import Ablated
from sgpipe.localisation.runs import Runs, sample_of

Means = Mapping[int, BlockRows]
"""Of each block the mean of what it adds, `[1, rows, D]`."""


def _skipped(block: Block, rows: BlockRows) -> BlockRows:
    return rows


def without_text(zeroed: Tensor) -> Around:
    """The image is updated without the text rows that are true in `zeroed` `[B, T]`; those past its end are, too, if all are."""

    def around(block: Block, rows: BlockRows) -> BlockRows:
        made = block(rows)
        if rows.text is None:
            return made
        gone = zeroed.new_full(rows.text.shape[:2], bool(zeroed.all()))
        gone[:, : zeroed.shape[1]] = zeroed[:, : gone.shape[1]]
        text = rows.text.masked_fill(gone.to(rows.text.device)[..., None], 0)
        return BlockRows(block(BlockRows(rows.image, text)).image, made.text)

    return around


def adding(mean: BlockRows) -> Around:
    """The block adds `mean` to every sample's rows."""

    def around(block: Block, rows: BlockRows) -> BlockRows:
        text = None if rows.text is None or mean.text is None else rows.text + mean.text
        return BlockRows(rows.image + mean.image, text)

    return around


def means(runs: Runs, latents: Tensor, step: int, samples: Tensor) -> Means:
    """What each block adds at a step to the rows of these samples, on average."""
    totals: dict[int, list[Tensor]] = {}

    def summing(index: int) -> Around:
        def around(block: Block, rows: BlockRows) -> BlockRows:
            made = block(rows)
            added = [(b - a).sum(0, keepdim=True) for a, b in zip(rows, made, strict=True) if a is not None and b is not None]
            held = totals.get(index, [torch.zeros_like(each) for each in added])
            totals[index] = [a + b for a, b in zip(held, added, strict=True)]
            return made

        return around

    for part in torch.arange(len(samples)).split(runs.batch_size):
        runs.velocity(latents[part], step, samples[part], {index: summing(index) for index in range(runs.count)})
    return {
        index: BlockRows(sums[0] / len(samples), sums[1] / len(samples) if len(sums) > 1 else None)
        for index, sums in totals.items()
    }


def graph_rows(runs: Runs, samples: Tensor) -> Tensor:
    """Whether a text row of a block is a graph token, `[B, T]`."""
    places = runs.conditions.places("graph")
    found = torch.zeros(len(samples), runs.text_places.shape[1], dtype=torch.bool)
    for row, sample in enumerate(samples.tolist()):
        found[row, runs.text_places[sample, places[sample]]] = True
    return found


def ablated_samples(runs: Runs, blocks: Sequence[int], kind: Ablated, step_means: Sequence[Means]) -> Tensor:
    """Latents `[items, C, h, w]` of samples of g⁺ without these blocks; `step_means` are `means` at each step, of kind `mean`."""
    ends = []
    for part in sample_of(runs, "positive").split(runs.batch_size):
        latents = runs.start(part)
        for step in range(runs.steps):
            around: dict[int, Around]
            if kind == "skip":
                around = dict.fromkeys(blocks, _skipped)
            elif kind == "mean":
                around = {block: adding(step_means[step][block]) for block in blocks}
            elif kind == "text":
                around = dict.fromkeys(blocks, without_text(torch.ones(len(part), 1, dtype=torch.bool)))
            else:  # where an adapter does not work there are no graph tokens
                around = dict.fromkeys(blocks, without_text(graph_rows(runs, part))) if step in runs.active else {}
            latents = runs.next(latents, runs.velocity(latents, step, part, around), step)
        ends.append(latents)
    return torch.cat(ends)
