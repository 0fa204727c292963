"""Time and memory of `canonicalize` on a generated data set as large as Visual Genome v1.4.

108,077 images, 2.3 M relationships and 2.5 M objects, 1.1 GB of JSON with the real one's dirt: a fifth of the endpoints are
not in objects.json, objects list ids merged into them, predicates come in capitals, inflections and with articles. Run
`python -m benchmarks.canonicalize`; `--scale 0.1` makes a tenth of it, and `--check` fails above 20 s or 1 GiB.
"""

import json
import random
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Annotated, Any

import psutil
import typer

from benchmarks._data_sets import measure_other
from sgpipe.datasets.canonicalize import canonicalize
from sgpipe.datasets.config import Canonicalize
from sgpipe.datasets.visual_genome.data_set import VisualGenome
from sgpipe.runs.atomic import write_json

IMAGES = 108_077
SECONDS, BYTES = 20.0, 1 << 30
_PREDICATES = [
    "on",
    "ON",
    "has",
    "in",
    "of",
    "wearing",
    "near",
    "with",
    "above",
    "holding",
    "behind",
    "under",
    "sitting_on",
    "wears",
    "standing_on",
    "in_front_of",
    "attached_to",
    "at",
    "hanging_from",
    "over",
    "for",
    "riding",
    "next_to",
    "on_top_of",
    "are_on",
    "in_a",
    "wearing_a",
    "has_a",
    "of_a",
    "by",
    "beside",
    "inside",
    "carrying",
    "eating",
    "looking_at",
    "walking_on",
    "parked_on",
    "covering",
    "belonging_to",
    "part_of",
    "made_of",
    "says",
    "and",
    "to",
    "between",
    "watching",
    "worn_by",
]
_WEIGHTS = [500, 200, 270, 250, 146, 130, 96, 66, 47, 42, 41, 22, 18, 15, 14, 13, 10, 10, 10, 9, 9, 9, 30, 60] + [8] * 24
_NAMES = [
    f"{adjective}{noun}"
    for noun in [
        "man",
        "woman",
        "tree",
        "building",
        "car",
        "street",
        "shirt",
        "window",
        "table",
        "dog",
        "cat",
        "horse",
        "sky",
        "grass",
        "road",
        "sign",
        "clock",
        "shoe",
        "person",
        "boy",
        "girl",
        "wall",
        "chair",
        "plate",
        "pizza",
        "bus",
        "train",
        "track",
        "boat",
        "water",
        "wave",
        "snow",
        "ski",
        "fence",
        "leg",
        "arm",
        "hand",
        "hair",
        "head",
        "ear",
        "eye",
        "nose",
        "tail",
        "wheel",
        "light",
        "pole",
    ]
    for adjective in ("", "", "", "old ", "small ", "red ", "wooden ", "left ")
]
_SYNSETS = [json.dumps([f"{name.split()[-1]}.n.0{1 + len(name) % 3}"]) for name in _NAMES]


def generate(root: Path, images: int, seed: int = 0) -> None:
    """Write image_data.json, objects.json and relationships.json of `images` images in layout v1.4."""
    draw = random.Random(seed)
    root.mkdir(parents=True, exist_ok=True)
    with (
        (root / "image_data.json").open("w") as image_file,
        (root / "objects.json").open("w") as object_file,
        (root / "relationships.json").open("w") as relation_file,
    ):
        files = image_file, object_file, relation_file
        for file in files:
            file.write("[")
        next_id = 1
        for image in range(1, images + 1):
            comma = ", " if image > 1 else ""
            image_file.write(
                f'{comma}{{"width": 800, "url": "https://cs.stanford.edu/people/rak248/VG_100K_2/{image}.jpg", '
                f'"height": 600, "image_id": {image}, "coco_id": null, "flickr_id": null}}'
            )
            objects = []
            for index in range(draw.randint(12, 34)):
                name = int(draw.random() ** 2 * len(_NAMES))
                x, y = draw.randrange(700), draw.randrange(500)
                objects.append((next_id + 2 * index, name, x, y, draw.randrange(8, 400), draw.randrange(8, 300)))
            next_id += 2 * len(objects) + 20
            object_file.write(f'{comma}{{"image_id": {image}, "objects": [')
            object_file.write(", ".join(_object(*values, merged=values[0] % 5 == 0) for values in objects))
            object_file.write(f'], "image_url": "https://cs.stanford.edu/people/rak248/VG_100K_2/{image}.jpg"}}')
            relation_file.write(f'{comma}{{"relationships": [')
            relation_file.write(", ".join(_relation(draw, objects, 100 * image + n) for n in range(draw.randint(8, 35))))
            relation_file.write(f'], "image_id": {image}}}')
        for file in files:
            file.write("]")


def _object(object_id: int, name: int, x: int, y: int, w: int, h: int, merged: bool) -> str:
    others = f"[{object_id + 1}]" if merged else "[]"
    return (
        f'{{"synsets": {_SYNSETS[name]}, "h": {h}, "object_id": {object_id}, "merged_object_ids": {others}, '
        f'"names": ["{_NAMES[name]}"], "w": {w}, "y": {y}, "x": {x}}}'
    )


def _relation(draw: random.Random, objects: list[tuple[int, ...]], relation_id: int) -> str:
    predicate = draw.choices(_PREDICATES, _WEIGHTS[: len(_PREDICATES)])[0].replace("_", " ")
    subject, object_ = (_endpoint(draw, *objects[int(draw.random() * len(objects))]) for _ in range(2))
    return (
        f'{{"predicate": "{predicate}", "object": {object_}, "relationship_id": {relation_id}, '
        f'"synsets": ["along.r.01"], "subject": {subject}}}'
    )


def _endpoint(draw: random.Random, object_id: int, name: int, x: int, y: int, w: int, h: int) -> str:
    if draw.random() < 0.2:
        object_id += 5_000_000 * 10
    elif object_id % 5 == 0:
        object_id += 1
    return (
        f'{{"name": "{_NAMES[name]}", "h": {h}, "synsets": {_SYNSETS[name]}, "object_id": {object_id}, '
        f'"w": {w}, "y": {y}, "x": {x}}}'
    )


class Peak(threading.Thread):
    """Largest sum of the resident memory of this process and its children, and of what is theirs alone, in bytes."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.bytes = 0
        self.done = threading.Event()

    def run(self) -> None:
        process = psutil.Process()
        finished = False
        while not finished:
            finished = self.done.wait(0.05)
            total = 0
            for each in [process, *process.children(recursive=True)]:
                try:
                    total += each.memory_info().rss
                except psutil.Error:
                    continue
            self.bytes = max(self.bytes, total)


def measure(root: Path, out: Path, workers: int) -> dict[str, Any]:
    """Seconds, CPU seconds and peak memory of one run, with its metrics."""
    peak = Peak()
    peak.start()
    cpu, start = psutil.Process().cpu_times(), time.perf_counter()
    metrics = canonicalize(VisualGenome(root), out, Canonicalize(), workers=workers)
    seconds = time.perf_counter() - start
    peak.done.set()
    peak.join()
    after = psutil.Process().cpu_times()
    spent = sum(getattr(after, name) - getattr(cpu, name) for name in ("user", "system", "children_user", "children_system"))
    return {"seconds": seconds, "cpu_seconds": spent, "peak_bytes": peak.bytes, "metrics": metrics}


def keep(found: dict[str, dict[str, Any]]) -> None:
    """Put these figures into metrics/data_cost.json, beside those of other data sets."""
    path = Path("metrics/data_cost.json")
    before = json.loads(path.read_text()) if path.is_file() else {}
    write_json({**before, **found}, path)
    print(json.dumps(found))


def main(
    scale: Annotated[float, typer.Option(min=0.0001, help="share of Visual Genome's size")] = 1.0,
    workers: Annotated[int, typer.Option(min=1, help="worker processes")] = 2,
    folder: Annotated[Path | None, typer.Option(help="keep or reuse the generated data in this folder")] = None,
    check: Annotated[bool, typer.Option("--check", help="fail if a bound is missed")] = False,
    others: Annotated[list[str], typer.Option("--other", help="measure these alone: coco_stuff, gqa; repeatable")] = [],  # noqa: B006
) -> None:
    """Generate, run, print."""
    if others:
        keep({kind: measure_other(kind, scale) for kind in others})
        return
    with tempfile.TemporaryDirectory() as temporary:
        root = folder or Path(temporary)
        if not (root / "relationships.json").exists():
            generate(root, max(1, round(IMAGES * scale)))
        size = sum((root / name).stat().st_size for name in ("image_data.json", "objects.json", "relationships.json"))
        found = measure(root, Path(temporary) / "out", workers)
    metrics = found["metrics"]
    print(
        f"{metrics['images']['read']:,} images, {metrics['objects']['read']:,} objects, {metrics['read']:,} relationships, "
        f"{size / 1e6:,.0f} MB: {found['seconds']:.1f} s ({found['cpu_seconds']:.1f} s CPU), "
        f"{found['peak_bytes'] / 2**20:,.0f} MiB peak over all processes ({workers} workers)"
    )
    if check and (found["seconds"] > SECONDS or found["peak_bytes"] > BYTES):
        print(f"error: the bounds are {SECONDS:.0f} s and {BYTES >> 20} MiB", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    typer.run(main)
