"""Rows, labels and folds: batches are the file's rows, no name pair is on two sides, and bad input is named."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from sgpipe.attention_maps.files import map_schema
from sgpipe.errors import DataError
from sgpipe.probes.data import MapSet, MapSource, Pairs
from sgpipe.probes.splits import LEFT_OUT, Groups, Split, group_folds, linked, split
from tests.probes.world import CLASSES, SHAPE, triples, write_generated, write_noised


def test_batches_are_rows_of_the_file_in_any_order(tmp_path: Path) -> None:
    table = triples(9)
    write_noised(table, tmp_path / "a.parquet", "image")
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
    with pytest.raises(DataError, match=r"cross map of triple 1-4 \(row 13, condition relational\) is not finite"):
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
        writer.add_key_value_metadata({key: value for key, value in pq.read_metadata(like).metadata.items() if key == b"sgpipe"})


def table_of(rows: list[tuple[str, str, str, int]]) -> pa.Table:
    """Triples (subject, predicate, object, image)."""
    return pa.Table.from_pylist(
        [
            {"triple_id": str(n), "subject": s, "predicate": p, "object": o, "image_id": image}
            for n, (s, p, o, image) in enumerate(rows)
        ]
    )


def sides(pairs: Pairs, parts: Split) -> dict[str, np.ndarray]:
    """Triples of each part."""
    every = np.arange(len(pairs.triple_ids))
    return {part: parts.rows(every, part) for part in ("train", "val", "test")}


@st.composite
def tables(draw: st.DrawFn) -> pa.Table:
    """Few names and images, so that pairs return in either order and images in several triples, up to one giant component."""
    names, images = draw(st.integers(6, 14)), draw(st.integers(10, 400))
    rng = np.random.default_rng(draw(st.integers(0, 1 << 20)))
    rows = []
    for _ in range(draw(st.integers(60, 200))):
        one, other = rng.choice(names, 2, replace=False).tolist()
        rows.append((f"n{one}", CLASSES[rng.integers(2)], f"n{other}", int(rng.integers(images))))
    return table_of(rows)


@settings(deadline=None, max_examples=60)
@given(tables(), st.integers(3, 5), st.integers(0, 9))
def test_no_unordered_pair_and_no_image_is_on_two_sides(table: pa.Table, folds: int, seed: int) -> None:
    pairs = Pairs(table)
    groups = Groups.of(pairs, folds)
    kept = np.flatnonzero(groups.of_triple != LEFT_OUT)
    sizes = np.bincount(linked(pairs.unordered, pairs.images))
    if sizes.max() * folds <= len(pairs.triple_ids):
        assert len(kept) == len(pairs.triple_ids), "nothing is left out where every component fits into a fold"
    unordered = [frozenset(row) for row in zip(table["subject"].to_pylist(), table["object"].to_pylist(), strict=True)]
    images = table["image_id"].to_pylist()
    try:
        splits = [split(pairs, groups, folds, seed, repeat) for repeat in range(folds)]
    except DataError as error:
        assert "class" in str(error)
        reject()
    tested: list[int] = []
    for parts in splits:
        rows = sides(pairs, parts)
        assert sorted(np.concatenate(list(rows.values())).tolist()) == kept.tolist()
        for of in (unordered, images):
            train, val, test = ({of[row] for row in found.tolist()} for found in rows.values())
            assert not (train & val or train & test or val & test)
        tested += rows["test"].tolist()
    assert sorted(tested) == kept.tolist(), "the test sets of the first `folds` fits cover every row once"


def test_components_join_pairs_in_either_order_and_images() -> None:
    """dog–cat in both orders, then hat–box, which an image joins to it; sun–sky stands alone."""
    table = table_of(
        [
            ("dog", "on", "cat", 1),
            ("cat", "in", "dog", 2),
            ("hat", "on", "box", 2),
            ("box", "in", "hat", 3),
            ("sun", "on", "sky", 4),
        ]
    )
    pairs = Pairs(table)
    component = linked(pairs.unordered, pairs.images)
    assert (component[:, None] == component).tolist() == [[(one < 4) == (other < 4) for other in range(5)] for one in range(5)]
    assert Groups.of(pairs, 1).facts() == {"groups": 2, "largest_share": 0.8, "left_out": 0}


def test_a_component_larger_than_a_fold_is_cut_into_pairs() -> None:
    """One image shows every pair, and one of them twice: it keeps that one, and folds are of pairs again."""
    table = triples(24)
    names = [frozenset(pair) for pair in zip(*(table[n].to_pylist() for n in ("subject", "object")), strict=True)]
    twice = frozenset(("cat", "box"))
    shown = [names.index(pair) for pair in set(names)] + [len(names) - 1 - names[::-1].index(twice)]
    images = np.arange(72)
    images[shown] = 1000
    pairs = Pairs(table.set_column(table.column_names.index("image_id"), "image_id", pa.array(images)))
    assert len(np.unique(linked(pairs.unordered, pairs.images))) == 1
    groups = Groups.of(pairs, 4)
    left_out = np.flatnonzero(groups.of_triple == LEFT_OUT).tolist()
    assert left_out == sorted(row for row in shown if names[row] != twice) and len(left_out) == 5
    assert groups.facts() == {"groups": 6, "largest_share": 12 / 67, "left_out": 5}


def test_classes_are_in_every_part_and_folds_change_after_the_last() -> None:
    pairs = Pairs(triples(24))
    groups = Groups.of(pairs, 4)
    for repeat in range(4):
        for found in sides(pairs, split(pairs, groups, 4, 3, repeat)).values():
            assert {pairs.predicates[row] for row in found.tolist()} == set(CLASSES)
    folds = [split(pairs, groups, 4, 3, repeat).fold for repeat in (0, 2, 4)]
    assert np.array_equal(folds[0], folds[1]) and not np.array_equal(folds[0], folds[2])


def with_more(predicate: str, count: int) -> pa.Table:
    """The world's triples and a few of another class, of images of their own."""
    more = triples(count, [predicate])
    images = pa.array(range(1000, 1000 + count))
    return pa.concat_tables([triples(24), more.set_column(more.column_names.index("image_id"), "image_id", images)])


def test_a_class_with_too_few_groups_is_named() -> None:
    few = with_more("holding", 3)
    with pytest.raises(
        DataError, match=r"class 'holding' has 3 samples in 3 groups.*probes\.folds is 4; set probes\.folds to at most 3"
    ):
        group_folds(Pairs(few), Groups.of(Pairs(few), 4), 4, 0)
    one = with_more("holding", 2)
    with pytest.raises(DataError, match=r"in 2 groups.*probes\.folds is 4; raise curate\.maps_per_class"):
        group_folds(Pairs(one), Groups.of(Pairs(one), 4), 4, 0)
    with pytest.raises(DataError, match="1 classes"):
        group_folds(Pairs(triples(24, ["on"])), Groups.of(Pairs(triples(24, ["on"])), 4), 4, 0)
