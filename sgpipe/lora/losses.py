"""Losses as pure functions. ℓ(x, g) = mean ‖v_θ(x_t, t, g) − (ε − x)‖², one number per sample; g⁺ is the graph, g⁻ its negative."""

import torch
import torch.nn.functional as F
from torch import Tensor


def sample_losses(velocity: Tensor, target: Tensor) -> Tensor:
    """ℓ `[B]`, float32: the mean squared error of velocities `[B, …]`; its mean over the batch is L_gen."""
    return (velocity.float() - target.float()).square().flatten(1).mean(dim=1)


def relation_weights(saliency: Tensor, height: int, width: int) -> Tensor:
    """W = detach(normalise(σ(S_relation))) `[B, 1, height, width]` of scores `[B, H, W]`: mean 1 in a sample (seed document)."""
    weights = torch.sigmoid(saliency.detach().float())
    weights = weights / weights.mean(dim=(1, 2), keepdim=True)
    return F.interpolate(weights[:, None], (height, width), mode="nearest")


def saliency_weighted(velocity: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """L_gen-rel `[B]` = mean ‖W ⊙ (v − target)‖² for velocities `[B, C, h, w]` and weights `[B, 1, h, w]`."""
    return (weights * (velocity.float() - target.float())).square().flatten(1).mean(dim=1)


def relation_ranking(positive: Tensor, negative: Tensor, label: Tensor, margin: float) -> Tensor:
    """L_rel-rank `[B]` = max(0, m − ℓ⁺_y + ℓ⁻_y) for a probe's logits `[B, classes]` under g⁺ and g⁻, y the class of g⁺."""
    rows = label[:, None]
    return F.relu(margin - positive.gather(1, rows) + negative.gather(1, rows))[:, 0]


def bounded_margin(positive: Tensor, negative: Tensor, margin: float) -> Tensor:
    """max(0, m − (ℓ(g⁻) − ℓ(g⁺))) `[B]`: asks g⁻ to be worse by m, and no more."""
    return F.relu(margin - (negative - positive))


def graph_dpo(
    positive: Tensor, negative: Tensor, reference_positive: Tensor, reference_negative: Tensor, beta: float
) -> Tensor:
    """−log σ(−(β/2) [(ℓ_θ(g⁺) − ℓ_ref(g⁺)) − (ℓ_θ(g⁻) − ℓ_ref(g⁻))]) `[B]` (Diffusion-DPO, Wallace et al. 2024, eq. 14).

    Winner and loser share x, t and ε here. A reference that reads no graph has ℓ_ref(g⁺) = ℓ_ref(g⁻) under equal prompts, and
    the two cancel; not where g⁺ and g⁻ are told in words.
    """
    advantage = (positive - reference_positive) - (negative - reference_negative)
    return -F.logsigmoid(-beta / 2 * advantage)


def preferred(positive: Tensor, negative: Tensor) -> Tensor:
    """Whether the model prefers the graph to its negative, ℓ(g⁺) < ℓ(g⁻), `[B]`; a tie is no preference."""
    return positive < negative
