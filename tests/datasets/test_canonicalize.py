"""Canonical tables: known records of the made-up sample, what is kept and what is rejected as what, splits."""

import json
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sgpipe.datasets.canonicalize import canonicalize
from sgpipe.datasets.config import Canonicalize, Splits
from sgpipe.datasets.splits import Splitter
from sgpipe.datasets.visual_genome.data_set import VisualGenome
from sgpipe.errors import DataError
from sgpipe.graphs.scene_graph import SceneGraph, parse_graph
from tests.datasets.canonical import Folder, check_conservation, parts, rows, sample_bytes


def test_known_relations(made: tuple[Path, dict[str, Any]]) -> None:
    kept = {(row["image_id"], row["relationship_id"]): row for row in rows(made[0], "relations")}
    said = {key: (row["subject"], row["predicate"], row["object"]) for key, row in kept.items()}
    assert said == {
        (11, 1): ("man", "riding", "horse"),
        (11, 2): ("man", "wearing", "hat"),
        (11, 6): ("dog", "around/near", "fence"),
        (12, 1): ("cup", "on", "table"),
        (13, 1): ("milk", "in", "glass"),
        (13, 2): ("table", "below", "glass"),
    }
    wears = kept[11, 2]
    assert (wears["subject_id"], wears["object_id"], wears["raw_predicate"]) == (101, 103, "wears")
    assert [wears[f"s{k}"] for k in "xywh"] == [100, 80, 120, 300]
    assert [kept[11, 6][f"s{k}"] for k in "xywh"] == [0, 400, 60, 60]
    assert [kept[11, 6][f"o{k}"] for k in "xywh"] == [620, 100, 20, 200]
    assert (kept[12, 1]["subject_id"], kept[12, 1]["sw"]) == (201, 30)


def test_known_rejects(made: tuple[Path, dict[str, Any]]) -> None:
    reasons = {(row["file"][:4], row["image_id"], row["relationship_id"]): row["reason"] for row in rows(made[0], "rejects")}
    assert {key[1:]: reason for key, reason in reasons.items() if key[0] == "rela" and key != ("rela", 11, 1)} == {
        (11, 3): "relation repeated",
        (11, 4): "predicate: has",
        (11, 5): "self-loop",
        (11, 7): "box outside image",
        (12, 2): "box empty",
        (12, 3): "box empty",
        (12, 4): "box outside image",
        (12, 5): "predicate: attached to",
        (13, 3): "predicate unknown",
        (13, 4): "predicate empty",
        (99, 9): "image unknown",
    }
    assert reasons["rela", 11, 1] == "id repeated"
    objects = Counter(row["reason"] for row in rows(made[0], "rejects") if row["file"] == "objects.json")
    assert objects == {"box empty": 1, "box outside image": 1, "id repeated": 1, "name empty": 1}
    assert reasons["imag", 11, None] == "image repeated"
    check_conservation(*made)


NAMES = ("flower (toy) one", "man, woman", "no.;5", "the a -b", "@", "x" * 61, "zero\u200bwidth", "\x00nul", "one\u3000two")


def named(name: str, number: int) -> dict[str, Any]:
    return {"object_id": number, "names": [name], "x": 1 + number, "y": 2, "w": 60, "h": 60}


@pytest.mark.parametrize("listed", [True, False], ids=["objects.json", "endpoints alone"])
def test_names_in_the_tables_are_names_of_scene_graphs(folder: Folder, tmp_path: Path, listed: bool) -> None:
    """What one layer takes the next takes: a name that no graph may have is rejected here, counted and with its image."""
    ends = [(named(name, 2 * n + 1), named("dog", 2 * n + 2)) for n, name in enumerate(NAMES)]
    root = folder(
        image_data=[{"image_id": 7, "width": 640, "height": 480, "url": ""}],
        objects=[{"image_id": 7, "objects": [end for two in ends for end in two] if listed else []}],
        relationships=[
            {
                "image_id": 7,
                "relationships": [
                    {"relationship_id": n, "predicate": "on", "subject": s, "object": o} for n, (s, o) in enumerate(ends)
                ],
            }
        ],
    )
    metrics = canonicalize(VisualGenome(root), tmp_path / "out", Canonicalize())
    check_conservation(tmp_path / "out", metrics)
    kept = rows(tmp_path / "out", "relations")
    assert [row["subject"] for row in kept] == ["flower (toy) one", "man, woman", "no.;5", "b", "one two"]
    for row in kept:
        graph = SceneGraph.of(row["subject"], row["predicate"], row["object"])
        assert read_graph_text(graph) == graph
    assert metrics["by_reason"] == {"name empty": 1, "name invalid": 3}
    rejected = [row for row in rows(tmp_path / "out", "rejects") if row["reason"] == "name invalid"]
    assert {row["image_id"] for row in rejected} == {7} and len(rejected) == (6 if listed else 3)


def read_graph_text(graph: SceneGraph) -> SceneGraph:
    """The graph written as JSON and read again."""
    return parse_graph(json.dumps({"objects": graph.objects, "triples": graph.triples}))


def test_the_layouts_say_the_same(made: tuple[Path, dict[str, Any]], sample_v1_0: Path, tmp_path: Path) -> None:
    """v1.0 has no merged ids and no alias files here, so only what hangs on them may differ."""
    metrics = canonicalize(VisualGenome(sample_v1_0), tmp_path, Canonicalize())
    assert (made[1]["release"], metrics["release"]) == ("v1.4", "v1.0")
    later = {(row["image_id"], row["relationship_id"]) for row in rows(made[0], "relations")}
    first = {(row["image_id"], row["relationship_id"]) for row in rows(tmp_path, "relations")}
    assert later - first == set()
    assert first - later == {(11, 3), (11, 5)}
    with pytest.raises(DataError, match=r"data.release is v1.2, the files have the layout of v1.0"):
        canonicalize(VisualGenome(sample_v1_0, "v1.2"), tmp_path, Canonicalize())


def test_whole_floats_are_integers_and_fractions_are_rejected_as_what_they_are(
    folder: Folder, sample: Path, made: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    """pandas and MATLAB write 400.0 for 400: sizes and ids alike; the tables are the same to the byte."""
    written = {
        name: re.sub(
            rb'("(?:width|height|image_id|object_id|relationship_id|[xywh])": )(\d+)', rb"\1\2.0", sample_bytes(sample, name)
        )
        for name in ("image_data", "objects", "relationships")
    }
    root = folder(**written)
    for name in ("object_alias.txt", "relationship_alias.txt"):
        shutil.copyfile(sample / name, root / name)
    assert canonicalize(VisualGenome(root), tmp_path / "out", Canonicalize()) == made[1]
    for name in ("images", "objects", "relations"):
        assert (tmp_path / "out" / f"{name}.parquet").read_bytes() == (made[0] / f"{name}.parquet").read_bytes()
    fraction = re.sub(rb'"width": (\d+)', rb'"width": \1.5', sample_bytes(sample, "image_data"))
    with pytest.raises(DataError, match=r"no record is usable: 5 read, 5 rejected \(invalid 5\); .*`\$.width`: .*\.5"):
        canonicalize(VisualGenome(folder(image_data=fraction)), tmp_path / "none", Canonicalize())


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        ('"w": 1e400', "invalid"),
        ('"w": 1' + "0" * 400, "invalid"),
        ('"w": null', "invalid"),
        ('"w": "5"', "invalid"),
        ('"w": -5', "box empty"),
        ('"w": 0', "box empty"),
        ('"w": -1e308', "box empty"),
        ('"w": 0.001', None),
        ('"w": 1e308', None),
        ('"w": 123456789012345678901234567890', None),
        ('"names": [5]', "invalid"),
        ('"names": [true]', "invalid"),
        ('"names": ["\\t \\n"]', "name empty"),
        ('"object_id": 1e30', "invalid"),
        ('"object_id": -1', "invalid"),
        ('"object_id": 99999999999999999999', "invalid"),
        ('"object_id": true', "invalid"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_boxes_names_and_ids_of_every_kind_are_kept_or_rejected(
    folder: Folder, tmp_path: Path, box: str, reason: str | None
) -> None:
    key = box.split(":")[0]
    fields = {'"object_id"': "1", '"x"': "10", '"y"': "20", '"w"': "30", '"h"': "40", '"names"': '["cat"]'}
    fields[key] = box.split(":", 1)[1]
    bad, good = (
        "{" + ", ".join(f"{name}: {value}" for name, value in each.items()) + "}"
        for each in (fields, {**fields, '"object_id"': "2", '"w"': "5", '"names"': '["dog"]'})
    )
    relation = f'{{"relationship_id": 1, "predicate": "on", "subject": {good}, "object": {good.replace("2", "3", 1)}}}'
    root = folder(
        image_data=[{"image_id": 1, "width": 100, "height": 100}],
        objects=f'[{{"image_id": 1, "objects": [{good}, {bad}]}}]',
        relationships=f'[{{"image_id": 1, "relationships": [{relation}]}}]',
    )
    metrics = canonicalize(VisualGenome(root), tmp_path / "out", Canonicalize())
    assert metrics["objects"]["by_reason"] == ({} if reason is None else {reason: 1})
    check_conservation(tmp_path / "out", metrics)


def test_nothing_kept_is_an_error_that_says_what_was_rejected_for_which_reasons(
    folder: Folder, sample: Path, tmp_path: Path, made: tuple[Path, dict[str, Any]]
) -> None:
    out = shutil.copytree(made[0], tmp_path / "out")
    before = parts(out)
    text = re.sub(rb'"predicate": "[^"]*"', b'"predicate": "zzz"', sample_bytes(sample, "relationships"))
    with pytest.raises(
        DataError,
        match=r"relationships.json: no relationship is kept: 18 read, 18 rejected \(predicate unknown 1\d, .*\); the first: "
        r"man \| zzz \| horse; objects: .*box empty 1.*canonicalize.geometric.per_image",
    ) as caught:
        canonicalize(VisualGenome(folder(relationships=text)), out, Canonicalize())
    assert "\n" not in str(caught.value)
    assert parts(out) == before


def test_splits_by_hash_and_by_file(tmp_path: Path) -> None:
    ids = np.arange(20_000)
    split = Splitter(Splits(train=0.7, val=0.2, seed=3))(ids)
    assert np.allclose([(split == name).mean() for name in ("train", "val", "test")], [0.7, 0.2, 0.1], atol=0.01)
    order = np.random.default_rng(0).permutation(ids)
    assert np.array_equal(Splitter(Splits(train=0.7, val=0.2, seed=3))(order), split[order])
    path = tmp_path / "splits.json"
    path.write_text('{"train": [1, 2], "val": [3]}')
    assert Splitter(Splits(file=str(path)))(np.array([3, 1, 9])).tolist() == ["val", "train", "none"]
    path.write_text('{"train": [1, 2], "val": [2]}')
    with pytest.raises(DataError, match="image 2 is in train and in val"):
        Splitter(Splits(file=str(path)))
    path.write_text('{"train": [9223372036854775808]}')
    with pytest.raises(DataError, match="not a JSON mapping of split names"):
        Splitter(Splits(file=str(path)))
    with pytest.raises(ValueError, match="above 1"):
        Splits(train=0.9, val=0.2)
