"""Graph tokens: scene graphs in the width of a generator's text encoder.

With [s_t | r_t | o_t] the encoder's row of triple t, g its pooled vector, e(·) frozen text embeddings and c their typical size:

- `triple`   τ_t = c·(W LN[s_t | r_t | o_t] + ρ)
- `roles`    τ_t,k = c·(W_k LN(part k of the row) + ρ_k) for k = subject, predicate, object
- `objects`  τ_i = e(name_i) + c·Σ f(t, role of i in t) over the triples of object i, where f is a learned vector for
             (predicate, role), or W_role LN[s_t | r_t | o_t]. An object without a triple has no token.
- `edges`    τ_i = e(name_i) for every related object, then τ_t = c·(W LN[e(subject) | e(object)] + ρ + f(predicate of t))
- the global token c·(W_g LN(g) + ρ_g), if asked for.

A graph without triples has no token at all. Tokens of a graph are a set: FLUX.1 and SD3 give text no position. So that a
graph of several triples says *which* two objects each relates, tokens of `roles`, and of `objects` with a table, carry a fixed
code of their triple's number and of their role in it (`binding_codes`): the two ends of a triple are those with its codes.
`triple` and `edges` tokens, and `objects` that read the encoder, hold both ends already. e(name) may be the prompt's own
(`GraphTokens.names`): the mean of its rows that say the name.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sgpipe.errors import ModelError
from sgpipe.graph_encoder.batches import GraphEncoding, first_rows, rank_in_graph
from sgpipe.graph_encoder.config import GraphTokens
from sgpipe.graph_encoder.open_vocabulary import NameTable
from sgpipe.graphs.scene_graph import SceneGraph
from sgpipe.relations.predicates import PREDICATES


def binding_codes(triples: Tensor, roles: int, width: int) -> Tensor:
    """Codes `[T, roles, width]` of mean square 1 for triples numbered `[T]` in their graph.

    Sinusoids of the number as in Vaswani et al. 2017, §3.5, but with wavelengths of 6 to 100 triples, and turned by another angle
    for each role. Any two differ, and those of one triple are a turn apart, so attention can look for the other end of a triple;
    language models bind names to attributes by such vectors of their own (Feng and Steinhardt 2024).
    """
    half = (width + 1) // 2
    rates = 16.0 ** (-torch.arange(half, dtype=torch.float64) / half)
    turn = torch.arange(roles, dtype=torch.float64) * (torch.pi / roles)
    angle = (triples.double()[:, None, None] + 1) * rates + turn[:, None]
    return (2**0.5 * torch.cat([angle.sin(), angle.cos()], dim=2)[..., :width]).float()


@dataclass(frozen=True)
class Tokens:
    """Tokens `states` `[N, L, D]` of N graphs, zero where graph n has fewer than L: `counts[n]` come first.

    `owner` `[N, L]`, on the CPU, is the number of the object that a token stands for, -1 for none and for padding.
    """

    states: Tensor
    counts: tuple[int, ...]
    owner: Tensor

    @property
    def mask(self) -> Tensor:
        """True where a token is, `[N, L]`."""
        places = torch.arange(self.states.shape[1], device=self.states.device)
        return places < torch.tensor(self.counts, device=self.states.device)[:, None]


class _Projection(nn.Module):
    """Linear map of a normalised vector, plus a learned vector that says what the token is."""

    def __init__(self, into: int, out: int, scale: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(into)
        self.linear = nn.Linear(into, out, bias=False)
        self.role = nn.Parameter(torch.randn(out) * scale / 2**0.5)
        nn.init.normal_(self.linear.weight, std=scale / (2 * into) ** 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.norm(x)) + self.role


class GraphTokenizer(nn.Module):
    """Makes `Tokens` of width `text` from graphs, their encodings (of width `embed`) and their names' embeddings.

    `text_scale` is the root mean square of text embeddings, `classes` are those of the table's rows.
    """

    text_scale: Tensor

    def __init__(
        self, params: GraphTokens, text: int, *, text_scale: float, embed: int | None = None, classes: Sequence[str] = PREDICATES
    ) -> None:
        super().__init__()
        if params.needs_encoder and embed is None:
            raise ModelError("graph tokens: these parameters read a graph encoder, and none is given")
        self.params, self.text, self._row = params, text, {name: row for row, name in enumerate(classes)}
        self.register_buffer("text_scale", torch.tensor(float(text_scale)))
        scale, width = params.relation_scale, embed or 0
        inputs = {"triple": [3 * width], "roles": [width] * 3, "objects": [3 * width] * 2, "edges": [2 * text]}
        read = inputs[params.layout] if params.relation == "encoder" or params.layout == "edges" else []
        self.projections = nn.ModuleList(_Projection(into, text, scale) for into in read)
        if params.relation == "table":
            vectors = (len(self._row), text) if params.layout == "edges" else (len(self._row), 2, text)
            self.table = nn.Parameter(torch.randn(vectors) * scale)
        if params.global_token:
            self.pooled = _Projection(width, text, scale)

    def forward(
        self,
        graphs: Sequence[SceneGraph],
        encoded: GraphEncoding | None = None,
        names: NameTable | None = None,
        said: Sequence[Mapping[int, Tensor]] = (),
    ) -> Tokens:
        """Tokens of `graphs`; `encoded` is what the graph encoder says of the same graphs in the same order.

        `names` are needed where tokens carry the text embedding of names (layouts `objects`, prepended, and `edges`); `said` has
        for each graph vectors `[D]` that stand for those of some of its objects, by number. With `residual` the states are what
        is to be added to the words, c·Σ f alone.
        """
        if self.params.layout == "objects":
            states, graph, owner = self._object_tokens(graphs, encoded, names, said)
        elif self.params.layout == "edges":
            states, graph, owner = self._edge_tokens(graphs, names, said)
        else:
            states, graph, owner = self._triple_tokens(graphs, encoded)
        if self.params.global_token:
            whole = torch.tensor([n for n, each in enumerate(graphs) if each.triples], dtype=torch.long)
            summary = self.text_scale * self.pooled(_given(encoded).pooled[whole.to(states.device)])
            states = torch.cat([states, summary])
            graph = torch.cat([graph, whole])
            owner = torch.cat([owner, torch.full_like(whole, -1)])
        counts = graph.bincount(minlength=len(graphs))
        most = int(counts.max()) if len(graphs) else 0
        padded, _ = first_rows(states, graph.to(states.device), len(graphs), most)
        owners, _ = first_rows(owner + 1, graph, len(graphs), most)
        return Tokens(padded, tuple(counts.tolist()), owners - 1)

    def _bound(self, graph: Tensor, roles: int) -> Tensor:
        """Codes `[T, roles, D]` of the triples of these graphs `[T]`; zero where a graph has one, which needs none."""
        count = graph.bincount()
        codes = self.params.relation_scale * binding_codes(rank_in_graph(graph, len(count)), roles, self.text)
        return codes * (count[graph] > 1)[:, None, None]

    def _triple_tokens(self, graphs: Sequence[SceneGraph], encoded: GraphEncoding | None) -> tuple[Tensor, Tensor, Tensor]:
        encoded = _given(encoded)
        rows = encoded.local[encoded.relation]
        graph, ends = _relations(graphs, encoded.local.shape[1])
        parts = rows.chunk(len(self.projections), dim=1)
        states = torch.stack([projection(part) for projection, part in zip(self.projections, parts, strict=True)], dim=1)
        owners = torch.full((len(graph), len(parts)), -1)
        if self.params.layout == "roles":
            owners[:, [0, 2]] = ends
            states = states + self._bound(graph, 3).to(states)
        return self.text_scale * states.flatten(0, 1), graph.repeat_interleave(len(parts)), owners.flatten()

    def _named(
        self, graphs: Sequence[SceneGraph], objects: Tensor, names: NameTable | None, said: Sequence[Mapping[int, Tensor]]
    ) -> Tensor:
        """e(name) `[O, D]` of objects `[O, 2]`, each the number of its graph and its number in it."""
        if names is None:
            raise ModelError(f"graph tokens: layout {self.params.layout} needs the text embeddings of the names")
        places, known = objects.tolist(), names.nodes([graphs[n].objects[i] for n, i in objects.tolist()])
        own = [said[n].get(i) if said else None for n, i in places]
        device = self.text_scale.device
        rows = [row.to(device) if other is None else other.to(row.dtype) for row, other in zip(known, own, strict=True)]
        return torch.stack(rows) if rows else known.to(device)

    def _edge_tokens(
        self, graphs: Sequence[SceneGraph], names: NameTable | None, said: Sequence[Mapping[int, Tensor]]
    ) -> tuple[Tensor, Tensor, Tensor]:
        graph, pairs, predicates = _table_rows(graphs, self._row)
        objects, place = pairs.unique(dim=0, return_inverse=True)
        named = self._named(graphs, objects, names, said)
        ends = named[place.to(named.device)].reshape(len(graph), 2 * self.text)
        edges = self.text_scale * (self.projections[0](ends.to(self.table.dtype)) + self.table[predicates.to(self.table.device)])
        states = torch.cat([named.to(edges.dtype), edges])
        return states, torch.cat([objects[:, 0], graph]), torch.cat([objects[:, 1], torch.full_like(graph, -1)])

    def _object_tokens(
        self,
        graphs: Sequence[SceneGraph],
        encoded: GraphEncoding | None,
        names: NameTable | None,
        prompted: Sequence[Mapping[int, Tensor]] = (),
    ) -> tuple[Tensor, Tensor, Tensor]:
        if self.params.relation == "encoder":
            encoded = _given(encoded)
            graph, ends = _relations(graphs, encoded.local.shape[1])
            rows = encoded.local[encoded.relation]
            said = torch.stack([projection(rows) for projection in self.projections], dim=1)
            pairs = _ends(graph, ends)
        else:
            graph, pairs, row = _table_rows(graphs, self._row)
            said = self.table[row.to(self.table.device)]
            said = said + self._bound(graph, 2).to(said)
        objects, place = pairs.unique(dim=0, return_inverse=True)
        device = said.device
        states = said.new_zeros(len(objects), self.text).index_add(0, place.to(device), said.flatten(0, 1))
        states = self.text_scale * states
        if self.params.injection == "prepend":
            states = self._named(graphs, objects, names, prompted).to(device, states.dtype) + states
        return states, objects[:, 0], objects[:, 1]


def _given(encoded: GraphEncoding | None) -> GraphEncoding:
    if encoded is None:
        raise ModelError("graph tokens: these parameters read the graph encoder, but no encoding is given")
    return encoded


def _relations(graphs: Sequence[SceneGraph], most: int | None) -> tuple[Tensor, Tensor]:
    """Of the first `most` triples of every graph (all for None): the graph `[T]`, and subject and object `[T, 2]` in it."""
    kept = [(n, s, o) for n, each in enumerate(graphs) for s, _, o in each.triples[:most]]
    found = torch.tensor(kept, dtype=torch.long).reshape(-1, 3)
    return found[:, 0], found[:, 1:]


def _ends(graph: Tensor, ends: Tensor) -> Tensor:
    """Graph and number of both ends of each triple, `[2 T, 2]`, of graphs `[T]` and ends `[T, 2]`."""
    return torch.stack([graph[:, None].expand(-1, 2), ends], dim=2).flatten(0, 1)


def _table_rows(graphs: Sequence[SceneGraph], rows: Mapping[str, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Of all triples: the graph `[T]`, both `_ends`, and the predicate's row of a table `[T]`, of which `rows` says which it is."""
    graph, ends = _relations(graphs, None)
    for each in graphs:
        each.check_predicates(rows, "table of the graph tokens")
    row = torch.tensor([rows[p] for each in graphs for _, p, _ in each.triples], dtype=torch.long)
    return graph, _ends(graph, ends), row
