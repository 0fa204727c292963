"""What a judge is worth, measured on ground-truth images before it judges anything.

A judge chooses between a triple's own statement c⁺ and its negative c⁻; equal scores and abstentions choose neither.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from sgpipe.evaluation.sampling_plan import EvaluationTriple, Triple, others
from sgpipe.relations.predicates import INVERSE, may_hold

QUESTIONS: Final[dict[str, str]] = {
    "own": "c⁺ against c⁻ on the triple's own image: right if c⁺",
    "other": "c⁺ against c⁻ on the image of another triple: a judge of images, not of words, has no preference",
    "inverse": "the same of a directional class told from the object's side (`b right of a` against `a right of b`): right if c⁺",
    "false": "a class that does not hold against the one that does, on an image of the latter: right if c⁻",
}


@dataclass(frozen=True)
class Question:
    """Two statements about the image of case number `image`; `predicate` is the class whose calibration it counts for."""

    kind: str
    image: int
    triple_id: str
    predicate: str
    positive: Triple
    negative: Triple


def questions(cases: Sequence[EvaluationTriple]) -> list[Question]:
    """Everything that is asked of a judge about the ground-truth images of `cases`."""
    made: list[Question] = []
    of_class: dict[str, list[int]] = {}
    for index, case in enumerate(cases):
        of_class.setdefault(case.predicate, []).append(index)
    used: Counter[str] = Counter()
    for index, (case, other) in enumerate(zip(cases, others(cases), strict=True)):
        own = (case.triple_id, case.predicate, case.positive, case.negative)
        made += [Question("own", index, *own), Question("other", other, *own)]
        subject, predicate, object_ = case.positive
        if predicate in INVERSE:
            told = INVERSE[predicate]
            made.append(Question("inverse", index, case.triple_id, predicate, (object_, told, subject), (subject, told, object_)))
        held = case.negative[1]
        if case.kind == "replace" and of_class.get(held) and not may_hold(predicate, held):
            shown = of_class[held][used[held] % len(of_class[held])]
            used[held] += 1
            first, _, second = cases[shown].positive
            made.append(Question("false", shown, case.triple_id, predicate, (first, predicate, second), (first, held, second)))
    return made


def choices(positive: NDArray[np.floating], negative: NDArray[np.floating]) -> NDArray[np.float64]:
    """1 where a judge chooses c⁺, 0 where c⁻, NaN where neither."""
    return np.where(positive > negative, 1.0, np.where(negative > positive, 0.0, np.nan))


def finite_mean(values: NDArray[Any]) -> float:
    """The mean of the finite values; NaN where there are none."""
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")


@dataclass(frozen=True)
class Calibration:
    """A judge on one class, or on several taken together.

    `ground_truth_accuracy`: share of own images on which it chooses c⁺; choosing neither is not right. `abstained`: share on which
    it chooses neither. `chance_level`: share of other triples' images on which it chooses c⁺, of those where it chooses; a half is
    no preference. `order_bias`: right as told less right as told from the object's side. `sensitivity`: right among its
    choices; `specificity`: c⁻ among its choices where c⁻ is true. NaN where nothing was asked.
    """

    images: int
    ground_truth_accuracy: float
    abstained: float
    chance_level: float
    chance_abstained: float
    order_bias: float
    sensitivity: float
    specificity: float


def calibrate(answers: pa.Table, predicates: Collection[str]) -> Calibration:
    """The calibration of one judge over `predicates`, from its rows of `CALIBRATION`.

    Of a directional class, c⁻ is true on the images of its inverse: those told from the object's side.
    """
    predicate, kind = (np.array(answers[column].to_pylist()) for column in ("predicate", "question"))
    chosen = choices(*(answers[column].to_numpy() for column in ("positive", "negative")))

    def at(question: str, classes: Collection[str]) -> NDArray[np.float64]:
        return chosen[(kind == question) & np.isin(predicate, sorted(classes))]

    directional = set(predicates) & set(INVERSE)
    own, other = at("own", predicates), at("other", predicates)
    opposite = at("inverse", {INVERSE[each] for each in directional})
    return Calibration(
        images=len(own),
        ground_truth_accuracy=finite_mean(own == 1),
        abstained=finite_mean(np.isnan(own)),
        chance_level=finite_mean(other),
        chance_abstained=finite_mean(np.isnan(other)),
        order_bias=finite_mean(at("own", directional)) - finite_mean(at("inverse", directional)),
        sensitivity=finite_mean(own),
        specificity=finite_mean(np.concatenate([opposite, 1 - at("false", predicates)])),
    )


def calibrations(answers: pa.Table) -> Mapping[str, Mapping[str, Calibration]]:
    """By judge and class, from rows of `CALIBRATION`."""
    found: dict[str, dict[str, Calibration]] = {}
    for judge in answers["judge"].unique():
        rows = answers.filter(pc.equal(answers["judge"], judge))
        found[judge.as_py()] = {each: calibrate(rows, [each]) for each in rows["predicate"].unique().to_pylist()}
    return found


def ground_truth_figures(triples: int, rejects: pa.Table) -> dict[str, Any]:
    """How many val triples have a ground truth that can be read, and why others have none, from rows of `LATENT_REJECTS`."""
    reasons = rejects["reason"].to_pylist()
    return {
        "triples": triples,
        "read": triples - len(reasons),
        "rejected_by_reason": {reason: reasons.count(reason) for reason in sorted(set(reasons))},
    }
