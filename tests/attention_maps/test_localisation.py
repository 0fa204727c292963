"""Boxes on the grid of patches, and how much of a map falls into them."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from hypothesis import given
from hypothesis import strategies as st

from sgpipe.attention_maps.localisation import (
    boxes_in_crop,
    coverage,
    mass_in_box,
    peak_in_box,
    uniform_mass,
)
from sgpipe.map_files.parquet import MapFile, map_table, write_maps
from sgpipe.scene_graphs.tables import MAP_ITEMS
from stages.saliency_sheets import localisation

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


def test_of_no_map_there_is_no_share() -> None:
    none = np.zeros((0, 4, 4))
    assert [len(each(none, none)) for each in (mass_in_box, peak_in_box)] == [0, 0]
    assert len(uniform_mass(none)) == 0


def test_maps_of_other_prompts_have_no_place(tmp_path: Path) -> None:
    """Null in the metrics of the sheets, not a traceback after the maps were made."""
    row = {"triple_id": "a", "predicate": "on", "condition": "wrong", "prompt_predicate": "above", "t": 0.5}
    maps = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    items = pa.Table.from_pylist([row], schema=MAP_ITEMS)
    write_maps([map_table(items, maps, maps)], tmp_path / "late.parquet", {"shape": (3, 4, 4)})
    sides = {f"{prefix}{name}": 1.0 for prefix in ("s", "o", "crop_") for name in "xywh"}
    triples = pa.Table.from_pylist([{"triple_id": "a", **sides}])
    found = localisation({"late": MapFile(tmp_path / "late.parquet")}, triples)
    nothing = {kind: {"subject": None, "object": None} for kind in ("saliency", "cross")}
    assert found["mass_in_box"] == found["peak_in_box"] == {"late": nothing}
    assert (found["uniform"], found["pictures"]) == ({"subject": None, "object": None}, 0)


@given(st.floats(0.1, 10), st.floats(-5, 5))
def test_mass_does_not_depend_on_scale_and_offset(scale: float, offset: float) -> None:
    rng = np.random.default_rng(0)
    maps, inside = rng.random((2, 4, 4)), coverage(np.array([[0.1, 0.2, 0.5, 0.4]] * 2), (4, 4))
    assert np.allclose(mass_in_box(maps * scale + offset, inside), mass_in_box(maps, inside))
