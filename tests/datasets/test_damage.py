"""Damage of every kind: to a file it ends in one line, to a record it costs that record."""

import copy
import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sgpipe.datasets.canonicalize import SCHEMAS, canonicalize
from sgpipe.datasets.config import Canonicalize
from sgpipe.datasets.visual_genome.data_set import VisualGenome
from sgpipe.errors import DataError
from tests.datasets.canonical import Folder, check_conservation, parts, rows, sample_bytes


@pytest.mark.parametrize(
    ("name", "damage", "says"),
    [
        ("relationships", lambda text: text[:-40], r"relationships.json: record \d+ .*the file ends inside it"),
        ("relationships", lambda text: text.rstrip()[:-1], r"relationships.json: cut short after record 4"),
        ("objects", lambda text: text[: text.index(b"304")], r"objects.json: record 2 .*the file ends inside it"),
        ("objects", lambda text: text + b"[]", r"text follows the end of the list"),
        ("objects", lambda text: text.replace(b'"milk"', b'"milk'), r"objects.json: record 2"),
        ("relationships", lambda text: text.replace(b'"contains"', b"NaN"), r"relationships.json: record 2 .*malformed"),
        ("image_data", lambda text: b"[]", r"image_data.json: the list is empty"),
        ("image_data", lambda text: b"", r"image_data.json: the file is empty"),
        ("image_data", lambda text: b'[{"foo": 1}]', r"image_data.json: unknown layout: record 0 has the keys foo"),
        ("objects", lambda text: text.replace(b"image_id", b"id"), r"files of different releases"),
        ("objects", lambda text: b'{"1": {}}', r"a list of records is needed"),
        ("objects", lambda text: b"[1, 2]", r"record 0 is no object .*got `int`"),
        ("image_data", lambda text: text.replace(b'"height"', b'"hight"'), r"no record is usable"),
    ],
)
def test_damage_to_a_file_ends_in_one_line(
    folder: Folder,
    sample: Path,
    tmp_path: Path,
    made: tuple[Path, dict[str, Any]],
    name: str,
    damage: Callable[[bytes], bytes],
    says: str,
) -> None:
    out = shutil.copytree(made[0], tmp_path / "out")
    before = parts(out)
    root = folder(**{name: damage(sample_bytes(sample, name))})
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
        ("objects", b'"names": ["milk"]', b'"names": ["milk"], "synsets": ["\xed\xa0\x80"]', {("objects.json", 13): 1}),
        ("objects", b'"names": ["milk"]', b'"names": ["milk"], "\xff": 1', {("objects.json", 13): 1}),
        ("objects", b'"milk"', b'"milk\\ud800"', {("objects.json", 13): 1}),
        ("objects", b'"milk"', b'"milk\\\\\\uDC00\\ud83d\\ude00"', {("objects.json", 13): 1}),
        ("objects", b'"milk"', b'"milk\\\\ud800\\ud83d\\ude00"', {}),
        ("objects", b'"image_id": 13', b'"image_url": "\xff", "image_id": 13', {("objects.json", 13): 4}),
        ("image_data", b'[\n{"width": 640', b'[\n{"\xff": 1, "width": 640', {("image_data.json", 11): 1}),
        ("relationships", b'"contains"', b'"cont\xe9ins"', {("relationships.json", 13): 1}),
        ("image_data", b'"image_id": 13', b'"flickr_id": "\xff", "image_id": 13', {("image_data.json", 13): 1}),
    ],
)
def test_text_that_is_no_unicode_costs_its_record(
    folder: Folder, sample: Path, tmp_path: Path, name: str, old: bytes, new: bytes, lost: dict[Any, int]
) -> None:
    """In fields that are read and in those that are passed over: rejected as invalid and counted, all others are kept."""
    text = sample_bytes(sample, name)
    assert old in text
    metrics = canonicalize(VisualGenome(folder(**{name: text.replace(old, new)})), tmp_path / "out", Canonicalize())
    invalid = [row for row in rows(tmp_path / "out", "rejects") if row["reason"] == "invalid"]
    assert Counter((row["file"], row["image_id"]) for row in invalid) == lost
    assert all("no UTF-8, or half a surrogate pair" in row["raw"] for row in invalid)
    check_conservation(tmp_path / "out", metrics)


def test_a_missing_file_says_how_to_get_it(folder: Folder, tmp_path: Path) -> None:
    root = folder()
    (root / "objects.json").unlink()
    with pytest.raises(DataError, match=r"objects.json: no such file; `sgpipe fetch visual-genome`"):
        canonicalize(VisualGenome(root), tmp_path / "out", Canonicalize())


JUNK = st.one_of(
    st.none(), st.booleans(), st.integers(-5, 1 << 70), st.floats(-1e300, 1e300), st.text(max_size=5), st.just([]), st.just({})
)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_records_of_any_wrong_type_are_rejected_not_fatal(sample: Path, tmp_path: Path, data: st.DataObject) -> None:
    """Values anywhere below the first record are replaced or removed; every item read is kept or rejected."""
    root = tmp_path / "damaged"
    root.mkdir(exist_ok=True)
    for name in ("image_data", "objects", "relationships"):
        records = copy.deepcopy(json.loads(sample_bytes(sample, name)))
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


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_damaged_bytes_end_well_or_in_one_line(sample: Path, tmp_path: Path, data: st.DataObject) -> None:
    root = tmp_path / "bytes"
    root.mkdir(exist_ok=True)
    broken = data.draw(st.sampled_from(["image_data", "objects", "relationships"]))
    for name in ("image_data", "objects", "relationships"):
        text = bytearray(sample_bytes(sample, name))
        if name == broken:
            at = data.draw(st.integers(0, len(text) - 1))
            end = min(len(text), at + data.draw(st.integers(0, 40)))
            text[at:end] = data.draw(st.binary(max_size=6))
        (root / f"{name}.json").write_bytes(text)
    try:
        check_conservation(tmp_path / "out", canonicalize(VisualGenome(root), tmp_path / "out", Canonicalize()))
    except DataError as error:
        assert str(root) in str(error) and "\n" not in str(error)
