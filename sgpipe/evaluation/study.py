"""The claims of the seed document's study as numbers with intervals: pure functions of images, and the prompts they are of.

Distances are root mean squares of pixel differences, as shares of the range. With d(i, s; j, u) between the images of prompts i, j
from the noise of seeds s, u, the *rerun distance* is d(i, s; i, u), u ≠ s, and the *other prompts' distance* d(i, s; j, u), j ≠ i,
u ≠ s.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
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
CHANGED: Final = "changed graph"
"""What is given where a prompt's graph is reversed."""
_FILE: Final = "seed_prompts.yaml"


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


def unbounded(found: Estimate) -> Estimate:
    """The estimate without bounds (NaN) where all resamples are the same figure, which says nothing of how sure it is."""
    same = found.high - found.low <= 1e-9 * max(1.0, abs(found.value))
    return replace(found, low=np.nan, high=np.nan) if same else found


def ratio(own: Floats, other: Floats, bootstrap: Bootstrap) -> Estimate:
    """Ratio of the means of `[P, S]` and `[P, S]`, with its interval over prompts, see `unbounded`."""
    return unbounded(bootstrap.function(lambda means: means[0] / means[1], [own, other]))


def share(values: Floats, bootstrap: Bootstrap) -> Estimate:
    """Mean of shares `[P, S]` within 0–1, NaN for images that do not count, with its interval over prompts.

    Where all images have the same share v, resamples have no width. Then as many prompts as count, n, agree, so that the chance w
    of another share is at most 1 − (α / 2)^(1 / n), the exact binomial bound (Clopper & Pearson 1934); what differs lies anywhere
    in 0–1, so the mean is between v − w v and v + w (1 − v). For v of 0 or 1 it is `exact_share`.
    """
    found, counted = bootstrap.mean(values), np.isfinite(values)
    if not counted.any() or np.ptp(values[counted]) > 0:
        return found
    other = 1 - ((1 - bootstrap.confidence) / 2) ** (1 / int(counted.any(1).sum()))
    v = float(values[counted][0])
    return replace(found, value=v, low=v - other * v, high=v + other * (1 - v))


def complexity(images: Pixels) -> Floats:
    """Bytes `[P, S]` of each image as PNG: what is left when repetition is taken out."""
    return np.array([[len(to_png(image)) for image in row] for row in images], np.float64)


def rank_correlation(counts: Sequence[int], values: Floats, bootstrap: Bootstrap) -> Estimate:
    """Spearman's ρ of the prompts' `counts` `[P]` and the means of `values` `[P, S]`, with a percentile interval over
    prompts, see `unbounded`; NaN where one of them is constant.
    """
    x, y = np.asarray(counts), values.mean(1)
    rng = np.random.default_rng(bootstrap.seed)
    draws = []
    for _ in range(bootstrap.resamples):
        rows = rng.integers(len(x), size=len(x))
        if len(set(x[rows].tolist())) > 1 and len(set(y[rows].tolist())) > 1:
            draws.append(float(spearmanr(x[rows], y[rows]).statistic))
    if not draws:
        return Estimate(np.nan, np.nan, np.nan, values.size)
    tail = (1 - bootstrap.confidence) / 2
    low, high = np.quantile(draws, (tail, 1 - tail)).tolist()
    return unbounded(Estimate(float(spearmanr(x, y).statistic), low, high, values.size))


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


def presence_claims(counts: Sequence[int], shown: Floats, bootstrap: Bootstrap) -> dict[str, Any]:
    """What images of scenes that name so many objects show of them; `shown` `[P, S]` are numbers of named objects found.

    Intervals of shares are those of `share`, also where every image shows the same share of them.
    """
    found = {
        "number": plain(
            rank_correlation(counts, shown, bootstrap), "more objects named, more objects shown: Spearman's ρ with those found", 0.0
        )
    }
    named = np.asarray(counts)
    for count in sorted(set(counts)):
        shares = np.where((named == count)[:, None], shown / count, np.nan)
        found[f"of {count}"] = plain(share(shares, bootstrap), f"share of the named objects found where {count} are named")
    return found


def moved(images: Pixels, others: Pixels) -> Floats:
    """Distances `[P, S]` of images `[P, S, H, W, 3]` of the same prompts and noise, as `distances`."""
    return np.sqrt((((images.astype(np.float64) - others) / 255) ** 2).mean((2, 3, 4)))


def changed_claims(kept: Pixels, changed: Pixels, bootstrap: Bootstrap) -> dict[str, Any]:
    """What the images of a graph and of its negative, of the same prompt and noise `[P, S, …]`, say of composition."""
    rerun, _ = rerun_and_others(distances(kept))
    found = ratio(moved(kept, changed), rerun, bootstrap)
    return {"changed_ratio": plain(found, "graph structure determines composition: changed graph by rerun distance, same noise")}


def _right(scores: Floats) -> Floats:
    """`[P, S]` of scores `[P, S, 2]`: 1 where the graph is shown, 0 where its negative is, NaN where neither is preferred."""
    positive, negative = scores[..., 0], scores[..., 1]
    decided = np.isfinite(positive) & np.isfinite(negative) & (positive != negative)
    return np.where(decided, positive > negative, np.nan)


def direction(scores: Mapping[str, Floats], bootstrap: Bootstrap) -> dict[str, Any]:
    """Share of decided images that show the graph and not its negative, by what was given; scores are `[P, S, 2]`.

    Of `changed graph`, which says the negative, the share that show the negative.
    """
    found = {}
    for given, values in scores.items():
        right = _right(values)
        right = 1 - right if given == CHANGED else right
        found[given] = plain(bootstrap.mean(right), "predicates influence object placement: share of decided images", 0.5)
    return found


def turned(kept: Floats, changed: Floats, bootstrap: Bootstrap) -> dict[str, Any]:
    """Of the pairs of images of a graph and of its negative, same prompt and noise, that are both decided, the share that show each
    what was given; scores are `[P, S, 2]`. A coin for each image gives a quarter.
    """
    one, other = _right(kept), _right(changed)
    both = np.where(np.isfinite(one) & np.isfinite(other), (one == 1) & (other == 0), np.nan)
    return plain(bootstrap.mean(both), "changed graph, same prompt: both images show what their graph says", 0.25)


def one_sample_claims(
    without: Pixels, given: Pixels, groups: Sequence[str], scores: Mapping[str, Floats], bootstrap: Bootstrap
) -> dict[str, Any]:
    """What an adapter of one training sample does to P other graphs, by group of relations; images are `[P, S, H, W, 3]`.

    `without` are the base's of the same prompts and noise. `moved_ratio`: mean distance from these by the base's rerun distance, 0
    where nothing changes. `scores` `[P, S, 2]` of both, where they are judged, NaN where they are not.
    """
    rerun, _ = rerun_and_others(distances(without))
    apart = moved(without, given)
    found: dict[str, Any] = {}
    for group in dict.fromkeys(groups):
        rows = (np.array(groups) == group)[:, None]
        own = ratio(np.where(rows, apart, np.nan), np.where(rows, rerun, np.nan), bootstrap)
        said = "one sample trained on: how far images of other graphs move, by rerun distance"
        found[group] = {"moved_ratio": plain(own, said, 0.0)}
        found[group] |= {
            name.replace(" ", "_"): plain(bootstrap.mean(np.where(rows, _right(each), np.nan)), f"direction accuracy, {name}", 0.5)
            for name, each in scores.items()
        }
    return found
