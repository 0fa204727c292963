"""The concept stream: rides along any forward of a FLUX transformer, through hooks that only read.

A double block makes the image queries, keys, values and attention outputs; the hooks hold them until the block is about to project
its outputs, and advance the concept rows there. Nothing of a block outlives it but its share of the sums.

The concept rows in one double-stream block of FLUX (Helbling et al. 2025, section 4), on the block's own text-side weights.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from diffusers import FluxTransformer2DModel
from diffusers.models.embeddings import apply_rotary_emb
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.weak import WeakTensorKeyDictionary

from sgpipe.attention_maps.options import MapOptions
from sgpipe.attention_maps.scores import GroupMaps, GroupSums, cross_scores, normalise, saliency_scores
from sgpipe.errors import ModelError

Rotary = tuple[Tensor, Tensor]
"""Cosines and sines `[T + N, d]` of the positions of text and image rows."""


class Attended(NamedTuple):
    """What the attention of one block yields for the concept rows."""

    output: Tensor
    """O_C `[B, K, D]`, heads concatenated, before to_add_out."""
    key: Tensor
    """`[B, K, H, d]` after the norm; concepts stand at position 0, where RoPE is the identity."""
    modulation: tuple[Tensor, ...]
    """Gate of the attention, shift, scale and gate of the MLP, `[B, D]` each."""


def attend(
    block: Any, rows: Tensor, conditioning: Tensor, image_key: Tensor, image_value: Tensor, rotary: Rotary
) -> Attended:
    """Concept queries attend to [concept keys; image keys], never to the prompt's.

    Concept rows `[B, K, D]` are modulated by `conditioning` `[B, D]` through the text AdaLN. Image keys and values `[B, N, H, d]`
    are the model's own, the keys after the norm and before RoPE.
    """
    attn = block.attn
    modulated, *modulation = block.norm1_context(rows, emb=conditioning)
    if attn.fused_projections:
        projected = attn.to_added_qkv(modulated).chunk(3, dim=-1)
    else:
        projected = attn.add_q_proj(modulated), attn.add_k_proj(modulated), attn.add_v_proj(modulated)
    query, key, value = (part.unflatten(-1, (-1, attn.head_dim)) for part in projected)
    query, key = attn.norm_added_q(query), attn.norm_added_k(key)

    image_rotary = tuple(part[-image_key.shape[1] :] for part in rotary)
    keys = torch.cat([key, apply_rotary_emb(image_key, image_rotary, sequence_dim=1)], dim=1)
    values = torch.cat([value, image_value], dim=1)
    output = scaled_dot_product_attention(query.transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2))
    return Attended(output.transpose(1, 2).flatten(2), key, tuple(modulation))


def update(block: Any, rows: Tensor, attended: Attended) -> Tensor:
    """Concept rows `[B, K, D]` after the block: gated to_add_out(O_C), then the gated text MLP on the modulated second norm."""
    gate, mlp_shift, mlp_scale, mlp_gate = (part[:, None] for part in attended.modulation)
    rows = rows + gate * block.attn.to_add_out(attended.output)
    rows = rows + mlp_gate * block.ff_context(block.norm2_context(rows) * (1 + mlp_scale) + mlp_shift)
    return rows.clip(-65504, 65504) if rows.dtype == torch.float16 else rows


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
    """What the block under way has made so far: image q, k `[B, N, H, d]` after the norm, v `[B, N, D]` ([q, k, v] if fused)."""

    forward: _Forward
    rotary: Rotary
    query: Tensor | None = None
    key: Tensor | None = None
    value: Tensor | None = None


class ConceptStream:
    """Concept rows of one batch and the sums of their maps; made by `concept_stream`."""

    def __init__(
        self,
        transformer: FluxTransformer2DModel,
        concept_embeds: Tensor,
        grid: tuple[int, int],
        options: MapOptions,
    ) -> None:
        if not isinstance(transformer, FluxTransformer2DModel):
            raise ModelError(
                f"concept maps are made in a FluxTransformer2DModel; got {type(transformer).__name__}: unwrap it "
                "(peft: get_base_model(), accelerate: unwrap_model())"
            )
        if concept_embeds.ndim != 3:
            raise ValueError(f"concept_embeds: got {list(concept_embeds.shape)}; valid: [B, K, d_T5]")
        self.transformer = transformer
        self.concept_embeds = concept_embeds
        self.grid = grid
        self.options = options
        self.groups = options.resolve(len(transformer.transformer_blocks))
        self.forwards = 0
        """Forwards of the transformer that came to their end since the stream was opened."""
        self._scored = sorted({index for blocks in self.groups.values() for index in blocks})
        self._sums = GroupSums(self.groups)
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
    def _hooks(self) -> Iterator[None]:
        """Install the hooks on the conditioning and on the blocks up to the last one of a group; remove them at the end."""
        with ExitStack() as stack:

            def keep(handle: Any) -> None:
                stack.callback(handle.remove)

            keep(self.transformer.time_text_embed.register_forward_hook(self._begin))
            keep(self.transformer.register_forward_hook(self._end))
            for index in range(self._scored[-1] + 1):
                block = self.transformer.transformer_blocks[index]
                attn = block.attn
                keep(block.register_forward_pre_hook(self._enter_block, with_kwargs=True))
                if index in self._scored:
                    keep(attn.norm_q.register_forward_hook(self._hold_query))
                keep(attn.norm_k.register_forward_hook(self._hold_key))
                project = attn.to_qkv if attn.fused_projections else attn.to_v
                keep(project.register_forward_hook(self._hold_value))
                keep(attn.to_out[0].register_forward_pre_hook(partial(self._ride, index)))
            try:
                yield
            finally:
                self._forward = self._visit = None

    def _begin(self, embedder: Any, args: tuple[Tensor, ...], temb: Tensor) -> None:
        """Start a forward: rows from the context embedder; conditioning time(t) [+ guidance] + pooled(0).

        `.forward` leaves out the hooks on the two embedders, which are meant for the prompt (this one too).
        """
        self._forward = None
        if self.options.steps is not None and self.forwards not in self.options.steps:
            return
        if len(temb) != len(self.concept_embeds):
            raise ValueError(
                f"concept_embeds are for {len(self.concept_embeds)} samples; the forward has {len(temb)}"
            )
        with self._grad_mode():
            conditioning = embedder.forward(*args[:-1], torch.zeros_like(args[-1]))
            rows = self.transformer.context_embedder.forward(self.concept_embeds.to(temb))
        again = torch.is_grad_enabled() and self.transformer.gradient_checkpointing
        self._forward = _Forward(conditioning, {0: rows}, GroupSums(self.groups), keep_rows=again)
        self._forward_of[temb] = self._forward

    def _enter_block(self, block: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Find the forward by its `temb`: a block that gradient checkpointing runs again belongs to an earlier one."""
        temb, rotary = args[2:4] if args else (kwargs["temb"], kwargs["image_rotary_emb"])
        forward = self._forward_of.get(temb)
        self._visit = None if forward is None else _Visit(forward, rotary)

    def _hold_query(self, module: Any, args: Any, query: Tensor) -> None:
        if self._visit is not None:
            self._visit.query = query

    def _hold_key(self, module: Any, args: Any, key: Tensor) -> None:
        if self._visit is not None:
            self._visit.key = key

    def _hold_value(self, module: Any, args: Any, value: Tensor) -> None:
        if self._visit is not None:
            self._visit.value = value

    def _ride(self, index: int, to_out: Any, args: tuple[Tensor, ...]) -> None:
        """Advance the concept rows in block `index`, which is about to project the image's attention output O_X `[B, N, D]`."""
        visit, self._visit = self._visit, None
        if visit is None or index not in visit.forward.rows:
            return
        assert visit.key is not None and visit.value is not None
        patches = visit.key.shape[1]
        if self.grid[0] * self.grid[1] != patches:
            raise ValueError(f"grid: got {self.grid}; valid: H × W = {patches}, the forward's image tokens")
        forward, block = visit.forward, self.transformer.transformer_blocks[index]
        rows = forward.rows[index] if forward.keep_rows else forward.rows.pop(index)
        scores = None
        with self._grad_mode():
            value = visit.value.chunk(3, dim=-1)[2] if block.attn.fused_projections else visit.value
            value = value.unflatten(-1, visit.key.shape[2:])
            attended = attend(block, rows, forward.conditioning, visit.key, value, visit.rotary)
            if visit.query is not None:
                saliency = saliency_scores(attended.output, args[0])
                scores = (
                    normalise(saliency, self.options.normalisation),
                    cross_scores(visit.query, attended.key),
                )
            if index < self._scored[-1]:
                rows = update(block, rows, attended)
        if forward.finished:
            return  # gradient checkpointing ran the block again, for its gradients alone
        if scores is not None:
            forward.sums.add_block(index, *scores)
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
                    f"the concept stream rode in {forward.blocks_done} of {blocks} blocks: compiled, cached or skipped blocks and "
                    "blocks on several devices do not run its hooks; make maps without these"
                )
            forward.finished = True
            self._sums.add_forward(forward.sums)
            forward.sums = GroupSums(self.groups)
        self.forwards += 1

    def _grad_mode(self) -> Any:
        return torch.set_grad_enabled(torch.is_grad_enabled() and not self.options.detach)


@contextmanager
def concept_stream(
    transformer: FluxTransformer2DModel,
    concept_embeds: Tensor,
    grid: tuple[int, int],
    options: MapOptions,
) -> Iterator[ConceptStream]:
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
