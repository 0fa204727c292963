"""The sheet of what a generator draws."""

from pathlib import Path

import numpy as np
from diffusers import FluxPipeline
from PIL import Image
from typer.testing import CliRunner

from sgworld.world.__main__ import app
from sgworld.world.captions import sample_caption
from sgworld.world.drawn import ASKED, NOISES, write_drawn
from sgworld.world.measure import draw
from sgworld.world.sprites import SIDE


def test_each_caption_has_a_row_of_what_is_drawn(pipeline: FluxPipeline, tmp_path: Path) -> None:
    write_drawn(tmp_path / "drawn.png", pipeline, 3)
    with Image.open(tmp_path / "drawn.png") as opened:
        sheet = np.asarray(opened.convert("RGB"))
    assert sheet.shape[:2] == (len(ASKED) * (SIDE + 20) - 4, NOISES * (SIDE + 4) - 4)
    first, second = (sheet[16 : 16 + SIDE, left : left + SIDE].astype(int) for left in (0, SIDE + 4))
    caption = sample_caption(np.random.default_rng((3, 4)), held="triple", neutral=0.0, objects=2)
    drawn = draw(pipeline, [caption.text()] * 2, [3, 4]).astype(int)
    away = [[np.abs(image - shown).mean() for shown in (first, second)] for image in drawn]
    assert away[0][0] < 0.5 * away[0][1] and away[1][1] < 0.5 * away[1][0], "to what 256 colours keep"


def test_a_folder_without_a_generator_is_said_so(tmp_path: Path) -> None:
    found = CliRunner().invoke(app, ["drawn", "--model", str(tmp_path), "--out", str(tmp_path / "x.png")])
    assert "holds no pipeline" in str(found.exception)
