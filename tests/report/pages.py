"""A page of known content, without a generator or a judge."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from sgpipe.report.figures import scene_graph
from sgpipe.report.page import Image, Section, control_figure, epochs_figure, headline_figure, render, training_figure
from sgpipe.report.panels import ABOUT, Panel, Shown, data_uri
from sgpipe.report.tables import (
    Table,
    ablation,
    by_predicate,
    calibrations,
    comparisons,
    diversity,
    headline,
    localisation,
    probes,
    sensitivity,
)

ROW = {
    "objects_present": 0.8, "direction_accuracy": 0.7, "direction_accuracy_low": 0.6, "direction_accuracy_high": 0.8,
    "direction_accuracy_corrected": 0.71, "direction_accuracy_images": 90, "accuracy": 0.66, "accuracy_low": 0.6,
    "accuracy_high": 0.72, "accuracy_corrected": 0.67, "accuracy_images": 300,
}  # fmt: skip
NOTHING = {
    **ROW,
    "direction_accuracy": None,
    "direction_accuracy_low": None,
    "direction_accuracy_high": None,
    "direction_accuracy_corrected": None,
}
TEST = {
    "difference": 0.2, "difference_low": 0.1, "difference_high": 0.3, "pairs": 80, "first_only": 25, "second_only": 9,
    "p": 0.0004, "p_exact": 0.009, "p_holm": 0.0012,
}  # fmt: skip
JUDGED = {
    "text": 0.5, "image": 0.5, "group": 0.4, "crossed": 0.7, "images": 90, "accuracy": 0.6, "accuracy_low": 0.5,
    "accuracy_high": 0.7, "margin": 0.4,
}  # fmt: skip
CALIBRATION = {
    "images": 162, "ground_truth_accuracy": 0.94, "abstained": 0.05, "chance_level": None, "chance_abstained": 1.0,
    "order_bias": 0.0, "sensitivity": 1.0, "specificity": 1.0, "classes_used": 15,
    "refused": ["sitting on", "standing on", "riding"],
}  # fmt: skip
SPREAD_RATIOS = {
    "pixels_ratio": 0.93, "pixels_ratio_low": 0.91, "pixels_ratio_high": 0.95,
    "features_ratio": 0.97, "features_ratio_low": 0.94, "features_ratio_high": 1.01,
}  # fmt: skip
SPREAD = {
    "triples": 150, "pairs": 430, "base_pairs": 300, "compared_triples": 90, "pixels": 1750.0, "features": 0.12, **SPREAD_RATIOS,
}  # fmt: skip
FOUND = {
    "triples": 162,
    "seeds": 3,
    "headline": {"judge": "exact", "prompt": "neutral"},
    "judges": {"exact": CALIBRATION},
    "arms": {
        "base": {"neutral": {"none": NOTHING}},
        "graph": {"neutral": {"positive": ROW, "negative": ROW, "empty": ROW, "shuffled": ROW}, "relational": {"positive": ROW}},
    },
    "comparisons": {"neutral": {"graph-base": TEST, "graph-text_only": TEST}},
    "diversity": {
        "base": {"relational": {"none": SPREAD}, "neutral": {"none": {**SPREAD, **dict.fromkeys(SPREAD_RATIOS)}}},
        "graph": {"neutral": {"positive": SPREAD, "shuffled": SPREAD}},
    },
    "feature_judge": "clip",
    "sensitivity": {
        "graph": {
            "neutral": {
                "mse": 812.0, "mse_deviation": 100.0, "mse_other_seed": 1800.0, "mse_ratio": 0.45, "mse_ratio_low": 0.4,
                "mse_ratio_high": 0.5, "judges": {"exact": JUDGED},
            }
        }
    },
}  # fmt: skip
EPOCH = {
    **ROW, "swap_follow_rate": 0.66, "swap_follow_rate_low": 0.6, "swap_follow_rate_high": 0.7, "mse_ratio": 0.4,
    "mse_ratio_low": 0.3, "mse_ratio_high": 0.5,
}  # fmt: skip
ABLATION = {
    "triples": 162, "seeds": 3, "runs": 1, "judge": "exact", "epochs": {"10": EPOCH, "20": EPOCH}, "comparisons": {"20-10": TEST},
}  # fmt: skip
BY_CLASS = [
    {"predicate": "on", "arm": arm, "graph": graph, "used": True, **ROW, **test}
    for arm, graph, test in (
        ("base", "none", {}),
        ("graph", "positive", {"difference": -0.3, "p": 0.002, "p_holm": 0.004}),
        ("other", "positive", {"difference": None, "p": None, "p_holm": None}),
    )
]
LOCALISED = {
    "rows": [
        {"group": name, "blocks": blocks, "map_probe": 0.2, "map_probe_low": None, "map_probe_high": None, **{
            f"patching_text{end}": value for end, value in (("", 0.4), ("_low", 0.3), ("_high", 0.5))
        }} for name, blocks in (("early", [0, 1]), ("middle", [2, 3]))
    ],
    "correlations": [],
    "verdict": {"patching_text": "undecided"},
}  # fmt: skip
PROBES = {"cells": {"mlp": {"saliency": {g: {"accuracy": 0.6, "selectivity": 0.1} for g in ("early", "middle", "late")}}}}


def page(folder: Path) -> str:
    """The page of these figures, with two panels, curves and a part that is missing."""
    curves = folder / "controls.csv"
    curves.write_text("step,base,graph,shuffled,preferred\n0,0.3,0.3,0.31,0.5\n50,0.3,0.25,0.33,0.7\n")
    losses = folder / "training.csv"
    losses.write_text("step,steps,loss,flow,negative,margin\n10,10,2.5,0.5,0.6,0.4\n20,10,1.5,0.4,0.7,0.2\n")
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    labels = ("base", "text_only", "graph g⁺", "graph g⁻")
    shown = tuple(Shown(label, data_uri(image), "as g⁺", f"{label}: dog left of cat") for label in labels)
    panel = Panel(
        "12-3", "a photo of cat and dog on a plain background", "dog left of cat", "cat left of dog <b>",
        scene_graph("dog", "left of", "cat"), shown, ("left of",), "graph shows g⁺ in 1 of 3 seeds",
    )  # fmt: skip
    other = replace(panel, positive="cat on bed", predicates=("on",), triple_id="13-1")
    sections = [
        Section("results", "Results", "Words & signs.", [headline(FOUND), comparisons(FOUND)], [headline_figure(FOUND)]),
        Section("judges", "Judges", tables=[calibrations(FOUND)]),
        Section("sensitivity", "Sensitivity", tables=[sensitivity(FOUND), diversity(FOUND)]),
        Section("ablation", "Ablation", tables=[ablation(ABLATION)], images=[epochs_figure(ABLATION)]),
        Section("panels", "Images", panels={"random": [panel, panel], "worst": [other]}, about=ABOUT),
        Section("classes", "Classes", tables=[by_predicate(BY_CLASS, {"on": CALIBRATION}, {"base": "none", "graph": "graphs"})]),
        Section("localisation", "Localisation", tables=[localisation(LOCALISED)]),
        Section("training", "Training", images=[control_figure(curves, "graph"), training_figure(losses, "graph")]),
        Section("probes", "Probes", tables=[probes(PROBES, "accuracy", "Accuracy")]),
        Section("saliency", "Saliency", missing="Not there: plots/saliency. `dvc repro saliency_sheets` makes it.",
                images=[Image("a sheet", "left of", uri=data_uri(image), predicate="left of")]),
    ]  # fmt: skip
    facts = {"commit": "0" * 40, "libraries": "torch 2, diffusers 0"}
    return render(sections, facts, "Scene-graph conditioning: what was measured")


def table() -> Table:
    """A table with a bar in a cell."""
    return Table("Caption", ("a", "b"), (("x", "1|2"),), "Note.")
