"""A scene-graph encoder without a vocabulary: names enter as vectors of a frozen text encoder.

    v_i⁰ = W_n·LN(e(name_i)),  r_t⁰ = W_r·LN(e(phrase_t))
    [m_s | Δr | m_o] = MLP_e(LN[v_s | r_t | v_o]),   r_t += Δr,   v_i += MLP_n(LN[v_i | Σ m / max(1, degree)])

Direction and role lie in the places of the edge MLP's input and output, as in CGIP; unlike there a node keeps its own vector,
so that an object without a triple keeps its class.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sgpipe.errors import DataError, ModelError
from sgpipe.graph_encoder.batches import GraphBatch, GraphEncoding, encoding, exchange
from sgpipe.graph_encoder.cgip import LOGIT_SCALE
from sgpipe.graphs.scene_graph import SceneGraph
from sgpipe.relations.predicates import phrase


@dataclass(frozen=True)
class NameTable:
    """Vectors `[D]` of names and of predicate phrases, all of one width, as the caller's text encoder gave them."""

    vectors: Mapping[str, Tensor]
    image_node: ClassVar[bool] = False
    """There is no name for the image; graphs stay as they are."""

    def __post_init__(self) -> None:
        widths = {tuple(vector.shape) for vector in self.vectors.values()}
        if len(widths) != 1 or len(next(iter(widths))) != 1:
            raise DataError(f"name vectors: one vector of one width per name is needed, got shapes {sorted(widths)}")

    @property
    def width(self) -> int:
        """D."""
        return len(next(iter(self.vectors.values())))

    @property
    def rms(self) -> float:
        """Root mean square of all vectors: the size of a text embedding."""
        return float(torch.stack(list(self.vectors.values())).double().square().mean().sqrt())

    def nodes(self, names: Sequence[str]) -> Tensor:
        """Vectors `[O, D]`. Raises `DataError` naming what has no vector."""
        missing = sorted({name for name in names if name not in self.vectors})
        if missing:
            raise DataError(
                f"no text embedding of {', '.join(map(repr, missing[:5]))}"
                f"{f' and {len(missing) - 5} more' if len(missing) > 5 else ''}; encode the names of the graphs first"
            )
        if not names:
            return next(iter(self.vectors.values())).new_zeros(0, self.width)
        return torch.stack([self.vectors[name] for name in names])

    def edges(self, predicates: Sequence[str]) -> Tensor:
        """Vectors `[T, D]` of the predicates' phrases."""
        return self.nodes([phrase(name) for name in predicates])


def texts_of(graphs: Iterable[SceneGraph]) -> list[str]:
    """The names and phrases, sorted, that a `NameTable` for these graphs must hold."""
    texts = {name for graph in graphs for name in graph.objects}
    return sorted(texts | {phrase(p) for graph in graphs for _, p, _ in graph.triples})


@dataclass(frozen=True)
class OpenVocabularyConfig:
    """Sizes: `text` of the name vectors, `width` of hidden layers, `embed` of what comes out, `most` rows per graph."""

    text: int
    width: int = 256
    embed: int = 128
    layers: int = 3
    most: int = 15


class _Layer(nn.Module):
    """One round of messages with residual updates."""

    def __init__(self, embed: int, width: int) -> None:
        super().__init__()
        self._width = width
        self.edge = nn.Sequential(
            nn.LayerNorm(3 * embed), nn.Linear(3 * embed, width), nn.GELU(), nn.Linear(width, 2 * width + embed)
        )
        self.node = nn.Sequential(nn.LayerNorm(embed + width), nn.Linear(embed + width, width), nn.GELU(), nn.Linear(width, embed))

    def forward(self, nodes: Tensor, edges: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
        received, change = exchange(self.edge, self._width, nodes, edges, ends)
        return nodes + self.node(torch.cat([nodes, received], dim=1)), edges + change


class OpenVocabularyEncoder(nn.Module):
    """Graphs of any names to local rows `[N, most, 3·embed]` and one vector `[N, embed]` each; the interface of `Cgip`."""

    def __init__(self, config: OpenVocabularyConfig) -> None:
        super().__init__()
        self.config = config
        self.logit_scale = nn.Parameter(torch.tensor(LOGIT_SCALE))
        self.name = nn.Linear(config.text, config.embed)
        self.phrase = nn.Linear(config.text, config.embed)
        self.layers = nn.ModuleList(_Layer(config.embed, config.width) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.embed)
        self.pool = nn.Linear(2 * config.embed, config.embed)

    def forward(self, batch: GraphBatch) -> GraphEncoding:
        """Encode a batch whose names are text vectors."""
        text = (self.config.text,)
        if batch.nodes.shape[1:] != text:
            raise ModelError(
                f"the graph encoder reads text embeddings of width {text[0]}, these have {batch.nodes.shape[-1]}; "
                f"name vectors must come from the text encoder that it was trained with"
            )
        nodes = self.name(F.layer_norm(batch.nodes, text))
        edges = self.phrase(F.layer_norm(batch.edges, text))
        for layer in self.layers:
            nodes, edges = layer(nodes, edges, batch.ends)
        nodes, edges = self.norm(nodes), self.norm(edges)
        return encoding(batch, nodes, edges, self.config.most, self.pool)
