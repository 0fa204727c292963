"""The quality of images beside ground-truth ones: Fréchet and kernel distances, Inception Score, CLIP score, diversity, duplicates.

The formulas are torchmetrics'; features come from stage `judge` (`extractors`). By the published Inception network the figures are
called `fid`, `kid` and `inception_score`; the same formulas on the tower's features are `tower_frechet`, `tower_kernel` and
`tower_score`, which compare with no published figure.
"""

import warnings
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from sgpipe.evaluation.arms import headline_conditions
from sgpipe.evaluation.samples import REAL, REFERENCE
from sgpipe.runs.atomic import plain

FEWEST_IMAGES: Final = 2048
"""Images below which a Fréchet distance is marked: a covariance of as many features of Inception has less than full rank there, and
the distance is biased upwards by an amount that depends on the number of images."""
SPLITS: Final = 10
"""Parts of the images by which an Inception Score has its deviation (Salimans et al. 2016)."""
SUBSETS: Final = 100
"""Subsets over which a kernel distance is averaged (Bińkowski et al. 2018)."""
NAMES: Final = {"tower": ("tower_frechet", "tower_kernel", "tower_score"), "inception": ("fid", "kid", "inception_score")}


def _given(num_features: int) -> Any:
    """Stands where torchmetrics expects a network: what it is given are features already."""
    from torch import nn

    network: Any = nn.Identity()
    network.num_features = num_features
    return network


def frechet_distance(features: NDArray[np.float32], reference: NDArray[np.float32]) -> float:
    """‖μ − μ'‖² + tr(Σ + Σ' − 2 (Σ Σ')^½) of features `[N, D]`, `[M, D]` (Heusel et al. 2017, eq. 6); NaN below two of either."""
    import torch
    from torchmetrics.image.fid import FrechetInceptionDistance

    if min(len(features), len(reference)) < 2:
        return float("nan")
    metric = FrechetInceptionDistance(_given(features.shape[1]))
    metric.update(torch.from_numpy(reference).double(), real=True)
    metric.update(torch.from_numpy(features).double(), real=False)
    return float(metric.compute())


def kernel_distance(features: NDArray[np.float32], reference: NDArray[np.float32], seed: int) -> tuple[float, float]:
    """The unbiased squared MMD by the kernel (x·y/D + 1)³ and its deviation over `SUBSETS` subsets; NaN below four of either.

    A subset has at most 1,000 images, and half of the smaller set where that has fewer than 2,000, so that subsets differ
    (Bińkowski et al. 2018, section 4.1).
    """
    import torch
    from torchmetrics.image.kid import KernelInceptionDistance

    smaller = min(len(features), len(reference))
    if smaller < 4:
        return float("nan"), float("nan")
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # that it keeps all features
        metric = KernelInceptionDistance(_given(features.shape[1]), subsets=SUBSETS, subset_size=min(1000, smaller // 2))
    metric.update(torch.from_numpy(reference).double(), real=True)
    metric.update(torch.from_numpy(features).double(), real=False)
    mean, deviation = _seeded(metric, seed)
    return mean, deviation


def inception_score(logits: NDArray[np.float32], seed: int) -> tuple[float, float]:
    """exp of the mean KL of p(y|x) from p(y), logits `[N, P]`: mean and deviation over `SPLITS` parts; NaN below two images each.

    Salimans et al. 2016, section 4.
    """
    import torch
    from torchmetrics.image.inception import InceptionScore

    if len(logits) < 2 * SPLITS:
        return float("nan"), float("nan")
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # that it keeps all logits
        metric = InceptionScore(_given(logits.shape[1]), splits=SPLITS)
    metric.update(torch.from_numpy(logits).double())
    return _seeded(metric, seed)


def _seeded(metric: Any, seed: int) -> tuple[float, float]:
    """What a metric that draws random numbers computes, the same for the same seed."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        mean, deviation = metric.compute()
    return float(mean), float(deviation)


def _stacked(table: pa.Table, column: str) -> NDArray[np.float32]:
    return np.stack([np.frombuffer(value, "<f4") for value in table[column].to_pylist()])


def _where(table: pa.Table, column: str, value: str) -> pa.Table:
    return table.filter(pc.equal(table[column], value))


def _by_network(table: pa.Table, reference: Mapping[str, NDArray[np.float32]], source: str, seed: int) -> dict[str, Any]:
    """Figures of the images of one source, rows of `QUALITY`."""
    rows, found = _where(table, "source", source), dict[str, Any](images=0)
    for network in dict.fromkeys(rows["network"].to_pylist()):
        own = _where(rows, "network", network)
        frechet, kernel, score = NAMES[network]
        features = _stacked(own, "feature")
        found["images"] = len(own)
        for name, (mean, deviation) in (
            (kernel, kernel_distance(features, reference[network], seed) if network in reference else (np.nan, np.nan)),
            (score, inception_score(_stacked(own, "logits"), seed)),
        ):
            found |= {name: mean, f"{name}_deviation": deviation}
        found[frechet] = frechet_distance(features, reference[network]) if network in reference else np.nan
        if own["clip_score"].null_count == 0:
            found["clip_score"] = float(np.mean(own["clip_score"].to_numpy()))
    return found


def quality_figures(table: pa.Table, arms: Mapping[str, Any], diversity: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """`arms.<arm>` and `real`, from rows of `QUALITY`; `arms` and `diversity` are those of the evaluation.

    Each has its number of `images`, the figures by network (`NAMES`) against the `reference_images`, and the mean `clip_score`; an
    arm also what stands elsewhere of the same images: duplicates, and the ratios of its diversity to the base's. `real` are
    ground-truth images of the val triples: what images as good as real ones would have. `few_images`: a Fréchet distance has fewer
    than `FEWEST_IMAGES` on one side or both.
    """
    reference_rows = _where(table, "source", REFERENCE)
    networks = dict.fromkeys(reference_rows["network"].to_pylist())
    reference = {network: _stacked(_where(reference_rows, "network", network), "feature") for network in networks}
    count = max(map(len, reference.values()), default=0)
    found: dict[str, Any] = {"reference_images": count, "arms": {}, "real": _by_network(table, reference, REAL, seed)}
    for arm, by_prompt in arms.items():
        prompt, graph = headline_conditions({(p, g): (p, g) for p, shown in by_prompt.items() for g in shown})[0]
        apart, shown = diversity[arm][prompt][graph], by_prompt[prompt][graph]
        joined = {name: apart.get(name) for name in ("pixels_ratio", "features_ratio")}
        row = {"prompt": prompt, "graph": graph, **_by_network(table, reference, arm, seed), **joined}
        found["arms"][arm] = row | ({"duplicates": shown["duplicates"]} if "duplicates" in shown else {})
    for row in (found["real"], *found["arms"].values()):
        row["few_images"] = min(row["images"], count) < FEWEST_IMAGES
    return plain(found)
