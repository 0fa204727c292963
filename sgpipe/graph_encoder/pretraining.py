"""Pre-training of a graph encoder by SGDiff's two losses (Yang et al. 2022, section 3.1), with hard negatives beside them.

Contrastive: the pooled graph vector against the vector of the image it describes, both of length 1, temperature learned.
Masked: the features of the hidden part of an image, predicted from the features of the rest and the graph's local rows.

One vector of an image, pooled by learned queries from the patches of a frozen tower.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sgpipe.graph_encoder.batches import GraphEncoding, Names, batch_graphs
from sgpipe.graph_encoder.checkpoints import Encoder
from sgpipe.graphs.negatives import default_confusions, replacements
from sgpipe.graphs.scene_graph import SceneGraph
from sgpipe.relations.predicates import INVERSE, PREDICATES, SYMMETRIC


class ImageHead(nn.Module):
    """Patch features `[N, P, F]` to vectors `[N, embed]`: attention of `queries` learned queries, then an MLP over their results.

    A tower's own pooled vector is trained to tell captions apart and may drop which of two objects is left; its patches hold it.
    Keys carry learned places, so that a query can ask what is leftmost.
    """

    def __init__(self, features: int, patches: int, embed: int, queries: int, width: int = 128, heads: int = 4) -> None:
        super().__init__()
        self._heads = heads
        self.norm = nn.LayerNorm(features)
        self.enter = nn.Linear(features, width)
        self.place = nn.Parameter(torch.randn(patches, width) * 0.02)
        self.queries = nn.Parameter(torch.randn(queries, width))
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.leave = nn.Sequential(
            nn.LayerNorm(queries * width), nn.Linear(queries * width, 2 * width), nn.GELU(), nn.Linear(2 * width, embed)
        )

    def forward(self, patches: Tensor) -> Tensor:
        """Vectors of images, of any length."""
        x = F.gelu(self.enter(self.norm(patches)) + self.place)
        queries = self.queries.expand(len(x), -1, -1)
        query, key, value = (y.unflatten(-1, (self._heads, -1)).transpose(1, 2) for y in (queries, self.key(x), self.value(x)))
        seen = F.scaled_dot_product_attention(query, key, value)
        return self.leave(seen.transpose(1, 2).flatten(1))


def hard_negatives(graph: SceneGraph, rng: np.random.Generator) -> tuple[SceneGraph | None, SceneGraph | None]:
    """The graph with one triple's subject and object exchanged, and with one triple's predicate replaced; None where none is false.

    A symmetric predicate is not swapped. A directional predicate is replaced by its inverse, another by a class that cannot hold
    beside it. What the graph itself states is no negative.
    """
    graph.check_predicates(PREDICATES)
    stated = set(graph.triples)
    stated |= {(o, INVERSE[p], s) for s, p, o in graph.triples if p in INVERSE}
    swapped, replaced = None, None
    for row in rng.permutation(len(graph.triples)).tolist():
        subject, predicate, object_ = graph.triples[row]
        held = frozenset(p for s, p, o in stated if (s, o) == (subject, object_))
        before, after = graph.triples[:row], graph.triples[row + 1 :]
        if swapped is None and predicate not in SYMMETRIC and (object_, predicate, subject) not in stated:
            swapped = SceneGraph(graph.objects, (*before, (object_, predicate, subject), *after))
        options = [name for name, _ in replacements(predicate, default_confusions(), held)]
        if predicate in INVERSE:
            options = [INVERSE[predicate]] if INVERSE[predicate] not in held else []
        if replaced is None and options:
            other = options[rng.integers(len(options))]
            replaced = SceneGraph(graph.objects, (*before, (subject, other, object_), *after))
    return swapped, replaced


def restated(graph: SceneGraph, rng: np.random.Generator) -> SceneGraph:
    """The same graph with each directional triple told from its other end half of the time: (o, inverse, s) for (s, p, o)."""
    turned = rng.random(len(graph.triples)) < 0.5
    triples = (
        (o, INVERSE[p], s) if turn and p in INVERSE else (s, p, o)
        for (s, p, o), turn in zip(graph.triples, turned.tolist(), strict=True)
    )
    return SceneGraph(graph.objects, tuple(triples))


def same_graph(graphs: Sequence[SceneGraph]) -> Tensor:
    """True `[N, N]` where two graphs say the same in names, an inverse predicate read backwards: no negatives of each other."""

    def said(graph: SceneGraph) -> tuple[tuple[str, ...], tuple[tuple[str, str, str], ...]]:
        rows = set(graph.named)
        rows |= {(o, INVERSE[p], s) for s, p, o in rows if p in INVERSE}
        rows |= {(o, p, s) for s, p, o in rows if p in SYMMETRIC}
        return tuple(sorted(graph.objects)), tuple(sorted(rows))

    numbers: dict[object, int] = {}
    kinds = torch.tensor([numbers.setdefault(said(graph), len(numbers)) for graph in graphs])
    return kinds[:, None] == kinds


def contrastive_loss(
    graph: Tensor,
    image: Tensor,
    scale: Tensor,
    same: Tensor | None = None,
    hard: Tensor | None = None,
    present: Tensor | None = None,
) -> Tensor:
    """Symmetric in-batch cross-entropy of unit vectors `[B, D]` with logits `scale`·cosine (Radford et al. 2021, figure 3).

    `same` `[B, B]`: pairs that are no negatives of each other, left out. `hard` `[B, K, D]`: false graphs of each image, which
    join its candidates where `present` `[B, K]`.
    """
    logits = scale * image @ graph.T
    if same is not None:
        twins = same & ~torch.eye(len(logits), dtype=torch.bool, device=same.device)
        logits = logits.masked_fill(twins, -torch.inf)
    candidates = logits
    if hard is not None and present is not None:
        false = scale * torch.einsum("bd,bkd->bk", image, hard)
        candidates = torch.cat([logits, false.masked_fill(~present, -torch.inf)], dim=1)
    target = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(candidates, target) + F.cross_entropy(logits.T, target)) / 2


@torch.no_grad()
def clamp_logit_scale(encoder: Encoder) -> None:
    """Keep the temperature at or above 1/100, as CLIP does; to be called after every optimiser step."""
    encoder.logit_scale.clamp_(max=math.log(100))


class Reconstruction(nn.Module):
    """Predicts tower features `[N, P, F]` of hidden patches from those of the rest and a graph's local rows `[N, M, R]`.

    Hidden patches start as one learned vector, so nothing of them enters; positions are learned. A learned row that is always there
    lets a graph without rows be read.
    """

    def __init__(self, features: int, rows: int, patches: int, width: int = 128, heads: int = 4) -> None:
        super().__init__()
        self.enter = nn.Linear(features, width)
        self.context = nn.Linear(rows, width)
        self.hidden = nn.Parameter(torch.randn(width) * 0.02)
        self.place = nn.Parameter(torch.randn(patches, width) * 0.02)
        self.always = nn.Parameter(torch.randn(width) * 0.02)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(5))
        self.rest = nn.MultiheadAttention(width, heads, batch_first=True)
        self.graph = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.leave = nn.Linear(width, features)

    def forward(self, features: Tensor, region: Tensor, encoded: GraphEncoding) -> Tensor:
        """Predicted features of every patch; those of `region` `[N, P]` are the prediction that counts."""
        x = torch.where(region[..., None], self.hidden, self.enter(features)) + self.place
        rows = torch.cat([self.always.expand(len(x), 1, -1), self.context(encoded.local)], dim=1)
        absent = F.pad(~encoded.row, (1, 0), value=False)
        y = self.norms[0](x)
        x = x + self.rest(y, y, y, need_weights=False)[0]
        y, rows = self.norms[1](x), self.norms[2](rows)
        x = x + self.graph(y, rows, rows, key_padding_mask=absent, need_weights=False)[0]
        x = x + self.mlp(self.norms[3](x))
        return self.leave(self.norms[4](x))


def masked_loss(predicted: Tensor, features: Tensor, region: Tensor) -> Tensor:
    """Mean squared error over the hidden patches; zero for a batch that hides none."""
    error = (predicted - features).square().mean(-1)
    return (error * region).sum() / region.sum().clamp(min=1)


@dataclass(frozen=True)
class ImageFeatures:
    """What a frozen image tower says of B images.

    `pooled` `[B, D]`: of the whole image, of any length. `patches` `[M, P, F]`: patches of the first M ≤ B; `rest` `[M, P, F]`:
    those of the image with its hidden part blanked before the tower saw it. `region` `[M, P]`: hidden patches.
    """

    pooled: Tensor
    patches: Tensor
    rest: Tensor
    region: Tensor


def pretraining_losses(
    encoder: Encoder,
    reconstruction: Reconstruction,
    graphs: Sequence[SceneGraph],
    negatives: Sequence[Sequence[SceneGraph | None]],
    names: Names,
    images: ImageFeatures,
    same_image: Tensor | None = None,
) -> dict[str, Tensor]:
    """Both losses of a batch: `contrastive`, and `masked` of its first M images.

    `negatives` holds as many places per graph, None where there is none.
    `same_image` `[B, B]`: pairs that describe one image, which are no negatives of each other, as those of `same_graph` are not.
    """
    device = images.pooled.device
    false = [graph for row in negatives for graph in row if graph is not None]
    present = torch.tensor([[graph is not None for graph in row] for row in negatives], device=device)
    encoded = encoder(batch_graphs([*graphs, *false], names).to(device))
    vectors = F.normalize(encoded.pooled, dim=1)
    count = len(graphs)
    hard = vectors.new_zeros(*present.shape, vectors.shape[1]).index_put(present.nonzero(as_tuple=True), vectors[count:])
    same = same_graph(graphs)
    if same_image is not None:
        same = same | same_image
    contrastive = contrastive_loss(
        vectors[:count], F.normalize(images.pooled, dim=1), encoder.logit_scale.exp(), same.to(device), hard, present
    )
    own = GraphEncoding(*(value[: len(images.rest)] for value in vars(encoded).values()))
    predicted = reconstruction(images.rest, images.region, own)
    return {"contrastive": contrastive, "masked": masked_loss(predicted, images.patches, images.region)}
