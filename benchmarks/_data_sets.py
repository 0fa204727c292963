"""COCO-Stuff train2017 and GQA train in full size, generated, and what `canonicalize` takes for each in a process of its own.

Counts are the published ones: 118,287 images with 860,001 instances (polygons) and 747,458 stuff segments (run lengths); 74,942
scene graphs with 16 objects and 50 relations each, 88 % of them left and right.
"""

import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from sgpipe.datasets.canonicalize import canonicalize, open_data_set
from sgpipe.datasets.config import Canonicalize, Data

WIDTH, HEIGHT = 640, 480
_THINGS, _STUFF = 80, 91
_GQA_NAMES = [
    f"{adjective}{noun}" for noun in ("man", "tree", "car", "shirt", "window", "dog", "sky", "sign") for adjective in ("", "old ")
]
_GQA_SAID = [
    "on",
    "wearing",
    "in",
    "near",
    "of",
    "in front of",
    "behind",
    "next to",
    "above",
    "inside",
    "with",
    "by",
    "holding",
    "riding",
]


def compressed(counts: list[int]) -> str:
    """Run lengths as COCO's text."""
    text = ""
    for n, count in enumerate(counts):
        value, more = count - (counts[n - 2] if n > 2 else 0), True
        while more:
            low, value = value & 31, value >> 5
            more = value != (-1 if low & 16 else 0)
            text += chr(48 + low + 32 * more)
    return text


def _blob(draw: np.random.Generator) -> tuple[list[int], str]:
    """Box and text of a ragged mask, about as long as stuff's are."""
    x, y, w, h = (int(draw.integers(low, high)) for low, high in ((0, 200), (0, 150), (60, 440), (60, 320)))
    counts, done = [], 0
    for column in range(x, x + w):
        top, tall = y + int(draw.integers(0, 20)), max(1, h - int(draw.integers(20, 40)))
        start = column * HEIGHT + top
        counts += [start - done, tall]
        done = start + tall
    return [x, y, w, h], compressed([*counts, WIDTH * HEIGHT - done])


def coco_stuff(root: Path, scale: float) -> None:
    """Write instances_train2017.json and stuff_train2017.json."""
    draw, masks = random.Random(0), np.random.default_rng(0)
    images, instances, stuff = (max(1, round(scale * count)) for count in (118_287, 860_001, 747_458))
    blobs = [_blob(masks) for _ in range(100)]
    outlines = [json.dumps([[round(draw.random() * 600, 2) for _ in range(2 * draw.randint(8, 40))]]) for _ in range(200)]
    listed = ", ".join(
        f'{{"license": 3, "file_name": "{n:012}.jpg", "coco_url": "http://images.cocodataset.org/train2017/{n:012}.jpg", "height": '
        f'{HEIGHT}, "width": {WIDTH}, "flickr_url": "http://farm9.staticflickr.com/8186/{n}.jpg", '
        f'"id": {n}}}'
        for n in range(1, images + 1)
    )

    def annotation(n: int, category: int, box: list[int], mask: str) -> str:
        area = box[2] * box[3] / 2
        return (
            f'{{"segmentation": {mask}, "area": {area}, "iscrowd": 0, "image_id": {1 + n * 7919 % images}, "bbox": {box}, '
            f'"category_id": {category}, "id": {n}}}'
        )

    def thing(n: int) -> str:
        box = [draw.randrange(400), draw.randrange(300), draw.randrange(4, 240), draw.randrange(4, 180)]
        return annotation(n, 1 + draw.randrange(_THINGS), box, draw.choice(outlines))

    def segment(n: int) -> str:
        box, text = draw.choice(blobs)
        mask = f'{{"counts": {json.dumps(text)}, "size": [{HEIGHT}, {WIDTH}]}}'
        return annotation(10_000_000 + n, 92 + draw.randrange(_STUFF + 1), box, mask)

    for name, many, write, first, count in (
        ("instances", instances, thing, 1, _THINGS), ("stuff", stuff, segment, 92, _STUFF + 1),
    ):  # fmt: skip
        classes = [{"supercategory": "any", "id": first + n, "name": f"{name} {n}"} for n in range(count - (name == "stuff"))]
        classes += [{"supercategory": "other", "id": 183, "name": "other"}] if name == "stuff" else []
        with (root / f"{name}_train2017.json").open("w") as file:
            file.write(f'{{"info": {{}}, "images": [{listed}], "annotations": [')
            file.writelines(f"{', ' if n else ''}{write(n)}" for n in range(many))
            file.write(f'], "categories": {json.dumps(classes)}}}')


def gqa(root: Path, scale: float) -> None:
    """Write train_sceneGraphs.json."""
    draw = random.Random(0)
    with (root / "train_sceneGraphs.json").open("w") as file:
        file.write("{")
        for image in range(1, max(2, round(scale * 74_942)) + 1):
            count = draw.randint(6, 27)
            said: list[list[str]] = [[] for _ in range(count)]
            for _ in range(round(1.36 * count)):
                s, o = draw.sample(range(count), 2)
                said[s].append(f'{{"name": "to the left of", "object": "{100 * image + o}"}}')
                said[o].append(f'{{"name": "to the right of", "object": "{100 * image + s}"}}')
            for _ in range(round(0.37 * count)):
                s, o = draw.sample(range(count), 2)
                said[s].append(f'{{"name": "{draw.choice(_GQA_SAID)}", "object": "{100 * image + o}"}}')
            objects = ", ".join(
                f'"{100 * image + n}": {{"name": "{draw.choice(_GQA_NAMES)}", "h": {draw.randrange(8, 300)}, "relations": '
                f'[{", ".join(said[n])}], "w": {draw.randrange(8, 300)}, "attributes": ["white", "small"], '
                f'"y": {draw.randrange(300)}, "x": {draw.randrange(300)}}}'
                for n in range(count)
            )
            comma = ", " if image > 1 else ""
            file.write(f'{comma}"{image}": {{"width": {WIDTH}, "objects": {{{objects}}}, "height": {HEIGHT}}}')
        file.write("}")


GENERATORS: dict[str, Callable[[Path, float], None]] = {"coco_stuff": coco_stuff, "gqa": gqa}


def measure_other(kind: str, scale: float = 1.0) -> dict[str, Any]:
    """Generate a data set of this kind, canonicalize it in a process of its own, and say what that took."""
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        GENERATORS[kind](root, scale)
        size = sum(path.stat().st_size for path in root.iterdir())
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks._data_sets", kind, temporary], check=True, capture_output=True, text=True
        )
    return {"scale": scale, "json_bytes": size, **json.loads(done.stdout.splitlines()[-1])}


def _run(kind: str, root: Path) -> dict[str, Any]:
    start, before = time.perf_counter(), time.process_time()
    metrics = canonicalize(open_data_set(Data(kind, str(root))), root / "out", Canonicalize())
    return {
        "seconds": time.perf_counter() - start,
        "cpu_seconds": time.process_time() - before,
        "peak_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        "images": metrics["images"]["read"],
        "objects": metrics["objects"]["read"],
        "relations": metrics["read"],
    }


if __name__ == "__main__":
    print(json.dumps(_run(sys.argv[1], Path(sys.argv[2]))))
