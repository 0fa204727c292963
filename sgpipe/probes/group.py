"""From the fits of a layer group to its figures: accuracy beside every control, the best probe, confusions, calibration."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sgpipe.probes.config import Feature, Kind
from sgpipe.probes.controls import word_trace
from sgpipe.probes.data import Indices
from sgpipe.probes.fit import confusion_matrix, difference, interval, macro_f1, mean
from sgpipe.probes.jobs import TRACE, Bench, Result, Unit
from sgpipe.probes.noise_aware import NoiseAwareProbe, calibration, save_noise_aware
from sgpipe.probes.probe import Probe, save_weights

BEST, NOISE_AWARE = "best", "noise_aware"
"""Folders of a group's best probe and of the noise-aware one."""
Get = Callable[[Unit], Result]


def _accuracies(results: Sequence[Result]) -> list[float]:
    return [float((r.indices("predicted") == r.indices("labels")).mean()) for r in results]


def _pooled(results: Sequence[Result], name: str) -> Indices:
    return np.concatenate([result.indices(name) for result in results])


def _confusion(bench: Bench, results: Sequence[Result]) -> Indices:
    return confusion_matrix(_pooled(results, "labels"), _pooled(results, "predicted"), len(bench.generated.classes))


def _figures(bench: Bench, results: Sequence[Result]) -> dict[str, Any]:
    """Mean accuracy over seeds, its sample deviation (one seed has none), and its interval over all their rows."""
    accuracies, params = _accuracies(results), bench.params
    correct = _pooled(results, "predicted") == _pooled(results, "labels")
    groups = bench.groups.of_triple[bench.generated.triples[_pooled(results, "rows")]]
    return {
        "accuracy": float(np.mean(accuracies)),
        "deviation": float(np.std(accuracies, ddof=1)) if len(accuracies) > 1 else None,
        "interval": list(interval(correct, groups, params.resamples, params.seed)),
    }


def _repeats(bench: Bench, get: Get, kind: Kind, feature: Feature) -> list[Result]:
    return [get(Unit("cell", i, kind, feature)) for i in range(bench.params.seeds)]


def cell(bench: Bench, get: Get, kind: Kind, feature: Feature, names: float) -> dict[str, Any]:
    """One cell: accuracy, macro-F1, interval and sizes; each control; and what is left above the strongest one.

    Selectivity compares like with like: accuracy on sampled images against shuffled labels and names alone, and on noised real
    images accuracy under the true prompt against wrong prompts' accuracy towards their word. The headline is the least of these;
    it is None where one of them is undefined.
    """
    results = _repeats(bench, get, kind, feature)
    mixed = [get(Unit("shuffled", i, kind, feature)) for i in range(bench.params.shuffled_seeds)]
    figures = _figures(bench, results)
    trace = word_trace(bench.noised, _pooled(results, "noised_rows"), _pooled(results, "noised_predicted"))
    controls = {"shuffled": float(np.mean(_accuracies(mixed))), "names": names, "word": trace["wrong_towards_word"]}
    over = {
        "shuffled": difference(figures["accuracy"], controls["shuffled"]),
        "names": difference(figures["accuracy"], controls["names"]),
        "word": difference(trace["true"], controls["word"]),
    }
    defined = [value for value in over.values() if value is not None]
    probe = Probe(bench.config(Unit("cell", 0, kind, feature)))
    return {
        **figures,
        "macro_f1": macro_f1(_confusion(bench, results)),
        "val_accuracy": float(np.mean([result.facts["val_accuracy"] for result in results])),
        "sizes": {part: [result.facts[part] for result in results] for part in ("train", "val", "test")},
        "parameters": sum(value.numel() for value in probe.parameters()),
        "epochs": [result.facts["epochs"] for result in results],
        "controls": controls,
        "noised": trace,
        "over": over,
        "selectivity": min(defined) if len(defined) == len(over) else None,
    }


def noised(bench: Bench, unit: Unit, result: Result, probe: NoiseAwareProbe, names: float) -> dict[str, Any]:
    """The fits on noised maps: what they follow, by condition and time, and how well calibrated they are where they were fitted.

    `names` is the accuracy of the names alone on the same split: what answers under the neutral prompt exceed it by cannot come
    from words, neither the relation's nor the names'.
    """
    maps, rows = bench.noised, result.indices("noised_rows")
    predicted, t = result.indices("noised_predicted"), maps.t[rows]
    inside = result.tensors["fitted_on"].numpy()
    logits = result.tensors["logits"].double().numpy()
    temperatures = probe.temperatures(probe.times.new_tensor(t)).double().numpy()
    own = bench.params.noise_aware
    by_time = {f"{time:.4g}": word_trace(maps, rows[t == time], predicted[t == time]) for time in np.unique(t)}
    return {
        "probe": own.probe,
        "feature": own.feature,
        "conditions": list(own.conditions if unit.what == "noise_aware" else TRACE),
        "accuracy": mean((predicted == maps.labels[rows])[inside]),
        "val_accuracy": result.facts["val_accuracy"],
        "sizes": {part: result.facts[part] for part in ("train", "val", "test")},
        "epochs": result.facts["epochs"],
        "names": names,
        "trace": word_trace(maps, rows, predicted),
        "trace_by_time": by_time,
        "neutral_over_names": {time: difference(trace["neutral"], names) for time, trace in by_time.items()},
        "calibration": calibration(logits[inside], maps.labels[rows][inside], t[inside], temperatures[inside]),
    }


def write_group(bench: Bench, group: str, get: Get, folder: Path) -> dict[str, Any]:
    """Write the best probe and the noise-aware one into `folder`; return the group's figures.

    The best has the highest mean validation accuracy; the test set has no say.
    """
    maps, params = bench.generated, bench.params
    names = _figures(bench, [get(Unit("names", i)) for i in range(params.seeds)])
    cells = {
        kind: {feature: cell(bench, get, kind, feature, names["accuracy"]) for feature in params.features} for kind in params.epochs
    }
    every = [(kind, feature) for kind, row in cells.items() for feature in row]
    kind, feature = max(every, key=lambda at: cells[at[0]][at[1]]["val_accuracy"])
    results = _repeats(bench, get, kind, feature)
    repeat = int(np.argmax([result.facts["val_accuracy"] for result in results]))
    unit = Unit("cell", repeat, kind, feature)
    origin = {name: maps.file.facts.get(name) for name in ("blocks", "backbone", "normalisation", "concept_tokens")}
    origin |= {name: value for name, value in maps.file.facts.items() if name == "variant"}
    about = {"group": group, **origin, "repeat": repeat}
    chosen = {
        "probe": kind, "feature": feature, "accuracy": _accuracies(results)[repeat],
        "val_accuracy": results[repeat].facts["val_accuracy"],
    }  # fmt: skip
    save_weights(results[repeat].weights, bench.config(unit), {**about, **chosen}, folder / BEST)
    found = {
        "group": group,
        "classes": list(maps.classes),
        "shape": list(maps.shape),
        "pairs": len(bench.pairs.names),
        "folds": bench.groups.facts(),
        "cells": cells,
        "names": names,
        "best": {**chosen, "repeat": repeat},
        "confusion": _confusion(bench, results).tolist(),
    }
    for what in (NOISE_AWARE, "trace"):
        unit = Unit(what if params.noise_aware.conditions != TRACE else NOISE_AWARE)
        result = get(unit)
        probe = NoiseAwareProbe.of_state(bench.config(unit), result.weights)
        found[what] = noised(bench, unit, result, probe, _accuracies([get(Unit("names"))])[0])
        if what == NOISE_AWARE:
            save_noise_aware(probe, {**about, **found[what]}, folder / NOISE_AWARE)
    return found
