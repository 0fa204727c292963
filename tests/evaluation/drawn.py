"""A generator that requests by the rules of the drawn world, and a repository with validation triples of it."""

import inspect
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import yaml
from PIL import Image

from sgpipe.datasets.tables import NEGATIVES, TRIPLES, write_table
from sgpipe.evaluation.samples import Pixels
from sgpipe.graphs.scene_graph import SceneGraph
from sgpipe.relations.predicates import DIRECTIONAL, concepts, neutral_prompt, relational_prompt
from sgworld.contrast import Tower, build_clip, save_local
from sgworld.scenes import fits, pair_scene, render
from tests.tiny import graph_columns, write_pipeline

ROOT = Path(__file__).resolve().parents[2]
PICTURE = 64
PAIRS = (("dog", "apple"), ("cup", "cat"), ("ball", "bird"))
PREDICATES = ("left of", "right of", "above", "below")


class DrawnGenerator:
    """Follows a graph in `faithful` of its images, otherwise swaps its roles; without one a coin decides who stands left.

    What it requests depends on prompt, graph and seed of each image alone. `fails_after` calls it breaks.
    """

    def __init__(self, faithful: float = 0.9, fails_after: int | None = None) -> None:
        self.faithful, self.fails_after, self.calls = faithful, fails_after, 0

    def sample(
        self, prompts: Sequence[str], graphs: Sequence[SceneGraph | None], seeds: Sequence[int], *, steps: int, size: int
    ) -> Pixels:
        if self.calls == self.fails_after:
            raise KeyboardInterrupt
        self.calls += 1
        return np.stack([self._one(*each, size) for each in zip(prompts, graphs, seeds, strict=True)])

    def _one(self, prompt: str, graph: SceneGraph | None, seed: int, size: int) -> Pixels:
        rng = np.random.default_rng(seed)
        coin = rng.random()
        if graph is not None and graph.triples:
            (s, predicate, o), *_ = graph.triples
            triple = (graph.objects[s], predicate, graph.objects[o])
            if predicate in DIRECTIONAL and coin > self.faithful:
                triple = (triple[2], predicate, triple[0])
        else:
            words = prompt.removeprefix("a photo of ").removesuffix(" on a plain background").split(" ")
            triple = (words[0], ("left of", "above")[int(coin < 0.5)], words[-1])
            if rng.random() < 0.5:
                triple = (triple[2], triple[1], triple[0])
        if not fits(*triple):
            return np.full((size, size, 3), 240, np.uint8)
        return np.asarray(Image.fromarray(render(pair_scene(rng, *triple))).resize((size, size)))


def write_triples(root: Path, train: Sequence[tuple[str, str]] = (), val: Sequence[tuple[str, str]] = PAIRS) -> None:
    """Under `root`, curated triples of these name pairs and every planar class, their images and their swaps as negatives."""
    rows: list[dict[str, Any]] = []
    negatives: list[dict[str, Any]] = []
    (root / "data/VG_100K").mkdir(parents=True)
    wanted = [
        (split, pair, predicate) for split, pairs in (("val", val), ("train", train)) for predicate in PREDICATES for pair in pairs
    ]
    for number, (split, pair, predicate) in enumerate(wanted, 1):
        triple = (pair[0], predicate, pair[1])
        scene = pair_scene(np.random.default_rng(number), *triple)
        Image.fromarray(render(scene)).save(root / f"data/VG_100K/{number}.png")
        boxes = {
            f"{role}{side}": float(getattr(placed, side))
            for role, placed in zip("so", scene.objects, strict=True)
            for side in "xywh"
        }
        crop = dict(zip(("crop_x", "crop_y", "crop_w", "crop_h"), (0.0, 0.0, 64.0, 64.0), strict=True))
        rows.append(
            {
                "triple_id": f"{number}-1",
                "split": split,
                "image_id": number,
                "relationship_id": number,
                "subject": triple[0],
                "predicate": predicate,
                "object": triple[2],
                "prompt": relational_prompt(*triple),
                "neutral_prompt": neutral_prompt(*sorted(pair)),
                "concepts": list(concepts(*triple)),
                "source": "annotated",
                **crop,
                **boxes,
                **graph_columns(SceneGraph.of(*triple)),
            }
        )
        swapped = {"subject": triple[2], "predicate": predicate, "object": triple[0]}
        said = relational_prompt(triple[2], predicate, triple[0])
        negatives.append({"triple_id": f"{number}-1", "kind": "swap", **swapped, "prompt": said, "changed": 0})
    sizes = [{"image_id": row["image_id"], "width": PICTURE, "height": PICTURE} for row in rows]
    (root / "data/image_data.json").write_text(json.dumps(sizes))
    write_table(pa.Table.from_pylist(rows, schema=TRIPLES), root / "outputs/curated/triples.parquet")
    write_table(pa.Table.from_pylist(negatives, schema=NEGATIVES), root / "outputs/negatives/negatives.parquet")


def write_models(root: Path) -> None:
    """Checkpoints of random weights: a pipeline and a CLIP."""
    write_pipeline(root / "models/tiny")
    tower = Tower(width=32, layers=1, patch=16, embed=16)
    save_local(build_clip(tower, 0), tower, root / "models/clip")


def tiny_params() -> dict[str, Any]:
    """params.yaml for what `write_triples` and `write_models` write."""
    params: dict[str, Any] = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["data"]["root"] = "data"
    params["backbone"] |= {
        "model": "models/tiny", "files": "models/tiny", "double_blocks": 3, "single_blocks": 1, "resolution": PICTURE,
    }  # fmt: skip
    params["evaluate"] |= {"seeds": [0, 1], "batch_size": 8, "shard_size": 16}
    params["judge"] |= {
        "judges": {"exact": {"kind": "sgworld"}, "clip": {"kind": "open_clip", "model": "local-dir:models/clip"}},
        "files": "models/clip",
        "batch_size": 8,
        "shard_size": 40,
    }
    params["quality"] = {"tower": "local-dir:models/clip", "files": "models/clip"}
    params["statistics"] |= {"resamples": 200}
    params["ablation"] = {"epochs": [1, 2], "runs": ["graph"]}
    del params["train"], params["arms"]  # nothing is trained, so that steps and epochs need not follow these
    params["report"] |= {"random": 3, "worst": 2, "chosen": ["2-1"]}
    params["tracking"]["enabled"] = False
    return params


def call(main: Any, **given: Any) -> None:
    """A stage's command with its defaults, in this process."""
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(main).parameters.items()
        if parameter.default is not inspect.Parameter.empty
    }
    main(**{**defaults, **given})


def write_repository(root: Path) -> None:
    """Code by links, tiny checkpoints, ground-truth images with their triples and negatives, and params.yaml for them."""
    for name in ("sgpipe", "sgworld", "stages"):
        (root / name).symlink_to(ROOT / name)
    write_models(root)
    write_triples(root)
    (root / "params.yaml").write_text(yaml.safe_dump(tiny_params(), sort_keys=False))


def write_training(root: Path) -> None:
    """What training leaves behind: adapters by name, control losses."""
    for arm in ("graph", "text_only"):
        for name in ("adapter", "epoch-1", "epoch-2"):
            folder = root / "outputs/lora" / arm / name
            folder.mkdir(parents=True)
            (folder / "adapter.json").write_text(json.dumps({"arm": arm, "name": name}))
        losses = {f"val_loss_{name}": 0.1 for name in ("graph", "empty", "shuffled", "swapped", "base", "negative")}
        (root / "metrics/lora").mkdir(parents=True, exist_ok=True)
        (root / f"metrics/lora/{arm}.json").write_text(json.dumps(losses))
        (root / "plots/lora" / arm).mkdir(parents=True)
        lines = ["step,base,graph,empty,shuffled,swapped,negative,preferred"]
        lines += [f"{step},0.2,{0.2 - step / 1e4},0.2,0.21,0.22,0.22,0.6" for step in (0, 50, 100)]
        (root / "plots/lora" / arm / "controls.csv").write_text("\n".join(lines) + "\n")
