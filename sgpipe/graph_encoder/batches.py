"""Scene graphs side by side: what an encoder reads (`GraphBatch`) and what it gives back (`GraphEncoding`)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, Self

import torch
from torch import Tensor, nn

from sgpipe.graphs.scene_graph import SceneGraph
from sgpipe.relations.names import IMAGE, IN_IMAGE


class Names(Protocol):
    """How names become what an encoder reads: rows of its tables (`Vocabulary`) or vectors (`NameTable`)."""

    image_node: ClassVar[bool]
    """Whether graphs get the `__image__` node and an `__in_image__` edge from every object to it."""

    def nodes(self, names: Sequence[str]) -> Tensor:
        """Object ids `[O]` or vectors `[O, D]`."""

    def edges(self, predicates: Sequence[str]) -> Tensor:
        """Predicate ids `[T]` or vectors `[T, D]`."""


@dataclass(frozen=True)
class GraphBatch:
    """N graphs as one: O objects, T rows of edges, `ends` `[T, 2]` = (subject, object) as numbers into the O objects.

    `nodes` and `edges` are what `Names` made of them; `node_graph` `[O]` and `edge_graph` `[T]` say to which of the `count`
    graphs each belongs; `relation` `[T]` is false for `__in_image__` edges. Rows of a graph keep the order of its triples.
    """

    count: int
    nodes: Tensor
    edges: Tensor
    ends: Tensor
    node_graph: Tensor
    edge_graph: Tensor
    relation: Tensor

    def to(self, device: torch.device | str) -> Self:
        """The same batch on another device."""
        moved = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return type(self)(count=self.count, **moved)


@dataclass(frozen=True)
class GraphEncoding:
    """What an encoder says of N graphs.

    `local` `[N, M, 3·D]`: per edge row [subject | predicate | object], the first M of each graph, zero rows as padding.
    `pooled` `[N, D]`: one vector for the whole graph. `row` and `relation` `[N, M]`: rows that exist, rows that stand for a
    relation (not for an `__in_image__` edge). `dropped` `[N]`: relations beyond the first M, which have no row.
    """

    local: Tensor
    pooled: Tensor
    row: Tensor
    relation: Tensor
    dropped: Tensor


def batch_graphs(graphs: Sequence[SceneGraph], names: Names) -> GraphBatch:
    """Lay graphs out as SGDiff's data does: objects, then (with `image_node`) the image; relations, then in-image edges."""
    objects: list[str] = []
    node_graph: list[int] = []
    predicates: list[str] = []
    edges: list[tuple[int, int, int, bool]] = []
    for number, graph in enumerate(graphs):
        first, image = len(objects), len(graph.objects)
        in_image = [(index, IN_IMAGE, image) for index in range(image)] if names.image_node else []
        objects += [*graph.objects, IMAGE] if names.image_node else graph.objects
        node_graph += [number] * (len(objects) - first)
        for row, (s, predicate, o) in enumerate((*graph.triples, *in_image)):
            predicates.append(predicate)
            edges.append((first + s, first + o, number, row < len(graph.triples)))
    rows = torch.tensor(edges, dtype=torch.long).reshape(-1, 4)
    return GraphBatch(
        len(graphs), names.nodes(objects), names.edges(predicates), ends=rows[:, :2],
        node_graph=torch.tensor(node_graph, dtype=torch.long), edge_graph=rows[:, 2], relation=rows[:, 3].bool(),
    )  # fmt: skip


def rank_in_graph(edge_graph: Tensor, count: int) -> Tensor:
    """How many earlier rows `[T]` belong to the same graph, for each row; rows of graphs may be interleaved."""
    order = edge_graph.argsort(stable=True)
    sizes = edge_graph.bincount(minlength=count)
    starts = sizes.cumsum(0) - sizes
    rank = torch.empty_like(edge_graph)
    rank[order] = torch.arange(len(edge_graph), device=edge_graph.device) - starts[edge_graph[order]]
    return rank


def first_rows(values: Tensor, edge_graph: Tensor, count: int, most: int) -> tuple[Tensor, Tensor]:
    """The first `most` rows of each graph of `values` `[T, …]` as `[N, most, …]` padded with zeros, and which exist `[N, most]`."""
    rank = rank_in_graph(edge_graph, count)
    kept = rank < most
    at = (edge_graph[kept], rank[kept])
    padded = values.new_zeros(count, most, *values.shape[1:]).index_put(at, values[kept])
    exists = torch.zeros(count, most, dtype=torch.bool, device=values.device).index_put(at, kept[kept])
    return padded, exists


def mean_by(values: Tensor, group: Tensor, count: int) -> Tensor:
    """Mean of the rows of `values` `[R, D]` with each group number, `[count, D]`; zero for a group without rows."""
    sums = values.new_zeros(count, values.shape[1]).index_add(0, group, values)
    return sums / group.bincount(minlength=count).clamp(min=1)[:, None]


def exchange(net: nn.Module, width: int, nodes: Tensor, edges: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
    """A round of messages on nodes `[O, D]` and edges `[T, D]`: `net` maps [v_s | r | v_o] of each edge to [m_s | r' | m_o].

    The mean `[O, width]` of the messages that each node got, zero without an edge, and r' `[T, D]`.
    """
    subject, object_ = ends.unbind(1)
    made = net(torch.cat([nodes[subject], edges, nodes[object_]], dim=1))
    to_subject, edges, to_object = made.split((width, edges.shape[1], width), dim=1)
    return mean_by(torch.cat([to_subject, to_object]), torch.cat([subject, object_]), len(nodes)), edges


def encoding(batch: GraphBatch, nodes: Tensor, edges: Tensor, most: int, pool: nn.Linear) -> GraphEncoding:
    """The final vectors of nodes `[O, D]` and edges `[T, D]` in rows, and `pool` of their two means as the graph's vector."""
    means = [mean_by(nodes, batch.node_graph, batch.count), mean_by(edges, batch.edge_graph, batch.count)]
    pooled = pool(torch.cat(means, dim=1))
    subject, object_ = batch.ends.unbind(1)
    rows = torch.cat([nodes[subject], edges, nodes[object_]], dim=1)
    local, row = first_rows(rows, batch.edge_graph, batch.count, most)
    relation, _ = first_rows(batch.relation, batch.edge_graph, batch.count, most)
    said = batch.edge_graph[batch.relation].bincount(minlength=batch.count)
    return GraphEncoding(local, pooled, row, relation, said - relation.sum(1))
