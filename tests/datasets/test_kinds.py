"""What holds for every data set: nothing is lost, splits hang on the image alone, damage costs a record or ends in one line."""

import copy
import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sgpipe.datasets.canonicalize import SCHEMAS, canonicalize
from sgpipe.datasets.config import Canonicalize, Geometric, Splits
from sgpipe.datasets.rows import _without_area
from sgpipe.errors import DataError
from tests.datasets.canonical import parts, rows
from tests.datasets.kinds import KINDS, Kind
from tests.datasets.test_damage import JUNK

every = pytest.mark.parametrize("kind", KINDS.values(), ids=list(KINDS))
PARAMS = Canonicalize(geometric=Geometric(per_image=1))


def check_conserved(out: Path, metrics: dict[str, Any]) -> None:
    """Tables and metrics agree; what was read is kept or stands in `rejects`."""
    rejects = Counter(row["reason"] for row in rows(out, "rejects"))
    counted = (metrics["images"], metrics["objects"], metrics)
    assert sum((Counter(each["by_reason"]) for each in counted), Counter()) == rejects
    for name, found in zip(("images", "objects", "relations"), counted, strict=True):
        derived = sum(metrics["geometric"].values()) if name == "relations" else 0
        assert found["read"] == found["kept"] + found["rejected"]
        assert found["kept"] + derived == len(rows(out, name))
    sizes = {row["image_id"]: (row["width"], row["height"]) for row in rows(out, "images")}
    for row in [*rows(out, "objects"), *rows(out, "relations")]:
        width, height = sizes[row["image_id"]]
        for side in ("s", "o") if "sx" in row else ("",):
            x, y, w, h = (row[f"{side}{name}"] for name in "xywh")
            assert min(x, y) >= 0 and min(w, h) > 0 and x + w <= width and y + h <= height


def run(kind: Kind, root: Path, out: Path, params: Canonicalize = PARAMS) -> dict[str, Any]:
    metrics = canonicalize(kind.open(root), out, params)
    check_conserved(out, metrics)
    return metrics


@every
def test_nothing_is_lost_and_the_same_comes_out_twice(kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = kind.write(tmp_path / "data", kind.files(20))
    first = run(kind, root, tmp_path / "a")
    assert first["images"]["kept"] and first["objects"]["kept"] and first["kept"] and first["rejected"]
    monkeypatch.setattr("sgpipe.datasets.records.AT_ONCE", 3)
    monkeypatch.setattr("sgpipe.datasets.json_stream.CHUNK", 50)
    assert run(kind, root, tmp_path / "b") == first
    for name in ("images", "objects", "relations"):
        assert sorted(map(str, rows(tmp_path / "a", name))) == sorted(map(str, rows(tmp_path / "b", name)))
    assert kind.open(root).damage() == [] and all(root in path.parents for path in kind.open(root).annotations())
    assert set(kind.open(root).sizes()) >= {row["image_id"] for row in rows(tmp_path / "a", "images")}


@every
def test_an_image_has_its_split_whatever_else_is_there(kind: Kind, tmp_path: Path) -> None:
    params = Canonicalize(splits=Splits(train=0.5, val=0.3, seed=1))
    splits = []
    for count in (12, 20):
        run(kind, kind.write(tmp_path / f"data{count}", kind.files(count)), tmp_path / f"{count}", params)
        splits.append({row["image_id"]: row["split"] for row in rows(tmp_path / f"{count}", "images")})
    few, many = splits
    assert few.items() <= many.items() and set(many.values()) == {"train", "val", "test"}


@every
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_values_of_any_wrong_type_cost_their_record_alone(kind: Kind, tmp_path: Path, data: st.DataObject) -> None:
    """Values anywhere below a record are replaced or removed; the rest is kept or rejected as it was."""
    files = copy.deepcopy(kind.files(6))
    for _ in range(data.draw(st.integers(0, 3))):
        name = data.draw(st.sampled_from(sorted(files)))
        _damage(kind.records(files[name]), data)
    run(kind, kind.write(tmp_path / "data", files), tmp_path / "out")


def _damage(records: Any, data: st.DataObject) -> None:
    keys = sorted(records) if isinstance(records, dict) else range(len(records))
    node, key = records, keys[data.draw(st.integers(1, len(keys) - 1))]
    while isinstance(node[key], dict | list) and node[key] and data.draw(st.integers(0, 5)):
        node = node[key]
        key = data.draw(st.sampled_from(sorted(node) if isinstance(node, dict) else range(len(node))))
    if isinstance(node, dict) and data.draw(st.booleans()):
        del node[key]
    else:
        node[key] = data.draw(JUNK)


@every
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_damaged_bytes_end_well_or_in_one_line(kind: Kind, tmp_path: Path, data: st.DataObject) -> None:
    files = {name: json.dumps(value).encode() for name, value in kind.files(4).items()}
    name = data.draw(st.sampled_from(sorted(files)))
    at = data.draw(st.integers(0, len(files[name]) - 1))
    files[name] = files[name][:at] + data.draw(st.binary(max_size=6)) + files[name][at + data.draw(st.integers(0, 40)) :]
    root = kind.write(tmp_path / "data", files)
    try:
        run(kind, root, tmp_path / "out")
    except DataError as error:
        assert str(root) in str(error) and "\n" not in str(error)


@every
@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda text: text[: len(text) * 2 // 3], "damaged|cut short|ends inside"),
        (lambda text: text + b" []", "text follows the end"),
        (lambda text: b"", "the file is empty"),
        (lambda text: b'"x"', "needed|not a JSON"),
    ],
    ids=["cut", "more", "empty", "text"],
)
def test_damage_to_a_file_is_one_line_and_leaves_earlier_tables(
    kind: Kind, tmp_path: Path, damage: Callable[[bytes], bytes], says: str
) -> None:
    files = kind.files(6)
    root, out = kind.write(tmp_path / "data", files), tmp_path / "out"
    run(kind, root, out)
    before = parts(out)
    for name in files:
        hurt = shutil.copytree(root, tmp_path / "hurt", dirs_exist_ok=True)
        (hurt / name).write_bytes(damage((root / name).read_bytes()))
        with pytest.raises(DataError, match=says) as caught:
            canonicalize(kind.open(hurt), out, PARAMS)
        assert str(hurt / name) in str(caught.value) and "\n" not in str(caught.value)
        assert parts(out) == before and {path.name for path in out.iterdir()} <= {f"{n}.parquet" for n in (*SCHEMAS, "attributes")}


@every
def test_text_and_numbers_that_no_table_holds_cost_their_item(kind: Kind, tmp_path: Path) -> None:
    files = {name: json.dumps(value) for name, value in kind.files(6).items()}
    for new in ('"\\\\ud800"', '"\ud800"', '"\\udc00 x"'):
        hurt = {n: text.replace(f'"{kind.text}"', new, 1).encode("utf-8", "surrogatepass") for n, text in files.items()}
        metrics = run(kind, kind.write(tmp_path / "data", hurt), tmp_path / "out")
        reasons = metrics["images"]["by_reason"] | metrics["objects"]["by_reason"]
        assert ("invalid" in reasons) == (new.count("\\") < 2), "an escaped backslash escapes nothing"


def test_a_side_that_the_tables_cannot_hold_is_an_empty_box() -> None:
    boxes = np.array([[0, 0, 2e-182, 3], [0, 0, 3, -1], [0, 0, 1e300, 1], [0, 0, 1, 1]])
    assert _without_area(boxes).tolist() == [True, True, False, False]
