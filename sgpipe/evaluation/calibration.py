"""What a judge is worth, measured on ground-truth images before it judges anything.

A judge chooses between a triple's own statement c⁺ and its negative c⁻; equal scores and abstentions choose neither.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
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
    with np.errstate(invalid="ignore"):
        return np.where(positive > negative, 1.0, np.where(negative > positive, 0.0, np.nan))


@dataclass(frozen=True)
class Calibration:
    """A judge on one class, or on several taken together (`predicate` is then `all`).

    `ground_truth_accuracy`: share of own images on which it chooses c⁺; choosing neither is not right. `abstained`: share on which
    it chooses neither. `chance_level`: share of other triples' images on which it chooses c⁺, of those where it chooses; a half is
    no preference. `order_bias`: right as told less right as told from the object's side. `sensitivity`: right among its
    choices; `specificity`: c⁻ among its choices where c⁻ is true. NaN where nothing was asked.
    """

    predicate: str
    images: int
    ground_truth_accuracy: float
    abstained: float
    chance_level: float
    chance_abstained: float
    order_bias: float
    sensitivity: float
    specificity: float

    def used(self, threshold: float) -> bool:
        """Whether the judge may judge this class."""
        return self.ground_truth_accuracy >= threshold


def _mean(values: NDArray[np.float64]) -> float:
    kept = values[np.isfinite(values)]
    return float(kept.mean()) if len(kept) else float("nan")


def calibrate(answers: pa.Table, predicates: Iterable[str], name: str) -> Calibration:
    """The calibration `name` of one judge over `predicates`, from its rows of `CALIBRATION`.

    Of a directional class, c⁻ is true on the images of its inverse: those told from the object's side.
    """
    wanted = set(predicates)
    predicate = np.array(answers["predicate"].to_pylist())
    kind = np.array(answers["question"].to_pylist())
    chosen = choices(*(answers[column].to_numpy() for column in ("positive", "negative")))

    def at(question: str, classes: set[str]) -> NDArray[np.float64]:
        return chosen[(kind == question) & np.isin(predicate, sorted(classes))]

    own, other = at("own", wanted), at("other", wanted)
    directional = {each for each in wanted if each in INVERSE}
    told, false = at("inverse", directional), at("false", wanted)
    opposite = at("inverse", {INVERSE[each] for each in directional})
    return Calibration(
        predicate=name,
        images=len(own),
        ground_truth_accuracy=float((own == 1).mean()) if len(own) else float("nan"),
        abstained=float(np.isnan(own).mean()) if len(own) else float("nan"),
        chance_level=_mean(other),
        chance_abstained=float(np.isnan(other).mean()) if len(other) else float("nan"),
        order_bias=_mean(at("own", directional)) - _mean(told),
        sensitivity=_mean(own),
        specificity=_mean(np.concatenate([opposite, 1 - false])),
    )


def calibrations(answers: pa.Table) -> Mapping[str, Mapping[str, Calibration]]:
    """By judge and class, from rows of `CALIBRATION`."""
    found: dict[str, dict[str, Calibration]] = {}
    judges = np.array(answers["judge"].to_pylist())
    for judge in dict.fromkeys(judges.tolist()):
        rows = answers.filter(pa.array(judges == judge))
        classes = dict.fromkeys(rows["predicate"].to_pylist())
        found[judge] = {each: calibrate(rows, [each], each) for each in classes}
    return found


def ground_truth_figures(triples: int, rejects: pa.Table) -> dict[str, Any]:
    """How many val triples have a ground truth that can be read, and why others have none, from rows of `LATENT_REJECTS`."""
    reasons = rejects["reason"].to_pylist()
    return {
        "triples": triples,
        "read": triples - len(reasons),
        "rejected_by_reason": {reason: reasons.count(reason) for reason in sorted(set(reasons))},
    }
