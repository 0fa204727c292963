"""CGIP against the official code's outputs, an independent float64 reading, and what must not and must matter."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sgpipe.graph_encoder.batches import GraphEncoding, batch_graphs
from sgpipe.graph_encoder.cgip import Cgip, CgipConfig
from sgpipe.graph_encoder.vocabulary import Vocabulary
from sgpipe.graphs.scene_graph import SceneGraph
from tests.graph_encoder.golden import CASES, CONFIG, golden, golden_batch, golden_model, reference_encoding

NAMES = [f"thing{n}" for n in range(24)]
VOCABULARY = Vocabulary.of(NAMES, ["left of", "on", "near"])


@pytest.fixture(scope="module")
def tensors(reference_dir: Path) -> dict[str, Tensor]:
    return golden(reference_dir)


@pytest.fixture(scope="module")
def model() -> Cgip:
    torch.manual_seed(0)
    return Cgip(CgipConfig(len(VOCABULARY.objects), len(VOCABULARY.predicates), width=24, embed=16, layers=3)).double()


def encode(model: Cgip, *graphs: SceneGraph) -> GraphEncoding:
    with torch.no_grad():
        return model(batch_graphs(graphs, VOCABULARY))


def graph(*triples: tuple[int, str, int], objects: int = 4) -> SceneGraph:
    return SceneGraph(tuple(NAMES[:objects]), triples)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 5e-6), (torch.float64, 1e-12)])
def test_golden(tensors: dict[str, Tensor], case: str, dtype: torch.dtype, tolerance: float) -> None:
    with torch.no_grad():
        found = golden_model(tensors, dtype)(golden_batch(tensors, case))
    assert (found.local - tensors[f"{case}/out64/local"]).abs().max() < tolerance
    assert (found.pooled - tensors[f"{case}/out64/global"]).abs().max() < tolerance
    counts = golden_batch(tensors, case).edge_graph.bincount(minlength=len(found.pooled))
    assert torch.equal(found.row.sum(1), counts.clamp(max=15))


def test_golden_after_every_layer(tensors: dict[str, Tensor]) -> None:
    states = golden_model(tensors, torch.float64).layer_states(golden_batch(tensors, "a_mixed"))
    for number, (nodes, edges) in enumerate(states):
        assert (nodes - tensors[f"a_mixed/mid64/layer{number}/obj"]).abs().max() < 1e-12
        assert (edges - tensors[f"a_mixed/mid64/layer{number}/pred"]).abs().max() < 1e-12


def test_independent_reading_agrees(tensors: dict[str, Tensor], model: Cgip) -> None:
    state = {name: value for name, value in tensors.items() if "/" not in name}
    for case in CASES:
        local, pooled = reference_encoding(state, golden_batch(tensors, case), CONFIG.layers)
        assert (local - tensors[f"{case}/out64/local"]).abs().max() < 1e-12
        assert (pooled - tensors[f"{case}/out64/global"]).abs().max() < 1e-12
    batch = batch_graphs([graph((0, "on", 1), (2, "left of", 1)), graph(), graph((3, "near", 0))], VOCABULARY)
    local, pooled = reference_encoding(model.state_dict(), batch, 3)
    with torch.no_grad():
        found = model(batch)
    assert (local - found.local).abs().max() < 1e-12 and (pooled - found.pooled).abs().max() < 1e-12


@pytest.mark.parametrize("data", ["vg", "coco"])
def test_full_size_has_the_official_tensors(reference_dir: Path, data: str) -> None:
    listed = json.loads((reference_dir / "reference/sgdiff_cgip_vg_state_dict.json").read_text())
    wanted = listed["state_dict_vg"] | (listed["coco_differences"] if data == "coco" else {})
    sizes = listed["config"][data]
    with torch.device("meta"):
        model = Cgip(CgipConfig(sizes["num_objs"], sizes["num_preds"], sizes["width"], sizes["embed_dim"], sizes["layers"]))
    found = {
        name: {"shape": list(tensor.shape), "dtype": str(tensor.dtype).removeprefix("torch.")}
        for name, tensor in model.state_dict().items()
    }
    assert found == wanted and len(found) == 53
    assert sum(p.numel() for p in model.parameters()) == listed["n_params"][data]


def test_order_of_triples_moves_rows_and_nothing_else(model: Cgip) -> None:
    triples = ((0, "on", 1), (2, "left of", 1), (3, "near", 0))
    given, turned = encode(model, graph(*triples)), encode(model, graph(*triples[::-1]))
    assert (given.pooled - turned.pooled).abs().max() < 1e-12
    assert (given.local[0, :3] - turned.local[0, [2, 1, 0]]).abs().max() < 1e-12
    assert given.local[0, :3].abs().max() > 0.01


def test_order_of_objects_does_not_matter(model: Cgip) -> None:
    given = SceneGraph(("thing0", "thing1", "thing2"), ((0, "on", 1), (2, "left of", 1)))
    turned = SceneGraph(("thing2", "thing0", "thing1"), ((1, "on", 2), (0, "left of", 2)))
    one, other = encode(model, given), encode(model, turned)
    assert (one.pooled - other.pooled).abs().max() < 1e-12
    relations = one.local[one.relation], other.local[other.relation]
    assert (relations[0] - relations[1]).abs().max() < 1e-12


def test_a_batch_gives_what_each_graph_gives_alone(model: Cgip) -> None:
    graphs = [graph((0, "on", 1)), graph(), SceneGraph(), graph((2, "near", 3), (3, "on", 2))]
    together = encode(model, *graphs)
    for n, each in enumerate(graphs):
        alone = encode(model, each)
        assert (together.local[n] - alone.local[0]).abs().max() < 1e-12
        assert (together.pooled[n] - alone.pooled[0]).abs().max() < 1e-12


def test_reversing_an_edge_changes_local_and_global(model: Cgip) -> None:
    given = graph((0, "left of", 1), objects=2)
    one, other = encode(model, given), encode(model, given.reversed())
    for a, b in ((one.local[one.relation], other.local[other.relation]), (one.pooled, other.pooled)):
        assert (a - b).norm() > 0.05 * a.norm()


def test_a_node_without_an_edge_loses_its_class_and_the_image_edge_gives_it_back(model: Cgip, tensors: dict[str, Tensor]) -> None:
    batch = golden_batch(tensors, "a_mixed")
    official = golden_model(tensors, torch.float64)
    before = official(batch).pooled
    batch.nodes[10] = 34
    assert torch.equal(official(batch).pooled, before)
    alone, other = SceneGraph(("thing0", "thing1"), ()), SceneGraph(("thing0", "thing2"), ())
    assert (encode(model, alone).pooled - encode(model, other).pooled).abs().max() > 1e-3


def test_a_graph_without_triples_has_no_relation_and_an_empty_one_no_row(model: Cgip) -> None:
    found = encode(model, graph(objects=3), SceneGraph())
    assert found.relation.sum() == 0 and found.row.sum(1).tolist() == [3, 0]
    assert not found.local[1].any() and not found.local[0, 3:].any()
    assert torch.isfinite(found.pooled).all()


def test_of_many_triples_the_first_fifteen_have_rows_and_the_others_are_counted(model: Cgip) -> None:
    pairs = [(s, o) for s in range(5) for o in range(5) if s != o][:18]
    many = graph(*((s, "near", o) for s, o in pairs), objects=5)
    found = encode(model, many, graph((0, "on", 1)))
    assert found.dropped.tolist() == [3, 0]
    assert found.relation.sum(1).tolist() == [15, 1] and found.row.sum(1).tolist() == [15, 5]
    fewer = encode(model, SceneGraph(many.objects, many.triples[:15]))
    assert (found.pooled[0] - fewer.pooled[0]).abs().max() > 1e-6, "dropped triples still shape the vectors"
    assert fewer.dropped.tolist() == [0]
