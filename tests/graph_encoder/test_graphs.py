"""Scene graphs: what is refused and by which name, and the two ways to write one."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgpipe.errors import DataError
from sgpipe.graph_encoder.batches import batch_graphs
from sgpipe.graph_encoder.vocabulary import Vocabulary
from sgpipe.graphs.scene_graph import SceneGraph, parse_graph, read_graph
from sgpipe.relations.predicates import PREDICATES


@pytest.mark.parametrize(
    ("objects", "triples", "said"),
    [
        (("dog", "cat"), ((0, "on", 2),), r"triple \(0, 'on', 2\): there is no object 2; the graph has 2"),
        (("dog", "cat"), ((-1, "on", 1),), "there is no object -1"),
        (("dog", "cat"), ((1, "on", 1),), "a self-loop on 'cat'"),
        (("dog", "ca\x00t"), (), r"object 'ca\\x00t' is no name: it has '\\x00'"),
        (("dog", "zero\u200bwidth"), (), r"it has '\\u200b'"),
        (("dog", ""), (), "it is empty"),
        (("dog", "  "), (), "it is empty"),
        (("dog", "two  spaces"), (), "single spaces"),
        (("dog", "-&-"), (), "it has no letter and no digit"),
        (("dog", "x" * 61), (), "it has 61 characters; a name has 1 to 60"),
        (("dog", "__image__"), (), "'__image__' is no name: it is reserved"),
        (("dog", "cat"), ((0, "on\n", 1),), r"triple \(0, 'on\\n', 1\): predicate 'on\\n' is no name: it has '\\n'"),
    ],
)  # fmt: skip
def test_what_is_no_scene_graph_is_refused_by_name(
    objects: tuple[str, ...], triples: tuple[tuple[int, str, int], ...], said: str
) -> None:
    with pytest.raises(DataError, match=said):
        SceneGraph(objects, triples)


@pytest.mark.parametrize(
    "name", ["t-shirt", "men's hat", "st. bernard", "chien élevé", "around/near", "3 dogs", "jr.", "flower (toy) one", "man, woman"]
)
def test_ordinary_names_are_taken(name: str) -> None:
    assert SceneGraph((name,)).objects == (name,)


def test_a_predicate_outside_the_table_is_refused_with_near_matches() -> None:
    graph = SceneGraph.of("dog", "siting on", "mat")
    with pytest.raises(DataError, match="'siting on' is not in the predicate table; did you mean 'sitting on'"):
        graph.check_predicates(PREDICATES)


@pytest.mark.parametrize("text", ["dog, left of, cat", " The Dog ,LEFT OF,  a cat ", "dog,left of,cat"])
def test_one_triple_as_people_write_it(text: str) -> None:
    assert parse_graph(text) == SceneGraph.of("dog", "left of", "cat")


def test_a_name_stands_for_one_object_in_text_form() -> None:
    graph = parse_graph("dog, left of, cat; cat, near, tree")
    assert graph == SceneGraph(("dog", "cat", "tree"), ((0, "left of", 1), (1, "around/near", 2)))


def test_json_names_two_objects_alike(tmp_path: Path) -> None:
    written = {"objects": ["Dog", "dog", "the cat"], "triples": [[0, "left of", 1], [2, "On", 1]]}
    wanted = SceneGraph(("dog", "dog", "cat"), ((0, "left of", 1), (2, "on", 1)))
    path = tmp_path / "graph.json"
    path.write_text(json.dumps(written))
    assert parse_graph(json.dumps(written)) == wanted == read_graph(path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("dog left of cat", "'dog left of cat' is no triple; write `subject, predicate, object`"),
        ("dog, left of, cat;", "'' is no triple"),
        ("dog, left of, ", "is no triple"),
        ("", "'' is no triple"),
        ("dog, near, dog", "relates 'dog' to itself"),
        ("dog, next of, cat", "'next of' is not in the predicate table"),
        ("d\x00g, on, cat", r"it has '\\x00'"),
        ("flower; (toy), on, cat", "'flower' is no triple"),
        ('{"objects": ["dog"], "triples": [[0, "on", 1]]}', "the graph: triple .* there is no object 1"),
        ('{"objects": ["dog"], "edges": []}', "the graph: not JSON of the form"),
        ('{"objects": ["dog"', "the graph: not JSON of the form"),
    ],
)  # fmt: skip
def test_bad_text_is_refused_by_name(text: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        parse_graph(text)


def test_a_missing_or_binary_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.json: no such file"):
        read_graph(tmp_path / "none.json")
    (tmp_path / "odd.json").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=r"odd\.json: not JSON"):
        read_graph(tmp_path / "odd.json")


@given(st.text(max_size=40))
def test_any_text_is_a_graph_or_a_data_error(text: str) -> None:
    try:
        graph = parse_graph(text)
    except DataError:
        return
    assert parse_graph(str(graph)) == graph and graph.reversed().reversed() == graph


def test_layout_of_a_batch_is_sgdiffs() -> None:
    """Objects, then one image node; relations, then one in-image edge of each object (facts of the published data)."""
    graphs = [SceneGraph.of("dog", "on", "mat"), SceneGraph(("cat",)), SceneGraph()]
    batch = batch_graphs(graphs, Vocabulary.of(["cat", "dog", "mat"], ["on"]))
    assert batch.nodes.tolist() == [2, 3, 0, 1, 0, 0]
    assert batch.edges.tolist() == [1, 0, 0, 0]
    assert batch.ends.tolist() == [[0, 1], [0, 2], [1, 2], [3, 4]]
    assert batch.node_graph.tolist() == [0, 0, 0, 1, 1, 2] and batch.edge_graph.tolist() == [0, 0, 0, 1]
    assert batch.relation.tolist() == [True, False, False, False]
