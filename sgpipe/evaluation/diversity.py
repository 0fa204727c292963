"""Do seeds of one graph give different images: distances between them in pixels and features, beside the base's.

An arm can buy control with diversity: always the same image, and always right. Two seeds of a triple are a *pair* if both images
show the whole graph g⁺ as the headline judge sees it. The reference is the base model under the relational prompt, by its pairs:
the words fix the class and leave the roles open, and counting right images alone fixes these as well. So both sides have the same
layout freedom, and differences of layout that the graph fixes do not count.
"""

import sys
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from sgpipe.evaluation.calibration import finite_mean
from sgpipe.evaluation.samples import ImageFeatures, ImageFile
from sgpipe.evaluation.sampling_plan import BASE, NO_GRAPH, EvaluationTriple
from sgpipe.evaluation.sensitivity import mse
from sgpipe.evaluation.statistics import Bootstrap, Estimate, Floats
from sgpipe.evaluation.summary import QualifiedJudges, bounds
from sgpipe.evaluation.verdicts import Condition, Scored, Verdicts
from sgpipe.runs.atomic import plain
from sgpipe.runs.progress import tick

REFERENCE: Final = Condition(BASE, "relational", NO_GRAPH)
FEWEST_TRIPLES: Final = 10
"""Triples with a pair on both sides that a ratio needs: a bootstrap of fewer is too narrow."""
_TRIPLES_READ: Final = 32
"""Triples whose images are in memory at a time."""


def shows_graph(scored: Scored, cases: Sequence[EvaluationTriple], classes: Collection[str]) -> NDArray[np.bool_]:
    """`[T, S]`: images on which the judge chooses every triple of g⁺; none for a graph with a class outside `classes`."""
    judged = np.array([all(said[1] in classes for said, _ in case.statements) for case in cases])
    return judged[:, None] & (scored.choices == 1) & (scored.others != 0).all(axis=-1)


def seed_pairs(shown: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """`[T, P]` of images `[T, S]`: pairs of seeds, both of whose images are among `shown`; P = S (S − 1) / 2."""
    first, second = np.triu_indices(shown.shape[1], 1)
    return shown[:, first] & shown[:, second]


def pixel_distances(file: ImageFile, rows: NDArray[np.int64], pairs: NDArray[np.bool_]) -> Floats:
    """MSE `[T, P]` on 0–255 of the images at `rows` `[T, S]` of a file; NaN where there is no pair."""
    first, second = np.triu_indices(rows.shape[1], 1)
    having, found = np.flatnonzero(pairs.any(axis=1)), np.full(pairs.shape, np.nan)
    for start in range(0, len(having), _TRIPLES_READ):
        part = having[start : start + _TRIPLES_READ]
        images = [file.read(of_seed) for of_seed in rows[part].T]
        found[part] = np.stack([mse(images[a], images[b]) for a, b in zip(first, second, strict=True)], axis=1)
    return np.where(pairs, found, np.nan)


def feature_distances(features: Floats, pairs: NDArray[np.bool_]) -> Floats:
    """1 − cosine `[T, P]` of image embeddings `[T, S, D]` of length 1; NaN where there is no pair."""
    first, second = np.triu_indices(features.shape[1], 1)
    cosine_distances = np.square(features[:, first] - features[:, second]).sum(axis=-1) / 2
    return np.where(pairs, cosine_distances, np.nan)


def by_triple(distances: Floats) -> Floats:
    """The mean `[T, 1]` over the pairs of each triple; NaN for a triple without any."""
    counted = np.isfinite(distances)
    with np.errstate(invalid="ignore"):
        return np.where(counted, distances, 0.0).sum(axis=1, keepdims=True) / counted.sum(axis=1, keepdims=True)


def ratio_of_means(own: Floats, base: Floats, bootstrap: Bootstrap) -> Estimate:
    """Mean of `own` over mean of `base` `[T, 1]`, of the triples finite in both, which it counts; interval by bootstrap over these.

    NaN for fewer than `FEWEST_TRIPLES`.
    """
    both = np.isfinite(own) & np.isfinite(base)
    if both.sum() < FEWEST_TRIPLES:
        return Estimate(np.nan, np.nan, np.nan, int(both.sum()))
    return bootstrap.function(lambda means: means[0] / means[1], [np.where(both, each, np.nan) for each in (own, base)])


def diversity_figures(
    verdicts: Verdicts, qualified: QualifiedJudges, files: Mapping[str, ImageFile], features: ImageFeatures | None
) -> dict[str, Any]:
    """`<arm>.<prompt>.<graph>`: mean distances between seeds, and their ratios to the base's (`REFERENCE`) with intervals.

    `pixels` (MSE, 0–255) and `features` (1 − cosine; left out where no judge gives features) are means over the `triples` with a
    pair. `pixels_ratio` and `features_ratio` are of the `compared_triples`, which have a pair here and in the reference; they are
    null for fewer than `FEWEST_TRIPLES`, with a warning where the reference has no more. Where there are graphs of several triples
    `single` and `several` have the ratios of either kind of graph. Raises `DataError` if an image or its features are missing.
    """
    judge, wanted = qualified.judges.headline, qualified.statistics
    classes, bootstrap = qualified.used(judge), Bootstrap(wanted.resamples, wanted.confidence, wanted.seed)
    ids = [case.triple_id for case in verdicts.cases]
    several = np.array([len(case.graph.triples) > 1 for case in verdicts.cases])[:, None]
    groups = {"single": ~several, "several": several} if several.any() else {}

    def distances(condition: Condition) -> tuple[int, dict[str, Floats]]:
        """The number of pairs, and of each kind of distance the means `[T, 1]`."""
        arm, prompt, graph = condition.arm, condition.prompt, condition.graph
        pairs = seed_pairs(shows_graph(verdicts.scored(condition, judge), verdicts.cases, classes))
        rows = files[arm].rows(prompt, graph, ids, verdicts.seeds)
        found = {"pixels": by_triple(pixel_distances(files[arm], rows, pairs))}
        if features is not None:
            found["features"] = by_triple(feature_distances(features.of(arm, prompt, graph, ids, verdicts.seeds), pairs))
        tick()
        return int(pairs.sum()), found

    measured = {condition: distances(condition) for condition in verdicts.conditions(judge)}
    base_pairs, base = measured.get(REFERENCE, (0, None))
    triples = 0 if base is None else int(np.isfinite(base["pixels"]).sum())
    if triples < FEWEST_TRIPLES:
        print(
            f"warning: diversity: the base under relational prompts shows the graph from two seeds on {triples} triples, and a "
            f"ratio to it needs {FEWEST_TRIPLES}: ratios are null",
            file=sys.stderr,
        )
    found: dict[str, Any] = {}
    for condition, (pairs, own) in measured.items():
        entry: dict[str, Any] = {"triples": int(np.isfinite(own["pixels"]).sum()), "pairs": pairs, "base_pairs": base_pairs}
        for kind, values in own.items():
            reference = np.full_like(values, np.nan) if base is None else base[kind]
            ratio = ratio_of_means(values, reference, bootstrap)
            entry |= {kind: finite_mean(values), **bounds(f"{kind}_ratio", ratio), "compared_triples": ratio.count}
            for group, rows in groups.items():
                ratio = ratio_of_means(np.where(rows, values, np.nan), reference, bootstrap)
                entry.setdefault(group, {}).update(**bounds(f"{kind}_ratio", ratio), compared_triples=ratio.count)
        found.setdefault(condition.arm, {}).setdefault(condition.prompt, {})[condition.graph] = entry
    return plain(found)
