"""Cutting a JSON list: guessed and exact cuts hold whole records and lose nothing."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sgpipe.datasets.visual_genome.spans import exact_spans, guessed_spans, list_start
from sgpipe.errors import DataError

TEXT = st.text(alphabet='ab"\\{}[],: \n😀', max_size=12)
RECORD = st.fixed_dictionaries(
    {"id": TEXT, "items": st.lists(st.dictionaries(TEXT, st.lists(TEXT, max_size=2), max_size=2), max_size=3)}
)


def joined(path: Path, cut: Any, size: int) -> list[Any]:
    records = []
    for span in cut(path, list_start(path), size):
        records += json.loads(bytes(span.read()))
        assert span.closed
    return records


@settings(max_examples=60, deadline=None)
@given(records=st.lists(RECORD, min_size=1, max_size=8), indent=st.sampled_from([None, 1]), size=st.integers(1, 60))
def test_exact_spans_hold_every_record(tmp_path_factory: Any, records: list[Any], indent: int | None, size: int) -> None:
    path = tmp_path_factory.getbasetemp() / "exact.json"
    path.write_text(json.dumps(records, indent=indent, ensure_ascii=False) + "\n", encoding="utf-8")
    assert joined(path, exact_spans, size) == records


@pytest.mark.parametrize("size", [1, 100, 1000, 1 << 22])
def test_guessed_cuts_lie_between_records(tmp_path: Path, size: int) -> None:
    records = [{"objects": [{"id": n, "names": ["a}, {"]} for n in range(5)], "image_id": image} for image in range(40)]
    path = tmp_path / "objects.json"
    path.write_text(json.dumps(records))
    spans = list(guessed_spans(path, list_start(path), size))
    assert joined(path, guessed_spans, size) == records
    assert len(spans) > 1 or size >= path.stat().st_size // 2


@pytest.mark.parametrize(
    ("text", "says"),
    [("", "is empty"), ("[]", "the list is empty"), (" [ ] ", "the list is empty"), ('{"a": 1}', "a list of records is needed")],
)
def test_what_is_no_list_of_records(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "objects.json"
    path.write_text(text)
    with pytest.raises(DataError, match=says):
        list_start(path)


def test_a_record_without_end_is_not_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sgpipe.datasets.visual_genome.spans._LARGEST", 1 << 21)
    path = tmp_path / "objects.json"
    path.write_text('[{"a": "' + "x" * (5 << 20))
    (span,) = exact_spans(path, 1, 1)
    assert not span.closed
    assert span.end - span.start <= 1 << 22
