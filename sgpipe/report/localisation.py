"""The table of where relations are read, written and used, from the metrics and outputs of the stages that measured it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import polars as pl

from sgpipe.attention_maps.config import Maps
from sgpipe.backbones.config import Backbone
from sgpipe.evaluation.arms import read_metrics
from sgpipe.localisation.block_figure import panels
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
from sgpipe.report.written import as_written

PARTS: Final = ("probes", "word_probes", "localisation", "placement")
"""Metrics files that the table has columns of."""
WRITERS: Final = ("dvc repro probe", "dvc repro probe_words", "dvc repro localise", "sgpipe placement")
"""The commands that write them."""


def layer_groups(backbone: Backbone, maps: Maps) -> dict[str, Sequence[int]]:
    """The blocks of each layer group of the parameters."""
    return {
        name: each.resolve(backbone.double_blocks, backbone.single_blocks, f"maps.groups.{name}")
        for name, each in maps.groups.items()
    }


def measured(metrics: Path, groups: Mapping[str, Sequence[int]]) -> list[dict[str, Any]]:
    """The files of `PARTS` in a folder; empty for what is not there. Raises `DataError` for one that is not as it is written."""
    found: list[dict[str, Any]] = []
    for place, (name, writer) in enumerate(zip(PARTS, WRITERS, strict=True)):
        path = metrics / f"{name}.json"
        found.append(read_metrics(path) if path.is_file() else {})
        with as_written(path, f"metrics of {name}", writer):
            alone = [found[-1] if at == place else {} for at in range(len(PARTS))]
            group_rows(groups, *alone)
            panels(groups, *alone[1:])
    return found


def localisation_table(
    metrics: Path, outputs: Path, groups: Mapping[str, Sequence[int]], resamples: int, seed: int
) -> dict[str, Any]:
    """`rows`, `correlations`, `verdict` and `sentence` for `tables.localisation`; what was not measured is left out.

    `metrics` has the files of `PARTS` and placement.parquet, `outputs` the folders word_probes and localisation, for the ranks of
    single blocks.
    """
    methods: dict[str, Measured] = {}
    drawn = {"resamples": resamples, "seed": seed}
    if (gains := outputs / "word_probes/gains.parquet").is_file():
        with as_written(gains, "table of gains", WRITERS[1]):
            methods["object_probe"] = of_words(pl.read_parquet(gains), "object", **drawn)
    if (effects := outputs / "localisation/effects.parquet").is_file():
        with as_written(samples := outputs / "localisation/samples.parquet", "table of samples", WRITERS[2]):
            methods["text_zeroing"] = of_zeroed_text(pl.read_parquet(samples), **drawn)
        with as_written(effects, "table of effects", WRITERS[2]):
            moved = pl.read_parquet(effects)
            patched = [rows for rows in ("text", "image") if rows in set(moved["rows"])]
            methods |= {f"patching_{rows}": of_patching(moved, rows, **drawn) for rows in patched}
    if (placed := metrics / "placement.parquet").is_file():
        with as_written(placed, "table of placements", WRITERS[3]):
            methods["entry"] = of_entry(pl.read_parquet(placed), **drawn)
    rows = group_rows(groups, *measured(metrics, groups))
    said = verdict(rows)
    return {"rows": rows, "correlations": rank_correlations(methods), "verdict": said, "sentence": verdict_sentence(said)}
