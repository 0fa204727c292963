"""A contact sheet of the world: each class in a row, then scenes of several relations with what they show."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sgpipe.relations.predicates import PREDICATES
from sgpipe.runs.atomic import atomic_path
from sgworld.world.captions import sample_caption, sample_of_class
from sgworld.world.compose import compose
from sgworld.world.raster import render
from sgworld.world.specification import SLOTS
from sgworld.world.sprites import SIDE

COLUMNS, ROWS = 16, 5
_LABEL, _GAP, _TEXT = 92, 4, 46


def write_sheet(path: Path, seed: int) -> None:
    """Write a PNG: 24 rows of 16 scenes of one class, then 5 rows of scenes of three and four objects with their triples."""
    rng, step = np.random.default_rng((seed, 3)), SIDE + _GAP
    sheet = Image.new("RGB", (_LABEL + COLUMNS * step, len(PREDICATES) * step + 2 * ROWS * (SIDE + _TEXT)), "white")
    pen, font, small = ImageDraw.Draw(sheet), ImageFont.load_default(13), ImageFont.load_default(9)
    for row, predicate in enumerate(PREDICATES):
        pen.text((_LABEL - 6, row * step + SIDE / 2), predicate, "black", font, anchor="rm")
        for column in range(COLUMNS):
            image = render(compose(sample_of_class(rng, predicate, 2), rng.random(SLOTS)))
            sheet.paste(Image.fromarray(image), (_LABEL + column * step, row * step))
    for index in range(ROWS * COLUMNS):
        scene = compose(sample_caption(rng, neutral=0.3, objects=3 + index % 2), rng.random(SLOTS))
        x = _LABEL + index % (COLUMNS // 2) * 2 * step
        y = len(PREDICATES) * step + index // (COLUMNS // 2) * (SIDE + _TEXT)
        sheet.paste(Image.fromarray(render(scene)), (x, y))
        pen.text((x, y + SIDE), "\n".join(" ".join(each) for each in scene.triples), "black", small)
    with atomic_path(path) as temporary:
        sheet.quantize(256).save(temporary, format="PNG", optimize=True)
