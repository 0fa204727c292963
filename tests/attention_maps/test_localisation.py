"""Boxes on the grid of patches, and how much of a map falls into them."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sgpipe.attention_maps.files import MapFile, map_table, write_maps
from sgpipe.attention_maps.localisation import boxes_in_crop, coverage, mass_in_box, peak_in_box, uniform_mass
from sgpipe.datasets.tables import MAP_ITEMS
from sgpipe.errors import DataError
from sgpipe.runs.atomic import write_json
from stages.saliency_sheets import localisation
from tests.tiny import curated_triples

part = st.floats(0, 1)


@given(part, part, part, part)
def test_coverage_holds_the_area_of_the_box(x: float, y: float, w: float, h: float) -> None:
    box = np.array([[x, y, w * (1 - x), h * (1 - y)]])
    for side in ((4, 4), (3, 7)):
        inside = coverage(box, side)
        assert inside.shape == (1, *side) and inside.min() >= 0 and inside.max() <= 1 + 1e-9
        assert np.isclose(inside.mean(), box[0, 2] * box[0, 3], atol=1e-12)


def test_coverage_by_hand() -> None:
    inside = coverage(np.array([[0.25, 0.0, 0.5, 0.75]]), (2, 2))
    assert np.allclose(inside, [[[0.5, 0.5], [0.25, 0.25]]])


def test_boxes_in_a_crop() -> None:
    boxes = boxes_in_crop(np.array([[30.0, 20, 10, 20]]), np.array([[20.0, 10, 40, 40]]))
    assert np.allclose(boxes, [[0.25, 0.25, 0.25, 0.5]])


def test_mass_of_flat_whole_and_pointed_maps() -> None:
    inside = coverage(np.array([[0.0, 0, 0.5, 0.5]] * 3), (4, 4))
    pointed = np.zeros((4, 4))
    pointed[1, 1] = 5.0
    maps = np.stack([np.full((4, 4), 3.0), inside[0] - 7, pointed])
    assert np.allclose(mass_in_box(maps, inside), [0.25, 1.0, 1.0])
    assert np.allclose(uniform_mass(inside), 0.25)
    assert peak_in_box(maps, inside)[1:].tolist() == [True, True]
    assert not peak_in_box(pointed[None, ::-1, ::-1], inside[:1])[0]


@given(st.floats(0.1, 10), st.floats(-5, 5))
def test_mass_does_not_depend_on_scale_and_offset(scale: float, offset: float) -> None:
    rng = np.random.default_rng(0)
    maps, inside = rng.random((2, 4, 4)), coverage(np.array([[0.1, 0.2, 0.5, 0.4]] * 2), (4, 4))
    assert np.allclose(mass_in_box(maps * scale + offset, inside), mass_in_box(maps, inside))


def test_localisation_of_a_file_and_of_none(tmp_path: Path) -> None:
    """Maps that are 1 in the box of the subject; under neutral prompts alone every figure is null."""
    triples = curated_triples(2, "maps")
    columns = {"sx": 15.0, "sy": 15.0, "sw": 10.0, "sh": 10.0, "crop_x": 10.0, "crop_y": 10.0, "crop_w": 40.0, "crop_h": 40.0}
    for name, value in columns.items():
        values = pa.array([value] * 2, triples.schema.field(name).type)
        triples = triples.set_column(triples.column_names.index(name), name, values)
    pointed = torch.zeros(2, 3, 8, 8)
    pointed[:, :, 1:3, 1:3] = 1.0
    for condition in ("relational", "neutral"):
        rows = [
            {"triple_id": row["triple_id"], "predicate": row["predicate"], "condition": condition, "t": 0.5}
            for row in triples.to_pylist()
        ]
        table = map_table(pa.Table.from_pylist(rows, schema=MAP_ITEMS), pointed, pointed)
        write_maps([table], tmp_path / f"{condition}.parquet", {"shape": (3, 8, 8)})
    found = localisation({"late": MapFile(tmp_path / "relational.parquet")}, triples)
    assert found["mass_in_box"]["late"]["cross"]["subject"] == found["peak_in_box"]["late"]["cross"]["subject"] == 1
    assert found["uniform"]["subject"] == 4 / 64 and found["images"] == 2
    none = localisation({"late": MapFile(tmp_path / "neutral.parquet")}, triples)
    assert none["uniform"] == {"subject": None, "object": None} and none["images"] == 0
    assert none["peak_in_box"]["late"]["saliency"] == {"subject": None, "object": None}
    write_json(none, tmp_path / "metrics.json")
    with pytest.raises(DataError, match=r"relational\.parquet: triple 1-900 is not among the map triples"):
        localisation({"late": MapFile(tmp_path / "relational.parquet")}, triples.slice(1))
