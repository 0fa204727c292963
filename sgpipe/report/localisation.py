"""The table of where relations are read, written and used, from the metrics and outputs of the stages that measured it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import polars as pl

from sgpipe.attention_maps.config import Maps
from sgpipe.backbones.config import Backbone
from sgpipe.evaluation.arms import read_metrics
from sgpipe.localisation.table import (
    group_rows,
    of_entry,
    of_patching,
    of_words,
    of_zeroed_text,
    rank_correlations,
    verdict,
    verdict_sentence,
)

PARTS: Final = ("probes", "word_probes", "localisation", "placement")
"""Metrics files that the table has columns of."""


def layer_groups(backbone: Backbone, maps: Maps) -> dict[str, Sequence[int]]:
    """The blocks of each layer group of the parameters."""
    return {
        name: each.resolve(backbone.double_blocks, backbone.single_blocks, f"maps.groups.{name}")
        for name, each in maps.groups.items()
    }


def measured(metrics: Path) -> list[dict[str, Any]]:
    """The files of `PARTS` in a folder; empty for what is not there."""
    paths = [metrics / f"{name}.json" for name in PARTS]
    return [read_metrics(path) if path.is_file() else {} for path in paths]


def localisation_table(
    metrics: Path, outputs: Path, groups: Mapping[str, Sequence[int]], resamples: int, seed: int
) -> dict[str, Any]:
    """`rows`, `correlations`, `verdict` and `sentence` for `tables.localisation`; what was not measured is left out.

    `metrics` has the files of `PARTS` and placement.parquet, `outputs` the folders word_probes and localisation, for the ranks of
    single blocks.
    """
    methods = {}
    if (gains := outputs / "word_probes/gains.parquet").is_file():
        methods["object_probe"] = of_words(pl.read_parquet(gains), "object", resamples, seed)
    if (effects := outputs / "localisation/effects.parquet").is_file():
        moved, samples = pl.read_parquet(effects), pl.read_parquet(outputs / "localisation/samples.parquet")
        methods["text_zeroing"] = of_zeroed_text(samples, resamples, seed)
        patched = set(moved["rows"].unique())
        methods |= {f"patching_{rows}": of_patching(moved, rows, resamples, seed) for rows in ("text", "image") if rows in patched}
    if (placed := metrics / "placement.parquet").is_file():
        methods["entry"] = of_entry(pl.read_parquet(placed), resamples, seed)
    rows = group_rows(groups, *measured(metrics))
    said = verdict(rows)
    return {"rows": rows, "correlations": rank_correlations(methods), "verdict": said, "sentence": verdict_sentence(said)}
