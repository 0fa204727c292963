"""Negatives: what is swapped, what is replaced, and that a negative is never true."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from sgpipe.errors import DataError
from sgpipe.graphs.config import Negatives
from sgpipe.graphs.negatives import default_confusions, negatives, read_confusions, replacements, stated
from sgpipe.graphs.prompts import wrong_predicates
from sgpipe.graphs.scene_graph import SceneGraph
from sgpipe.relations.predicates import DIRECTIONAL, INVERSE, PREDICATES, SYMMETRIC, may_hold, relational_prompt, use_relations
from tests.tiny import graph_columns

NONE = frozenset[str]()


def triples(*said: tuple[str, str, str]) -> pa.Table:
    rows = [
        {
            "triple_id": f"{n}-7",
            "image_id": n,
            "relationship_id": 7,
            "subject": s,
            "predicate": p,
            "object": o,
            **graph_columns(SceneGraph.of(s, p, o)),
        }
        for n, (s, p, o) in enumerate(said)
    ]
    return pa.Table.from_pylist(rows)


@pytest.mark.parametrize("predicate", PREDICATES)
def test_every_class_has_a_negative_of_the_right_kind(predicate: str) -> None:
    table = triples(("cat", predicate, "dog"))
    (row,) = negatives(table, table, Negatives()).to_pylist()
    if predicate in DIRECTIONAL:
        assert row == {
            "triple_id": "0-7",
            "kind": "swap",
            "subject": "dog",
            "predicate": predicate,
            "object": "cat",
            "prompt": relational_prompt("dog", predicate, "cat"),
            "changed": 0,
        }
    else:
        assert (row["kind"], row["subject"], row["object"]) == ("replace", "cat", "dog")
        assert not may_hold(row["predicate"], predicate)
    assert not (row["kind"] == "swap" and predicate in SYMMETRIC)


def test_the_first_triple_of_a_graph_is_turned_and_the_others_stay() -> None:
    graph = SceneGraph(("cat", "dog", "hat"), ((0, "left of", 1), (2, "on", 0)))
    swap = graph.negated("swap", "left of")
    assert swap.named == (("dog", "left of", "cat"), ("hat", "on", "cat"))
    assert swap.objects == ("dog", "cat", "hat"), "numbered by first mention, as the graph of one triple is"
    assert graph.negated("replace", "above").named == (("cat", "above", "dog"), ("hat", "on", "cat"))
    placed = SceneGraph(graph.objects, graph.triples, ((0, 0, 0.5, 1), (0.5, 0, 0.5, 1), (0, 0, 0.1, 0.1)))
    assert placed.negated("swap", "left of").boxes == placed.boxes
    for kind, scene in (("shuffle", graph), ("swap", SceneGraph(("cat",)))):
        with pytest.raises(DataError, match="valid: swap, replace"):
            scene.negated(kind, "left of")
    row = {"triple_id": "0-7", "image_id": 0, "relationship_id": 7, "subject": "cat", "predicate": "left of", "object": "dog"}
    table = pa.Table.from_pylist([row | graph_columns(graph)])
    (made,) = negatives(table, table, Negatives()).to_pylist()
    assert made["prompt"] == "a photo of dog left of cat and hat on cat on a plain background"


def test_any_triple_of_a_graph_may_be_the_one_that_changes() -> None:
    """Drawn by hash: each about as often; the record names it, and the others stay. What the image says of *its* names counts."""
    graph = SceneGraph(("cat", "dog", "hat", "bed"), ((0, "left of", 1), (2, "wearing", 0), (1, "below", 3)))
    row = {"subject": "cat", "predicate": "left of", "object": "dog", **graph_columns(graph)}
    table = pa.Table.from_pylist([{"triple_id": f"{n}-7", "image_id": n, "relationship_id": 7, **row} for n in range(300)])
    said = [{"image_id": n, "subject": "hat", "predicate": "holding", "object": "cat"} for n in range(300)]
    made = negatives(table, pa.Table.from_pylist(said), Negatives(changes="any", choice="hardest")).to_pylist()
    assert {0.25 < [each["changed"] for each in made].count(place) / 300 < 0.42 for place in range(3)} == {True}
    for each in made:
        negative = graph.negated(each["kind"], each["predicate"], each["changed"])
        assert [a == b for a, b in zip(graph.named, negative.named, strict=True)].count(False) == 1
        assert (
            negative.named[each["changed"]] == (each["subject"], each["predicate"], each["object"]) != graph.named[each["changed"]]
        )
        assert all(name in each["prompt"] for name in graph.objects)
    turned = {each["changed"]: (each["kind"], each["subject"]) for each in made}
    assert turned == {0: ("swap", "dog"), 1: ("replace", "hat"), 2: ("swap", "bed")}
    assert not any(may_hold(each["predicate"], "holding") for each in made if each["changed"] == 1)
    assert {each["changed"] for each in negatives(table, table, Negatives()).to_pylist()} == {0}
    with pytest.raises(DataError, match="of one of its 3 triples"):
        graph.negated("swap", "below", 3)


def test_the_built_in_table_covers_what_is_not_directional_and_holds_no_true_classes() -> None:
    assert set(default_confusions()) == set(PREDICATES) - DIRECTIONAL
    for predicate in default_confusions():
        assert replacements(predicate, default_confusions(), NONE)
        assert not any(may_hold(name, predicate) for name in default_confusions()[predicate]), predicate


def test_what_the_image_says_as_well_is_no_negative() -> None:
    table = triples(("man", "wearing", "hat"), ("man", "wearing", "hat"))
    held = pa.concat_tables([table, pa.Table.from_pylist([{**table.to_pylist()[0], "predicate": "holding"}])])
    first, second = negatives(table, held, Negatives(choice="hardest"))["predicate"].to_pylist()
    assert second == "holding"
    assert not may_hold(first, "holding")
    both = triples(("cat", "left of", "cat"))
    assert negatives(both, both, Negatives())["kind"].to_pylist() == ["replace"]


@pytest.mark.parametrize(("predicate", "inverse"), INVERSE.items())
def test_the_swapped_triple_said_the_other_way_round_is_no_negative(predicate: str, inverse: str) -> None:
    """`dog above cat` is true of an image that says `cat below dog`, though nobody wrote `above`."""
    table = triples(("cat", predicate, "dog"))
    (row,) = table.to_pylist()
    held = pa.concat_tables([table, pa.Table.from_pylist([{**row, "predicate": inverse}])])
    (made,) = negatives(table, held, Negatives()).to_pylist()
    assert (made["kind"], made["subject"], made["object"]) == ("replace", "cat", "dog")
    assert made["predicate"] not in (predicate, inverse)


def test_a_replacement_said_the_other_way_round_is_no_negative() -> None:
    table = triples(("cat", "in", "dog"))
    (row,) = table.to_pylist()
    said = [{**row, "subject": "dog", "object": "cat", "predicate": p} for p in ("in front of", "above")]
    confusions = {"in": {"behind": 9.0, "below": 9.0, "hanging from": 1.0}}
    held = pa.concat_tables([table, pa.Table.from_pylist(said)])
    assert negatives(table, held, Negatives(choice="hardest"))["predicate"].to_pylist() == ["above"]
    true = frozenset(stated([(0, "dog", "cat", "in front of"), (0, "dog", "cat", "above")])[0, "cat", "dog"])
    assert true == {"behind", "below"}
    assert replacements("in", confusions, true) == [("hanging from", 1.0)]
    assert stated([(0, "a", "b", "touching")])[0, "b", "a"] == {"touching"}


def test_the_draw_follows_the_counts_and_not_the_order(tmp_path: Path) -> None:
    path = tmp_path / "confusions.json"
    path.write_text(json.dumps({"wearing": {"holding": 3, "behind": 1, "in": 90, "wearing": 50}}))
    table = triples(*[("man", "wearing", f"hat {n}") for n in range(2000)])
    made = negatives(table, table, Negatives(confusions=str(path)))
    drawn = np.array(made["predicate"].to_pylist())
    assert set(drawn) == {"holding", "behind"}
    assert (drawn == "holding").mean() == pytest.approx(0.75, abs=0.04)
    order = np.random.default_rng(0).permutation(2000)
    assert negatives(table.take(order), table, Negatives(confusions=str(path))).equals(made.take(order))
    hardest = negatives(table, table, Negatives(confusions=str(path), choice="hardest"))
    assert set(hardest["predicate"].to_pylist()) == {"holding"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[]", "not a JSON mapping"),
        ('{"on": {"onn": 1}}', "'onn' is no class"),
        ('{"on": {"in": -1}}', "counts are not negative"),
        ("{", "not a JSON"),
    ],
)
def test_tables_that_cannot_be_used(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "confusions.json"
    path.write_text(text)
    with pytest.raises(DataError, match=says):
        read_confusions(path)
    with pytest.raises(DataError, match="no such confusion table"):
        read_confusions(tmp_path / "absent.json")


def test_a_class_that_nothing_contradicts_is_said_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "relations.yaml"
    path.write_text("kissing: {symmetric: true}\nnear: {symmetric: true, weak: true}\n")
    use_relations(path)
    try:
        table = triples(("dog", "kissing", "cat"))
        for made in (lambda: negatives(table, table, Negatives()), lambda: wrong_predicates(table, 0)):
            with pytest.raises(DataError, match=r"^relation class 'kissing': each of the 2 classes can hold .* data\.relations$"):
                made()
    finally:
        use_relations(None)
