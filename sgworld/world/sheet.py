"""Contact sheets of the world: scenes as they are composed, and what its generator draws."""

from pathlib import Path

import numpy as np
from diffusers import FluxPipeline
from PIL import Image, ImageDraw, ImageFont

from sgpipe.relations.predicates import PREDICATES
from sgpipe.runs.atomic import atomic_path
from sgworld.world.captions import sample_caption, sample_of_class
from sgworld.world.compose import compose
from sgworld.world.measure import draw
from sgworld.world.raster import render
from sgworld.world.specification import SLOTS
from sgworld.world.sprites import SIDE

COLUMNS, ROWS = 16, 5
_LABEL, _GAP, _TEXT = 92, 4, 46
ASKED = ((2, 0.0), (2, 1.0), (3, 0.0), (3, 1.0), (4, 0.0), (4, 1.0))
"""Numbers of objects and shares of neutral captions of those that the generator is asked for."""
NOISES = 10


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


def write_drawn(path: Path, pipeline: FluxPipeline, seed: int) -> None:
    """Write a PNG: a row of `NOISES` images for each of six captions, as they come; relational ones say held-out triples."""
    rng, step, line = np.random.default_rng((seed, 4)), SIDE + _GAP, 16
    captions = [sample_caption(rng, held=None if neutral else "triple", neutral=neutral, objects=count) for count, neutral in ASKED]
    texts = [caption.text() for caption in captions for _ in range(NOISES)]
    images = draw(pipeline, texts, [seed + number % NOISES for number in range(len(texts))])
    sheet = Image.new("RGB", (NOISES * step - _GAP, len(captions) * (step + line) - _GAP), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for row, caption in enumerate(captions):
        top = row * (step + line)
        pen.text((0, top), caption.text(), "black", font)
        for column in range(NOISES):
            sheet.paste(Image.fromarray(images[row * NOISES + column]), (column * step, top + line))
    with atomic_path(path) as temporary:
        sheet.quantize(256).save(temporary, format="PNG", optimize=True)
