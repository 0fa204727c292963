"""`sgpipe study`: the seed document's prompts sampled and judged, its claims as figures with intervals, panels by category."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

from sgpipe.arms.coverage import TRAINED_ON
from sgpipe.arms.generation import GraphGenerator
from sgpipe.evaluation.judges import Judge
from sgpipe.evaluation.samples import Pixels
from sgpipe.evaluation.statistics import Bootstrap
from sgpipe.evaluation.study import OBJECTS, Floats, Item, changed_claims, count_claim, direction, image_claims
from sgpipe.graphs.prompts import words
from sgpipe.graphs.scene_graph import SceneGraph
from sgpipe.runs.atomic import atomic_path

_CHUNK = 32


@dataclass
class Study:
    """What was sampled: images `[P, S, H, W, 3]` by what was given, and the items in their rows."""

    items: dict[str, list[Item]] = field(default_factory=dict)
    images: dict[str, Pixels] = field(default_factory=dict)


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


def requests(items: Sequence[Item], trained: Mapping[str, Any] | None) -> dict[str, list[tuple[Item, str, SceneGraph | None]]]:
    """What is sampled of each item: `base` under its prompt; by an adapter the graph and its reverse under one neutral prompt.

    An adapter is asked by graphs whose predicates it was trained on.
    """
    found: dict[str, list[tuple[Item, str, SceneGraph | None]]] = {"base": [(item, item.prompt, None) for item in items]}
    if trained is not None:
        told = [item for item in items if item.graph.triples and all(p in trained["predicates"] for _, p, _ in item.graph.triples)]
        found["graph"] = [(item, words(item.graph, "neutral"), item.graph) for item in told]
        found["changed graph"] = [(item, words(item.graph, "neutral"), item.graph.reversed()) for item in told]
    return {given: rows for given, rows in found.items() if rows}


def sample(generator: GraphGenerator, asked: Mapping[str, Any], seeds: Sequence[int], steps: int, size: int) -> Study:
    """All images, the same noise for all prompts of a seed; a bar on stderr says how far it is and how long it takes."""
    study = Study()
    total = sum(len(rows) for rows in asked.values()) * len(seeds)
    with tqdm(total=total, unit="image", mininterval=2, desc="study") as bar:
        for given, rows in asked.items():
            flat = [(prompt, graph, seed) for _, prompt, graph in rows for seed in seeds]
            parts = []
            for start in range(0, len(flat), _CHUNK):
                prompts, graphs, own = zip(*flat[start : start + _CHUNK], strict=True)
                parts.append(generator.sample(prompts, graphs, own, steps=steps, size=size))
                bar.update(len(own))
            study.items[given] = [item for item, _, _ in rows]
            study.images[given] = np.concatenate(parts).reshape(len(rows), len(seeds), size, size, 3)
    return study


def judged(judge: Judge, study: Study, classes: Sequence[str]) -> dict[str, dict[str, Floats]]:
    """Scores `[P, S, 2]` of graph and reversed graph by category and what was given, for items of one triple of a judged class."""
    found: dict[str, dict[str, Floats]] = {}
    for given, images in study.images.items():
        items = study.items[given]
        for category in dict.fromkeys(item.category for item in items):
            rows = [i for i, item in enumerate(items) if item.category == category and _class(item) in classes]
            if not rows:
                continue
            chosen = images[rows].reshape(-1, *images.shape[2:])
            said = [[items[i].graph.named[0], items[i].graph.reversed().named[0]] for i in rows for _ in range(images.shape[1])]
            found.setdefault(category, {})[given] = judge.scores(chosen, said).reshape(len(rows), -1, 2).astype(np.float64)
    return found


def _class(item: Item) -> str | None:
    return item.graph.triples[0][1] if len(item.graph.triples) == 1 else None


def claims(study: Study, scores: Mapping[str, Mapping[str, Floats]], bootstrap: Bootstrap) -> dict[str, Any]:
    """Every claim with its number and interval; one that nothing was sampled for is left out."""
    items, base = study.items["base"], study.images["base"]
    rows = {
        kind: [i for i, item in enumerate(items) if (item.category == OBJECTS) == (kind == OBJECTS)] for kind in ("graphs", OBJECTS)
    }
    found: dict[str, Any] = {}
    if len(rows["graphs"]) > 1 and base.shape[1] > 1:
        found["consistency"] = image_claims(base[rows["graphs"]], bootstrap)
    counts = [len(items[i].graph.objects) for i in rows[OBJECTS]]
    if len(set(counts)) > 1:
        found["complexity"] = count_claim(counts, base[rows[OBJECTS]], bootstrap)
    if "graph" in study.images and base.shape[1] > 1 and len(study.images["graph"]) > 1:
        found["changed"] = changed_claims(study.images["graph"], study.images["changed graph"], bootstrap)
    if scores:
        found["direction"] = {category: direction(of, bootstrap) for category, of in scores.items()}
    return found


def claims_figure(found: Mapping[str, Any], out: Path) -> None:
    """Every claim's number, its interval, and the value without the effect as a dashed line."""
    flat = list(_estimates(found))
    figure = Figure(figsize=(8.4, 0.9 + 0.62 * len(flat)), dpi=110, layout="constrained")
    axes = figure.subplots(len(flat), 1, squeeze=False)[:, 0]
    for axis, (name, row) in zip(axes, flat, strict=True):
        axis.plot([row["low"], row["high"]], [0, 0], color="#1f5fa8", linewidth=3)
        axis.plot([row["value"]], [0], "o", color="#1f5fa8")
        if "chance" in row:
            axis.axvline(row["chance"], color="#5c5c5c", linestyle="--", linewidth=1)
        low, high = min(0.0, row["low"]), max(1.0, row["high"])
        axis.set(yticks=[], xlim=(low - 0.05, high + 0.05))
        axis.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
        axis.set_title(f"{row['value']:.2f} [{row['low']:.2f}, {row['high']:.2f}]", fontsize=8, loc="right", pad=2)
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


def trained_on(about: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Names and predicates of an adapter's training."""
    return about.get(TRAINED_ON)
