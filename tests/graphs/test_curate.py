"""Curation: balance, disjointness, independence of row order, quality bounds, crops, and shortfalls."""

from collections import Counter
from contextlib import nullcontext
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from msgspec.structs import replace

import stages.curate
from sgpipe.datasets.tables import IMAGES, OBJECTS, RELATIONS, TRIPLES
from sgpipe.errors import DataError
from sgpipe.graphs.candidates import candidates
from sgpipe.graphs.config import Crop, Curate, GraphSize, Quality
from sgpipe.graphs.curate import STEPS, curate
from sgpipe.relations.predicates import PREDICATES, relational_prompt
from sgpipe.runs import progress

CLASSES = ("on", "left of", "wearing", "around/near")
SMALL = Curate(
    predicates=CLASSES, train=40, val=8, map_predicates=CLASSES, maps_per_class=20, quality=Quality(min_side=1, min_area=0)
)


def world(count: int = 1200, seed: int = 0) -> tuple[pa.Table, pa.Table]:
    """Random relations of a quarter as many images, 640 x 480."""
    draw = np.random.default_rng(seed)
    names = [f"thing {n}" for n in range(30)]
    images = count // 4
    split = draw.choice(["train", "val", "test"], images, p=[0.6, 0.3, 0.1])
    columns: dict[str, Any] = {
        "relationship_id": np.arange(count),
        "image_id": draw.integers(0, images, count),
        "subject_id": draw.integers(0, 500, count),
        "object_id": draw.integers(500, 1000, count),
        "subject": [names[n] for n in draw.integers(0, 30, count)],
        "predicate": draw.choice(CLASSES, count).astype(object),
        "object": [names[n] for n in draw.integers(0, 30, count)],
        "raw_predicate": pa.nulls(count, pa.string()),
        "source": draw.choice(["annotated", "geometric"], count).astype(object),
    }
    for side in "so":
        columns |= {f"{side}{name}": draw.integers(10, 200, count).astype(np.float32) for name in "xywh"}
    sizes = {
        "image_id": np.arange(images),
        "width": np.full(images, 640, np.int32),
        "height": np.full(images, 480, np.int32),
        "url": pa.nulls(images, pa.string()),
        "split": split.astype(object),
    }
    return pa.table(columns, schema=RELATIONS), pa.table(sizes, schema=IMAGES)


def test_every_step_and_every_graph_moves_a_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Of the stage itself, which opens the bar, with graphs that grow."""
    relations, images = world()
    monkeypatch.setattr(progress, "_options", lambda what, unit: {"desc": what, "unit": unit, "mininterval": 0, "miniters": 1})
    tables = {"relations": relations, "images": images, "objects": OBJECTS.empty_table()}
    given = replace(SMALL, graph=GraphSize(1, 2), allow_short=True)
    monkeypatch.setattr(stages.curate, "read_params", lambda *_: given)
    monkeypatch.setattr(stages.curate, "read_table", lambda path, schema: tables[path.stem])
    monkeypatch.setattr(stages.curate, "record", lambda *_: nullcontext())
    for name in ("write_table", "write_metrics"):
        monkeypatch.setattr(stages.curate, name, lambda *_: None)
    stages.curate.main()
    said = capsys.readouterr().err
    assert "curating: 100%" in said and f"{STEPS}/{STEPS}" in said and "growing graphs: 100%" in said


def test_balance_splits_and_prompts() -> None:
    relations, images = world()
    made = curate(relations, images, SMALL)
    assert made.triples.schema == made.map_triples.schema == TRIPLES
    rows = made.triples.to_pylist()
    assert Counter((row["split"], row["predicate"]) for row in rows) == {
        **{("train", name): 10 for name in CLASSES},
        **{("val", name): 2 for name in CLASSES},
    }
    assert Counter(row["predicate"] for row in made.map_triples.to_pylist()) == dict.fromkeys(CLASSES, 20)
    home = dict(zip(images["image_id"].to_pylist(), images["split"].to_pylist(), strict=True))
    pairs = {split: {frozenset((r["subject"], r["object"])) for r in rows if r["split"] == split} for split in ("train", "val")}
    assert not pairs["train"] & pairs["val"]
    assert not {frozenset((r["subject"], r["object"])) for r in made.map_triples.to_pylist()} & pairs["val"]
    assert all(home[row["image_id"]] == row["split"] for row in rows)
    assert len({row["triple_id"] for row in rows}) == len(rows)
    for row in rows:
        assert row["prompt"] == relational_prompt(row["subject"], row["predicate"], row["object"])
        assert row["concepts"][0::2] == [row["subject"], row["object"]]
        assert {row["subject"], row["object"]} == set(
            row["neutral_prompt"].removeprefix("a photo of ").removesuffix(" on a plain background").split(" and ")
        )
    first = [row["neutral_prompt"].startswith(f"a photo of {row['subject']} and") for row in rows]
    assert 0.2 < np.mean(first) < 0.8


def test_the_choice_depends_on_the_seed_and_not_on_row_order() -> None:
    relations, images = world()
    order = np.random.default_rng(5).permutation(relations.num_rows)
    made, again = (
        curate(relations, images, SMALL),
        curate(relations.take(order), images.take(np.arange(images.num_rows)[::-1]), SMALL),
    )
    assert made.triples.equals(again.triples)
    assert made.map_triples.equals(again.map_triples)
    assert made.metrics == again.metrics
    other = curate(relations, images, msgspec.structs.replace(SMALL, seed=1))
    assert set(other.triples["triple_id"].to_pylist()) != set(made.triples["triple_id"].to_pylist())


def test_more_data_of_one_class_leaves_the_others_alone() -> None:
    relations, images = world()
    keep = np.array(relations["predicate"].to_pylist()) != "on"
    params = msgspec.structs.replace(SMALL, predicates=CLASSES[1:], map_predicates=CLASSES[1:], train=30, val=6)
    whole, part = curate(relations, images, params), curate(relations.filter(pa.array(keep)), images, params)
    assert whole.triples.equals(part.triples)


def test_annotated_relations_come_first() -> None:
    relations, images = world()
    made = curate(relations, images, SMALL)
    assert "geometric" not in made.triples["source"].to_pylist()
    all_annotated = curate(relations, images, msgspec.structs.replace(SMALL, geometric=False))
    assert all_annotated.triples.equals(made.triples)


def test_a_class_that_is_too_small_is_an_error_with_its_count() -> None:
    relations, images = world()
    params = msgspec.structs.replace(SMALL, map_predicates=("on", "pulling"))
    with pytest.raises(DataError, match=r"maps pulling 0 of 20; lower the counts"):
        curate(relations, images, params)
    short = curate(relations, images, msgspec.structs.replace(params, allow_short=True)).metrics
    assert (short["shortfall"]["maps"], short["maps"]["by_class"]) == (20, {"on": 20, "pulling": 0})


def test_no_pair_fills_a_class() -> None:
    relations, images = world()
    made = curate(relations, images, msgspec.structs.replace(SMALL, max_per_pair=1))
    rows = [row for row in made.triples.to_pylist() if row["split"] == "train"]
    assert max(Counter((row["predicate"], row["subject"], row["object"]) for row in rows).values()) == 1


@pytest.mark.parametrize(
    ("bound", "name", "change"),
    [
        ({"min_side": 20}, "side", {"sw": 19.0}),
        ({"min_area": 0.01}, "area", {"sw": 40.0, "sh": 40.0}),
        ({"max_overlap": 0.5}, "overlap", {"sx": 301.0}),
        ({"max_size_ratio": 3.0}, "size ratio", {"sw": 400.0}),
        ({"max_distance": 0.2}, "distance", {"sx": 0.0, "sy": 0.0}),
        ({"max_name_words": 2}, "long name", {"subject": "a b c"}),
        ({}, "same name", {"subject": "dog"}),
    ],
)
def test_each_quality_bound(bound: dict[str, Any], name: str, change: dict[str, Any]) -> None:
    good = {
        "relationship_id": 1, "image_id": 0, "subject_id": 1, "object_id": 2, "subject": "cat", "predicate": "on", "object": "dog",
        "raw_predicate": "on", "source": "annotated", "sx": 200.0, "sy": 200.0, "sw": 100.0, "sh": 100.0,
        "ox": 300.0, "oy": 200.0, "ow": 100.0, "oh": 100.0,
    }  # fmt: skip
    _, images = world(8)
    params = Curate(
        allow_short=True, quality=Quality(min_side=1, min_area=0, **bound) if "min" not in str(bound) else Quality(**bound)
    )
    assert len(candidates(pa.Table.from_pylist([good], RELATIONS), images, params)[0]) == 1
    changed = {**good, **change} if name != "overlap" else {**good, "sx": 300.0}
    ranked, turned_away = candidates(pa.Table.from_pylist([changed], RELATIONS), images, params)
    assert (len(ranked), turned_away[name]) == (0, 1)


def test_crops() -> None:
    relations, images = world()
    whole = curate(relations, images, msgspec.structs.replace(SMALL, crop=Crop(kind="image"))).triples
    assert {tuple(row[f"crop_{k}"] for k in "xywh") for row in whole.to_pylist()} == {(0, 0, 640, 480)}
    for row in curate(relations, images, SMALL).triples.to_pylist():
        x, y, w, h = (row[f"crop_{k}"] for k in "xywh")
        for side in "so":
            bx, by, bw, bh = (row[f"{side}{k}"] for k in "xywh")
            assert x <= bx + 1e-3 and y <= by + 1e-3 and x + w >= bx + bw - 1e-3 and y + h >= by + bh - 1e-3


def test_defaults_are_the_full_size_experiment() -> None:
    params = Curate()
    assert (len(params.predicates), params.train, params.val, params.maps_per_class) == (16, 800, 160, 700)
    assert params.map_predicates == PREDICATES
    with pytest.raises(ValueError, match="train: got 801; 16 predicates need a multiple of 16"):
        Curate(train=801)
    with pytest.raises(ValueError, match="got 'onn'"):
        Curate(predicates=("onn",))


def test_nothing_left_is_an_error_that_says_why() -> None:
    relations, images = world()
    strict = msgspec.structs.replace(SMALL, allow_short=True, quality=Quality(min_side=10_000))
    with pytest.raises(
        DataError,
        match=r"no triple is left of 1200 relations: 0 of the chosen predicates pass curate.quality "
        r"\(rejected: area \d+, side \d+\)",
    ):
        curate(relations, images, strict)
