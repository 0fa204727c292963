"""The table of where relations are read, written and used, from the metrics and outputs of the stages that measured it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import polars as pl

from sgpipe.attention_maps.config import Maps
from sgpipe.backbones.config import Backbone
from sgpipe.evaluation.arms import read_metrics
from sgpipe.localisation.table import group_rows, of_patching, of_words, of_zeroed_text, rank_correlations, verdict

PARTS: Final = ("probes", "word_probes", "localisation", "placement")
"""Metrics files that the table has columns of."""


def layer_groups(backbone: Backbone, maps: Maps) -> dict[str, Sequence[int]]:
    """The blocks of each layer group of the parameters."""
    return {
        name: each.resolve(backbone.double_blocks, backbone.single_blocks, f"maps.groups.{name}")
        for name, each in maps.groups.items()
    }


def localisation_table(
    metrics: Path, outputs: Path, groups: Mapping[str, Sequence[int]], resamples: int, seed: int
) -> dict[str, Any]:
    """`rows`, `correlations` and `verdict` for `tables.localisation`; what was not measured is left out.

    `metrics` has the files of `PARTS`, `outputs` the folders word_probes and localisation, for the ranks of single blocks.
    """
    methods = {}
    if (gains := outputs / "word_probes/gains.parquet").is_file():
        methods["object_probe"] = of_words(pl.read_parquet(gains), "object", resamples, seed)
    if (effects := outputs / "localisation/effects.parquet").is_file():
        moved, samples = pl.read_parquet(effects), pl.read_parquet(outputs / "localisation/samples.parquet")
        methods["text_zeroing"] = of_zeroed_text(samples, resamples, seed + 1)
        methods |= {f"patching_{rows}": of_patching(moved, rows, resamples, seed + 2) for rows in ("text", "image")}
    parts = (metrics / f"{name}.json" for name in PARTS)
    rows = group_rows(groups, *(read_metrics(path) if path.is_file() else {} for path in parts))
    return {"rows": rows, "correlations": rank_correlations(methods), "verdict": verdict(rows)}
