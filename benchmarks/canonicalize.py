"""Time and memory of `canonicalize` on a generated data set as large as Visual Genome v1.4.

108,077 images, 2.3 M relationships and 2.5 M objects, 1.1 GB of JSON with the real one's dirt: a fifth of the endpoints are
not in objects.json, objects list ids merged into them, predicates come in capitals, inflections and with articles. Run
`python -m benchmarks.canonicalize`; `--scale 0.1` makes a tenth of it, `--against REV` compares with another revision in pairs of
runs and writes metrics/data_cost.json, and `--check` fails above 20 s or 1 GiB, or above the bounds of the comparison.
"""

import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks._data_sets import measure_other
from sgpipe.runs.atomic import DIGITS, write_json

TREE = Path(__file__).resolve().parent.parent
MEASURED = ("seconds", "cpu_seconds", "peak_bytes")
TIME_RATIO, MEMORY_RATIO = 0.55, 0.6
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


def measure(root: Path, out: Path, workers: int, tree: Path = TREE) -> dict[str, Any]:
    """Seconds, CPU seconds and peak memory of one run in a process of its own, by the code in `tree`, with its metrics."""
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    command = [sys.executable, str(TREE / "benchmarks/_canonicalize_once.py"), str(root), str(out), str(workers)]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def compare(root: Path, folder: Path, workers: int, revision: str, pairs: int) -> dict[str, Any]:
    """Medians over pairs of runs of this tree and of `revision`, taken in turns, of the ratios of their time and memory."""
    other, outs = folder / "other", (folder / "this", folder / "that")
    other.mkdir()
    archive = subprocess.run(["git", "-C", str(TREE), "archive", revision], check=True, capture_output=True).stdout
    subprocess.run(["tar", "-x", "-C", str(other)], input=archive, check=True)
    runs: list[tuple[dict[str, Any], ...]] = []
    for pair in range(pairs):
        order = (0, 1) if pair % 2 == 0 else (1, 0)
        found = {side: measure(root, outs[side], workers, (TREE, other)[side]) for side in order}
        runs.append((found[0], found[1]))
        this, that = runs[-1]
        print(*(f"{name}: {this[name]:.4g} against {that[name]:.4g}" for name in MEASURED), sep=", ", flush=True)

    def ratio(name: str) -> float:
        return statistics.median(this[name] / that[name] for this, that in runs)

    tables = sorted(path.name for path in outs[1].glob("*.parquet"))
    same = all((outs[0] / name).read_bytes() == (outs[1] / name).read_bytes() for name in tables)
    return {
        **dict(zip(("time_ratio", "cpu_ratio", "memory_ratio"), map(ratio, MEASURED), strict=True)),
        **{name: statistics.median(this[name] for this, _ in runs) for name in MEASURED},
        **{f"{name}_of_revision": statistics.median(that[name] for _, that in runs) for name in MEASURED},
        "pairs": pairs,
        "revision": revision,
        "same_bytes": same and runs[0][1]["metrics"].items() <= runs[0][0]["metrics"].items(),
        "workers": workers,
    }


def add_figures(out: Path, key: str, figures: dict[str, Any]) -> None:
    """Put the figures of one data set into a metrics file that holds those of others."""
    known = json.loads(out.read_text()) if out.is_file() else {}
    write_json({**known, key: figures}, out, DIGITS)


def main(
    scale: Annotated[float, typer.Option(min=0.0001, help="share of Visual Genome's size")] = 1.0,
    workers: Annotated[int, typer.Option(min=1, help="worker processes")] = 2,
    folder: Annotated[Path | None, typer.Option(help="keep or reuse the generated data in this folder")] = None,
    against: Annotated[str | None, typer.Option(help="git revision to compare with, in pairs of runs")] = None,
    pairs: Annotated[int, typer.Option(min=1, help="pairs of runs of the comparison")] = 5,
    out: Annotated[Path, typer.Option(help="metrics file of the comparison; figures of other data sets in it stay")] = Path(
        "metrics/data_cost.json"
    ),
    check: Annotated[bool, typer.Option("--check", help="fail if a bound is missed")] = False,
    others: Annotated[list[str], typer.Option("--other", help="measure these alone: coco_stuff, gqa; repeatable")] = [],  # noqa: B006
) -> None:
    """Generate, run, print."""
    if others:
        for kind in others:
            add_figures(out, kind, figures := measure_other(kind, scale))
            print(kind, json.dumps(figures))
        return
    with tempfile.TemporaryDirectory() as temporary:
        root = folder or Path(temporary)
        if not (root / "relationships.json").exists():
            generate(root, max(1, round(IMAGES * scale)))
        size = sum((root / name).stat().st_size for name in ("image_data.json", "objects.json", "relationships.json"))
        if against is not None:
            figures = compare(root, Path(temporary), workers, against, pairs)
            add_figures(out, "visual_genome", {**figures, "json_bytes": size})
            print(json.dumps(figures, indent=2))
            if check and (figures["time_ratio"] > TIME_RATIO or figures["memory_ratio"] > MEMORY_RATIO):
                print(f"error: the bounds are {TIME_RATIO} of the time and {MEMORY_RATIO} of the memory", file=sys.stderr)
                sys.exit(1)
            return
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
