"""The table over all layer groups, and the confusions that false graphs are drawn from."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from sgpipe.errors import DataError
from sgpipe.probes.config import Feature, Kind

TABLE = "table.json"
"""A layer group's figures, in its folder."""
Figures = Mapping[str, Any]
"""What `write_group` returns for one layer group."""


def read_groups(folder: Path, groups: Iterable[str]) -> dict[str, dict[str, Any]]:
    """The figures of each group. Raises `DataError` where one is missing, damaged, or of other maps or classes than the first."""
    found: dict[str, dict[str, Any]] = {}
    for group in groups:
        path = folder / group / TABLE
        try:
            found[group] = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
        except FileNotFoundError:
            raise DataError(f"{path}: no such figures; run `dvc repro probe@{group}`") from None
        except msgspec.MsgspecError as error:
            raise DataError(f"{path}: not a group's figures ({error}); run `dvc repro probe@{group}`") from None
        first = next(iter(found.values()))
        for name in ("classes", "shape"):
            if found[group].get(name) != first[name]:
                raise DataError(
                    f"{path}: {name} {found[group].get(name)}, those of {next(iter(found))} {first[name]}; run `dvc repro probe`"
                )
    return found


def merged(tables: Mapping[str, Figures], kinds: Iterable[Kind], features: Sequence[Feature]) -> dict[str, Any]:
    """Metrics over all groups: `cells.<probe>.<feature>.<group>`; by group the names alone, the fits on noised maps, the best."""
    cells = {
        kind: {feature: {group: table["cells"][kind][feature] for group, table in tables.items()} for feature in features}
        for kind in kinds
    }
    by_group = {name: {group: table[name] for group, table in tables.items()} for name in ("names", "noise_aware", "trace", "best")}
    first = next(iter(tables.values()))
    counts = {name: first[name] for name in ("pairs", "folds")}
    return {"cells": cells, **by_group, "classes": len(first["classes"]), **counts}


def confusions(tables: Iterable[Figures]) -> dict[str, dict[str, float]]:
    """`{class: {class: count}}`, as `negatives.confusions` takes it: what each group's best probe took for what, summed."""
    found: dict[str, dict[str, float]] = {}
    for table in tables:
        for name, row in zip(table["classes"], table["confusion"], strict=True):
            of = found.setdefault(name, {})
            for other, count in zip(table["classes"], row, strict=True):
                if other != name and count:
                    of[other] = of.get(other, 0.0) + count
    return found
