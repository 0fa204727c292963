"""Concept rows in a single-stream block of gated attention, whose weights text and image share: those of Krea 2.

Concept rows ride as text rows that nothing attends to (Helbling et al. 2025, section 4, continued as in `shared_blocks`). With m
the modulation that all blocks share plus the block's own table, RMS(x) = x / rms(x) · (1 + weight), and text at position 0, where
rotation is the identity,

    C̃ = (1 + m₀) · RMS(C) + m₁,   q, k, v = to_q C̃, to_k C̃, to_v C̃,   q and k through RMS of each head
    O_C = σ(to_gate C̃) · softmax(q · [k; image keys]ᵀ / √d) · [v; image values]
    C ← C + m₂ · to_out O_C,   C ← C + m₅ · SwiGLU((1 + m₃) · RMS(C) + m₄)

where each key and value head serves several query heads. O_X, too, is the attention's output behind its gate.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sgpipe.backbones.block_taps import Attended, BlockCall, Projected, Streams, concept_attention


@dataclass(frozen=True)
class GatedBlockTap:
    """A `BlockTap` of diffusers' `Krea2TransformerBlock`."""

    block: Any
    rotate: Callable[[Tensor, Any], Tensor]
    """Image keys `[B, N, H, d]` at their positions; those of concepts stay as they are."""
    first: bool
    """Whether it is the first block, which looks for itself where the image begins: that is a wait for the device."""
    stream: ClassVar[Streams] = "single"

    @property
    def query(self) -> nn.Module:
        return self.block.attn.norm_q

    @property
    def key(self) -> nn.Module:
        return self.block.attn.norm_k

    @property
    def value(self) -> nn.Module:
        return self.block.attn.to_v

    @property
    def output(self) -> nn.Module:
        return self.block.attn.to_out[0]

    def call(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], patches: int) -> BlockCall:
        """See `BlockTap`: rows are [text, image]. Raises `ValueError` where the image has not so many."""
        conditioning, positions = args[1:3] if args else (kwargs["temb"], kwargs["image_rotary_emb"])
        # there are no angles to look at on the meta device
        if self.first and not positions[1].is_meta and (found := _image_tokens(positions)) != patches:
            raise ValueError(f"grid: got one of {patches} patches; valid: H × W = {found}, the forward's image tokens")
        return BlockCall(conditioning, positions, slice(-patches, None))

    def heads(self, made: Tensor, kind: Projected) -> Tensor:
        attn = self.block.attn
        if kind == "query":
            return made
        made = made.unflatten(-1, (attn.num_kv_heads, -1)) if kind == "value" else made
        return made.repeat_interleave(attn.num_heads // attn.num_kv_heads, dim=2)

    def attend(self, rows: Tensor, conditioning: Tensor, image_key: Tensor, image_value: Tensor, positions: Any) -> Attended:
        """See `BlockTap`; `conditioning` is `[B, 1, 6 D]`."""
        block, attn = self.block, self.block.attn
        scale, shift, *carried = (conditioning.unflatten(-1, (6, -1)) + block.scale_shift_table).unbind(-2)
        modulated = (1.0 + scale) * block.norm1(rows) + shift
        query = attn.norm_q(attn.to_q(modulated).unflatten(-1, (attn.num_heads, -1)))
        key = self.heads(attn.norm_k(attn.to_k(modulated).unflatten(-1, (attn.num_kv_heads, -1))), "key")
        value = self.heads(attn.to_v(modulated), "value")
        attended = concept_attention(query, key, value, self.rotate(image_key, positions), image_value)
        return attended._replace(output=attended.output * torch.sigmoid(attn.to_gate(modulated)), carried=tuple(carried))

    def image_output(self, given: Tensor, query: Tensor, attended: Attended, positions: Any) -> Tensor:
        """The model's own."""
        return given

    def update(self, rows: Tensor, attended: Attended) -> Tensor:
        gate, mlp_scale, mlp_shift, mlp_gate = attended.carried
        rows = rows + gate * self.block.attn.to_out[0](attended.output)
        return rows + mlp_gate * self.block.ff((1.0 + mlp_scale) * self.block.norm2(rows) + mlp_shift)


def _image_tokens(positions: tuple[Tensor, Tensor]) -> int:
    """Of a joint sequence whose rotations are these: text, and the first image token, stand at 0, the second does not."""
    turned = positions[1].any(dim=-1).nonzero()
    return len(positions[1]) - int(turned[0]) + 1 if len(turned) else 1
