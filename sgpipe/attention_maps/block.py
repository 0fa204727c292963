"""The concept rows in one double-stream block of FLUX (Helbling et al. 2025, section 4), on the block's own text-side weights."""

from typing import Any, NamedTuple

import torch
from diffusers.models.embeddings import apply_rotary_emb
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

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
