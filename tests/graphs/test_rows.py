"""Graphs of several triples: how they grow, what they may hold, and their way through the curated table."""

from itertools import combinations
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from sgpipe.datasets.canonicalize import canonicalize
from sgpipe.datasets.config import Canonicalize
from sgpipe.datasets.tables import IMAGES, RELATIONS, TRIPLES, read_table, write_table
from sgpipe.datasets.visual_genome.data_set import VisualGenome
from sgpipe.graphs.candidates import pair_sides
from sgpipe.graphs.config import Curate, GraphSize, Quality
from sgpipe.graphs.curate import curate
from sgpipe.graphs.growth import grow
from sgpipe.graphs.prompts import mention_order, words
from sgpipe.graphs.scene_graph import SceneGraph, graphs_of
from sgpipe.relations.predicates import PREDICATES, phrase

BOXES = {1: (0, 0, 10, 10), 2: (20, 0, 10, 10), 3: (0, 30, 10, 10), 4: (50, 50, 10, 10), 5: (90, 0, 5, 5)}
NAMES = {1: "dog", 2: "cat", 3: "hat", 4: "bird", 5: "dog"}
SAID = [
    (1, "left of", 2), (4, "on", 5), (2, "near", 1), (3, "on", 1), (3, "below", 2), (3, "near", 4), (5, "near", 1),
]  # fmt: skip


def relations(*said: tuple[int, str, int]) -> pl.DataFrame:
    rows = []
    for number, (subject, predicate, object_) in enumerate(said):
        ends = {"s": subject, "o": object_}
        boxes = {f"{side}{n}": float(v) for side, i in ends.items() for n, v in zip("xywh", BOXES[i], strict=True)}
        rows.append(
            {
                "relationship_id": number, "image_id": 7, "subject_id": subject, "object_id": object_,
                "subject": NAMES[subject], "predicate": predicate, "object": NAMES[object_], **boxes,
            }
        )  # fmt: skip
    return pl.DataFrame(rows)


def test_a_graph_grows_by_relations_that_share_an_object_and_relates_two_objects_once() -> None:
    frame = relations(*SAID)
    made = grow(frame.row(0, named=True), frame.to_dicts(), 9, lambda one, other: True)
    assert made.objects == ("dog", "cat", "hat", "bird", "dog")
    names = [(made.objects[s], p, made.objects[o]) for s, p, o in made.triples]
    # `cat near dog` is of the same two objects; `bird on dog` waits until the hat brings the bird
    assert names == [
        ("dog", "left of", "cat"), ("hat", "on", "dog"), ("hat", "below", "cat"), ("hat", "near", "bird"),
        ("bird", "on", "dog"), ("dog", "near", "dog"),
    ]  # fmt: skip
    assert made.triples[4] == (3, "on", 4) and made.triples[5] == (4, "near", 0), "two dogs are two objects"
    assert made.region.tolist() == [0, 0, 95, 60]
    three = grow(frame.row(0, named=True), frame.to_dicts(), 3, lambda one, other: True)
    assert three.triples == made.triples[:3] and three.region.tolist() == [0, 0, 30, 40]
    distinct = grow(frame.row(0, named=True), frame.to_dicts(), 9, lambda one, other: one != other)
    assert distinct.objects == ("dog", "cat", "hat", "bird")


def test_a_relation_that_calls_an_object_by_another_name_is_left_out() -> None:
    frame = relations((1, "left of", 2), (3, "on", 1), (4, "on", 2))
    frame = frame.with_columns(object=pl.Series(["cat", "puppy", "cat"]))
    made = grow(frame.row(0, named=True), frame.to_dicts(), 9, lambda one, other: True)
    assert made.objects == ("dog", "cat", "bird")


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_every_mention_order_is_equally_likely(count: int) -> None:
    draws = (np.arange(480) + 0.5) / 480
    orders = [mention_order(count, draw) for draw in draws]
    found = {order: orders.count(order) for order in orders}
    assert all(sorted(order) == list(range(count)) for order in found)
    assert len(set(found.values())) == 1 and len(found) == [1, 2, 6, 24][count - 1]
    assert mention_order(count, 0.0) == tuple(reversed(range(count)))


def test_prompts_of_a_graph_name_every_object_and_say_every_triple() -> None:
    graph = SceneGraph(("dog", "cat", "hat", "tree"), ((0, "left of", 1), (2, "around/near", 0), (1, "looking at", 2)))
    assert words(graph) == ("a photo of dog left of cat, hat near dog, cat looking at hat and tree on a plain background")
    assert words(graph, "dropped") == "a photo of dog cat, hat dog, cat hat and tree on a plain background"
    assert words(graph, "neutral", (3, 1, 0, 2)) == "a photo of tree, cat, dog and hat on a plain background"


@pytest.fixture(scope="module")
def real(reference_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[pa.Table, pa.Table]:
    """Relations and images of the sixty real images."""
    source, folder = reference_dir / "data/vg_real/v1_4", tmp_path_factory.mktemp("canonical")
    if not source.is_dir():
        pytest.skip(f"real annotations are absent: no {source}")
    canonicalize(VisualGenome(source), folder, Canonicalize())
    return read_table(folder / "relations.parquet", RELATIONS), read_table(folder / "images.parquet", IMAGES)


def grown(tables: tuple[pa.Table, pa.Table], size: GraphSize) -> tuple[Curate, pa.Table]:
    params = Curate(
        predicates=("on",), train=1000, val=1000, map_predicates=("on",), maps_per_class=0, allow_short=True, graph=size,
        val_graph=size,
        quality=Quality(min_side=4, min_area=0),
    )  # fmt: skip
    return params, curate(*tables, params).triples


def test_graphs_of_real_images(real: tuple[pa.Table, pa.Table], tmp_path: Path) -> None:
    """Of sixty real images: what a graph says is annotated, it is connected, and no train graph shows a name pair of validation."""
    relations, (params, triples) = real[0], grown(real, GraphSize(min=2, max=4))
    write_table(triples, tmp_path / "triples.parquet")
    triples = read_table(tmp_path / "triples.parquet", TRIPLES)
    stated = set(zip(*(relations[n].to_pylist() for n in ("image_id", "subject", "predicate", "object")), strict=True))
    sizes = set()
    rows = triples.to_pylist()
    assert len(rows) > 20
    for row, graph in zip(rows, graphs_of(triples), strict=True):
        assert graph.named[0] == (row["subject"], row["predicate"], row["object"])
        assert all((row["image_id"], *said) in stated for said in graph.named)
        sizes.add(len(graph.triples))
        reached = {0}
        for _ in graph.triples:
            reached |= {end for s, _, o in graph.triples if {s, o} & reached for end in (s, o)}
        assert reached == set(range(len(graph.objects))), "one connected graph"
        assert len(set(graph.objects)) == len(graph.objects)
        pairs = list(combinations(graph.objects, 2))
        assert row["split"] == "val" or set(pair_sides(pairs, params)) == {"train"}
        for box in graph.boxes:
            assert box is not None and min(box[:2]) >= -1e-6 and max(box[0] + box[2], box[1] + box[3]) <= 1 + 1e-6
        crop = [row[f"crop_{name}"] for name in "xywh"]
        subject = [crop[0] + graph.boxes[0][0] * crop[2], crop[1] + graph.boxes[0][1] * crop[3]]
        assert np.allclose(subject, [row["sx"], row["sy"]], atol=1e-2)
        for s, p, o in graph.named:
            assert f"{s} {phrase(p)} {o}" in row["prompt"]
        assert all(name in row["neutral_prompt"] for name in graph.objects)
    assert sizes == {2, 3, 4}


def test_graphs_do_not_depend_on_the_order_of_rows_and_one_triple_is_the_default(real: tuple[pa.Table, pa.Table]) -> None:
    (relations, images), (params, triples) = real, grown(real, GraphSize(min=1, max=3))
    shuffled = relations.take(np.random.default_rng(0).permutation(relations.num_rows))
    assert curate(shuffled, images, params).triples.equals(triples)
    _, single = grown(real, GraphSize())
    assert {len(graph.triples) for graph in graphs_of(single)} == {1}
    assert single["triple_id"].to_pylist() == triples["triple_id"].to_pylist()
    assert set(PREDICATES) >= {p for graph in graphs_of(triples) for _, p, _ in graph.triples}


def test_bounds_that_contradict_are_refused() -> None:
    with pytest.raises(ValueError, match="min: got min 3, max 2; min must not be above max"):
        GraphSize(min=3, max=2)
