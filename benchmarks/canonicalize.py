"""Time and memory of `canonicalize` on generated data sets as large as Visual Genome v1.4, COCO-Stuff train2017 and GQA train.

Visual Genome: 108,077 images, 2.3 M relationships and 2.5 M objects, 1.1 GB of JSON with the real one's label noise: a fifth of the
endpoints are not in objects.json, objects list ids merged into them, predicates come in capitals, inflections and with articles;
compared with an earlier revision in pairs of runs. `python -m benchmarks.canonicalize` measures all three and writes
metrics/data_cost.json; `--scale 0.1` makes a tenth of them, `--only KIND` measures one, `--check` fails above `BOUNDS`.
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

from benchmarks._data_sets import GENERATORS, measure_other
from sgpipe.runs.atomic import DIGITS, write_json

TREE = Path(__file__).resolve().parent.parent
MEASURED = ("seconds", "cpu_seconds", "peak_bytes")
KINDS = ("visual_genome", *GENERATORS)
IMAGES = 108_077
REVISION = "d5ce3bb"
"""The build that Visual Genome's time and memory are compared with."""
BOUNDS = {
    "visual_genome": {"time_ratio": 0.55, "memory_ratio": 0.6, "seconds": 20.0, "peak_bytes": 1 << 30},
    **{kind: {"seconds": 60.0, "peak_bytes": 1 << 30} for kind in GENERATORS},
}
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
            objects: list[tuple[int, ...]] = []
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


def visual_genome(root: Path, folder: Path, scale: float, workers: int, against: str, pairs: int) -> dict[str, Any]:
    """Figures of Visual Genome, generated into `root` where it is not there; without a revision those of one run of this tree."""
    if not (root / "relationships.json").exists():
        generate(root, max(1, round(IMAGES * scale)))
    size = sum((root / name).stat().st_size for name in ("image_data.json", "objects.json", "relationships.json"))
    if against:
        return {"scale": scale, "json_bytes": size, **compare(root, folder, workers, against, pairs)}
    found = measure(root, folder / "out", workers)
    return {"scale": scale, "json_bytes": size, "workers": workers, **{name: found[name] for name in MEASURED}}


def missed(figures: dict[str, dict[str, Any]]) -> list[str]:
    """Each figure that exceeds its bound of `BOUNDS`."""
    return [
        f"{kind}.{name} is {figures[kind][name]:.4g}, the bound {bound:g}"
        for kind, bounds in BOUNDS.items()
        for name, bound in bounds.items()
        if figures.get(kind, {}).get(name, 0) > bound
    ]


def main(
    scale: Annotated[float, typer.Option(min=0.0001, help="share of the data sets' sizes")] = 1.0,
    workers: Annotated[int, typer.Option(min=1, help="worker processes for Visual Genome")] = 2,
    folder: Annotated[Path | None, typer.Option(help="keep or reuse the generated Visual Genome in this folder")] = None,
    against: Annotated[str, typer.Option(help="git revision to compare with in pairs of runs; empty: one run alone")] = REVISION,
    pairs: Annotated[int, typer.Option(min=1, help="pairs of runs of the comparison")] = 5,
    only: Annotated[list[str], typer.Option(help=f"one of {', '.join(KINDS)}; repeatable; by default all")] = [],  # noqa: B006
    out: Annotated[Path, typer.Option(help="metrics file; figures of data sets that are not measured stay")] = Path(
        "metrics/data_cost.json"
    ),
    check: Annotated[bool, typer.Option("--check", help="fail if a bound is missed")] = False,
) -> None:
    """Generate, run, write the figures of each data set as soon as it is measured."""
    if unknown := [kind for kind in only if kind not in KINDS]:
        raise typer.BadParameter(f"--only: got {unknown[0]!r}; valid: {', '.join(KINDS)}")
    found: dict[str, Any] = {}
    for kind in only or KINDS:
        if kind == "visual_genome":
            with tempfile.TemporaryDirectory() as temporary:
                found[kind] = visual_genome(folder or Path(temporary), Path(temporary), scale, workers, against, pairs)
        else:
            found[kind] = measure_other(kind, scale)
        known = json.loads(out.read_text()) if out.is_file() else {}
        write_json({**known, **found}, out, DIGITS)
        print(kind, json.dumps(found[kind], indent=2), flush=True)
    if check and (too_much := missed(found)):
        print(*(f"error: {each}" for each in too_much), sep="\n", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    typer.run(main)
