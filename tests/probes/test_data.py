"""Rows, labels and folds: batches are the file's rows, no name pair is on two sides, and bad input is named."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sgpipe.errors import DataError
from sgpipe.map_files.parquet import map_schema
from sgpipe.probes.data import MapSet, MapSource, Pairs
from sgpipe.probes.splits import pair_folds, split
from tests.probes.world import CLASSES, SHAPE, triples, write_generated, write_noised


def test_batches_are_rows_of_the_file_in_any_order(tmp_path: Path) -> None:
    table = triples(9)
    write_noised(table, tmp_path / "a.parquet", "picture")
    maps = MapSet(tmp_path / "a.parquet", Pairs(table))
    assert maps.file.row_groups > 10 and maps.classes == CLASSES
    rows = np.random.default_rng(0).integers(0, len(maps), 50)
    both = MapSource(maps, "diff", timed=True).batch(rows).numpy()
    assert np.array_equal(both[:, :3], maps.file.read("saliency")[rows])
    assert np.array_equal(both[:, 3:6], maps.file.read("cross")[rows])
    assert np.array_equal(both[:, 6], np.broadcast_to(maps.t[rows, None, None], (50, *SHAPE[1:])))
    named = [CLASSES[label] for label in maps.labels[rows]]
    assert named == [maps.file.items["predicate"][row].as_py() for row in rows.tolist()]
    assert set(maps.said[maps.conditions == "neutral"]) == {-1}


def test_maps_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    table, path = triples(9), tmp_path / "a.parquet"
    write_generated(table, path)
    whole = pq.read_table(path)
    halves = np.array([np.frombuffer(value, np.float16) for value in whole["cross"].to_pylist()])
    halves[13, 5] = np.nan
    broken = pa.array([row.tobytes() for row in halves], map_schema(SHAPE).field("cross").type)
    whole = whole.set_column(whole.column_names.index("cross"), "cross", broken)
    pq.write_table(whole, path, compression="none", use_dictionary=False, row_group_size=10)
    with pytest.raises(
        DataError, match=r"cross map of triple 1-4 \(row 13, condition relational\) is not finite"
    ):
        MapSet(path, Pairs(table))


def test_foreign_triples_classes_and_shapes_are_refused(tmp_path: Path) -> None:
    table = triples(9)
    write_generated(table, tmp_path / "a.parquet")
    with pytest.raises(DataError, match="triple 2-0 is not among the map triples"):
        MapSet(tmp_path / "a.parquet", Pairs(table.slice(0, 18)))
    maps = MapSet(tmp_path / "a.parquet", Pairs(table))
    with pytest.raises(DataError, match=r"\[3, 4, 4\].*those of b \[3, 8, 8\]"):
        maps.expect(CLASSES, (3, 8, 8), "b")
    with pytest.raises(DataError, match="other classes than those of b: in, on in one of them only"):
        maps.expect(("above", "behind", "in"), SHAPE, "b")
    renamed = pa.Table.from_pylist([{**row, "predicate": "upon"} for row in table.to_pylist()])
    write_generated_as(renamed, tmp_path / "c.parquet", tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"classes \['upon'\] are none of the 24"):
        MapSet(tmp_path / "c.parquet", Pairs(table))


def write_generated_as(table: pa.Table, path: Path, like: Path) -> None:
    """The file `like` with the classes of `table`."""
    whole = pq.read_table(like)
    whole = whole.set_column(whole.column_names.index("predicate"), "predicate", table["predicate"])
    with pq.ParquetWriter(path, whole.schema, compression="none") as writer:
        writer.write_table(whole)
        writer.add_key_value_metadata(
            {key: value for key, value in pq.read_metadata(like).metadata.items() if key == b"sgpipe"}
        )


def test_no_name_pair_is_on_two_sides() -> None:
    pairs = Pairs(triples(24))
    tested: list[int] = []
    for repeat in range(4):
        parts = split(pairs, 4, 3, repeat)
        rows = {part: parts.rows(pairs.of_row, part) for part in ("train", "val", "test")}
        assert sorted(np.concatenate(list(rows.values())).tolist()) == list(range(72))
        sides = [set(pairs.of_row[found].tolist()) for found in rows.values()]
        assert not (sides[0] & sides[1] or sides[0] & sides[2] or sides[1] & sides[2])
        for found in rows.values():
            assert {pairs.predicates[row] for row in found.tolist()} == set(CLASSES)
        tested += rows["test"].tolist()
    assert sorted(tested) == list(range(72)), "the test sets of the first `folds` fits cover every row once"
    assert not np.array_equal(split(pairs, 4, 3, 4).fold, split(pairs, 4, 3, 0).fold)
    assert np.array_equal(split(pairs, 4, 3, 2).fold, split(pairs, 4, 3, 0).fold)


def test_a_class_with_too_few_pairs_is_named() -> None:
    few = pa.concat_tables([triples(24), triples(3, ["holding"])])
    with pytest.raises(DataError, match=r"class 'holding' has 3 samples of 3 name pairs, probes\.folds is 4"):
        pair_folds(Pairs(few), 4, 0)
    with pytest.raises(DataError, match="1 classes"):
        pair_folds(Pairs(triples(24, ["on"])), 4, 0)
