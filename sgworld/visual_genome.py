"""The world as a data set in Visual Genome's v1.4 layout, dirt included."""

import io
import json
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from sgpipe.errors import DataError
from sgpipe.relations.predicates import PREDICATES
from sgpipe.runs.atomic import atomic_path
from sgworld.dirt import NAME_ALIASES, UNMAPPED, raw_name, raw_predicate
from sgworld.pictograms import NAMES
from sgworld.scenes import Placed, Scene, beside, draw_triple, lone_scene, pair_scene, render

RARE = frozenset({"drinking", "left of", "right of", "playing with", "pulling", "pushing", "touching", "using"})
"""The eight classes with little support in Visual Genome; here they are drawn half as often as the others."""
CELLS = ((1, 0.25), (2, 0.5), (3, 0.25))
LONE, DANGLING, NO_OBJECTS, UNMAPPED_EXTRA, REPEATED, SELF_LOOP = 0.12, 0.2, 0.1, 0.3, 0.02, 0.01
"""Chances: of a cell with one object, of an endpoint outside objects.json, of an image without objects, and per relationship of
one more with no relation of the 24, of a repeat, of a loop."""
_Json = dict[str, Any]


@dataclass
class _Ids:
    """Running ids, unique over the data set."""

    object: int = 1_000_000
    relationship: int = 5_000_000

    def new(self, kind: str) -> int:
        setattr(self, kind, getattr(self, kind) + 1)
        return getattr(self, kind)


def compose(rng: np.random.Generator) -> Scene:
    """One to three cells side by side, 2–6 objects; a class is drawn with weight 1, a rare one with 0.55."""
    weights = np.array([0.55 if name in RARE else 1.0 for name in PREDICATES])
    count = int(rng.choice([n for n, _ in CELLS], p=[p for _, p in CELLS]))
    cells = []
    for index in range(count):
        if index and rng.random() < LONE:
            cells.append(lone_scene(rng, str(rng.choice(NAMES))))
        else:
            predicate = str(rng.choice(PREDICATES, p=weights / weights.sum()))
            cells.append(pair_scene(rng, *draw_triple(rng, predicate)))
    return beside(cells)


def _box(placed: Placed) -> _Json:
    return {"x": placed.x, "y": placed.y, "w": placed.w, "h": placed.h}


def _endpoint(rng: np.random.Generator, placed: Placed, stored: _Json, ids: _Ids) -> _Json:
    """An endpoint as v1.4 writes it: the object's id, an id merged into it, or one that objects.json does not have."""
    number, kind = stored["object_id"], rng.random()
    if kind < DANGLING / 2:
        number = ids.new("object")
        stored["merged_object_ids"].append(number)
    elif kind < DANGLING:
        number = ids.new("object")
    name = {"name": raw_name(rng, placed.name)} if rng.random() < 0.7 else {"names": [placed.name]}
    return {**name, "object_id": number, "synsets": [], **_box(placed)}


def annotate(rng: np.random.Generator, scene: Scene, image_id: int, ids: _Ids) -> tuple[_Json, _Json]:
    """The records of one image in objects.json and relationships.json."""
    stored = [
        {"object_id": ids.new("object"), "names": [raw_name(rng, placed.name)], "synsets": [], "merged_object_ids": [],
         **_box(placed)}
        for placed in scene.objects
    ]  # fmt: skip
    relationships: list[_Json] = []

    def add(subject: int, predicate: str, object_: int) -> None:
        ends = [_endpoint(rng, scene.objects[i], stored[i], ids) for i in dict.fromkeys((subject, object_))]
        number = ids.new("relationship")
        relationships.append(
            {"predicate": predicate, "subject": ends[0], "object": ends[-1], "relationship_id": number, "synsets": []}
        )

    for subject, predicate, object_ in scene.relations:
        text, exchanged = raw_predicate(rng, predicate)
        first, second = (object_, subject) if exchanged else (subject, object_)
        add(first, text, second)
        if rng.random() < UNMAPPED_EXTRA:
            add(subject, str(rng.choice(UNMAPPED)), object_)
        if rng.random() < REPEATED:
            add(first, text, second)
        if rng.random() < SELF_LOOP:
            add(subject, text, subject)
    objects = [] if rng.random() < NO_OBJECTS else stored
    return ({"image_id": image_id, "objects": objects}, {"image_id": image_id, "relationships": relationships})


def rendered(rng: np.random.Generator) -> tuple[Scene, NDArray[np.uint8]]:
    """A scene and its pixels."""
    scene = compose(rng)
    return scene, render(scene)


def write_visual_genome(
    folder: Path, count: int, seed: int, draw: Callable[[np.random.Generator], tuple[Scene, NDArray[np.uint8]]] = rendered
) -> None:
    """Write `image_data.json`, `objects.json`, `relationships.json`, `object_alias.txt` and `images.zip` (`VG_100K/<id>.png`).

    Image i depends on (seed, i) and on how many ids were given before it; the same numbers give the same bytes.
    """
    if count < 1:
        raise DataError(f"--images: got {count}; at least 1 is needed")
    ids = _Ids()
    images: list[_Json] = []
    objects: list[_Json] = []
    relationships: list[_Json] = []
    with atomic_path(folder / "images.zip") as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for index in tqdm(range(count), desc="rendering images", unit="image", mininterval=2):
            rng, image_id = np.random.default_rng((seed, 7, index)), index + 1
            scene, pixels = draw(rng)
            member = f"VG_100K/{image_id}.png"
            archive.writestr(zipfile.ZipInfo(member, (2000, 1, 1, 0, 0, 0)), _png(pixels))
            images.append(
                {
                    "image_id": image_id,
                    "width": scene.width,
                    "height": scene.height,
                    "url": member,
                    "coco_id": None,
                    "flickr_id": None,
                }
            )
            for records, record in zip((objects, relationships), annotate(rng, scene, image_id, ids), strict=True):
                records.append(record)
    for name, value in (("image_data", images), ("objects", objects), ("relationships", relationships)):
        with atomic_path(folder / f"{name}.json") as temporary:
            rows = ",\n".join(json.dumps(row, separators=(",", ":")) for row in value)
            temporary.write_text(f"[\n{rows}\n]\n", encoding="utf-8")
    with atomic_path(folder / "object_alias.txt") as temporary:
        lines = [",".join((head, *others)) for head, others in NAME_ALIASES.items()]
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _png(pixels: NDArray[np.uint8]) -> bytes:
    """Palette PNG; scenes of more than 256 colours are quantised without dithering."""
    stream = io.BytesIO()
    Image.fromarray(pixels).quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(stream, "PNG", optimize=True)
    return stream.getvalue()
