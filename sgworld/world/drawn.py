"""A sheet of what the generator of this world draws."""

from pathlib import Path

import numpy as np
from diffusers import FluxPipeline
from PIL import Image, ImageDraw, ImageFont

from sgpipe.runs.atomic import atomic_path
from sgworld.world.captions import sample_caption
from sgworld.world.measure import draw
from sgworld.world.sprites import SIDE

ASKED = ((2, 0.0), (2, 1.0), (3, 0.0), (3, 1.0), (4, 0.0), (4, 1.0))
"""Numbers of objects and shares of neutral captions of those that the generator is asked for."""
NOISES = 10
_GAP = 4


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
