"""The open-vocabulary encoder: any name with a vector, direction matters, order does not, a lone node keeps its class."""

import pytest
import torch

from sgpipe.errors import DataError, ModelError
from sgpipe.graph_encoder.batches import GraphEncoding, batch_graphs
from sgpipe.graph_encoder.open_vocabulary import NameTable, OpenVocabularyConfig, OpenVocabularyEncoder, texts_of
from sgpipe.graphs.scene_graph import SceneGraph

WORDS = ("dog", "cat", "axolotl", "tree", "left of", "on", "near")


@pytest.fixture(scope="module")
def table() -> NameTable:
    generator = torch.Generator().manual_seed(1)
    return NameTable({word: torch.randn(12, generator=generator, dtype=torch.float64) for word in WORDS})


@pytest.fixture(scope="module")
def encoder() -> OpenVocabularyEncoder:
    torch.manual_seed(0)
    return OpenVocabularyEncoder(OpenVocabularyConfig(text=12, width=16, embed=10, layers=2, most=3)).double()


def encode(encoder: OpenVocabularyEncoder, table: NameTable, *graphs: SceneGraph) -> GraphEncoding:
    with torch.no_grad():
        return encoder(batch_graphs(graphs, table))


def test_order_does_not_matter_and_direction_does(encoder: OpenVocabularyEncoder, table: NameTable) -> None:
    given = SceneGraph(("dog", "cat", "tree"), ((0, "left of", 1), (2, "on", 1)))
    turned = SceneGraph(("tree", "dog", "cat"), ((0, "on", 2), (1, "left of", 2)))
    one, other, back = (encode(encoder, table, each) for each in (given, turned, given.reversed()))
    assert (one.pooled - other.pooled).abs().max() < 1e-12
    assert (one.local[0, :2] - other.local[0, [1, 0]]).abs().max() < 1e-12
    assert (one.pooled - back.pooled).norm() > 0.02 * one.pooled.norm()


def test_batch_is_each_alone_empty_ones_included(encoder: OpenVocabularyEncoder, table: NameTable) -> None:
    graphs = [
        SceneGraph.of("dog", "around/near", "axolotl"),
        SceneGraph(("tree",)),
        SceneGraph(),
        SceneGraph(("dog", "cat"), ((0, "on", 1),) * 4),
    ]
    together = encode(encoder, table, *graphs)
    for n, graph in enumerate(graphs):
        alone = encode(encoder, table, graph)
        assert (together.pooled[n] - alone.pooled[0]).abs().max() < 1e-12
        assert (together.local[n] - alone.local[0]).abs().max() < 1e-12
    assert together.relation.sum(1).tolist() == [1, 0, 0, 3] and together.dropped.tolist() == [0, 0, 0, 1]


def test_a_lone_node_keeps_its_class(encoder: OpenVocabularyEncoder, table: NameTable) -> None:
    found = encode(encoder, table, SceneGraph(("dog",)), SceneGraph(("cat",)))
    assert (found.pooled[0] - found.pooled[1]).abs().max() > 1e-2


def test_a_table_for_graphs_holds_names_and_phrases_and_knows_its_size() -> None:
    graphs = [SceneGraph.of("dog", "around/near", "axolotl"), SceneGraph(("tree", "dog"))]
    assert texts_of(graphs) == ["axolotl", "dog", "near", "tree"]
    table = NameTable({name: torch.full((4,), 3.0) for name in texts_of(graphs)})
    assert table.rms == 3.0 and batch_graphs(graphs, table).edges.shape == (1, 4)


def test_names_without_vectors_and_vectors_of_another_width_are_refused(encoder: OpenVocabularyEncoder, table: NameTable) -> None:
    with pytest.raises(DataError, match="no text embedding of 'unicorn'; encode the names"):
        batch_graphs([SceneGraph.of("dog", "on", "unicorn")], table)
    with pytest.raises(DataError, match="one vector of one width"):
        NameTable({"dog": torch.zeros(3), "cat": torch.zeros(4)})
    with pytest.raises(ModelError, match="text embeddings of width 12, these have 5"):
        encoder(batch_graphs([SceneGraph(("dog",))], NameTable({"dog": torch.zeros(5)})))
