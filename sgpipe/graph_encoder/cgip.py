"""SGDiff's scene-graph encoder CGIP (Yang et al. 2022, arXiv 2211.11138), with the tensor names of its published weights.

Graph convolution of sg2im (Johnson et al. 2018, section 3): for every edge (s, p, o)
    [m_s | p' | m_o] = net1([v_s | v_p | v_o]),   v_i' = net2( Σ m over the edges at i / max(1, number of them) ).
The old vector of a node is not kept, so one without an edge loses its class; boxes are not used. One layer, then `layers` more.
"""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import torch
from torch import Tensor, nn

from sgpipe.graph_encoder.batches import GraphBatch, GraphEncoding, encoding, exchange

LOGIT_SCALE: Final = math.log(1 / 0.07)
"""First value of the logarithm of 1/τ in the contrastive loss (Radford et al. 2021, section 2.5)."""


@dataclass(frozen=True)
class CgipConfig:
    """Sizes of a CGIP encoder; the defaults are SGDiff's for Visual Genome. `most`: edge rows of a graph in `local`."""

    objects: int = 179
    predicates: int = 46
    width: int = 512
    embed: int = 512
    layers: int = 5
    most: int = 15


def _mlp(*sizes: int) -> nn.Sequential:
    """Linear layers, each followed by a ReLU, the last one too."""
    parts: list[nn.Module] = []
    for into, out in pairwise(sizes):
        linear = nn.Linear(into, out)
        nn.init.kaiming_normal_(linear.weight)
        parts += [linear, nn.ReLU()]
    return nn.Sequential(*parts)


class GraphConvolution(nn.Module):
    """One layer on nodes `[O, D]` and edges `[T, D]` with `ends` `[T, 2]`."""

    def __init__(self, embed: int, width: int) -> None:
        super().__init__()
        self._width = width
        self.net1 = _mlp(3 * embed, width, 2 * width + embed)
        self.net2 = _mlp(width, width, embed)

    def forward(self, nodes: Tensor, edges: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
        received, edges = exchange(self.net1, self._width, nodes, edges, ends)
        return self.net2(received), edges


class _Stack(nn.Module):
    """The layers after the first, under the name that the published weights give them."""

    def __init__(self, embed: int, width: int, layers: int) -> None:
        super().__init__()
        self.gconvs = nn.ModuleList(GraphConvolution(embed, width) for _ in range(layers))


class Cgip(nn.Module):
    """Graphs of known names to local rows `[N, most, 3·embed]` and one vector `[N, embed]` each.

    A graph with more than `most` edges keeps the rows of its first ones (relations come before in-image edges); all of them
    take part in the convolutions and in the pooled vector.
    """

    def __init__(self, config: CgipConfig) -> None:
        super().__init__()
        self.config = config
        embed, width = config.embed, config.width
        self.logit_scale = nn.Parameter(torch.tensor(LOGIT_SCALE))
        self.obj_embeddings = nn.Embedding(config.objects + 1, embed)
        self.pred_embeddings = nn.Embedding(config.predicates, embed)
        self.graph_conv = GraphConvolution(embed, width)
        self.graph_net = _Stack(embed, width, config.layers)
        self.graph_projection = nn.Linear(2 * embed, embed)

    def layer_states(self, batch: GraphBatch) -> list[tuple[Tensor, Tensor]]:
        """Node and edge vectors after each graph convolution."""
        nodes, edges = self.obj_embeddings(batch.nodes), self.pred_embeddings(batch.edges)
        states = []
        for layer in (self.graph_conv, *self.graph_net.gconvs):
            nodes, edges = layer(nodes, edges, batch.ends)
            states.append((nodes, edges))
        return states

    def forward(self, batch: GraphBatch) -> GraphEncoding:
        """Encode a batch whose names are rows of the two tables."""
        nodes, edges = self.layer_states(batch)[-1]
        return encoding(batch, nodes, edges, self.config.most, self.graph_projection)
