"""Canonical tables: known records of the made-up sample, conservation, determinism, and damage of every kind."""

import copy
import json
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import sgpipe.datasets.visual_genome.spans as spans_module
from sgpipe.datasets.canonicalize import SCHEMAS, canonicalize
from sgpipe.datasets.config import Canonicalize, Geometric, Splits
from sgpipe.datasets.splits import Splitter
from sgpipe.datasets.visual_genome.context import Rows
from sgpipe.datasets.visual_genome.data_set import VisualGenome
from sgpipe.datasets.visual_genome.passes import read_pass
from sgpipe.datasets.visual_genome.spans import Span
from sgpipe.errors import DataError, SgpipeError
from sgpipe.graphs.scene_graph import SceneGraph, parse_graph

Folder = Callable[..., Path]


def rows(out: Path, name: str) -> list[dict[str, Any]]:
    return pq.read_table(out / f"{name}.parquet").to_pylist()


def parts(out: Path) -> dict[str, bytes]:
    return {name: (out / f"{name}.parquet").read_bytes() for name in SCHEMAS}


def check_conservation(out: Path, metrics: dict[str, Any]) -> None:
    """The counts of the metrics are those of the tables, and nothing is lost."""
    rejects = rows(out, "rejects")
    for name, file, found in (
        ("relations", "relationships.json", metrics),
        ("objects", "objects.json", metrics["objects"]),
        ("images", "image_data.json", metrics["images"]),
    ):
        mine = [row for row in rejects if row["file"] == file]
        assert found["rejected"] == len(mine)
        assert Counter(row["reason"] for row in mine) == found["by_reason"]
        assert found["kept"] == sum(row.get("source") != "geometric" for row in rows(out, name))
        assert found["read"] == found["kept"] + found["rejected"]


@pytest.fixture(scope="module")
def made(sample: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("canonical")
    return out, canonicalize(VisualGenome(sample), out, Canonicalize())


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
    reasons = {
        (row["file"][:4], row["image_id"], row["relationship_id"]): row["reason"]
        for row in rows(made[0], "rejects")
    }
    assert {
        key[1:]: reason for key, reason in reasons.items() if key[0] == "rela" and key != ("rela", 11, 1)
    } == {
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


NAMES = (
    "flower (toy) one",
    "man, woman",
    "no.;5",
    "the a -b",
    "@",
    "x" * 61,
    "zero\u200bwidth",
    "\x00nul",
    "one\u3000two",
)


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
                    {"relationship_id": n, "predicate": "on", "subject": s, "object": o}
                    for n, (s, o) in enumerate(ends)
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


def test_the_layouts_say_the_same(
    made: tuple[Path, dict[str, Any]], sample_v1_0: Path, tmp_path: Path
) -> None:
    """v1.0 has no merged ids and no alias files here, so only what hangs on them may differ."""
    metrics = canonicalize(VisualGenome(sample_v1_0), tmp_path, Canonicalize())
    assert (made[1]["release"], metrics["release"]) == ("v1.4", "v1.0")
    later = {(row["image_id"], row["relationship_id"]) for row in rows(made[0], "relations")}
    first = {(row["image_id"], row["relationship_id"]) for row in rows(tmp_path, "relations")}
    assert later - first == set()
    assert first - later == {(11, 3), (11, 5)}
    with pytest.raises(DataError, match=r"data.release is v1.2, the files have the layout of v1.0"):
        canonicalize(VisualGenome(sample_v1_0, "v1.2"), tmp_path, Canonicalize())


def test_same_bytes_however_it_is_run(
    folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, objects, relations = _many(60)
    root = folder(image_data=images, objects=objects, relationships=relations)
    params = Canonicalize(
        geometric=Geometric(per_image=3, classes=("left of", "right of", "above", "below", "in"))
    )
    first = canonicalize(VisualGenome(root), tmp_path / "a", params)
    assert first["geometric"]
    canonicalize(VisualGenome(root), tmp_path / "b", params)
    assert parts(tmp_path / "a") == parts(tmp_path / "b")
    monkeypatch.setattr("sgpipe.datasets.visual_genome.data_set._SMALL", 0)
    canonicalize(VisualGenome(root), tmp_path / "c", params, workers=2)
    assert parts(tmp_path / "a") == parts(tmp_path / "c")
    for cut in ("guessed_spans", "exact_spans"):
        real = getattr(spans_module, cut)
        monkeypatch.setattr(
            f"sgpipe.datasets.visual_genome.passes.{cut}",
            lambda path, start, real=real: real(path, start, 300),
        )
    assert canonicalize(VisualGenome(root), tmp_path / "d", params) == first
    assert parts(tmp_path / "a") == parts(tmp_path / "d")


def _many(count: int) -> tuple[list[Any], list[Any], list[Any]]:
    draw = np.random.default_rng(0)
    images = [{"image_id": n, "width": 640, "height": 480, "url": None} for n in range(1, count + 1)]
    objects, relations = [], []
    for image in images:
        boxes = draw.integers(0, 400, (6, 4)).tolist()
        here = [
            {
                "object_id": 10 * image["image_id"] + n,
                "names": ["cat dog man bus"[4 * (n % 4) :][:3]],
                "x": x,
                "y": y,
                "w": w + 1,
                "h": h + 1,
            }
            | {"merged_object_ids": []}
            for n, (x, y, w, h) in enumerate(boxes)
        ]
        objects.append({"image_id": image["image_id"], "objects": here})
        pairs = draw.integers(0, 6, (5, 2)).tolist()
        words = ["on", "has", "WEARS", "next to", "zzz"]
        relations.append(
            {
                "relationships": [
                    {"relationship_id": n, "predicate": words[n], "subject": here[s], "object": here[o]}
                    for n, (s, o) in enumerate(pairs)
                ],
                "image_id": image["image_id"],
            }
        )
    return images, objects, relations


def test_the_order_of_the_files_does_not_matter(
    folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither between files nor within one; lookups then span many parts."""
    images, objects, relations = _many(40)
    canonicalize(
        VisualGenome(folder(image_data=images, objects=objects, relationships=relations)),
        tmp_path / "a",
        Canonicalize(),
    )
    order = np.random.default_rng(1).permutation(40)
    monkeypatch.setattr(
        "sgpipe.datasets.visual_genome.passes.guessed_spans",
        lambda path, start: spans_module.guessed_spans(path, start, 2000),
    )
    shuffled = folder(image_data=images, objects=[objects[n] for n in order], relationships=relations[::-1])
    canonicalize(VisualGenome(shuffled), tmp_path / "b", Canonicalize())
    for name in ("objects", "relations"):
        key = "object_id" if name == "objects" else "relationship_id"
        a, b = (
            sorted(rows(tmp_path / out, name), key=lambda row: (row["image_id"], row[key])) for out in "ab"
        )
        assert a == b


def test_wrong_guesses_are_noticed(folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Objects that begin like the record around them lead every guess astray; the exact cuts take over."""
    images, objects, relations = _many(30)
    plain = folder(image_data=images, objects=objects, relationships=relations)
    canonicalize(VisualGenome(plain), tmp_path / "a", Canonicalize())
    for record in objects:
        record["objects"] = [{"image_id": 0, **item} for item in record["objects"]]
    monkeypatch.setattr(
        "sgpipe.datasets.visual_genome.passes.guessed_spans",
        lambda path, start: spans_module.guessed_spans(path, start, 700),
    )
    canonicalize(
        VisualGenome(folder(image_data=images, objects=objects, relationships=relations)),
        tmp_path / "b",
        Canonicalize(),
    )
    assert parts(tmp_path / "a") == parts(tmp_path / "b")


def test_a_repeated_image_record_is_rejected_across_spans(
    folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, objects, relations = _many(10)
    monkeypatch.setattr(
        "sgpipe.datasets.visual_genome.passes.guessed_spans",
        lambda path, start: spans_module.guessed_spans(path, start, 10),
    )
    root = folder(image_data=images, objects=[*objects, objects[0]], relationships=[*relations, relations[3]])
    metrics = canonicalize(VisualGenome(root), tmp_path / "out", Canonicalize())
    assert metrics["objects"]["by_reason"]["image repeated"] == 6
    assert metrics["by_reason"]["image repeated"] == 5
    check_conservation(tmp_path / "out", metrics)


def _sample_bytes(sample: Path, name: str) -> bytes:
    return (sample / f"{name}.json").read_bytes()


@pytest.mark.parametrize(
    ("name", "damage", "says"),
    [
        (
            "relationships",
            lambda text: text[:-40],
            r"relationships.json: record \d+ .*the file ends inside it",
        ),
        ("relationships", lambda text: text.rstrip()[:-1], r"relationships.json: cut short after record 4"),
        (
            "objects",
            lambda text: text[: text.index(b"304")],
            r"objects.json: record 2 .*the file ends inside it",
        ),
        ("objects", lambda text: text + b"[]", r"text follows the end of the list"),
        ("objects", lambda text: text.replace(b'"milk"', b'"milk'), r"objects.json: record 2"),
        (
            "relationships",
            lambda text: text.replace(b'"contains"', b"NaN"),
            r"relationships.json: record 2 .*malformed",
        ),
        ("image_data", lambda text: b"[]", r"image_data.json: the list is empty"),
        ("image_data", lambda text: b"", r"image_data.json: the file is empty"),
        (
            "image_data",
            lambda text: b'[{"foo": 1}]',
            r"image_data.json: unknown layout: record 0 has the keys foo",
        ),
        ("objects", lambda text: text.replace(b"image_id", b"id"), r"files of different releases"),
        ("objects", lambda text: b'{"1": {}}', r"a list of records is needed"),
        ("objects", lambda text: b"[1, 2]", r"record 0 is no object .*got `int`"),
        ("image_data", lambda text: text.replace(b'"height"', b'"hight"'), r"no record is usable"),
    ],
)
def test_damage_to_a_file_ends_in_one_line(
    folder: Folder, sample: Path, tmp_path: Path, name: str, damage: Callable[[bytes], bytes], says: str
) -> None:
    out = tmp_path / "out"
    canonicalize(VisualGenome(sample), out, Canonicalize())
    before = parts(out)
    root = folder(**{name: damage(_sample_bytes(sample, name))})
    with pytest.raises(DataError, match=says) as caught:
        canonicalize(VisualGenome(root), out, Canonicalize())
    assert "\n" not in str(caught.value)
    assert parts(out) == before
    assert {path.name for path in out.iterdir()} == {f"{name}.parquet" for name in SCHEMAS}


@pytest.mark.parametrize(
    ("name", "old", "new", "lost"),
    [
        ("objects", b'"milk"', b'"mi\xfflk"', {("objects.json", 13): 1}),
        ("objects", b'"milk"', b'"milk", "mi\xc3"', {("objects.json", 13): 1}),
        (
            "objects",
            b'"names": ["milk"]',
            b'"names": ["milk"], "synsets": ["\xed\xa0\x80"]',
            {("objects.json", 13): 1},
        ),
        ("objects", b'"names": ["milk"]', b'"names": ["milk"], "\xff": 1', {("objects.json", 13): 1}),
        ("objects", b'"milk"', b'"milk\\ud800"', {("objects.json", 13): 1}),
        ("objects", b'"milk"', b'"milk\\\\\\uDC00\\ud83d\\ude00"', {("objects.json", 13): 1}),
        ("objects", b'"milk"', b'"milk\\\\ud800\\ud83d\\ude00"', {}),
        ("objects", b'"image_id": 13', b'"image_url": "\xff", "image_id": 13', {("objects.json", 13): 4}),
        ("image_data", b'[\n{"width": 640', b'[\n{"\xff": 1, "width": 640', {("image_data.json", 11): 1}),
        ("relationships", b'"contains"', b'"cont\xe9ins"', {("relationships.json", 13): 1}),
        (
            "image_data",
            b'"image_id": 13',
            b'"flickr_id": "\xff", "image_id": 13',
            {("image_data.json", 13): 1},
        ),
    ],
)
def test_text_that_is_no_unicode_costs_its_record(
    folder: Folder, sample: Path, tmp_path: Path, name: str, old: bytes, new: bytes, lost: dict[Any, int]
) -> None:
    """In fields that are read and in those that are passed over: rejected as invalid and counted, all others are kept."""
    text = _sample_bytes(sample, name)
    assert old in text
    metrics = canonicalize(
        VisualGenome(folder(**{name: text.replace(old, new)})), tmp_path / "out", Canonicalize()
    )
    invalid = [row for row in rows(tmp_path / "out", "rejects") if row["reason"] == "invalid"]
    assert Counter((row["file"], row["image_id"]) for row in invalid) == lost
    assert all("no UTF-8, or half a surrogate pair" in row["raw"] for row in invalid)
    check_conservation(tmp_path / "out", metrics)


def test_whole_floats_are_integers_and_fractions_are_rejected_as_what_they_are(
    folder: Folder, sample: Path, made: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    """pandas and MATLAB write 400.0 for 400: sizes and ids alike; the tables are the same to the byte."""
    written = {
        name: re.sub(
            rb'("(?:width|height|image_id|object_id|relationship_id|[xywh])": )(\d+)',
            rb"\1\2.0",
            _sample_bytes(sample, name),
        )
        for name in ("image_data", "objects", "relationships")
    }
    root = folder(**written)
    for name in ("object_alias.txt", "relationship_alias.txt"):
        shutil.copyfile(sample / name, root / name)
    assert canonicalize(VisualGenome(root), tmp_path / "out", Canonicalize()) == made[1]
    for name in ("images", "objects", "relations"):
        assert (tmp_path / "out" / f"{name}.parquet").read_bytes() == (
            made[0] / f"{name}.parquet"
        ).read_bytes()
    fraction = re.sub(rb'"width": (\d+)', rb'"width": \1.5', _sample_bytes(sample, "image_data"))
    with pytest.raises(
        DataError, match=r"no record is usable: 5 read, 5 rejected \(invalid 5\); .*`\$.width`: .*\.5"
    ):
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
    folder: Folder, sample: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    canonicalize(VisualGenome(sample), out, Canonicalize())
    before = parts(out)
    text = re.sub(rb'"predicate": "[^"]*"', b'"predicate": "zzz"', _sample_bytes(sample, "relationships"))
    with pytest.raises(
        DataError,
        match=r"relationships.json: no relationship is kept: 18 read, 18 rejected \(predicate unknown 1\d, .*\); the first: "
        r"man \| zzz \| horse; objects: .*box empty 1.*canonicalize.geometric.per_image",
    ) as caught:
        canonicalize(VisualGenome(folder(relationships=text)), out, Canonicalize())
    assert "\n" not in str(caught.value)
    assert parts(out) == before


def test_killed_and_started_again_the_folder_is_the_same(sample: Path, tmp_path: Path) -> None:
    """SIGKILL while the tables are written leaves temporary files; the next run's folder holds the tables alone."""
    canonicalize(VisualGenome(sample), tmp_path / "whole", Canonicalize())
    code = (
        "import os, signal, sys; from pathlib import Path; from sgpipe.datasets.config import Canonicalize\n"
        "from sgpipe.datasets.canonicalize import canonicalize\n"
        "from sgpipe.datasets.visual_genome.data_set import VisualGenome\n"
        "die = lambda path, done: path.stem == 'relationships' and os.kill(os.getpid(), signal.SIGKILL)\n"
        "canonicalize(VisualGenome(Path(sys.argv[1])), Path(sys.argv[2]), Canonicalize(), progress=die)"
    )
    done = subprocess.run([sys.executable, "-c", code, sample, tmp_path / "out"], check=False)
    assert done.returncode == -signal.SIGKILL
    assert not list((tmp_path / "out").glob("*.parquet")) and list((tmp_path / "out").iterdir())
    canonicalize(VisualGenome(sample), tmp_path / "out", Canonicalize())
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == {
        path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()
    }


def test_a_missing_file_says_how_to_get_it(folder: Folder, tmp_path: Path) -> None:
    root = folder()
    (root / "objects.json").unlink()
    with pytest.raises(DataError, match=r"objects.json: no such file; `sgpipe fetch visual-genome`"):
        canonicalize(VisualGenome(root), tmp_path / "out", Canonicalize())


JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 1 << 70),
    st.floats(-1e300, 1e300),
    st.text(max_size=5),
    st.just([]),
    st.just({}),
)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_records_of_any_wrong_type_are_rejected_not_fatal(
    sample: Path, tmp_path: Path, data: st.DataObject
) -> None:
    """Values anywhere below the first record are replaced or removed; every item read is kept or rejected."""
    root = tmp_path / "damaged"
    root.mkdir(exist_ok=True)
    for name in ("image_data", "objects", "relationships"):
        records = copy.deepcopy(json.loads(_sample_bytes(sample, name)))
        for _ in range(data.draw(st.integers(0, 3))):
            _damage(records, data)
        (root / f"{name}.json").write_text(json.dumps(records))
    check_conservation(tmp_path / "out", canonicalize(VisualGenome(root), tmp_path / "out", Canonicalize()))


def _damage(records: list[Any], data: st.DataObject) -> None:
    index = data.draw(st.integers(1, len(records) - 1))
    node, key = records, index
    while isinstance(node[key], dict | list) and node[key] and data.draw(st.integers(0, 5)):
        node = node[key]
        key = data.draw(st.sampled_from(sorted(node) if isinstance(node, dict) else range(len(node))))
    if isinstance(node, dict) and data.draw(st.booleans()):
        del node[key]
    else:
        node[key] = data.draw(JUNK)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_damaged_bytes_end_well_or_in_one_line(sample: Path, tmp_path: Path, data: st.DataObject) -> None:
    root = tmp_path / "bytes"
    root.mkdir(exist_ok=True)
    broken = data.draw(st.sampled_from(["image_data", "objects", "relationships"]))
    for name in ("image_data", "objects", "relationships"):
        text = bytearray(_sample_bytes(sample, name))
        if name == broken:
            at = data.draw(st.integers(0, len(text) - 1))
            end = min(len(text), at + data.draw(st.integers(0, 40)))
            text[at:end] = data.draw(st.binary(max_size=6))
        (root / f"{name}.json").write_bytes(text)
    try:
        check_conservation(
            tmp_path / "out", canonicalize(VisualGenome(root), tmp_path / "out", Canonicalize())
        )
    except DataError as error:
        assert str(root) in str(error) and "\n" not in str(error)


def test_splits_by_hash_and_by_file(tmp_path: Path) -> None:
    ids = np.arange(20_000)
    split = Splitter(Splits(train=0.7, val=0.2, seed=3))(ids)
    assert np.allclose(
        [(split == name).mean() for name in ("train", "val", "test")], [0.7, 0.2, 0.1], atol=0.01
    )
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


def test_a_killed_worker_is_one_line(sample: Path) -> None:
    def submit(span: Span, number: int, seen: frozenset[int]) -> Future[Rows]:
        future: Future[Rows] = Future()
        future.set_exception(BrokenProcessPool("a child process terminated abruptly"))
        return future

    path = sample / "objects.json"
    with pytest.raises(
        SgpipeError, match=r"objects.json: a worker process was killed at byte 1, .*--workers"
    ):
        list(read_pass(path, submit, 2, np.zeros(0, dtype=np.int64), lambda path, done: None))
