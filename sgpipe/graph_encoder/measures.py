"""What an encoder has learned: retrieval between graphs and images, true graphs against swapped ones, direction in tokens."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from sgpipe.graph_encoder.tokens import Tokens


def retrieval(
    graph: Tensor, image: Tensor, same: Tensor, at: Sequence[int] = (1, 5, 10)
) -> dict[str, dict[str, float]]:
    """Recall among N candidates, both ways: share of queries with a right answer in the first k, `{direction: {"r<k>": share}}`.

    Right for row n is every candidate with `same[n, ·]` `[N, N]` (images of equal graphs answer each other). A wrong candidate
    of exactly equal cosine counts as ranked before the right one, so vectors that are all alike find nothing.
    """
    cosine = F.normalize(graph, dim=1) @ F.normalize(image, dim=1).T
    found = {}
    for direction, scores in (("graph_to_image", cosine), ("image_to_graph", cosine.T)):
        best = scores.masked_fill(~same, -torch.inf).amax(dim=1, keepdim=True)
        rank = ((scores >= best) & ~same).sum(dim=1)
        found[direction] = {f"r{k}": float((rank < k).double().mean()) for k in at}
    return found


def true_above_swap(image: Tensor, graph: Tensor, swapped: Tensor) -> float:
    """Share of images `[N, D]` nearer (by cosine) to their true graph than to its swap; a tie is no success."""
    image = F.normalize(image, dim=1)
    margin = (image * (F.normalize(graph, dim=1) - F.normalize(swapped, dim=1))).sum(dim=1)
    return float((margin > 0).double().mean())


def direction_cosine(positive: Tokens, negative: Tokens) -> dict[str, float | None]:
    """Cosine between the tokens of g⁺ and of its g⁻, `mean` and `worst` (largest) over graphs.

    A generator reads tokens as a set. So the tokens of g⁻ are paired with those of g⁺ in the way that makes them most alike
    (Hungarian method), and a graph's cosine is the mean over its pairs: 1 if and only if no reader could tell the two apart by
    the directions of their tokens. Graphs without tokens are left out, and None stands where no graph has any; of two counts the
    smaller is paired.
    """
    values = []
    for n, counts in enumerate(zip(positive.counts, negative.counts, strict=True)):
        if min(counts) == 0:
            continue
        one, other = positive.states[n, : counts[0]], negative.states[n, : counts[1]]
        cosines = (F.normalize(one, dim=1) @ F.normalize(other, dim=1).T).detach().double().cpu().numpy()
        values.append(float(cosines[linear_sum_assignment(-cosines)].mean()))
    if not values:
        return {"mean": None, "worst": None}
    return {"mean": float(np.mean(values)), "worst": float(np.max(values))}
