"""Contact sheets: each image with the maps of its concepts, group after group, over the image's whole area."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from sgpipe.attention_maps.sheets import Row, write_sheet

GROUPS, CONCEPTS = ("early", "late"), (("dog", "on", "mat"), ("cat", "on", "box"))


def test_a_sheet_shows_every_map_over_its_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Figure] = []
    save = Figure.savefig

    def keep(figure: Figure, *arguments: object, **options: object) -> None:
        kept.append(figure)
        save(figure, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", keep)
    draw = np.random.default_rng(0)
    rows = [
        Row(
            draw.integers(0, 256, (16, 16, 3), dtype=np.uint8),
            concepts,
            {group: draw.random((3, 4, 4)).astype(np.float16) for group in GROUPS},
        )
        for concepts in CONCEPTS
    ]
    write_sheet("on: saliency", rows, tmp_path / "on.png")
    (figure,) = kept
    cells = np.array(figure.axes, object).reshape(2, 7)
    assert figure.get_suptitle() == "on: saliency"
    for line, row in zip(cells, rows, strict=True):
        assert np.array_equal(line[0].images[0].get_array(), row.image) and not line[0].get_title()
        for at, cell in enumerate(line[1:]):
            group, concept = GROUPS[at // 3], at % 3
            under, over = cell.images
            assert np.array_equal(under.get_array(), row.image)
            assert np.array_equal(over.get_array(), row.maps[group][concept].astype(np.float32))
            assert list(over.get_extent()) == list(under.get_extent()) == [-0.5, 15.5, 15.5, -0.5]
            assert over.get_clim() == (over.get_array().min(), over.get_array().max())
            assert cell.get_title() == row.concepts[concept]
    named = {column: [text.get_text() for text in cells[0][column].texts] for column in range(7)}
    assert {column: texts for column, texts in named.items() if texts} == {1: ["early"], 4: ["late"]}
    assert not any(cell.texts for cell in cells[1])
