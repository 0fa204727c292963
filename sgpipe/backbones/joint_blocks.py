"""Concept rows in a double-stream block with text AdaLN of its own (Helbling et al. 2025, section 4): FLUX.1 and SD3.

The projections have the names of diffusers' MM-DiT blocks: `attn.to_q/to_k/to_v/to_out` of the image, `attn.add_*_proj` and
`to_add_out` of the text.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from diffusers.models.normalization import AdaLayerNormContinuous
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from sgpipe.backbones.base import Attended


def _same(states: Tensor) -> Tensor:
    return states


@dataclass(frozen=True)
class JointBlockTap:
    """A `BlockTap` on the block's own text-side weights.

    `heads_first`: q and k come out of their norms as `[B, H, N, d]`. `arguments` and `rotate` say where the block is handed its
    conditioning vector and positions, and how image keys `[B, N, H, d]` take theirs (the concepts' own is the identity).
    """

    block: Any
    arguments: Callable[[tuple[Any, ...], Mapping[str, Any]], tuple[Tensor, Any]]
    rotate: Callable[[Tensor, Any], Tensor]
    heads_first: bool = False

    @property
    def query(self) -> nn.Module:
        """The norm of the image queries, or their projection where there is none."""
        return self.block.attn.norm_q or self.block.attn.to_q

    @property
    def key(self) -> nn.Module:
        """The norm of the image keys, or their projection."""
        return self.block.attn.norm_k or self.block.attn.to_k

    @property
    def value(self) -> nn.Module:
        """The projection of the image values, which may be one of three fused ones."""
        return self.block.attn.to_qkv if getattr(self.block.attn, "fused_projections", False) else self.block.attn.to_v

    @property
    def output(self) -> nn.Module:
        """The projection of the image rows' attention output."""
        return self.block.attn.to_out[0]

    def heads(self, made: Tensor, kind: Literal["query", "key", "value"]) -> Tensor:
        """See `BlockTap`."""
        if kind == "value" and getattr(self.block.attn, "fused_projections", False):
            made = made.chunk(3, dim=-1)[2]
        if made.ndim == 3:
            return self._split(made)
        return made.transpose(1, 2) if self.heads_first else made

    def attend(self, rows: Tensor, conditioning: Tensor, image_key: Tensor, image_value: Tensor, positions: Any) -> Attended:
        """Concept queries attend to [concept keys; image keys], never to the prompt's; scale 1/√d."""
        attn = self.block.attn
        modulation: tuple[Tensor, ...] = ()
        if isinstance(self.block.norm1_context, AdaLayerNormContinuous):  # SD3's last block has no text output
            modulated = self.block.norm1_context(rows, conditioning)
        else:
            modulated, *modulation = self.block.norm1_context(rows, emb=conditioning)
        if getattr(attn, "fused_projections", False):
            projected = attn.to_added_qkv(modulated).chunk(3, dim=-1)
        else:
            projected = attn.add_q_proj(modulated), attn.add_k_proj(modulated), attn.add_v_proj(modulated)
        query, key, value = map(self._split, projected)
        query, key = ((norm or _same)(part) for norm, part in ((attn.norm_added_q, query), (attn.norm_added_k, key)))
        keys = torch.cat([key, self.rotate(image_key, positions)], dim=1)
        values = torch.cat([value, image_value], dim=1)
        output = scaled_dot_product_attention(query.transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2))
        return Attended(output.transpose(1, 2).flatten(2), key, tuple(modulation))

    def update(self, rows: Tensor, attended: Attended) -> Tensor:
        """Rows plus gated to_add_out(O_C), then plus the gated text MLP on the modulated second norm."""
        gate, mlp_shift, mlp_scale, mlp_gate = (part[:, None] for part in attended.modulation)
        rows = rows + gate * self.block.attn.to_add_out(attended.output)
        inner = self.block.norm2_context(rows) * (1 + mlp_scale) + mlp_shift
        rows = rows + mlp_gate * self.block.ff_context(inner)
        return rows.clip(-65504, 65504) if rows.dtype == torch.float16 else rows

    def _split(self, states: Tensor) -> Tensor:
        return states.unflatten(-1, (self.block.attn.heads, -1))


@dataclass(frozen=True)
class JointTaps:
    """`Taps` of a transformer whose blocks are handed time(t) + pooled(text) as their conditioning vector."""

    transformer: Any
    blocks: tuple[JointBlockTap, ...]

    @property
    def conditioner(self) -> nn.Module:
        """The embedding of time, guidance and pooled text."""
        return self.transformer.time_text_embed

    def conditioning(self, args: tuple[Any, ...]) -> Tensor:
        """time(t) [+ guidance] + pooled(0): the MLP of a zero vector, which is not zero."""
        return self.transformer.time_text_embed.forward(*args[:-1], torch.zeros_like(args[-1]))

    def embed(self, concepts: Tensor) -> Tensor:
        """The context embedder's rows."""
        return self.transformer.context_embedder.forward(concepts)
