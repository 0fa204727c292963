"""Scores of concepts on image patches, always in float32."""

from contextlib import nullcontext

import torch
from torch import Tensor

from sgpipe.params.choices import Normalisation


def _dot_products(rows: Tensor, columns: Tensor) -> Tensor:
    """⟨rows[k], columns[i]⟩ as float32 `[B, K, N]`, under autocast too."""
    device = rows.device.type
    available = torch.amp.is_autocast_available(device)
    with torch.autocast(device, enabled=False) if available else nullcontext():
        return rows.float() @ columns.float().mT


def saliency_scores(concept_output: Tensor, image_output: Tensor) -> Tensor:
    """S[k, i] = ⟨O_C[k], O_X[i]⟩ `[B, K, N]`, over all heads and dimensions, without a scale.

    O_C `[B, K, D]` and O_X `[B, N, D]` are attention outputs with heads concatenated, before the output projections.
    """
    return _dot_products(concept_output, image_output)


def cross_scores(image_query: Tensor, concept_key: Tensor) -> Tensor:
    """Mean over heads of ⟨image_q[i], concept_k[k]⟩ `[B, K, N]`, without 1/√d_h.

    `[B, N, H, d]` and `[B, K, H, d]`, after the q/k norms and before RoPE.
    """
    heads = concept_key.shape[2]
    return _dot_products(concept_key.flatten(2), image_query.flatten(2)) / heads


def normalise(scores: Tensor, kind: Normalisation) -> Tensor:
    """Scores `[B, K, N]` as they are, or their softmax over concepts (K) or patches (N)."""
    if kind == "none":
        return scores
    return scores.softmax(dim=1 if kind == "concepts" else 2)
