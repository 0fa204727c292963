"""The concept stream: rides along any forward of a diffusion transformer, through hooks that only read.

A block makes the image queries, keys, values and attention outputs; the hooks hold them until the block is about to project its
outputs, and advance the concept rows there as the block would text rows (`BlockTap`). Nothing of a block outlives it but its share
of the sums.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from sgpipe.attention_maps.options import MapOptions
from sgpipe.attention_maps.scores import GroupMaps, GroupSums, cross_scores, normalise, saliency_scores
from sgpipe.backbones.block_taps import BlockCall, BlockTap, Projected
from sgpipe.backbones.families import check_variant, family_of_transformer
from sgpipe.errors import ModelError


@dataclass
class _Forward:
    """One forward of the transformer."""

    conditioning: Tensor
    rows: dict[int, Tensor]
    """Concept rows `[B, K, D]` by the block they enter: the next one, or all where gradient checkpointing will run blocks again."""
    sums: GroupSums
    keep_rows: bool
    blocks_done: int = 0
    finished: bool = False


@dataclass
class _Visit:
    """The block under way, and what it has made so far."""

    forward: _Forward
    tap: BlockTap
    call: BlockCall
    held: dict[str, Tensor] = field(default_factory=dict)
    """Image `query`, `key` (after the norm) and `value`, `[B, N, H, d]`."""


class ConceptStream:
    """Concept rows of one batch and the sums of their maps; made by `concept_stream`."""

    def __init__(self, transformer: Any, concept_embeds: Tensor, grid: tuple[int, int], options: MapOptions) -> None:
        family = family_of_transformer(transformer)
        check_variant(family, options.variant)
        self.taps = family.variant_taps(transformer, options.variant)
        if concept_embeds.ndim != 3:
            raise ValueError(f"concept_embeds: got {list(concept_embeds.shape)}; valid: [B, K, d_T5]")
        self.transformer = transformer
        self.concept_embeds = concept_embeds
        self.grid = grid
        self.options = options
        self.groups = options.resolve(self.taps.count("double"), self.taps.count("single"), self.taps.limits)
        self.forwards = 0
        """Forwards of the transformer that came to their end since the stream was opened."""
        self._scored = sorted({index for blocks in self.groups.values() for index in blocks})
        self._sums = GroupSums(self.groups)
        self._paused = False
        self._forward: _Forward | None = None
        self._forward_of = WeakTensorKeyDictionary()
        self._visit: _Visit | None = None

    def maps(self) -> dict[str, GroupMaps]:
        """The maps so far, by group. Raises `ModelError` before the first forward that counts has ended."""
        if not self._sums.forwards:
            raise ModelError(
                f"no maps yet: {self.forwards} forwards ended, and the steps that count are {self.options.steps or 'all'}"
            )
        return self._sums.means(self.grid)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Within the body forwards are not counted, make no maps and may be of any batch: those of an empty prompt, say."""
        before, self._paused = self._paused, True
        try:
            yield
        finally:
            self._paused = before

    @contextmanager
    def _hooks(self) -> Iterator[None]:
        """Install the hooks on the conditioning and on the blocks up to the last one of a group; remove them at the end."""
        with ExitStack() as stack:

            def keep(handle: Any) -> None:
                stack.callback(handle.remove)

            keep(self.taps.conditioner.register_forward_hook(self._begin))
            keep(self.transformer.register_forward_hook(self._end))
            for index, tap in enumerate(self.taps.blocks[: self._scored[-1] + 1]):
                keep(tap.block.register_forward_pre_hook(partial(self._enter_block, tap), with_kwargs=True))
                if index in self._scored:
                    keep(tap.query.register_forward_hook(partial(self._hold, "query")))
                keep(tap.key.register_forward_hook(partial(self._hold, "key")))
                keep(tap.value.register_forward_hook(partial(self._hold, "value")))
                keep(tap.output.register_forward_pre_hook(partial(self._ride, index)))
            try:
                yield
            finally:
                self._forward = self._visit = None

    def _begin(self, embedder: Any, args: tuple[Tensor, ...], temb: Tensor) -> None:
        """Start a forward: rows of the first block, and the concepts' own conditioning."""
        self._forward = None
        if self._paused or (self.options.steps is not None and self.forwards not in self.options.steps):
            return
        if len(temb) != len(self.concept_embeds):
            raise ValueError(f"concept_embeds are for {len(self.concept_embeds)} samples; the forward has {len(temb)}")
        with self._grad_mode():
            conditioning = self.taps.conditioning(args)
            rows = self.taps.embed(self.concept_embeds.to(temb))
        again = torch.is_grad_enabled() and self.transformer.gradient_checkpointing
        self._forward = _Forward(conditioning, {0: rows}, GroupSums(self.groups), keep_rows=again)
        self._forward_of[temb] = self._forward

    def _enter_block(self, tap: BlockTap, block: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Find the forward by its `temb`: a block that gradient checkpointing runs again belongs to an earlier one."""
        call = tap.call(args, kwargs, self.grid[0] * self.grid[1])
        forward = self._forward_of.get(call.conditioning)
        self._visit = None if forward is None else _Visit(forward, tap, call)

    def _hold(self, kind: Projected, module: Any, args: Any, made: Tensor) -> None:
        visit = self._visit
        if visit is not None:
            visit.held[kind] = visit.tap.heads(made, kind)[:, visit.call.image]

    def _ride(self, index: int, to_out: Any, args: tuple[Tensor, ...]) -> None:
        """Advance the concept rows in block `index`, which is about to project its attention output.

        The visit ends before concept rows go through modules: those of a single-stream block have these hooks.
        """
        visit, self._visit = self._visit, None
        if visit is None or index not in visit.forward.rows:
            return
        query, key, value = (visit.held.get(kind) for kind in ("query", "key", "value"))
        assert key is not None and value is not None
        patches = key.shape[1]
        if self.grid[0] * self.grid[1] != patches:
            raise ValueError(f"grid: got {self.grid}; valid: H × W = {patches}, the forward's image tokens")
        forward, tap, call = visit.forward, visit.tap, visit.call
        rows = forward.rows[index] if forward.keep_rows else forward.rows.pop(index)
        scores = None
        with self._grad_mode():
            attended = tap.attend(rows, forward.conditioning, key, value, call.positions)
            if query is not None:
                image_output = tap.image_output(args[0][:, call.image], query, attended, call.positions)
                saliency = saliency_scores(attended.output, image_output)
                scores = GroupMaps(normalise(saliency, self.options.normalisation), cross_scores(query, attended.key))
            if index < self._scored[-1]:
                rows = tap.update(rows, attended)
        if forward.finished:
            return  # gradient checkpointing ran the block again, for its gradients alone
        if scores is not None:
            forward.sums.add_block(index, scores)
        if index < self._scored[-1]:
            forward.rows[index + 1] = rows
        forward.blocks_done += 1

    def _end(self, transformer: Any, args: Any, output: Any) -> None:
        """Add the sums of a whole forward; one that failed half-way leaves nothing."""
        forward, self._forward = self._forward, None
        if forward is not None:
            blocks = self._scored[-1] + 1
            if forward.blocks_done != blocks:
                raise ModelError(
                    f"the concept stream rode in {forward.blocks_done} of {blocks} blocks, up to {self.taps.name(blocks - 1)}: "
                    "compiled, cached or skipped blocks and blocks on several devices do not run its hooks; make maps without these"
                )
            forward.finished = True
            self._sums.add_forward(forward.sums)
            forward.sums = GroupSums(self.groups)
        self.forwards += not self._paused

    def _grad_mode(self) -> Any:
        return torch.set_grad_enabled(torch.is_grad_enabled() and not self.options.detach)


@contextmanager
def concept_stream(transformer: Any, concept_embeds: Tensor, grid: tuple[int, int], options: MapOptions) -> Iterator[ConceptStream]:
    """Let the concepts of a batch ride along every forward of `transformer` inside the `with` block.

    The model's outputs do not change by a bit. `concept_embeds` `[B, K, d_T5]` (see `concept_embeddings`): the K concepts of each
    sample; a concept's maps depend on the whole set. `grid`: patches (H, W) of the image. The maps are differentiable where the
    forward is, unless `options.detach`; with gradient checkpointing the backward pass, too, belongs inside the `with` block.

        with concept_stream(pipeline.transformer, concept_embeds, (32, 32), options) as stream:
            images = pipeline(...).images
        saliency, cross = stream.maps()["middle"]
    """
    stream = ConceptStream(transformer, concept_embeds, grid, options)
    with stream._hooks():
        yield stream
