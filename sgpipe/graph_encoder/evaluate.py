"""A pre-trained encoder measured on relations it was not trained on.

What an encoder has learned: retrieval between graphs and images, true graphs against swapped ones, direction in tokens.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final, get_args

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from sgpipe.graph_encoder.batches import Names, batch_graphs
from sgpipe.graph_encoder.checkpoints import Encoder
from sgpipe.graph_encoder.config import GraphTokens
from sgpipe.graph_encoder.open_vocabulary import NameTable
from sgpipe.graph_encoder.pretraining import masked_loss, same_graph
from sgpipe.graph_encoder.tokens import GraphTokenizer, Tokens
from sgpipe.graph_encoder.training import Learner, Lessons
from sgpipe.graphs.scene_graph import SceneGraph
from sgpipe.relations.predicates import DIRECTIONAL, SYMMETRIC


def retrieval(graph: Tensor, image: Tensor, same: Tensor, at: Sequence[int] = (1, 5, 10)) -> dict[str, dict[str, float]]:
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


_CHUNK: Final = 256
LAYOUTS: Final = tuple(each for each in get_args(GraphTokens.__annotations__["layout"].__origin__) if each != "edges")


@torch.no_grad()
def measure(learner: Learner, lessons: Lessons) -> dict[str, Any]:
    """Retrieval, true graphs against swapped ones, and the masked loss with and without the graph, of the rows of `lessons`.

    `true_above_swap` has the share over `directional` classes, over the `others` whose swap is false too, by class. What is of no
    row or no hidden patch is None. Leaves the model in eval mode.
    """
    learner.eval()
    device = next(learner.parameters()).device
    graphs = [lessons.examples.graphs[row] for row in lessons.rows]
    crop = torch.from_numpy(lessons.examples.crop[lessons.rows])
    image, with_graph, without = _seen(learner, lessons, graphs, device)
    both = (graphs, [graph.reversed() for graph in graphs])
    true, swapped = (learner.encoder(batch_graphs(each, lessons.names).to(device)).pooled.cpu() for each in both)
    same = same_graph(graphs) | (crop[:, None] == crop)
    classes = [graph.triples[0][1] for graph in graphs]

    def share(chosen: frozenset[str]) -> float | None:
        at = torch.tensor([name in chosen for name in classes])
        return true_above_swap(image[at], true[at], swapped[at]) if at.any() else None

    present = frozenset(classes) - SYMMETRIC
    return {
        "retrieval": retrieval(true, image, same),
        "true_above_swap": {
            "directional": share(present & DIRECTIONAL),
            "others": share(present - DIRECTIONAL),
            "by_class": {name: share(frozenset([name])) for name in sorted(present)},
            "directional_count": sum(name in DIRECTIONAL for name in classes),
        },
        "masked": {"with_graph": with_graph, "without_graph": without},
    }


def _seen(
    learner: Learner, lessons: Lessons, graphs: Sequence[SceneGraph], device: torch.device
) -> tuple[Tensor, float | None, float | None]:
    """Vectors of the images, and the masked loss over all hidden patches (None without any) given the graphs and given none."""
    vectors, sums, hidden = [], [0.0, 0.0], 0
    for start in range(0, len(graphs), _CHUNK):
        rows = lessons.rows[start : start + _CHUNK].tolist()
        images = lessons.images(rows, learner.head, device)
        vectors.append(images.pooled.cpu())
        count = int(images.region.sum())
        hidden += count
        own = learner.encoder(batch_graphs(graphs[start : start + _CHUNK], lessons.names).to(device))
        nothing = replace(own, local=torch.zeros_like(own.local), row=torch.zeros_like(own.row))
        for n, encoded in enumerate((own, nothing)):
            predicted = learner.reconstruction(images.rest, images.region, encoded)
            sums[n] += float(masked_loss(predicted, images.patches, images.region)) * count
    with_graph, without = (total / hidden if hidden else None for total in sums)
    return torch.cat(vectors), with_graph, without


@torch.no_grad()
def token_cosines(
    encoder: Encoder, graphs: Sequence[SceneGraph], names: Names, texts: NameTable, seed: int
) -> dict[str, dict[str, float | None]]:
    """`direction_cosine` of the tokens of g⁺ and its swap in every layout that reads the encoder, through fresh projections.

    The projections are a function of the seed, so that figures before and after a training differ by the encoder alone. Leaves the
    encoder in eval mode.
    """
    encoder.eval()
    device = next(encoder.parameters()).device
    swapped = [graph.reversed() for graph in graphs]
    encoded = [encoder(batch_graphs(each, names).to(device)) for each in (graphs, swapped)]
    found = {}
    for layout in LAYOUTS:
        torch.manual_seed(seed)
        params = GraphTokens(layout=layout, relation="encoder")
        tokenizer = GraphTokenizer(params, texts.width, text_scale=texts.rms, embed=encoder.config.embed).to(device)
        tokens = [tokenizer(g, e, texts) for g, e in zip((graphs, swapped), encoded, strict=True)]
        found[layout] = direction_cosine(*tokens)
    return found
