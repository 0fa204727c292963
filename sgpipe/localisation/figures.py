"""Figures of the interventions: each with its interval by bootstrap over triples."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import polars as pl
import pyarrow as pa

from sgpipe.evaluation.calibration import choices
from sgpipe.evaluation.statistics import Bootstrap, Estimate, Floats
from sgpipe.evaluation.summary import bounds
from sgpipe.runs.hashing import hashed, text_ids

Head = tuple[int, int]
"""Block, in the order of a forward, and number of the head in it."""
_ITEM = ["triple_id", "seed"]


SETS: Final = ("first_half", "second_half", "random")
"""Sets of heads: the strongest by attribution over either half of the triples, and as many others."""


def halves(triple_ids: Sequence[str]) -> tuple[set[str], set[str]]:
    """The triples in two halves by hash of their ids; the first has one more where their number is odd."""
    names = sorted(set(triple_ids))
    order = np.argsort(hashed(0, "halves", text_ids(names)), kind="stable").tolist()
    return {names[i] for i in order[::2]}, {names[i] for i in order[1::2]}


def strongest(heads: pa.Table, count: int) -> dict[str, list[Head]]:
    """From rows `attribution` of `HEADS` what is patched: each of the `count` heads of the largest attribution, as
    `<block>.<head>`, and the sets of `SETS` of as many. Those of `random` are none of the first."""
    rows = pl.DataFrame(heads)

    def ranked(part: pl.DataFrame) -> list[Head]:
        sums = part.group_by("block", "head").agg(pl.col("projected").sum())
        return [(b, h) for b, h, _ in sums.sort(pl.col("projected"), "block", "head", descending=[True, False, False]).iter_rows()]

    every = ranked(rows)
    first, second = (
        ranked(rows.filter(pl.col("triple_id").is_in(sorted(half))))[:count] for half in halves(rows["triple_id"].to_list())
    )
    others = every[count:]
    drawn = np.random.default_rng(0).permutation(len(others))[:count].tolist()
    found = {f"{block}.{head}": [(block, head)] for block, head in every[:count]}
    found |= {"first_half": first, "second_half": second, "random": [others[i] for i in drawn]}
    return {name: each for name, each in found.items() if each}


def head_figures(heads: pa.Table, sets: Mapping[str, Sequence[Head]], bootstrap: Bootstrap) -> dict[str, Any]:
    """`heads`: each patched head with attribution and effect; `head_sets`: each set's heads, and its effect on either half of the
    triples; `overlap`, the share of heads that both halves found (of their union)."""
    rows = pl.DataFrame(heads)
    alone = []
    for name, ((block, head), *_) in sets.items():
        if name not in SETS:
            own = {"block": block, "head": head}
            estimate, patched = (effect(bootstrap, rows.filter(**own, set=kind)) for kind in ("attribution", "head"))
            alone.append({**own, **bounds("attribution", estimate), **bounds("effect", patched)})
    named = dict(zip(("first", "second"), halves(rows["triple_id"].to_list()), strict=True))
    found: dict[str, Any] = {}
    for name in (each for each in SETS if each in sets):
        here = rows.filter(set=name)
        on = {half: effect(bootstrap, here.filter(pl.col("triple_id").is_in(sorted(ids)))) for half, ids in named.items()}
        figures = {key: value for half, each in on.items() for key, value in bounds(f"effect_{half}", each).items()}
        found[name] = {"heads": [f"{block}.{head}" for block, head in sets[name]], **figures}
    first, second = (set(sets[name]) for name in SETS[:2])
    return {"heads": alone, "head_sets": found, "head_overlap": len(first & second) / len(first | second)}


def _grid(rows: pl.DataFrame, column: str) -> Floats:
    """A column as `[T, S]` by triple and seed, means where an item has several rows; triples and seeds sorted."""
    means = rows.group_by(_ITEM).agg(pl.col(column).mean()).sort(_ITEM)
    triples = means["triple_id"].n_unique()
    return means[column].cast(pl.Float64).fill_null(np.nan).to_numpy().reshape(triples, -1)


def _told(samples: pl.DataFrame) -> pl.DataFrame:
    """Samples with 1/0/NaN columns: `chosen` c⁺ (0: c⁻), `present` both objects, `arranged` in one of the two directions."""
    scores = [samples[name].cast(pl.Float64).fill_null(np.nan).to_numpy() for name in ("positive", "negative")]
    chosen = choices(*scores)
    return samples.with_columns(
        chosen=pl.Series(chosen),
        present=pl.Series(np.isfinite(scores[0]).astype(float)),
        arranged=pl.Series(np.isfinite(chosen).astype(float)),
    )


def effect(bootstrap: Bootstrap, rows: pl.DataFrame) -> Estimate:
    """Ratio of the two sums over these rows of `EFFECTS`."""
    return bootstrap.function(lambda sums: sums[0] / sums[1], [_grid(rows, "projected"), _grid(rows, "squared")])


def _share(bootstrap: Bootstrap, rows: pl.DataFrame, column: str) -> Estimate:
    values = rows.with_columns(pl.col(column).fill_nan(None))
    return bootstrap.mean(_grid(values, column))


def localisation_figures(
    effects: pa.Table, samples: pa.Table, groups: Mapping[str, Sequence[int]], bootstrap: Bootstrap
) -> dict[str, Any]:
    """Metrics of the stage.

    `rows`: one for each intervention on a block (`block`) and each layer group (`group`).

    - Of `method` patching, contrast `kind`, and `rows`: `effect` over all patched steps and `effects_by_step`; `follows`, the share
      of decided samples whose direction is the donor's; of a group over its blocks, each patched alone.
    - Of `method` ablation: `direction_accuracy` of g⁺, `objects_present`, `arranged` (both objects in one of the two directions)
      and `distance` to the sample without it; of a group with all its blocks ablated.

    `unpatched`: the same of g⁺ and g⁻ without intervention. `null_effect`: of the recipient's own rows, over all places, and
    `null_effect_largest`, that of the place farthest from 0.
    """
    moved, told = pl.DataFrame(effects), _told(pl.DataFrame(samples))
    parts: list[tuple[dict[str, Any], list[int]]] = [({"group": name, "block": None}, list(of)) for name, of in groups.items()]
    parts += [({"group": None, "block": block}, [block]) for block in moved["block"].unique().sort().to_list()]
    rows: list[dict[str, Any]] = []
    places = moved.filter(pl.col("contrast") != "null").select("contrast", "rows").unique(maintain_order=True)
    for kind, of in places.iter_rows():
        for part, blocks in parts:
            here = moved.filter(pl.col("block").is_in(blocks), contrast=kind, rows=of)
            if here.is_empty():
                continue
            seen = told.filter(pl.col("block").is_in(blocks), method="patching", kind=kind, rows=of)
            if kind == "noising":
                seen = seen.with_columns(chosen=1 - pl.col("chosen"))
            follows = _share(bootstrap, seen, "chosen")
            steps = {step: effect(bootstrap, at).value for (step,), at in here.group_by("step", maintain_order=True)}
            found = {
                **bounds("effect", effect(bootstrap, here)),
                "effects_by_step": {str(step): steps[step] for step in sorted(steps)},
                **bounds("follows", follows),
                "images": follows.count,
            }
            rows.append({"method": "patching", "kind": kind, "rows": of, **part, **found})
    for kind in told.filter(method="ablation")["kind"].unique(maintain_order=True).to_list():
        for part, _ in parts:
            where = [pl.col(name).eq_missing(pl.lit(value)) for name, value in part.items()]
            seen = told.filter(*where, method="ablation", kind=kind)
            if not seen.is_empty():
                rows.append({"method": "ablation", "kind": kind, "rows": None, **part, **_sampled(bootstrap, seen)})
    null = moved.filter(contrast="null")
    return {
        "pairs": told["triple_id"].n_unique(),
        "seeds": told["seed"].n_unique(),
        "steps": moved["step"].unique().sort().to_list(),
        "unpatched": {run: _sampled(bootstrap, told.filter(method="none", kind=run)) for run in ("positive", "negative")},
        "null_effect": effect(bootstrap, null).value,
        "null_effect_largest": max(
            (effect(bootstrap, at).value for _, at in null.group_by("rows", "block", maintain_order=True)), key=abs
        ),
        "rows": rows,
    }


def _sampled(bootstrap: Bootstrap, seen: pl.DataFrame) -> dict[str, Any]:
    accuracy = _share(bootstrap, seen, "chosen")
    return {
        **bounds("direction_accuracy", accuracy),
        "images": accuracy.count,
        "objects_present": _share(bootstrap, seen, "present").value,
        "arranged": _share(bootstrap, seen, "arranged").value,
        # no share: of samples that are all the unpatched ones it is 0 for sure
        **bounds("distance", bootstrap.function(lambda means: means[0], [_grid(seen, "distance")])),
    }
