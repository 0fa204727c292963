"""Contact sheets of the 24 classes: six pictures a class, labelled, drawn by rule or sampled from the embedded generator."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from diffusers import FluxPipeline
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from sgpipe.errors import DataError
from sgpipe.relations.predicates import PREDICATES, relational_prompt
from sgpipe.runs.atomic import atomic_path
from sgworld.bank import Triple, sample_triple
from sgworld.flux import draw
from sgworld.scenes import pair_scene, render

COLUMNS = 6
_LABEL, _SIDE, _GAP = 92, 64, 2


def sheet_triples(seed: int) -> list[Triple]:
    """Six triples of each class, in the order of the classes."""
    rng = np.random.default_rng((seed, 3))
    return [sample_triple(rng, unseen=False, predicate=p) for p in PREDICATES for _ in range(COLUMNS)]


def drawn_sheet(path: Path, seed: int) -> None:
    """Pictures as the rules draw them."""
    triples = sheet_triples(seed)
    pictures = [render(pair_scene(np.random.default_rng((seed, i)), *t)) for i, t in enumerate(triples)]
    _write(pictures, path)


def sampled_sheet(model: Path, path: Path, seed: int) -> None:
    """Pictures of the pipeline in `model`, relational prompts, 4 steps."""
    if not (model / "model_index.json").is_file():
        raise DataError(f"{model}: no pipeline there; `dvc pull models.dvc` gets it, `sgworld train` makes it")
    triples = sheet_triples(seed)
    pipeline = FluxPipeline.from_pretrained(model)
    pictures = draw(pipeline, [relational_prompt(*t) for t in triples], range(seed, seed + len(triples)))
    _write(list(pictures), path)


def _write(pictures: Sequence[NDArray[np.uint8]], path: Path) -> None:
    half = len(PREDICATES) // 2
    width = _LABEL + COLUMNS * (_SIDE + _GAP)
    sheet = Image.new("RGB", (2 * width, half * (_SIDE + _GAP)), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for index, predicate in enumerate(PREDICATES):
        left, top = (index // half) * width, (index % half) * (_SIDE + _GAP)
        pen.text((left + _LABEL - 6, top + _SIDE / 2), predicate, "black", font, anchor="rm")
        for column in range(COLUMNS):
            picture = Image.fromarray(pictures[index * COLUMNS + column])
            sheet.paste(picture, (left + _LABEL + column * (_SIDE + _GAP), top))
    with atomic_path(path) as temporary:
        sheet.quantize(256).save(temporary, format="PNG", optimize=True)
