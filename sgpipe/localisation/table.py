"""One table for three questions: in which blocks a relation can be read, where it can be written, and where the generator uses it.

Rows are layer groups, columns are methods, each figure with its 95 % interval. Over single blocks methods are compared by rank
(Spearman 1904), with an interval by bootstrap over triples: each method's figure of a block is a ratio of two sums over triples.
Methods that were measured on the same triples are resampled together, others independently.
"""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

Floats = NDArray[np.float64]
COLUMNS: Final = {
    "map_probe": "map probe: selectivity",
    "object_probe": "object-token probe: selectivity",
    "text_zeroing": "text zeroed: accuracy lost",
    "patching_text": "text patched: effect",
    "patching_image": "image patched: effect",
    "placement": "LoRA there: accuracy",
    "entry": "tokens enter there: accuracy",
}
"""Methods, in the order of the table's columns; more always speaks for the group."""
_QUANTILES: Final = (0.025, 0.975)
FEWEST_BLOCKS: Final = 5
"""Fewer blocks have the same order by chance too often for a sentence on two methods."""
LORA, ENTER, ALL = "lora-", "enter-", "all"
"""Names of placements (`placement`): LoRA on a layer group, tokens that enter at a block; LoRA on all groups."""


@dataclass(frozen=True)
class Measured:
    """A method's figure of each block: `values` `[blocks]`, and the same of each bootstrap resample, `[resamples, blocks]`."""

    blocks: tuple[int, ...]
    values: Floats
    resampled: Floats

    @classmethod
    def of(
        cls, blocks: Sequence[int], numerators: Floats, denominators: Floats, resamples: int, seed: int | tuple[int, int]
    ) -> "Measured":
        """Ratios of sums over triples of `[triples, blocks]`; NaN where a denominator is 0. Equal seeds resample alike."""
        count = len(numerators)
        weights = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), resamples)
        with np.errstate(invalid="ignore", divide="ignore"):
            values = numerators.sum(axis=0) / denominators.sum(axis=0)
            return cls(tuple(blocks), values, (weights @ numerators) / (weights @ denominators))


def of_words(gains: pl.DataFrame, word: str, resamples: int, seed: int) -> Measured:
    """Selectivity of the probes of a word by block, of rows `group`, `word`, `block`, `gain`; groups of triples are resampled."""
    own = gains.filter(pl.col("word") == word, pl.col("block") >= 0)
    sums = own.group_by("group", "block").agg(pl.col("gain").sum(), pl.len().alias("count")).sort("group", "block")
    return _measured(sums, own["group"], "gain", "count", resamples, seed)


def of_patching(effects: pl.DataFrame, rows: str, resamples: int, seed: int) -> Measured:
    """Denoising effect of these rows by block, of table `effects` of stage `localise`."""
    own = effects.filter(contrast="denoising", rows=rows)
    sums = own.group_by("triple_id", "block").agg(pl.col("projected").sum(), pl.col("squared").sum())
    return _measured(sums, effects["triple_id"], "projected", "squared", resamples, seed)


def of_zeroed_text(samples: pl.DataFrame, resamples: int, seed: int) -> Measured:
    """Share of decided samples of g⁺ that turn to g⁻ when a block's text is zeroed, of table `samples` of stage `localise`."""
    own = samples.filter(method="ablation", kind="text").filter(pl.col("block").is_not_null())
    decided = own.filter(pl.col("positive").is_not_null() & pl.col("negative").is_not_null())
    turned = (pl.col("negative") > pl.col("positive")).cast(pl.Float64) + 0.5 * (pl.col("negative") == pl.col("positive"))
    sums = decided.group_by("triple_id", "block").agg(turned.sum().alias("turned"), pl.len().alias("count"))
    return _measured(sums, samples["triple_id"], "turned", "count", resamples, seed)


def of_entry(samples: pl.DataFrame, resamples: int, seed: int) -> Measured:
    """Direction accuracy of g⁺ by the block at which tokens enter, over training seeds, of the samples of `sgpipe placement`."""
    own = samples.filter(pl.col("condition") == "own", pl.col("arm").str.starts_with(ENTER) | (pl.col("arm") == f"{LORA}{ALL}"))
    block = pl.when(pl.col("arm") == f"{LORA}{ALL}").then(pl.lit("0")).otherwise(pl.col("arm").str.strip_prefix(ENTER))
    decided = own.filter("decided").with_columns(block.cast(pl.Int64).alias("block"))
    sums = decided.group_by("triple_id", "block").agg(pl.col("right").cast(pl.Float64).sum(), pl.len().alias("count"))
    return _measured(sums, samples["triple_id"], "right", "count", resamples, seed)


def _measured(sums: pl.DataFrame, units: pl.Series, above: str, below: str, resamples: int, seed: int) -> Measured:
    """Of sums by unit (triple or group) and block, over all `units`, also those without a sum; the same units resample alike."""
    every, blocks = units.unique().sort(), sums["block"].unique().sort().to_list()

    def wide(name: str) -> Floats:
        columns = sums.pivot("block", index=units.name, values=name)
        aligned = every.to_frame().join(columns, on=units.name, how="left", maintain_order="left").fill_null(0)
        return aligned.select(str(block) for block in blocks).to_numpy().astype(float)

    who = zlib.crc32("\n".join(map(str, every.to_list())).encode())
    return Measured.of(blocks, wide(above), wide(below), resamples, (seed, who))


def _ranks(values: Floats) -> Floats:
    """Ranks along the last axis, ties at their mean."""
    from scipy.stats import rankdata

    return rankdata(values, axis=-1)


def _spearman(one: Floats, other: Floats) -> Floats:
    """Spearman's ρ along the last axis; NaN where all are equal."""
    ranks = [_ranks(each) - (each.shape[-1] + 1) / 2 for each in (one, other)]
    with np.errstate(invalid="ignore"):
        return (ranks[0] * ranks[1]).sum(-1) / np.sqrt((ranks[0] ** 2).sum(-1) * (ranks[1] ** 2).sum(-1))


def rank_correlations(methods: Mapping[str, Measured]) -> list[dict[str, Any]]:
    """Spearman's ρ of each two methods over the blocks that both have, with its interval.

    Left out are two with fewer than `FEWEST_BLOCKS` such blocks, and one whose figures are all equal, which has no ranks.
    """
    found = []
    for (name, one), (other, two) in combinations(methods.items(), 2):
        common = [
            block for block in one.blocks if block in two.blocks
            and np.isfinite(one.values[one.blocks.index(block)]) and np.isfinite(two.values[two.blocks.index(block)])
        ]  # fmt: skip
        if len(common) < FEWEST_BLOCKS:
            continue
        places = [[each.blocks.index(block) for block in common] for each in (one, two)]
        value = float(_spearman(one.values[places[0]], two.values[places[1]]))
        if not np.isfinite(value):
            continue
        drawn = _spearman(one.resampled[:, places[0]], two.resampled[:, places[1]])
        low, high = np.nanquantile(drawn, _QUANTILES)
        said = "agree" if low > 0 else "contradict each other" if high < 0 else "are not told apart from unrelated"
        found.append({
            "methods": [name, other], "blocks": len(common), "rho": value, "rho_low": float(low), "rho_high": float(high),
            "sentence": f"{COLUMNS.get(name, name)} and {COLUMNS.get(other, other)} {said} over {len(common)} blocks",
        })  # fmt: skip
    return found


def _figure(name: str, value: float | None, low: float | None = None, high: float | None = None) -> dict[str, float | None]:
    return {name: value, f"{name}_low": low, f"{name}_high": high}


def group_rows(
    groups: Mapping[str, Sequence[int]], probes: Mapping[str, Any], words: Mapping[str, Any], localisation: Mapping[str, Any],
    placement: Mapping[str, Any],
) -> list[dict[str, Any]]:  # fmt: skip
    """A row per layer group (name to its blocks) with a figure per method of `COLUMNS`, null where nothing was measured.

    `probes`, `words`, `localisation`, `placement`: the metrics files of these names, or empty ones. The map probe is the group's
    best by validation; its selectivity has no interval. `placement.lora` holds figures by group, `placement.enter` by block.
    """
    unpatched = localisation.get("unpatched", {}).get("positive", {}).get("direction_accuracy")
    found = []
    for name, blocks in groups.items():
        best = probes.get("best", {}).get(name)
        row: dict[str, Any] = {"group": name, "blocks": list(blocks)}
        row |= _figure("map_probe", probes["cells"][best["probe"]][best["feature"]][name]["selectivity"] if best else None)
        own: Mapping[str, Any] = next(
            (each for each in words.get("groups", ()) if each["group"] == name and each["word"] == "object"), {}
        )
        row |= _figure("object_probe", *(own.get(f"selectivity{end}") for end in ("", "_low", "_high")))
        rows = [each for each in localisation.get("rows", ()) if each["group"] == name]
        zeroed: Mapping[str, Any] = next((each for each in rows if (each["method"], each["kind"]) == ("ablation", "text")), {})
        lost = [zeroed.get(f"direction_accuracy{end}") for end in ("", "_high", "_low")]
        row |= _figure("text_zeroing", *(None if None in (each, unpatched) else unpatched - each for each in lost))
        for part in ("text", "image"):
            moved: Mapping[str, Any] = next(
                (each for each in rows if (each["method"], each["kind"], each["rows"]) == ("patching", "denoising", part)), {}
            )
            row |= _figure(f"patching_{part}", *(moved.get(f"effect{end}") for end in ("", "_low", "_high")))
        placed = (("placement", placement.get("lora", {}).get(name)), ("entry", placement.get("enter", {}).get(str(min(blocks)))))
        for column, each in placed:
            row |= _figure(column, *((each or {}).get(f"direction_accuracy{end}") for end in ("", "_low", "_high")))
        found.append(row)
    return found


def verdict(rows: Sequence[Mapping[str, Any]], group: str = "middle") -> dict[str, str]:
    """By method with intervals, what it says of the inference that this group carries too little.

    `supported`: its interval ends below those of all other groups; `contradicted`: it begins above at least one other's end;
    else `undecided`.
    """
    found = {}
    for column in COLUMNS:
        own = next((row for row in rows if row["group"] == group), {})
        others = [row for row in rows if row["group"] != group and row.get(f"{column}_low") is not None]
        if own.get(f"{column}_low") is None or not others:
            continue
        below = all(own[f"{column}_high"] < row[f"{column}_low"] for row in others)
        above = any(own[f"{column}_low"] > row[f"{column}_high"] for row in others)
        found[column] = "supported" if below else "contradicted" if above else "undecided"
    return found


def verdict_sentence(said: Mapping[str, str], group: str = "middle") -> str:
    """What the methods of `verdict` say of the inference, as one sentence; empty where none has intervals."""
    if not said:
        return ""
    parts = []
    for word in ("contradicted", "supported", "undecided"):
        names = [COLUMNS[column].partition(":")[0] for column, each in said.items() if each == word]
        by = "left open" if word == "undecided" else word
        parts += [f"{by} by {', '.join(names)}"] if names else []
    return f"That {group} blocks carry too little is {'; '.join(parts)} (of {len(said)} methods with intervals)."
