"""`sgpipe study`: the seed document's prompts sampled and judged, its claims as figures with intervals, panels by category."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from sgpipe.arms.generation import GraphGenerator
from sgpipe.arms.groups import relation_group
from sgpipe.evaluation.judges import DetectorJudge, Judge
from sgpipe.evaluation.samples import Pixels
from sgpipe.evaluation.statistics import Bootstrap
from sgpipe.evaluation.study import (
    CHANGED,
    OBJECTS,
    Floats,
    Item,
    changed_claims,
    count_claim,
    direction,
    image_claims,
    one_sample_claims,
    presence_claims,
    turned,
)
from sgpipe.graphs.prompts import words
from sgpipe.graphs.scene_graph import SceneGraph
from sgpipe.runs.atomic import atomic_path
from sgpipe.runs.processes import Processes
from sgpipe.runs.shards import Make, Shard, Tick, cut, run_shards

_CHUNK = 32
_FILE = "images.npy"


@dataclass
class Study:
    """What was sampled: images `[P, S, H, W, 3]` by what was given, and the items in their rows."""

    items: dict[str, list[Item]] = field(default_factory=dict)
    images: dict[str, Pixels] = field(default_factory=dict)


Rows = Sequence[tuple[Item, str, SceneGraph | None]]
"""An item, the prompt that it is sampled under, and the graph."""
WITHOUT, ONE_SAMPLE = "without one sample", "one sample"


def split_known(items: Sequence[Item], names: Sequence[str] | None) -> tuple[list[Item], dict[str, dict[str, list[str]]]]:
    """Those whose objects are all among `names`, and of the others by category each prompt with its unknown names."""
    known: list[Item] = []
    left: dict[str, dict[str, list[str]]] = {}
    for item in items:
        unknown = [] if names is None else item.unknown(names)
        if unknown:
            left.setdefault(item.category, {})[item.prompt] = unknown
        else:
            known.append(item)
    return known, left


def requests(items: Sequence[Item], trained: Mapping[str, Any] | None) -> dict[str, Rows]:
    """What is sampled of each item: `base` under its prompt; by an adapter the graph and its reverse under one neutral prompt.

    An adapter is asked by graphs whose predicates it was trained on.
    """
    found: dict[str, Rows] = {"base": [(item, item.prompt, None) for item in items]}
    if trained is not None:
        told = [item for item in items if item.graph.triples and all(p in trained["predicates"] for _, p, _ in item.graph.triples)]
        found["graph"] = [(item, words(item.graph, "neutral"), item.graph) for item in told]
        found[CHANGED] = [(item, words(item.graph, "neutral"), item.graph.reversed()) for item in told]
    return {given: rows for given, rows in found.items() if rows}


def one_sample_requests(items: Sequence[Item]) -> dict[str, Rows]:
    """What an adapter of one training sample is asked: every graph of one triple, and the same prompt and noise without it."""
    single = [item for item in items if _class(item) is not None]
    prompts = [words(item.graph, "neutral") for item in single]
    found: dict[str, Rows] = {
        WITHOUT: [(item, prompt, None) for item, prompt in zip(single, prompts, strict=True)],
        ONE_SAMPLE: [(item, prompt, item.graph) for item, prompt in zip(single, prompts, strict=True)],
    }
    return {given: rows for given, rows in found.items() if rows}


def sample(
    open_generator: Callable[[], GraphGenerator], asked: Mapping[str, Rows], seeds: Sequence[int], steps: int, size: int,
    state: Path, processes: Processes, name: str = "images",
) -> Study:  # fmt: skip
    """All images, the same noise for all prompts of a seed, in shards of `state` with a bar on stderr: stopped and started again,
    those that were sampled are read. `name` tells the shards of one generator from another's.
    """
    flat = [(prompt, graph, seed) for rows in asked.values() for _, prompt, graph in rows for seed in seeds]
    shards = cut(name, len(flat), _CHUNK)

    def open_maker() -> Make:
        generator = open_generator()

        def make(shard: Shard, folder: Path, tick: Tick) -> None:
            prompts, graphs, own = zip(*flat[shard.start : shard.stop], strict=True)
            np.save(folder / _FILE, generator.sample(prompts, graphs, own, steps=steps, size=size))
            tick(len(own))

        return make

    run_shards(shards, state, processes, open_maker, "image")
    study, start = Study(), 0
    images = np.concatenate([np.load(state / shard.name / _FILE) for shard in shards]) if shards else np.zeros(0, np.uint8)
    for given, rows in asked.items():
        stop = start + len(rows) * len(seeds)
        study.items[given] = [item for item, _, _ in rows]
        study.images[given] = images[start:stop].reshape(len(rows), len(seeds), size, size, 3)
        start = stop
    return study


def judged(judge: Judge, study: Study, classes: Sequence[str]) -> dict[str, dict[str, Floats]]:
    """Scores `[P, S, 2]` of graph and reversed graph by what was given and category, for items of one triple of a judged class."""
    found: dict[str, dict[str, Floats]] = {}
    for given in study.images:
        items = study.items[given]
        for category in dict.fromkeys(item.category for item in items):
            rows = [i for i, item in enumerate(items) if item.category == category and _class(item) in classes]
            if rows:
                found.setdefault(category, {})[given] = _scores(judge, study, given, rows)
    return found


def _scores(judge: Judge, study: Study, given: str, rows: Sequence[int]) -> Floats:
    """`[rows, S, 2]`: graph and reversed graph of these items."""
    images, items = study.images[given], study.items[given]
    chosen = images[list(rows)].reshape(-1, *images.shape[2:])
    said = [[items[i].graph.named[0], items[i].graph.reversed().named[0]] for i in rows for _ in range(images.shape[1])]
    return judge.scores(chosen, said).reshape(len(rows), -1, 2).astype(np.float64)


def scores_of_all(judge: Judge, study: Study, classes: Sequence[str], given: str) -> Floats:
    """Scores `[P, S, 2]` of all items given this; NaN for those that are not judged."""
    items, images = study.items[given], study.images[given]
    found = np.full((*images.shape[:2], 2), np.nan)
    rows = [i for i, item in enumerate(items) if _class(item) in classes]
    if rows:
        found[rows] = _scores(judge, study, given, rows)
    return found


def shown_objects(judge: DetectorJudge, study: Study) -> Floats:
    """How many of its named objects `[P, S]` each image of a scene of objects shows."""
    rows = [i for i, item in enumerate(study.items["base"]) if item.category == OBJECTS]
    images = study.images["base"][rows]
    names = [study.items["base"][i].graph.objects for i in rows for _ in range(images.shape[1])]
    found = judge.present(images.reshape(-1, *images.shape[2:]), [sorted(set(each)) for each in names])
    counts = [sum(name in seen for name in each) for each, seen in zip(names, found, strict=True)]
    return np.array(counts, np.float64).reshape(images.shape[:2])


def _class(item: Item) -> str | None:
    return item.graph.triples[0][1] if len(item.graph.triples) == 1 else None


def claims(study: Study, judge: Judge | None, classes: Sequence[str], bootstrap: Bootstrap) -> dict[str, Any]:
    """Every claim with its number and interval; one that nothing was sampled for, or that no judge can see, is left out."""
    items, base = study.items["base"], study.images["base"]
    rows = {
        kind: [i for i, item in enumerate(items) if (item.category == OBJECTS) == (kind == OBJECTS)] for kind in ("graphs", OBJECTS)
    }
    found: dict[str, Any] = {}
    if len(rows["graphs"]) > 1 and base.shape[1] > 1:
        found["consistency"] = image_claims(base[rows["graphs"]], bootstrap)
    if len(rows[OBJECTS]) > 1 and base.shape[1] > 1:
        found["compositions"] = image_claims(base[rows[OBJECTS]], bootstrap)
    counts = [len(items[i].graph.objects) for i in rows[OBJECTS]]
    if len(set(counts)) > 1:
        found["complexity"] = count_claim(counts, base[rows[OBJECTS]], bootstrap)
        if isinstance(judge, DetectorJudge):
            found["objects_present"] = presence_claims(counts, shown_objects(judge, study), bootstrap)
    if "graph" in study.images and base.shape[1] > 1 and len(study.images["graph"]) > 1:
        found["changed"] = changed_claims(study.images["graph"], study.images[CHANGED], bootstrap)
        if judge is not None:
            kept, changed = (scores_of_all(judge, study, classes, given) for given in ("graph", CHANGED))
            found["changed"]["turned"] = turned(kept, changed, bootstrap)
    if judge is not None and (scores := judged(judge, study, classes)):
        found["direction"] = {category: direction(of, bootstrap) for category, of in scores.items()}
    return found


def claims_of_one_sample(
    study: Study, trained: Mapping[str, Any], judge: Judge | None, classes: Sequence[str], bootstrap: Bootstrap
) -> dict[str, Any]:
    """What training on one sample does to other graphs, of what `one_sample_requests` asked for."""
    if ONE_SAMPLE not in study.images or study.images[ONE_SAMPLE].shape[1] < 2 or len(study.images[ONE_SAMPLE]) < 2:
        return {}
    groups = [relation_group(str(_class(item)), trained["predicates"]) for item in study.items[ONE_SAMPLE]]
    scores = {} if judge is None else {given: scores_of_all(judge, study, classes, given) for given in (WITHOUT, ONE_SAMPLE)}
    return one_sample_claims(study.images[WITHOUT], study.images[ONE_SAMPLE], groups, scores, bootstrap)


def claims_figure(found: Mapping[str, Any], out: Path) -> None:
    """Every claim's number, its interval, and the value without the effect as a dashed line."""
    flat = list(_estimates(found))
    figure = Figure(figsize=(8.4, 0.9 + 0.62 * len(flat)), dpi=110, layout="constrained")
    axes = figure.subplots(len(flat), 1, squeeze=False)[:, 0]
    for axis, (name, row) in zip(axes, flat, strict=True):
        bounds = [row["low"], row["high"]] if np.isfinite(row["low"]) else []
        axis.plot(bounds, [0] * len(bounds), color="#1f5fa8", linewidth=3)
        axis.plot([row["value"]], [0], "o", color="#1f5fa8")
        if "chance" in row:
            axis.axvline(row["chance"], color="#5c5c5c", linestyle="--", linewidth=1)
        low, high = min(0.0, row["value"], *bounds), max(1.0, row["value"], *bounds)
        axis.set(yticks=[], xlim=(low - 0.05, high + 0.05))
        axis.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
        said = f"[{row['low']:.2f}, {row['high']:.2f}]" if bounds else "[–, –]"
        axis.set_title(f"{row['value']:.2f} {said}", fontsize=8, loc="right", pad=2)
        axis.tick_params(labelsize=7)
    with atomic_path(out) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})


def _estimates(found: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Mapping[str, Any]]]:
    if "value" in found:
        return [(prefix, found)] if np.isfinite(found["value"]) else []
    parts = ((f"{prefix}\n{name}".strip(), value) for name, value in found.items() if isinstance(value, Mapping))
    return [each for name, value in parts for each in _estimates(value, name.replace("_", " "))]


def panel(study: Study, category: str, seed: int, most: int, out: Path) -> bool:
    """A PNG: a column for each of the category's first prompts, a row for what was given; False where it has none."""
    columns = [item for item in study.items["base"] if item.category == category][:most]
    if not columns:
        return False
    figure = Figure(figsize=(1.5 * len(columns), 1.75 * len(study.images) + 0.5), dpi=100, layout="constrained")
    axes = figure.subplots(len(study.images), len(columns), squeeze=False)
    for cells, (given, images) in zip(axes, study.images.items(), strict=True):
        cells[0].set_ylabel(given, fontsize=9)
        for cell, item in zip(cells, columns, strict=True):
            cell.set(xticks=[], yticks=[])
            if item in study.items[given]:
                cell.imshow(images[study.items[given].index(item), seed], interpolation="nearest")
    for cell, item in zip(axes[0], columns, strict=True):
        cell.set_title("\n".join(_wrapped(item.prompt)), fontsize=7)
    with atomic_path(out) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})
    return True


def _wrapped(text: str, width: int = 20) -> list[str]:
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + len(word) >= width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines
