"""Concepts as the transformer's text side takes them: one T5 vector each."""

from collections.abc import Collection

import torch
from torch import Tensor

from sgpipe.params.choices import Pooling


def concept_token_mask(input_ids: Tensor, special_ids: Collection[int]) -> Tensor:
    """True `[C, L]` at a concept's own tokens: not end of sequence, not padding, whose ids are `special_ids`."""
    special = torch.tensor(sorted(special_ids), dtype=input_ids.dtype, device=input_ids.device)
    return ~torch.isin(input_ids, special)


def concept_embeddings(hidden_states: Tensor, token_mask: Tensor, pooling: Pooling = "first") -> Tensor:
    """One vector per concept `[C, d_T5]` from T5's states `[C, L, d_T5]`.

    Each concept string is encoded alone, padded to the backbone's maximum length without an attention mask (padding takes part).
    `first` keeps token 0, as published; `mean` averages the tokens of `token_mask` `[C, L]`, for concepts of several words.
    Raises `ValueError` if a concept has no token of its own.
    """
    if token_mask.shape != hidden_states.shape[:2]:
        raise ValueError(
            f"token_mask is {list(token_mask.shape)}; states {list(hidden_states.shape)} need {list(hidden_states.shape[:2])}"
        )
    empty = (~token_mask.any(dim=1)).nonzero().flatten().tolist()
    if empty:
        raise ValueError(f"concepts {empty} have no tokens of their own; an empty string is no concept")
    if pooling == "first":
        return hidden_states[:, 0]
    if pooling == "mean":
        weights = token_mask / token_mask.sum(dim=1, keepdim=True)
        return torch.einsum("cl,cld->cd", weights.to(hidden_states.dtype), hidden_states)
    raise ValueError(f"pooling: got {pooling!r}; valid: first, mean")
