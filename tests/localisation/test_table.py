"""The table of all methods: figures stand where they belong, ranks agree where blocks do, and a verdict follows from intervals."""

import numpy as np
import polars as pl
import pytest

from sgpipe.localisation.table import (
    Measured,
    group_rows,
    of_entry,
    of_patching,
    of_words,
    of_zeroed_text,
    rank_correlations,
    verdict,
    verdict_sentence,
)
from sgpipe.report.tables import localisation

GROUPS = {"early": (0, 1), "middle": (2, 3)}
PROBES = {
    "best": {name: {"probe": "cnn", "feature": "cross"} for name in GROUPS},
    "cells": {"cnn": {"cross": {"early": {"selectivity": 0.1}, "middle": {"selectivity": 0.3}}}},
}


def bounded(name: str, value: float) -> dict[str, float]:
    return {name: value, f"{name}_low": value - 0.05, f"{name}_high": value + 0.05}


WORDS = {
    "groups": [
        {"group": group, "word": word, **bounded("selectivity", value)}
        for group, word, value in (("early", "object", 0.2), ("middle", "object", 0.6), ("middle", "subject", 0.9))
    ]
}
LOCALISATION = {
    "unpatched": {"positive": {"direction_accuracy": 0.95}},
    "rows": [
        {"group": "early", "method": "ablation", "kind": "text", "rows": None, **bounded("direction_accuracy", 0.9)},
        {"group": "middle", "method": "ablation", "kind": "text", "rows": None, **bounded("direction_accuracy", 0.5)},
        {"group": "middle", "method": "ablation", "kind": "skip", "rows": None, **bounded("direction_accuracy", 0.1)},
        {"group": "middle", "method": "patching", "kind": "denoising", "rows": "text", **bounded("effect", 0.7)},
        {"group": "middle", "method": "patching", "kind": "noising", "rows": "text", **bounded("effect", 0.2)},
    ],
}
PLACEMENT = {"lora": {"early": bounded("direction_accuracy", 0.8)}, "enter": {"2": bounded("direction_accuracy", 0.85)}}


def test_each_figure_stands_in_its_row_and_what_is_missing_is_none() -> None:
    early, middle = group_rows(GROUPS, PROBES, WORDS, LOCALISATION, PLACEMENT)
    assert (early["map_probe"], middle["map_probe"], middle["object_probe"]) == (0.1, 0.3, 0.6)
    assert middle["text_zeroing"] == pytest.approx(0.45) and middle["text_zeroing_low"] == pytest.approx(0.40)
    assert middle["text_zeroing_high"] == pytest.approx(0.50)
    assert (middle["patching_text"], early["patching_text"], middle["patching_image"]) == (0.7, None, None)
    assert (early["placement"], middle["placement"], early["entry"], middle["entry"]) == (0.8, None, None, 0.85)
    nothing = group_rows(GROUPS, {}, {}, {}, {})
    assert [row["text_zeroing"] for row in nothing] == [None, None]


def test_a_verdict_needs_intervals_that_lie_apart() -> None:
    rows = group_rows(GROUPS, PROBES, WORDS, LOCALISATION, PLACEMENT)
    assert verdict(rows) == {"object_probe": "contradicted", "text_zeroing": "contradicted"}
    assert verdict(rows, "early") == {"object_probe": "supported", "text_zeroing": "supported"}
    near = [{"group": name, **bounded("entry", value)} for name, value in (("early", 0.5), ("middle", 0.55))]
    assert verdict(near) == {"entry": "undecided"}
    shown = localisation({"rows": rows, "correlations": [], "verdict": verdict(rows)}).markdown()
    assert "| middle blocks 2–3 | 0.30 | 0.60 [0.55, 0.65] | 0.45 [0.40, 0.50] |" in shown
    assert "| “middle layers carry too little” | – | contradicted | contradicted |" in shown


def test_the_sentence_says_what_the_verdicts_say() -> None:
    said = verdict(group_rows(GROUPS, PROBES, WORDS, LOCALISATION, PLACEMENT))
    assert verdict_sentence({**said, "entry": "undecided"}) == (
        "That middle blocks carry too little is contradicted by object-token probe, text zeroed; left open by tokens enter there "
        "(of 3 methods with intervals)."
    )
    assert "supported by object-token probe" in verdict_sentence({"object_probe": "supported"}) and verdict_sentence({}) == ""
    shown = localisation({"rows": [], "correlations": [], "verdict": {}, "sentence": "That is so."})
    assert shown.note.startswith("That is so. 95 % intervals")


def measured(slope: float, noise: float, seed: int) -> Measured:
    """Of 40 triples and 8 blocks, whose figure rises with the block."""
    draw = np.random.default_rng(seed)
    values = slope * np.arange(8) + noise * draw.standard_normal((40, 8))
    return Measured.of(range(8), values, np.ones((40, 8)), 300, seed)


def test_ranks_agree_contradict_or_tell_nothing() -> None:
    methods = {"object_probe": measured(1, 0.5, 0), "text_zeroing": measured(1, 0.5, 1), "entry": measured(-1, 0.5, 2)}
    found = {tuple(each["methods"]): each for each in rank_correlations(methods)}
    assert found["object_probe", "text_zeroing"]["rho"] == 1 and "agree" in found["object_probe", "text_zeroing"]["sentence"]
    assert found["text_zeroing", "entry"]["rho"] == -1 and "contradict" in found["text_zeroing", "entry"]["sentence"]
    flat = {"object_probe": measured(0, 1, 3), "text_zeroing": measured(0, 1, 4)}
    (none,) = rank_correlations(flat)
    assert none["rho_low"] < 0 < none["rho_high"] and "not told apart" in none["sentence"]
    other = Measured((20, 21), np.zeros(2), np.zeros((300, 2)))
    assert rank_correlations({"object_probe": measured(1, 1, 0), "text_zeroing": other}) == []
    few = Measured.of(range(4, 8), np.arange(160.0).reshape(40, 4), np.ones((40, 4)), 300, 0)
    assert rank_correlations({"object_probe": measured(1, 1, 0), "entry": few}) == [], "of four blocks nothing is said"
    same = Measured.of(range(8), np.ones((40, 8)), np.ones((40, 8)), 300, 0)
    assert rank_correlations({"object_probe": measured(1, 1, 0), "text_zeroing": same}) == [], "equal figures have no ranks"


def test_the_same_triples_are_resampled_together() -> None:
    """Two methods that agree on every triple agree in every resample, however noisy; on other triples they need not."""
    draw = np.random.default_rng(0).standard_normal((12, 6))

    def rows(kind: str, names: str) -> pl.DataFrame:
        cells = [(triple, block) for triple in range(12) for block in range(6)]
        return pl.DataFrame({
            "contrast": ["denoising"] * 72, "rows": [kind] * 72, "triple_id": [f"{names}{triple}" for triple, _ in cells],
            "block": [block for _, block in cells], "projected": [float(draw[cell]) for cell in cells], "squared": [1.0] * 72,
        })  # fmt: skip

    both = pl.concat([rows("text", "a"), rows("image", "a")])
    (found,) = rank_correlations({f"patching_{kind}": of_patching(both, kind, 200, 0) for kind in ("text", "image")})
    assert (found["rho"], found["rho_low"], found["rho_high"]) == pytest.approx((1, 1, 1))
    (apart,) = rank_correlations({
        "patching_text": of_patching(rows("text", "a"), "text", 200, 0),
        "patching_image": of_patching(rows("text", "b"), "text", 200, 0),
    })  # fmt: skip
    assert apart["rho"] == pytest.approx(1) and apart["rho_low"] < 0.9


def test_accuracy_by_entry_is_that_of_decided_samples_of_all_training_seeds() -> None:
    rows = [
        (arm, seed, triple, "own", right)
        for arm, rights in (("lora-all", [True, True, None]), ("enter-2", [True, False, False]), ("lora-early", [False] * 3))
        for seed in (0, 1)
        for triple, right in zip("abc", rights, strict=True)
    ]
    columns = {"arm": 0, "training_seed": 1, "triple_id": 2, "condition": 3, "right": 4}
    samples = pl.DataFrame({name: [row[place] for row in rows] for name, place in columns.items()})
    samples = samples.with_columns(decided=pl.col("right").is_not_null())
    found = of_entry(pl.concat([samples, samples.with_columns(condition=pl.lit("swapped"), right=False)]), 50, 0)
    assert found.blocks == (0, 2) and found.values == pytest.approx([1, 1 / 3])


def test_figures_of_blocks_are_those_of_the_tables() -> None:
    gains = pl.DataFrame({
        "group": [0, 1, 1, 0, 1, 0], "word": ["object"] * 5 + ["subject"], "block": [0, 0, 0, 1, 1, 0],
        "gain": [1.0, 0.0, 1.0, 0.0, -1.0, 9.0],
    })  # fmt: skip
    assert of_words(gains, "object", 100, 0).values == pytest.approx([2 / 3, -0.5])
    effects = pl.DataFrame({
        "contrast": ["denoising"] * 4 + ["null"], "rows": ["text"] * 5, "triple_id": ["a", "b", "a", "b", "a"],
        "block": [0, 0, 1, 1, 0], "projected": [1.0, 2.0, 0.0, 1.0, 7.0], "squared": [2.0, 4.0, 2.0, 2.0, 1.0],
    })  # fmt: skip
    found = of_patching(effects, "text", 100, 0)
    assert found.blocks == (0, 1) and found.values == pytest.approx([0.5, 0.25])
    assert found.resampled.shape == (100, 2) and np.isclose(found.resampled[:, 0], 0.5).all()
    samples = pl.DataFrame({
        "method": ["ablation"] * 4, "kind": ["text"] * 4, "triple_id": ["a", "b", "a", "b"], "block": [0, 0, 1, None],
        "positive": [0.9, 0.1, None, 0.0], "negative": [0.1, 0.9, 0.5, 1.0],
    })  # fmt: skip
    assert of_zeroed_text(samples, 100, 0).values == pytest.approx([0.5])
