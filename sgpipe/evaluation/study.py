"""The claims of the seed document's study as numbers with intervals: pure functions of images, and the prompts they are of.

Distances are root mean squares of pixel differences, as shares of the range. With d(i, s; j, u) between the images of prompts i, j
from the noise of seeds s, u, the *rerun distance* is d(i, s; i, u), u ≠ s, and the *other prompts' distance* d(i, s; j, u), j ≠ i,
u ≠ s.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from sgpipe.evaluation.samples import Pixels, to_png
from sgpipe.evaluation.statistics import Bootstrap, Estimate
from sgpipe.graphs.scene_graph import SceneGraph, parse_graph
from sgpipe.params.load import parse_yaml

Floats = NDArray[np.float64]
OBJECTS: Final = "objects"
"""The category of scenes of one to four objects without a relation."""
_FILE: Final = "study.yaml"


@dataclass(frozen=True)
class Item:
    """A prompt of the study and the graph that it says."""

    category: str
    prompt: str
    graph: SceneGraph

    def unknown(self, names: Collection[str]) -> list[str]:
        """The names of its objects that are not among those."""
        return [name for name in dict.fromkeys(self.graph.objects) if name not in names]


def study_items() -> list[Item]:
    """All prompts, category by category."""
    raw = parse_yaml(files("sgpipe.evaluation").joinpath(_FILE).read_text(encoding="utf-8"), _FILE)
    scenes = [SceneGraph(tuple(names)) for names in raw.pop(OBJECTS)]
    found = [Item(category, prompt, parse_graph(graph)) for category, several in raw.items() for prompt, graph in several]
    return [*found, *(Item(OBJECTS, f"a photo of {_listed(scene.objects)} on a plain background", scene) for scene in scenes)]


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def distances(images: Pixels) -> Floats:
    """d `[P, S, P, S]` of images `[P, S, H, W, 3]`, 0–255."""
    prompts, seeds = images.shape[:2]
    flat = images.reshape(prompts * seeds, -1).astype(np.float64) / 255
    square = (flat**2).sum(1)
    between = np.maximum(square[:, None] + square[None] - 2 * flat @ flat.T, 0)
    return np.sqrt(between / flat.shape[1]).reshape(prompts, seeds, prompts, seeds)


def rerun_and_others(d: Floats) -> tuple[Floats, Floats]:
    """Of each image its mean rerun distance and its mean distance to other prompts' images, both `[P, S]`, over other seeds."""
    prompts, seeds = d.shape[:2]
    same_prompt, same_seed = np.eye(prompts, dtype=bool)[:, None, :, None], np.eye(seeds, dtype=bool)[None, :, None, :]

    def mean(kept: NDArray[np.bool_]) -> Floats:
        return np.where(kept, d, 0).sum((2, 3)) / kept.sum((2, 3))

    return mean(same_prompt & ~same_seed), mean(~same_prompt & ~same_seed)


def identified(d: Floats) -> Floats:
    """`[P, S]`: 1 where the nearest image of another seed is of the same prompt; chance is 1/P."""
    prompts, seeds = d.shape[:2]
    hidden = np.where(np.eye(seeds, dtype=bool)[None, :, None, :], np.inf, d)
    nearest = hidden.transpose(0, 1, 3, 2).reshape(prompts, seeds, -1).argmin(2) % prompts
    return (nearest == np.arange(prompts)[:, None]).astype(np.float64)


def ratio(own: Floats, other: Floats, bootstrap: Bootstrap) -> Estimate:
    """Ratio of the means of `[P, S]` and `[P, S]`, with its interval over prompts."""
    return bootstrap.function(lambda means: means[0] / means[1], [own, other])


def complexity(images: Pixels) -> Floats:
    """Bytes `[P, S]` of each image as PNG: what is left when repetition is taken out."""
    return np.array([[len(to_png(image)) for image in row] for row in images], np.float64)


def rank_correlation(counts: Sequence[int], values: Floats, bootstrap: Bootstrap) -> Estimate:
    """Spearman's ρ of the prompts' `counts` `[P]` and the means of `values` `[P, S]`, with a percentile interval over prompts."""
    x, y = np.asarray(counts), values.mean(1)
    rng = np.random.default_rng(bootstrap.seed)
    draws = []
    for _ in range(bootstrap.resamples):
        rows = rng.integers(len(x), size=len(x))
        if len(set(x[rows].tolist())) > 1 and len(set(y[rows].tolist())) > 1:
            draws.append(float(spearmanr(x[rows], y[rows]).statistic))
    tail = (1 - bootstrap.confidence) / 2
    low, high = np.quantile(draws, (tail, 1 - tail)).tolist()
    return Estimate(float(spearmanr(x, y).statistic), low, high, values.size)


def plain(estimate: Estimate, claim: str, chance: float | None = None) -> dict[str, Any]:
    """An estimate as a metrics file holds it, beside the claim that it is about."""
    return {"claim": claim, **asdict(estimate), **({} if chance is None else {"chance": chance})}


def image_claims(images: Pixels, bootstrap: Bootstrap) -> dict[str, Any]:
    """What images `[P, S, H, W, 3]` of P prompts say of consistency; `identical` are those that several prompts have."""
    d = distances(images)
    rerun, others = rerun_and_others(d)
    shown: dict[bytes, set[int]] = {}
    for prompt, row in enumerate(images):
        for image in row:
            shown.setdefault(image.tobytes(), set()).add(prompt)
    return {
        "identified": plain(
            bootstrap.mean(identified(d)),
            "each unique scene graph generates a unique image: nearest image of another seed",
            1 / len(d),
        ),
        "rerun_ratio": plain(
            ratio(rerun, others, bootstrap), "the same graph rerun gives similar images: rerun by other prompts' distance", 1.0
        ),
        "identical": sum(len(prompts) > 1 for prompts in shown.values()),
    }


def count_claim(counts: Sequence[int], images: Pixels, bootstrap: Bootstrap) -> dict[str, Any]:
    """What images of scenes with so many objects say of their complexity."""
    found = rank_correlation(counts, complexity(images), bootstrap)
    return plain(found, "number of objects correlates with image complexity: Spearman's ρ with the bytes of the PNG", 0.0)


def changed_claims(kept: Pixels, changed: Pixels, bootstrap: Bootstrap) -> dict[str, Any]:
    """What the images of a graph and of its negative, of the same prompt and noise `[P, S, …]`, say of composition."""
    rerun, _ = rerun_and_others(distances(kept))
    moved = np.sqrt((((kept.astype(np.float64) - changed) / 255) ** 2).mean((2, 3, 4)))
    found = ratio(moved, rerun, bootstrap)
    return {"changed_ratio": plain(found, "graph structure determines composition: changed graph by rerun distance, same noise")}


def direction(scores: Mapping[str, Floats], bootstrap: Bootstrap) -> dict[str, Any]:
    """Share of decided images that show the graph and not its negative, by what was given; scores are `[P, S, 2]`."""
    found = {}
    for given, values in scores.items():
        positive, negative = values[..., 0], values[..., 1]
        decided = np.isfinite(positive) & np.isfinite(negative) & (positive != negative)
        right = np.where(decided, positive > negative, np.nan)
        found[given] = plain(bootstrap.mean(right), "predicates influence object placement: share of decided images", 0.5)
    return found
