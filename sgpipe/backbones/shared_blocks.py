"""Concept rows in a single-stream block, whose weights text and image share: those of FLUX.1.

ConceptAttention (Helbling et al. 2025, section 4) is defined in double-stream blocks; this is its continuation. Concept rows ride
as text rows that nothing attends to. With c the concepts' conditioning, and at text's position 0, where rotation is the identity,

    C̃ = (1 + scale) · LN(C) + shift,   q, k, v = to_q C̃, to_k C̃, to_v C̃,   q and k through norm_q and norm_k
    O_C = softmax(q · [k; image keys]ᵀ / √d) · [v; image values]
    C ← C + gate · proj_out [O_C; GELU(proj_mlp C̃)]

with shift, scale and gate of the block's own modulation of c. Attention and MLP are parallel here (Dehghani et al. 2023).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sgpipe.backbones.block_taps import Attended, BlockCall, Projected, Streams, concept_attention


@dataclass(frozen=True)
class SharedBlockTap:
    """A `BlockTap` of diffusers' `FluxSingleTransformerBlock`.

    The names are `norm`, `attn.to_q/to_k/to_v`, `attn.norm_q/norm_k`, `proj_mlp`, and `proj_out` on [attention; MLP].
    """

    block: Any
    arguments: Callable[[tuple[Any, ...], Mapping[str, Any]], BlockCall]
    """Of a call of the block; its rows are a joint sequence, so that `image` is a part of it."""
    rotate: Callable[[Tensor, Any], Tensor]
    """Image keys `[B, N, H, d]` at their positions; those of concepts stay as they are."""
    stream: ClassVar[Streams] = "single"

    @property
    def query(self) -> nn.Module:
        return self.block.attn.norm_q

    @property
    def key(self) -> nn.Module:
        return self.block.attn.norm_k

    @property
    def value(self) -> nn.Module:
        return self.block.attn.to_qkv if self.block.attn.fused_projections else self.block.attn.to_v

    @property
    def output(self) -> nn.Module:
        return self.block.proj_out

    def call(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], patches: int) -> BlockCall:
        return self.arguments(args, kwargs)

    def heads(self, made: Tensor, kind: Projected) -> Tensor:
        """See `BlockTap`; rows are text and image."""
        if kind != "value":
            return made
        return self._split(made.chunk(3, dim=-1)[2] if self.block.attn.fused_projections else made)

    def attend(self, rows: Tensor, conditioning: Tensor, image_key: Tensor, image_value: Tensor, positions: Any) -> Attended:
        attn = self.block.attn
        modulated, gate = self.block.norm(rows, emb=conditioning)
        if attn.fused_projections:
            projected = attn.to_qkv(modulated).chunk(3, dim=-1)
        else:
            projected = attn.to_q(modulated), attn.to_k(modulated), attn.to_v(modulated)
        query, key, value = map(self._split, projected)
        attended = concept_attention(attn.norm_q(query), attn.norm_k(key), value, self.rotate(image_key, positions), image_value)
        return attended._replace(carried=(gate, modulated))

    def image_output(self, given: Tensor, query: Tensor, attended: Attended, positions: Any) -> Tensor:
        """The model's own: the first D columns; those after them are the MLP's."""
        return given[..., : self.block.attn.inner_dim]

    def update(self, rows: Tensor, attended: Attended) -> Tensor:
        """See `BlockTap`: plus the gated projection of [O_C; MLP of the modulated rows]."""
        gate, modulated = attended.carried
        inner = self.block.act_mlp(self.block.proj_mlp(modulated))
        rows = rows + gate[:, None] * self.block.proj_out(torch.cat([attended.output, inner], dim=2))
        return rows.clip(-65504, 65504) if rows.dtype == torch.float16 else rows

    def _split(self, states: Tensor) -> Tensor:
        return states.unflatten(-1, (-1, self.block.attn.head_dim))
