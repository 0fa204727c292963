"""Files of maps: what is written is read, bytes depend on the content alone, and damage is named."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from sgpipe.attention_maps.files import KINDS, MapFile, map_bytes, map_table, write_maps
from sgpipe.datasets.tables import MAP_ITEMS
from sgpipe.errors import DataError, ModelError

SHAPE = (3, 2, 5)


def items(count: int, first: int = 0) -> pa.Table:
    rows = [
        {"triple_id": f"{first + i}-7", "predicate": "on", "condition": "neutral", "prompt_predicate": None, "t": i / 8}
        for i in range(count)
    ]
    return pa.Table.from_pylist(rows, schema=MAP_ITEMS)


def tables(sizes: tuple[int, ...]) -> tuple[list[pa.Table], list[torch.Tensor]]:
    draw = torch.Generator().manual_seed(0)
    maps = [torch.randn(2, size, *SHAPE, generator=draw) for size in sizes]
    return [map_table(items(len(m[0]), 10 * i), *m) for i, m in enumerate(maps)], maps


def test_maps_come_back_as_they_went_in(tmp_path: Path) -> None:
    made, maps = tables((4, 3))
    write_maps(made, tmp_path / "a.parquet", {"shape": SHAPE, "group": "early"})
    file = MapFile(tmp_path / "a.parquet")
    assert len(file) == 7 and file.row_groups == 2 and file.shape == SHAPE and file.facts["group"] == "early"
    assert file.items.to_pylist() == items(4).to_pylist() + items(3, 10).to_pylist()
    for index, kind in enumerate(KINDS):
        expected = torch.cat([m[index] for m in maps]).half().numpy()
        assert np.array_equal(file.read(kind), expected)
        assert np.array_equal(file.read(kind, 1), expected[4:])


def test_the_same_maps_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_maps(tables((4, 3))[0], tmp_path / name, {"shape": SHAPE})
    write_maps(tables((4, 3))[0], tmp_path / "c", {"shape": SHAPE, "t": 1})
    a, b, c = ((tmp_path / name).read_bytes() for name in "abc")
    assert a == b != c


def test_what_float16_cannot_hold_is_refused() -> None:
    with pytest.raises(ModelError, match=r"7e\+04.*maps.normalisation"):
        map_bytes(torch.full((1, 2), 7e4))
    with pytest.raises(ModelError):
        map_bytes(torch.tensor([[float("nan")]]))


def test_what_is_no_file_of_maps_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        MapFile(tmp_path / "none.parquet")
    pq.write_table(items(2), tmp_path / "plain.parquet")
    with pytest.raises(DataError, match=r"plain\.parquet"):
        MapFile(tmp_path / "plain.parquet")
    (tmp_path / "cut.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"cut\.parquet"):
        MapFile(tmp_path / "cut.parquet")
    write_maps(tables((2,))[0], tmp_path / "a", {"shape": SHAPE})
    with pytest.raises(ValueError, match="saliency, cross"):
        MapFile(tmp_path / "a").read("colour")
