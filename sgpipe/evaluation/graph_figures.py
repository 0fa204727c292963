"""Graphs of one triple and of several apart: edges and whole graphs right, what g⁻ turns, held-out combinations, classes.

Intervals are by bootstrap over graphs with their images (`Bootstrap`), so graphs are the clusters; differences are paired.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from sgpipe.evaluation.config import HEADLINE
from sgpipe.evaluation.sampling_plan import BASE, NO_GRAPH, EvaluationTriple
from sgpipe.evaluation.statistics import Floats
from sgpipe.evaluation.summary import Summary, all_of, bounds, mean_of
from sgpipe.evaluation.verdicts import Condition
from sgpipe.runs.atomic import plain

SEEN: Final = "combinations_seen"
HELD_OUT: Final = "combinations_held_out"
GROUPS: Final[Mapping[str, Callable[[EvaluationTriple], bool]]] = {
    "single": lambda case: len(case.graph.triples) == 1,
    "several": lambda case: len(case.graph.triples) > 1 and case.combination != "seen",
    "new_triples": lambda case: len(case.graph.triples) > 1 and case.combination == "other",
    HELD_OUT: lambda case: case.combination == "held_out",
    SEEN: lambda case: case.combination == "seen",
}
"""Graphs of one triple; of several, but those that training shows as they are; of these, with a triple that training does not show;
and by `Combination`."""


class GraphFigures:
    """Figures of the groups by the headline judge."""

    def __init__(self, summary: Summary) -> None:
        self._summary, self._mean = summary, summary.bootstrap.mean
        cases = summary.verdicts.cases
        self._groups: dict[str, NDArray[np.bool_]] = {}
        for name, belongs in GROUPS.items():
            rows = np.array([belongs(case) for case in cases])[:, None]
            if rows.any():
                self._groups[name] = rows
        self._classes = np.array([case.predicate for case in cases])[:, None]

    def condition(self, condition: Condition) -> dict[str, Any]:
        """`<group>` with its number of `graphs`, and as shares of all images, a missing object counting as wrong:

        `edges_right`, triples as g⁺ has them; `graphs_right`, all triples of an image; `turned`, the triple that g⁻ changes as g⁻
        has it; `others_right`, the triples that g⁻ leaves; `turned_others_right`, the former while all of the latter are right.
        `objects_present`, every object of the graph; `duplicates`, an object twice; each with its `_difference` to the base.
        """
        scored, edges = self._summary.verdicts.scored(condition, self._summary.judge), self._summary.edges(condition)
        others = edges[..., 1:]
        turned = np.where(np.isnan(edges[..., 0]), np.nan, scored.choices == 0)
        held = np.where(np.isfinite(others).any(-1), all_of(others) * turned, np.nan)
        values = {
            "edges_right": mean_of(edges), "graphs_right": all_of(edges), "turned": turned, "others_right": mean_of(others),
            "turned_others_right": held, **self._objects(condition),
        }  # fmt: skip
        base = replace(condition, arm=BASE, graph=NO_GRAPH)
        before = self._objects(base) if condition.arm != BASE and base in self._summary.conditions else {}
        found: dict[str, Any] = {}
        for name, rows in self._groups.items():
            found[name] = {"graphs": int(rows.sum())}
            for figure, each in values.items():
                found[name] |= bounds(figure, self._mean(np.where(rows, each, np.nan)))
                if figure in before:
                    found[name] |= self._difference(figure, np.where(rows, each, np.nan), np.where(rows, before[figure], np.nan))
        return found

    def _objects(self, condition: Condition) -> dict[str, Floats]:
        present = self._summary.present(condition)
        duplicates = self._summary.verdicts.scored(condition, self._summary.judge).duplicates
        found = {} if present is None else {"objects_present": present}
        return found | ({"duplicates": duplicates} if np.isfinite(duplicates).any() else {})

    def _difference(self, figure: str, one: Floats, other: Floats) -> dict[str, float]:
        return bounds(f"{figure}_difference", self._summary.bootstrap.difference(one, other))

    def combinations(self, condition: Condition) -> dict[str, Any]:
        """Held-out combinations less seen ones: `edges_right_difference`, `graphs_right_difference`; empty without either."""
        if HELD_OUT not in self._groups or SEEN not in self._groups:
            return {}
        edges, found = self._summary.edges(condition), dict[str, Any]()
        for figure, values in (("edges_right", mean_of(edges)), ("graphs_right", all_of(edges))):
            new, seen = (np.where(self._groups[name], values, np.nan) for name in (HELD_OUT, SEEN))
            found |= self._difference(figure, new, seen)
        return found

    def classes(self, arm: str) -> dict[str, Any]:
        """`<class>` of graphs of one triple under neutral prompts, of all images: `right` under g⁺; the `chance_level`, right by
        the base, which is told nothing of the class; right under another triple's graph (`shuffled`), and its difference to that.

        `base_turned` beside the chance level: where g⁻ swaps the roles, a base without a preference has both alike.
        """
        own, base = Condition(arm, HEADLINE, "positive"), Condition(BASE, HEADLINE, NO_GRAPH)
        shuffled, found = replace(own, graph="shuffled"), dict[str, Any]()
        single = self._groups.get("single", np.zeros((len(self._classes), 1), bool))
        by_condition = {
            each: self._summary.edges(each)[..., 0] for each in (own, base, shuffled) if each in self._summary.conditions
        }
        for name in sorted(set(self._classes[single].tolist())):
            rows = single & (self._classes == name)
            right = {each: np.where(rows, values, np.nan) for each, values in by_condition.items()}
            if not np.isfinite(right[own]).any():
                continue
            found[name] = {"triples": int(rows.sum()), **bounds("right", self._mean(right[own]))}
            if base in right:
                turned = self._summary.verdicts.scored(base, self._summary.judge).choices == 0
                found[name] |= bounds("chance_level", self._mean(right[base]))
                found[name] |= bounds("base_turned", self._mean(np.where(rows, turned, np.nan)))
            if shuffled in right:
                found[name] |= bounds("shuffled", self._mean(right[shuffled]))
                found[name] |= self._difference("shuffled", right[shuffled], right[base]) if base in right else {}
        return found

    def empty(self, arm: str) -> dict[str, Any]:
        """An empty graph left on less the base, neutral prompts: of roles and classes (`right`, `turned`) and of objects."""
        left, base = Condition(arm, HEADLINE, "empty"), Condition(BASE, HEADLINE, NO_GRAPH)
        if not {left, base} <= set(self._summary.conditions):
            return {}

        def values(condition: Condition) -> dict[str, Floats]:
            right = self._summary.edges(condition)[..., 0]
            chosen = self._summary.verdicts.scored(condition, self._summary.judge).choices
            return {"right": right, "turned": np.where(np.isnan(right), np.nan, chosen == 0), **self._objects(condition)}

        before, found = values(base), dict[str, Any]()
        for figure, each in values(left).items():
            found |= self._difference(figure, each, before[figure])
        return found


def graph_figures(summary: Summary) -> dict[str, Any]:
    """`arms.<arm>.<prompt>.<graph>.<group>`; and of each arm that is given graphs `combinations.<arm>` (g⁺, neutral prompts),
    `classes.<arm>.<class>` and `empty_less_base.<arm>`."""
    figures, found = GraphFigures(summary), dict[str, Any](arms={}, combinations={}, classes={}, empty_less_base={})
    for each in summary.conditions:
        found["arms"].setdefault(each.arm, {}).setdefault(each.prompt, {})[each.graph] = figures.condition(each)
        if (each.prompt, each.graph) == (HEADLINE, "positive"):
            found["combinations"][each.arm] = figures.combinations(each)
            found["classes"][each.arm] = figures.classes(each.arm)
            found["empty_less_base"][each.arm] = figures.empty(each.arm)
    return plain(found)
