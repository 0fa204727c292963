"""The figures of the evaluation, from what judges said and from the images. Nothing is sampled or judged here."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from sgpipe.evaluation.calibration import Calibration, calibrate, calibrations
from sgpipe.evaluation.config import HEADLINE, JudgeParams, Statistics
from sgpipe.evaluation.crossed import Crossed
from sgpipe.evaluation.samples import ImageFile
from sgpipe.evaluation.sampling_plan import BASE, NO_GRAPH, EvaluationTriple
from sgpipe.evaluation.sensitivity import CHANCE, distances, two_by_two
from sgpipe.evaluation.statistics import Bootstrap, Estimate, Floats, holm, mcnemar, rogan_gladen, triples_needed
from sgpipe.evaluation.verdicts import Condition, Verdicts
from sgpipe.runs.atomic import defined, plain
from sgpipe.runs.progress import tick

OWN = ("positive", NO_GRAPH)
"""Graphs that an arm is meant to be given: the triple's, or none for an arm without graphs."""


def mean_of(edges: Floats) -> Floats:
    """The mean `[T, S]` of the finite values of `[T, S, E]`; NaN where there is none."""
    counted = np.isfinite(edges)
    with np.errstate(invalid="ignore"):
        return np.where(counted, edges, 0.0).sum(-1) / counted.sum(-1)


def all_of(edges: Floats) -> Floats:
    """1/0 `[T, S]`: whether all finite values of `[T, S, E]` are 1; NaN where there is none."""
    return np.where(np.isfinite(edges).any(-1), (edges != 0).all(-1), np.nan)


def bounds(name: str, estimate: Estimate) -> dict[str, float]:
    """A figure with its interval as flat keys."""
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}


@dataclass(frozen=True)
class QualifiedJudges:
    """Judges with their calibrations (`answers` are rows of `CALIBRATION`): who may judge which class."""

    judges: JudgeParams
    by_class: Mapping[str, Mapping[str, Calibration]]
    answers: pa.Table
    statistics: Statistics

    @classmethod
    def of(cls, judges: JudgeParams, answers: pa.Table, statistics: Statistics) -> "QualifiedJudges":
        """From rows of `CALIBRATION`."""
        return cls(judges, calibrations(answers), answers, statistics)

    def used(self, judge: str) -> set[str]:
        """Classes that a judge may judge."""
        threshold = self.statistics.threshold
        return {name for name, each in self.by_class[judge].items() if each.ground_truth_accuracy >= threshold}

    def together(self, judge: str, predicates: Collection[str]) -> Calibration:
        """One calibration over several classes."""
        return calibrate(self.answers.filter(pc.equal(self.answers["judge"], judge)), predicates)

    def mask(self, judge: str, cases: Sequence[EvaluationTriple], directional: bool) -> NDArray[np.bool_]:
        """`[T]`: triples whose class the judge may judge; if `directional`, those alone whose negative swaps the roles."""
        used = self.used(judge)
        return np.array([case.predicate in used and (case.kind == "swap" or not directional) for case in cases])

    def figures(self) -> dict[str, Any]:
        """Each judge over all classes, and those it is refused."""
        found = {}
        for name, of_class in self.by_class.items():
            refused = sorted(set(of_class) - self.used(name))
            whole = asdict(self.together(name, of_class))
            found[name] = {**whole, "classes_used": len(of_class) - len(refused), "refused": refused}
        return found

    def corrected(self, judge: str, estimate: Estimate, predicates: Collection[str]) -> float:
        """The share freed of the judge's own errors on these classes (`rogan_gladen`)."""
        known = self.together(judge, predicates)
        return rogan_gladen(estimate.value, known.sensitivity, known.specificity)


class Summary:
    """Figures of the arms by the headline judge."""

    def __init__(self, verdicts: Verdicts, qualified: QualifiedJudges) -> None:
        self.verdicts, self._qualified = verdicts, qualified
        self.judge, wanted = qualified.judges.headline, qualified.statistics
        self.bootstrap = Bootstrap(wanted.resamples, wanted.confidence, wanted.seed)
        self.crossed = Crossed(self.bootstrap)
        self.conditions = verdicts.conditions(self.judge)

    def outcomes(self, condition: Condition, directional: bool = True) -> Floats:
        """1/0/NaN `[T, S]`: c⁺ or c⁻ chosen; NaN too for classes that the judge may not judge, and others than directional ones."""
        mask = self._qualified.mask(self.judge, self.verdicts.cases, directional)
        return np.where(mask[:, None], self.verdicts.scored(condition, self.judge).choices, np.nan)

    def present(self, condition: Condition) -> Floats | None:
        """1/0 `[T, S]`: all objects of the graph's triples seen; None where the judge is no detector and cannot say."""
        if self._qualified.judges.judges[self.judge].kind == "open_clip":
            return None
        return self.verdicts.scored(condition, self.judge).present

    def edges(self, condition: Condition) -> Floats:
        """1/0/NaN `[T, S, E]`: triples as g⁺ has them, a missing object counting as wrong; that which g⁻ changes comes first. NaN
        past a graph's last and for classes that the judge may not judge."""
        scored, used = self.verdicts.scored(condition, self.judge), self._qualified.used(self.judge)
        right = np.concatenate([(scored.choices == 1)[..., None], scored.others], axis=-1)
        judged = np.zeros((len(right), 1, right.shape[-1]), bool)
        for row, case in enumerate(self.verdicts.cases):
            judged[row, 0, : len(case.statements)] = [said[1] in used for said, _ in case.statements]
        return np.where(judged, right, np.nan)

    def condition(self, condition: Condition) -> dict[str, Any]:
        """Objects present, roles as the graph g⁺ has them, any class right.

        `direction_accuracy` is of images with both objects in the right kind of arrangement (where the judge chooses), of
        directional classes; `accuracy` is of all classes that it may judge; both count c⁺, whatever graph was given.
        """
        present, cases = self.present(condition), self.verdicts.cases
        found: dict[str, Any] = {} if present is None else {"objects_present": float(present.mean())}
        for name, directional in (("direction_accuracy", True), ("accuracy", False)):
            mask = self._qualified.mask(self.judge, cases, directional)
            classes = {case.predicate for case, kept in zip(cases, mask, strict=True) if kept}
            estimate = self.bootstrap.mean(self.outcomes(condition, directional))
            found |= bounds(name, estimate)
            found[f"{name}_corrected"] = self._qualified.corrected(self.judge, estimate, classes)
            found[f"{name}_images"] = estimate.count
        return found | self.shares(condition)

    def shares(self, condition: Condition) -> dict[str, float]:
        """Shares of *all* images, a missing object counting as wrong, over triples whose class the judge may judge.

        `right`: c⁺ chosen; `turned`: c⁻. Of graphs of several triples: `edges_right`, triples as g⁺ has them; `graphs_right`,
        images with all of them so; `others_right`, triples that g⁻ leaves as they are; `edges_right_new`, `edges_right_seen`: of
        graphs with and without a combination of classes that no train graph has. `duplicates`: images with an object twice.
        """
        scored, edges, cases = self.verdicts.scored(condition, self.judge), self.edges(condition), self.verdicts.cases
        right, others = edges[..., 0], edges[..., 1:]
        turned = np.where(np.isnan(right), np.nan, scored.choices == 0)
        found = bounds("right", self.bootstrap.mean(right)) | bounds("turned", self.bootstrap.mean(turned))
        if np.isfinite(others).any():
            several = np.array([len(case.statements) > 1 for case in cases])
            edges = np.where(several[:, None, None], edges, np.nan)
            parts = {"edges_right": mean_of(edges), "graphs_right": all_of(edges), "others_right": mean_of(others)}
            new = np.array([case.new for case in cases])[:, None]
            if new.any():
                parts["edges_right_new"] = np.where(new, parts["edges_right"], np.nan)
                parts["edges_right_seen"] = np.where(new, np.nan, parts["edges_right"])
            for name, values in parts.items():
                found |= bounds(name, self.bootstrap.mean(values))
        if np.isfinite(scored.duplicates).any():
            found |= bounds("duplicates", self.bootstrap.mean(scored.duplicates))
        return found

    def arms(self) -> dict[str, Any]:
        """`arms.<arm>.<prompt>.<graph>`."""
        found: dict[str, Any] = {}
        for each in self.conditions:
            found.setdefault(each.arm, {}).setdefault(each.prompt, {})[each.graph] = self.condition(each)
            tick()
        return found

    def sensitivity(self, files: Mapping[str, ImageFile]) -> dict[str, Any]:
        """`<arm>.<prompt>`: MSE(I⁺, I⁻) beside that of other seeds; per judge the 2×2, accuracy and margin on I⁺.

        Accuracy (share of I⁺ with a higher score for c⁺) and margin (mean score of c⁺ less that of c⁻) are the predecessor's, over
        all classes and without a calibration.
        """
        found: dict[str, Any] = {}
        mean = self.bootstrap.mean
        for shown in self.conditions:
            swapped = Condition(shown.arm, shown.prompt, "negative")
            if shown.graph != "positive" or swapped not in self.conditions:
                continue
            graphs, other_seed = distances(files[shown.arm], self.verdicts.cases, self.verdicts.seeds, shown.prompt)
            ratio = self.bootstrap.function(lambda means: means[0] / means[1], [graphs, other_seed])
            entry: dict[str, Any] = {
                "mse": float(graphs.mean()),
                "mse_deviation": float(graphs.std()),
                "mse_other_seed": float(other_seed.mean()),
                **bounds("mse_ratio", ratio),
                "judges": {},
            }
            for judge in self._qualified.judges.judges:
                scores = self.verdicts.scored(shown, judge)
                table = two_by_two(scores, self.verdicts.scored(swapped, judge))
                entry["judges"][judge] = {
                    **{name: mean(values).value for name, values in table.items()},
                    "images": int(np.isfinite(table["text"]).sum()),
                    **bounds("accuracy", mean(scores.choices)),
                    "margin": mean(scores.positive - scores.negative).value,
                }
            found.setdefault(shown.arm, {})[shown.prompt] = entry
        return found

    def compare(self, first: Sequence[Floats], second: Sequence[Floats]) -> dict[str, Any]:
        """Outcomes of training runs less others on the same triples and seeds: difference, interval, tests (`Crossed`, McNemar)."""
        difference, p = self.crossed.difference(first, second)
        test = mcnemar(np.concatenate(first, axis=1), np.concatenate(second, axis=1))
        return {
            **bounds("difference", difference),
            "pairs": difference.count,
            "first_only": test.first_only,
            "second_only": test.second_only,
            "p": p,
            "p_exact": test.exact,
        }

    def comparisons(self) -> dict[str, Any]:
        """`<prompt>.<first>-<second>`: every arm's g⁺ against the base model, the arms without graphs, and its own controls.

        Under neutral prompts also against the arms without graphs when these are told the relation in words (`_in_words`).
        `p_holm` is adjusted over all comparisons of a prompt; those without a pair are left out.
        """
        found: dict[str, Any] = {}
        for prompt in dict.fromkeys(each.prompt for each in self.conditions):
            here = [each for each in self.conditions if each.prompt == prompt]
            pairs = {
                f"{_label(first)}-{_label(second)}": (first, second)
                for first in here
                for second in here
                if first.arm != BASE
                and first.graph in OWN
                and (
                    second.arm == BASE
                    or (second.graph == NO_GRAPH and first.graph == "positive")
                    or (second.arm == first.arm and second.graph in ("empty", "shuffled"))
                )
            }
            if prompt == HEADLINE:
                told = [each for each in self.conditions if (each.prompt, each.graph) == ("relational", NO_GRAPH)]
                pairs |= {f"{_label(a)}-{_label(b)}_in_words": (a, b) for a in here for b in told if a.graph == "positive"}
            rows = {name: self.compare(*([self.outcomes(each)] for each in pair)) for name, pair in pairs.items()}
            rows = {name: row for name, row in rows.items() if row["pairs"]}
            for row, adjusted in zip(rows.values(), holm([row["p"] for row in rows.values()]), strict=True):
                row["p_holm"] = adjusted
            if rows:
                found[prompt] = rows
        return found

    def needed(self, condition: Condition) -> dict[str, Any]:
        """Triples with one decided image each that show this direction accuracy against a half, and against no effect seen yet."""
        share = self.bootstrap.mean(self.outcomes(condition)).value
        power, level = self._qualified.statistics.power, 1 - self._qualified.statistics.confidence
        return {
            "direction_accuracy": share,
            "triples": triples_needed(share, power, level) if np.isfinite(share) else None,
            "for_0.60": triples_needed(0.6, power, level),
            "for_0.55": triples_needed(0.55, power, level),
        }

    def by_predicate(self) -> list[dict[str, Any]]:
        """A row per class, arm and graph under the neutral prompt: accuracy, interval, corrected; McNemar's test against the base.

        `difference` has the sign of what `p` tests (`Paired`), `p_holm` is adjusted over the classes of an arm and graph
        that have a pair. Classes that the judge may not judge have `used` false and no accuracy.
        """
        rows: list[dict[str, Any]] = []
        used = self._qualified.used(self.judge)
        base = Condition(BASE, HEADLINE, NO_GRAPH)
        of_case = np.array([case.predicate for case in self.verdicts.cases])[:, None]
        for condition in self.conditions:
            if condition.prompt != HEADLINE:
                continue
            of_arm = []
            for predicate in self._qualified.by_class[self.judge]:
                row: dict[str, Any] = {**asdict(condition), "predicate": predicate, "used": predicate in used}
                if predicate in used:
                    outcome = np.where(of_case == predicate, self.outcomes(condition, directional=False), np.nan)
                    estimate = self.bootstrap.mean(outcome)
                    row |= bounds("accuracy", estimate)
                    row["images"] = estimate.count
                    row["corrected"] = self._qualified.corrected(self.judge, estimate, {predicate})
                    if condition.arm != BASE and base in self.conditions:
                        test = mcnemar(outcome, self.outcomes(base, directional=False))
                        row |= {"difference": test.difference, "p": test.clustered, "p_holm": np.nan}
                of_arm.append(row)
            tested = [row for row in of_arm if np.isfinite(row.get("p", np.nan))]
            for row, adjusted in zip(tested, holm([row["p"] for row in tested]), strict=True):
                row["p_holm"] = adjusted
            rows += of_arm
            tick()
        return rows


def _label(condition: Condition) -> str:
    return condition.arm if condition.graph in OWN else f"{condition.arm}_{condition.graph}"


def evaluation_figures(
    verdicts: Verdicts, qualified: QualifiedJudges, files: Mapping[str, ImageFile]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Metrics of the evaluation, and its rows by class."""
    summary = Summary(verdicts, qualified)
    rows, arms = summary.by_predicate(), summary.arms()
    level = 1 - qualified.statistics.confidence
    won = [row["arm"] for row in rows if row["graph"] in OWN and row.get("p_holm", np.nan) < level and row["difference"] > 0]
    figures = {
        "triples": len(verdicts.cases),
        "seeds": len(verdicts.seeds),
        "headline": {"judge": qualified.judges.headline, "prompt": HEADLINE},
        "judges": qualified.figures(),
        "arms": arms,
        "sensitivity": summary.sensitivity(files),
        "chance": CHANCE,
        "comparisons": summary.comparisons(),
        "needed": {each.arm: summary.needed(each) for each in summary.conditions if each.prompt == HEADLINE and each.graph in OWN},
        "classes_better_than_base": {arm: won.count(arm) for arm in arms if arm != BASE},
    }
    return defined(figures, "evaluation"), plain(rows)
