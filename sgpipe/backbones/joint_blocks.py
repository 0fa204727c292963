"""Concept rows in a double-stream block with text AdaLN (Helbling et al. 2025, section 4): its own in FLUX.1, SD3 and Qwen-Image.

The projections have the names of diffusers' MM-DiT blocks: `attn.to_q/to_k/to_v/to_out` of the image, `attn.add_*_proj` and
`to_add_out` of the text.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sgpipe.backbones.block_taps import Attended, BlockCall, BlockTap, Projected, Streams, concept_attention


@dataclass(frozen=True)
class JointBlockTap:
    """A `BlockTap` of an MM-DiT block: concept rows go through its text side.

    `query`, `key` and `value` are the modules whose outputs `heads` turns into `[B, N, H, d]` of image rows (q and k after the
    norm, where there is one, and before any rotary embedding); the first input of `output` is the image rows' attention output
    `[B, N, D]`.
    """

    block: Any
    arguments: Callable[[tuple[Any, ...], Mapping[str, Any]], tuple[Tensor, Any]]
    """Of a call of the block: its conditioning vector, and the positions of its rows (None without rotary embedding)."""
    rotate: Callable[[Tensor, Any], Tensor]
    """Image keys `[B, N, H, d]` at their positions."""
    heads_first: bool = False
    """q and k come out of their norms as `[B, H, N, d]`."""
    stream: ClassVar[Streams] = "double"

    @property
    def query(self) -> nn.Module:
        return self.block.attn.norm_q or self.block.attn.to_q

    @property
    def key(self) -> nn.Module:
        return self.block.attn.norm_k or self.block.attn.to_k

    @property
    def value(self) -> nn.Module:
        return self.block.attn.to_qkv if self._fused else self.block.attn.to_v

    @property
    def output(self) -> nn.Module:
        return self.block.attn.to_out[0]

    @property
    def text_mlp(self) -> tuple[nn.Module, nn.Module]:
        """The second norm and the MLP of text rows."""
        return self.block.norm2_context, self.block.ff_context

    def place(self, rows: Tensor, positions: Any) -> Tensor:
        """Queries or keys of concepts `[B, K, H, d]` at the position of text; here that is 0, where rotation is the identity."""
        return rows

    @property
    def _fused(self) -> bool:
        return getattr(self.block.attn, "fused_projections", False)

    def call(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], patches: int) -> BlockCall:
        return BlockCall(*self.arguments(args, kwargs))

    def heads(self, made: Tensor, kind: Projected) -> Tensor:
        if kind == "value" and self._fused:
            made = made.chunk(3, dim=-1)[2]
        if made.ndim == 3:
            return self._split(made)
        return made.transpose(1, 2) if self.heads_first else made

    def modulated(self, rows: Tensor, conditioning: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Concept rows `[B, K, D]` as the text projections take them, and `Attended.modulation`."""
        if getattr(self.block, "context_pre_only", False):  # SD3's last block has no text output
            return self.block.norm1_context(rows, conditioning), ()
        made, *modulation = self.block.norm1_context(rows, emb=conditioning)
        return made, tuple(modulation)

    def attend(self, rows: Tensor, conditioning: Tensor, image_key: Tensor, image_value: Tensor, positions: Any) -> Attended:
        """See `BlockTap`; `conditioning` is `[B, D]`."""
        attn = self.block.attn
        modulated, modulation = self.modulated(rows, conditioning)
        if self._fused:
            projected = attn.to_added_qkv(modulated).chunk(3, dim=-1)
        else:
            projected = attn.add_q_proj(modulated), attn.add_k_proj(modulated), attn.add_v_proj(modulated)
        query, key, value = map(self._split, projected)
        query = attn.norm_added_q(query) if attn.norm_added_q else query
        key = attn.norm_added_k(key) if attn.norm_added_k else key
        image_key = self.rotate(image_key, positions)
        attended = concept_attention(self.place(query, positions), self.place(key, positions), value, image_key, image_value)
        return attended._replace(key=key, carried=modulation)

    def image_output(self, given: Tensor, query: Tensor, attended: Attended, positions: Any) -> Tensor:
        """The model's own."""
        return given

    def update(self, rows: Tensor, attended: Attended) -> Tensor:
        """See `BlockTap`: plus gated to_add_out(O_C), then plus the gated text MLP on the modulated second norm."""
        gate, mlp_shift, mlp_scale, mlp_gate = (part[:, None] for part in attended.carried)
        rows = rows + gate * self.block.attn.to_add_out(attended.output)
        norm, mlp = self.text_mlp
        inner = norm(rows) * (1 + mlp_scale) + mlp_shift
        rows = rows + mlp_gate * mlp(inner)
        return rows.clip(-65504, 65504) if rows.dtype == torch.float16 else rows

    def _split(self, states: Tensor) -> Tensor:
        return states.unflatten(-1, (self.block.attn.heads, -1))


@dataclass(frozen=True)
class JointTaps:
    """A transformer as the concept stream sees it; its blocks are handed time(t) + pooled(text) as their conditioning vector."""

    transformer: Any
    blocks: tuple[BlockTap, ...]
    """In the order in which concept rows go through them: double-stream blocks, then single-stream ones."""
    limits: str = ""
    """What has no maps here and why, for the message about blocks that are out of range."""

    def count(self, stream: Streams) -> int:
        """How many blocks of a stream there are."""
        return sum(tap.stream == stream for tap in self.blocks)

    def name(self, index: int) -> str:
        """Block `index` in words, numbered within its stream."""
        stream = self.blocks[index].stream
        return f"{stream}-stream block {sum(tap.stream == stream for tap in self.blocks[:index])}"

    @property
    def conditioner(self) -> nn.Module:
        """The module whose output is the conditioning vector: the embedding of time, guidance and pooled text."""
        return self.transformer.time_text_embed

    def conditioning(self, args: tuple[Any, ...]) -> Tensor:
        """The concepts' `[B, D]` for a call of `conditioner`: time(t) [+ guidance] + the MLP of a zero vector, which is not zero.

        Runs no hook, as `embed`.
        """
        return self.transformer.time_text_embed.forward(*args[:-1], torch.zeros_like(args[-1]))

    def embed(self, concepts: Tensor) -> Tensor:
        """Concept vectors `[B, K, text width]` as rows `[B, K, D]` of the first block."""
        return self.transformer.context_embedder.forward(concepts)
