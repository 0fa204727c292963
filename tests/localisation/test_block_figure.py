"""The figure by block: every figure at its block with its own interval, and what was not measured has no panel."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sgpipe.localisation.block_figure import draw_blocks, panels
from tests.localisation.test_table import bounded

GROUPS = {"early": (0, 1), "middle": (2, 3)}
WORDS = {"rows": [{"word": "object", "block": block, **bounded("selectivity", 0.1 * block)} for block in (-1, 0, 1, 2)]}
PATCHED = [
    {"method": "patching", "kind": kind, "rows": rows, "block": block, "group": None, **bounded("effect", value)}
    for kind, rows, block, value in (
        ("denoising", "text", 0, 1.0), ("denoising", "text", 3, 0.4), ("denoising", "image", 0, 0.0), ("noising", "text", 0, 0.9),
    )
]  # fmt: skip
ABLATED = [
    {"method": "ablation", "kind": kind, "rows": None, "block": block, "group": group, **bounded("direction_accuracy", value)}
    for kind, block, group, value in (("text", 1, None, 0.7), ("skip", 1, None, 0.2), ("text", None, "early", 0.1))
]
LOCALISATION = {"unpatched": {"positive": {"direction_accuracy": 0.95}}, "rows": [*PATCHED, *ABLATED]}
PLACEMENT = {
    "lora": {"early": bounded("direction_accuracy", 0.6), "middle": bounded("direction_accuracy", 0.8), "all": {}},
    "enter": {"10": bounded("direction_accuracy", 0.55), "2": bounded("direction_accuracy", 0.75)},
}


def test_every_figure_stands_at_its_block() -> None:
    read, patched, zeroed, written = panels(GROUPS, WORDS, LOCALISATION, PLACEMENT)
    assert [point[0] for point in read.lines["object"]] == [0, 1, 2], "the encoder's output is behind no block"
    assert patched.lines["text rows"] == [(0, 1.0, 0.95, 1.05), (3, 0.4, pytest.approx(0.35), pytest.approx(0.45))]
    assert [point[:2] for point in patched.lines["image rows"]] == [(0, 0.0)]
    assert zeroed.lines["text zeroed"] == [(1, *(pytest.approx(each) for each in (0.25, 0.2, 0.3)))]
    assert [(span[0], span[1], span[2][1]) for span in written.spans] == [(-0.4, 1.4, 0.6), (1.6, 3.4, 0.8)]
    ((_, entered),) = written.lines.items()
    assert [point[:2] for point in entered] == [(2, 0.75), (10, 0.55)] and written.level == 0.5


def test_what_was_not_measured_has_no_panel() -> None:
    assert panels(GROUPS, {}, {}, {}) == []
    undefined = {"rows": [{**PATCHED[0], "effect": None, "effect_low": None, "effect_high": None}]}
    assert panels(GROUPS, {}, undefined, {}) == []
    (alone,) = panels(GROUPS, {}, {}, {"lora": {"early": {"direction_accuracy": 0.6, "direction_accuracy_low": None}}})
    assert alone.spans[0][2] == (0.5, 0.6, 0.6, 0.6)


def test_the_same_figures_are_the_same_image(tmp_path: Path) -> None:
    shown = panels(GROUPS, WORDS, LOCALISATION, PLACEMENT)
    for name in ("a.png", "b.png"):
        draw_blocks(shown, GROUPS, 3, 5, tmp_path / "new" / name)
    assert (tmp_path / "new/a.png").read_bytes() == (tmp_path / "new/b.png").read_bytes()
    with Image.open(tmp_path / "new/a.png") as image:
        assert image.height > image.width > 800 and np.asarray(image.convert("L")).std() > 10
