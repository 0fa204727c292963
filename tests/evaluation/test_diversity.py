"""Distances between seeds of arms whose images, verdicts and features are known."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from sgpipe.evaluation.config import Judge as Named
from sgpipe.evaluation.config import JudgeParams, Statistics
from sgpipe.evaluation.diversity import FEWEST_TRIPLES, diversity_figures
from sgpipe.evaluation.samples import (
    CALIBRATION,
    FEATURES,
    FILE,
    SAMPLES,
    VERDICTS,
    ImageFeatures,
    ImageFile,
    Pixels,
    to_png,
    write_image_file,
)
from sgpipe.evaluation.sampling_plan import EvaluationTriple
from sgpipe.evaluation.summary import QualifiedJudges
from sgpipe.evaluation.verdicts import Condition, Verdicts
from sgpipe.graphs.scene_graph import parse_graph
from sgpipe.report import tables

BASE = Condition("base", "relational", "none")
OWN = Condition("graph", "neutral", "positive")
SHUFFLED = Condition("graph", "neutral", "shuffled")
JUDGES = JudgeParams(judges={"exact": Named(kind="sgworld")}, headline="exact")
KINDS = ("pixels", "features")


def case(number: int, text: str = "dog, left of, cat") -> EvaluationTriple:
    graph = parse_graph(text)
    return EvaluationTriple(f"{number:02d}", number, (0.0, 0.0, 8.0, 8.0), graph, graph.negated("swap", "left of"), "swap", {})


@dataclass(frozen=True)
class Arm:
    """Images `[T, S, 8, 8, 3]` of a condition, what is right of them `[T, S, E]`, and their embeddings `[T, S, D]`."""

    images: Pixels
    right: NDArray[np.bool_]
    features: NDArray[np.float32] = field(default_factory=lambda: np.empty(0, np.float32))


def greys(values: Sequence[Sequence[int]], right: Any = True) -> Arm:
    """Images of one grey each, by triple and seed: two that differ by d have MSE d². Embeddings turn by their grey in degrees."""
    grey = np.array(values)
    angle = np.radians(grey)
    images = np.broadcast_to(grey[..., None, None, None], (*grey.shape, 8, 8, 3)).astype(np.uint8)
    features = np.stack([np.cos(angle), np.sin(angle), *[0 * angle] * 30], -1)
    return Arm(images, np.broadcast_to(right, (*grey.shape, 1)).copy(), features)


def noise(seed: int, triples: int, spread: float = 1.0) -> Arm:
    """Every seed another image, and another direction within the same cone."""
    rng = np.random.default_rng(seed)
    images = (spread * rng.integers(0, 256, (triples, 3, 8, 8, 3))).astype(np.uint8)
    features = np.eye(32)[0] + spread * rng.normal(size=(triples, 3, 32)) / 20
    return Arm(images, np.ones((triples, 3, 1), bool), features / np.linalg.norm(features, axis=-1, keepdims=True))


def figures(
    folder: Path,
    arms: dict[Condition, Arm],
    cases: Sequence[EvaluationTriple] | None = None,
    classes: Sequence[str] = ("left of",),
    with_features: bool = True,
) -> dict[str, Any]:
    """`diversity_figures` of images, verdicts and features as the stages store them."""
    triples, seeds = next(iter(arms.values())).images.shape[:2]
    cases = [case(number) for number in range(triples)] if cases is None else cases
    verdicts: list[dict[str, Any]] = []
    features: list[dict[str, Any]] = []
    by_arm: dict[str, list[dict[str, Any]]] = {}
    for condition, arm in arms.items():
        for (row, each), seed in product(enumerate(cases), range(seeds)):
            key = {"triple_id": each.triple_id, "prompt": condition.prompt, "graph": condition.graph, "seed": seed}
            by_arm.setdefault(condition.arm, []).append({**key, "text": "", "png": to_png(arm.images[row, seed])})
            of_arm = {"arm": condition.arm, **key, "judge": "exact"}
            for edge in range(len(each.statements)):
                right = float(arm.right[row, seed, edge])
                verdicts.append({**of_arm, "edge": edge, "positive": right, "negative": 1 - right})
            if with_features:
                features.append({**of_arm, "feature": arm.features[row, seed].astype("<f2").tobytes()})
    files = {}
    for name, rows in by_arm.items():
        write_image_file([pa.Table.from_pylist(rows, schema=SAMPLES)], folder / name / FILE, {"arm": name})
        files[name] = ImageFile(folder / name)
    known = {"judge": "exact", "triple_id": "x", "question": "own", "positive": 1.0, "negative": 0.0}
    answers = pa.Table.from_pylist([{**known, "predicate": name} for name in classes], schema=CALIBRATION)
    return diversity_figures(
        Verdicts(pa.Table.from_pylist(verdicts, schema=VERDICTS), cases, range(seeds)),
        QualifiedJudges.of(JUDGES, answers, Statistics(resamples=300)),
        files,
        ImageFeatures(pa.Table.from_pylist(features, schema=FEATURES)) if with_features else None,
    )


def own(found: dict[str, Any]) -> dict[str, Any]:
    return found["graph"]["neutral"]["positive"]


def test_a_generator_that_copies_has_no_diversity(tmp_path: Path) -> None:
    """Every seed the same image: distance 0, and a ratio of 0 without a width, not the interval of a share of 0."""
    row = own(figures(tmp_path, {BASE: noise(0, 12), OWN: greys([[7 * number] * 3 for number in range(12)])}, None))
    assert (row["pairs"], row["base_pairs"], row["triples"], row["compared_triples"]) == (36, 36, 12, 12)
    for kind in KINDS:
        assert (row[kind], row[f"{kind}_ratio"], row[f"{kind}_ratio_low"], row[f"{kind}_ratio_high"]) == (0, 0, 0, 0)


def test_a_generator_as_free_as_the_base_has_a_ratio_of_one_and_one_half_as_free_of_a_quarter(tmp_path: Path) -> None:
    """Squared distances: half the deviation is a quarter. The base beside itself is 1 to the bit."""
    arm = noise(1, 60)
    found = figures(tmp_path / "same", {BASE: noise(0, 60), OWN: arm})
    apart = arm.images[:, (0, 0, 1)].astype(float) - arm.images[:, (1, 2, 2)]
    assert own(found)["pixels"] == pytest.approx(np.square(apart).mean(), rel=1e-5) and own(found)["compared_triples"] == 60
    for kind in KINDS:
        row = own(found)
        assert row[f"{kind}_ratio_low"] < 1 < row[f"{kind}_ratio_high"] and row[f"{kind}_ratio"] == pytest.approx(1, abs=0.05)
        row = found["base"]["relational"]["none"]
        assert row[f"{kind}_ratio"] == row[f"{kind}_ratio_low"] == row[f"{kind}_ratio_high"] == 1
    row = own(figures(tmp_path / "half", {BASE: noise(0, 60), OWN: noise(1, 60, 0.5)}))
    assert row["pixels_ratio"] == pytest.approx(0.25, abs=0.02)
    assert row["features_ratio"] == pytest.approx(0.25, abs=0.02)


def test_pairs_with_a_wrong_image_do_not_count(tmp_path: Path) -> None:
    """Right images of seeds 0 and 1 lie 20 and 40 apart; wrong ones lie anywhere, in the arm and in the base."""
    arm, base = greys([[0, 20, 255]] * 12, [[True], [True], [False]]), greys([[100, 90, 50]] * 12, [[True], [False], [True]])
    row = own(figures(tmp_path, {BASE: base, OWN: arm}))
    assert (row["pairs"], row["base_pairs"]) == (12, 12)
    assert row["pixels"] == 20**2 and row["pixels_ratio"] == 20**2 / 50**2
    assert row["features"] == pytest.approx(1 - np.cos(np.radians(20)), rel=0.01)
    assert row["features_ratio"] == pytest.approx((1 - np.cos(np.radians(20))) / (1 - np.cos(np.radians(50))), rel=0.01)


def test_a_ratio_is_of_the_triples_that_have_a_pair_on_both_sides(tmp_path: Path) -> None:
    """Means over triples, each the mean of its pairs: the base has no pair of the last eight triples, the arm none of the first."""
    arm, base = greys([[0, 10, 20]] * 13 + [[0, 100, 200]] * 8), greys([[0, 20, 40]] * 12 + [[0, 40, 80]] * 9)
    base.right[13:, 1:] = False
    arm.right[0, :2] = False
    row = own(figures(tmp_path, {BASE: base, OWN: arm}))
    assert (row["triples"], row["compared_triples"], row["pairs"], row["base_pairs"]) == (20, 12, 60, 39)
    assert row["pixels"] == pytest.approx((12 * 200 + 8 * 20_000) / 20), "of one triple: (100 + 100 + 400) / 3"
    assert row["pixels_ratio"] == pytest.approx(200 / ((11 * 800 + 3200) / 12)), "of means, not the mean of ratios"
    assert 0.12 < row["pixels_ratio_low"] < row["pixels_ratio"] < row["pixels_ratio_high"] <= 0.25
    arm.right[1:3, 2] = False
    row = own(figures(tmp_path, {BASE: base, OWN: arm}))
    assert row["pixels_ratio"] == pytest.approx((2 * 100 + 10 * 200) / 12 / 1000), "a triple with one pair weighs as one with three"


@pytest.mark.parametrize("missing", ["pairs", "some pairs", "condition", "seeds"])
def test_without_enough_pairs_of_the_base_there_is_no_ratio(
    tmp_path: Path, missing: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arm, base = greys([[0, 10]] * 12), greys([[0, 20]] * 12)
    shared = {"some pairs": FEWEST_TRIPLES - 1}.get(missing, 0)
    base.right[shared:, 0] = missing == "seeds"
    arms = {OWN: arm, SHUFFLED: greys([[0, 10]] * 12, False)} | ({} if missing == "condition" else {BASE: base})
    if missing == "seeds":
        arms = {name: Arm(each.images[:, :1], each.right[:, :1], each.features[:, :1]) for name, each in arms.items()}
    found = figures(tmp_path, arms)
    row, alone = own(found), missing == "seeds"
    assert (row["compared_triples"], row["base_pairs"], row["pairs"]) == (shared, shared, 0 if alone else 12)
    assert row["pixels"] == (None if alone else 100) and (row["features"] is None) == alone
    assert all(row[f"{kind}_ratio{end}"] is None for kind in KINDS for end in ("", "_low", "_high"))
    other = found["graph"]["neutral"]["shuffled"]
    assert other["pairs"] == 0 and other["pixels"] is other["features_ratio"] is None
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and f"from two seeds on {shared} triples, and a ratio to it needs {FEWEST_TRIPLES}" in said
    table = tables.diversity({"diversity": found, "feature_judge": "exact"})
    assert (*table.rows[-1][4:7:2], table.rows[-1][8]) == ("–", "–", f"{shared} of {row['triples']}")
    assert f"the base has pairs on {shared}" in table.note


def test_of_a_graph_of_several_triples_all_must_be_right(tmp_path: Path) -> None:
    """A wrong second triple takes the image out; a graph with a class that the judge may not judge has no pair at all."""
    texts = ["cup, above, box; box, left of, bed"] * 11 + ["cup, above, box"] * 2 + ["cup, above, box; box, riding, bed"]
    cases = [case(number, text) for number, text in enumerate(texts)]
    arm, base = (greys([[0, 10, apart]] * 14) for apart in (90, 20))
    arm, base = (Arm(each.images, np.ones((14, 3, 2), bool), each.features) for each in (arm, base))
    arm.right[:11, 2, 1] = False
    row = own(figures(tmp_path, {BASE: base, OWN: arm}, cases, ("left of", "above")))
    assert (row["pairs"], row["triples"], row["base_pairs"], row["compared_triples"]) == (11 + 2 * 3, 13, 3 * 13, 13)
    assert row["pixels"] == pytest.approx((11 * 100 + 2 * (100 + 6400 + 8100) / 3) / 13)


def test_without_features_their_distance_is_left_out(tmp_path: Path) -> None:
    row = own(figures(tmp_path, {BASE: greys([[0, 20]] * 12), OWN: greys([[0, 10]] * 12)}, with_features=False))
    assert row["pixels_ratio"] == 1 / 4 and not any("features" in name for name in row)
    table = tables.diversity({"diversity": {"graph": {"neutral": {"positive": row, "negative": row}}}, "feature_judge": None})
    assert table.rows == (("graph", "neutral", "positive", "100.0", "0.25 [0.25, 0.25]", "–", "–", "12", "12 of 12"),)
    assert "no judge gives any" in table.note


def test_graphs_of_several_triples_have_a_ratio_of_their_own(tmp_path: Path) -> None:
    """As free as the base on graphs of one triple, the same image from every seed on those of two; pooled it is in between."""
    cases = [case(n) if n < 12 else case(n, "cup, left of, box; hat, left of, bed") for n in range(24)]
    base, own_ = noise(0, 24), noise(1, 24)
    own_.images[12:], own_.features[12:] = own_.images[12:, :1], own_.features[12:, :1]
    both = {key: replace(arm, right=np.ones((24, 3, 2), bool)) for key, arm in ((BASE, base), (OWN, own_))}
    row = own(figures(tmp_path, both, cases))
    for kind in KINDS:
        assert row["single"][f"{kind}_ratio"] == pytest.approx(1, abs=0.1) and row["several"][f"{kind}_ratio"] == 0
        assert row[f"{kind}_ratio"] == pytest.approx(row["single"][f"{kind}_ratio"] / 2, abs=0.05)
    assert row["single"]["compared_triples"] == row["several"]["compared_triples"] == 12
    alone = own(figures(tmp_path / "one", {BASE: noise(0, 12), OWN: noise(1, 12)}))
    assert "single" not in alone and "several" not in alone
