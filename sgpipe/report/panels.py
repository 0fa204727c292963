"""Panels: prompt, scene graph, and the same noise sampled by every arm.

A sheet of images for the README: random triples, the same noise without adapter, under g⁺ and under g⁻.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image

from sgpipe.errors import ParamsError
from sgpipe.evaluation.config import HEADLINE
from sgpipe.evaluation.samples import ImageFile, Pixels
from sgpipe.evaluation.sampling_plan import NO_GRAPH, EvaluationTriple
from sgpipe.evaluation.summary import QualifiedJudges
from sgpipe.evaluation.verdicts import Condition, Verdicts
from sgpipe.report.config import Report
from sgpipe.report.figures import scene_graph
from sgpipe.runs.hashing import hashed, text_ids

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import polars as pl

from sgpipe.evaluation.sampling_plan import BASE
from sgpipe.runs.atomic import atomic_path

ROWS = ((BASE, NO_GRAPH, "base"), ("graph", "positive", "graph g⁺"), ("graph", "negative", "graph g⁻"))


def sample_sheet(images: Path, triples: Path, seed: int, count: int, out: Path) -> None:
    """Write a PNG of `count` val triples in columns, under neutral prompts; the choice depends on `seed` and the ids alone.

    `images` is the folder of the arms' images. Raises `DataError` where `base` or `graph` was not sampled.
    """
    files = {arm: ImageFile(images / arm) for arm, _, _ in ROWS}
    items = {arm: pl.DataFrame(file.items).with_row_index("row") for arm, file in files.items()}
    known = pl.read_parquet(triples).filter(pl.col("split") == "val")
    ids = known["triple_id"].to_list()
    chosen = [ids[i] for i in np.argsort(hashed(seed, "panels", text_ids(ids)), kind="stable")[:count]]
    first = items[BASE]["seed"].min()
    figure, axes = plt.subplots(len(ROWS), len(chosen), figsize=(1.15 * len(chosen), 3.9), squeeze=False, layout="constrained")
    for column, triple in enumerate(chosen):
        said = known.row(by_predicate=pl.col("triple_id") == triple, named=True)
        axes[0][column].set_title(f"{said['subject']}\n{said['predicate']}\n{said['object']}", fontsize=8)
        for row, (arm, graph, label) in enumerate(ROWS):
            frame = items[arm].filter(
                (pl.col("triple_id") == triple)
                & (pl.col("prompt") == HEADLINE)
                & (pl.col("graph") == graph)
                & (pl.col("seed") == first)
            )
            axes[row][column].imshow(files[arm].read([frame.item(0, "row")])[0], interpolation="nearest")
            axes[row][column].set(xticks=[], yticks=[])
            if not column:
                axes[row][column].set_ylabel(label, fontsize=9)
    with atomic_path(out) as temporary:
        figure.savefig(temporary, format="png", dpi=100, metadata={"Software": None})
    plt.close(figure)


SIDE = 256
"""Images are shown no larger than this many pixels."""


@dataclass(frozen=True)
class Shown:
    """One image of a panel: what drew it, its data URI, and what the judge says of it."""

    label: str
    uri: str
    verdict: str
    alt: str


@dataclass(frozen=True)
class Panel:
    """One triple and seed."""

    triple_id: str
    prompt: str
    positive: str
    negative: str
    graph: str
    shown: tuple[Shown, ...]


def data_uri(pixels: Pixels, side: int = SIDE) -> str:
    """A PNG in the page itself; larger images are shrunk."""
    image = Image.fromarray(pixels)
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    image.save(stream, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def file_uri(path: Path, width: int) -> str:
    """An image file in the page itself, no wider than `width` pixels."""
    with Image.open(path) as image:
        converted = image.convert("RGB")
    converted.thumbnail((width, 4 * width), Image.Resampling.LANCZOS)
    return data_uri(np.asarray(converted), 4 * width)


def _verdict(positive: float, negative: float) -> str:
    if not np.isfinite(positive) or not np.isfinite(negative):
        return "objects not found"
    if positive == negative:
        return "neither"
    return "as g⁺" if positive > negative else "as g⁻"


def pick(report: Report, verdicts: Verdicts, qualified: QualifiedJudges, arm: str) -> dict[str, list[EvaluationTriple]]:
    """Triples of the chosen, the random and the worst panels. The random ones depend on the seed and the ids alone.

    The worst are those of whose g⁺ images by `arm` the fewest are judged right, among classes that the judge may judge.
    """
    cases = {case.triple_id: case for case in verdicts.cases}
    for name in report.chosen:
        if name not in cases:
            raise ParamsError(
                f"report.chosen: got {name!r}, which is no evaluated triple; valid are ids such as {next(iter(cases))}"
            )
    ranks = hashed(report.seed, "panels", text_ids(list(cases)))
    chosen = [list(cases)[i] for i in np.argsort(ranks, kind="stable")[: report.random]]
    judge = qualified.judges.headline
    right = (verdicts.scored(Condition(arm, HEADLINE, "positive"), judge).choices == 1).mean(1)
    may = qualified.mask(judge, verdicts.cases, directional=False)
    order = [i for i in np.argsort(right, kind="stable") if may[i]][: report.worst]
    picked = {
        "chosen": [cases[name] for name in report.chosen],
        "random": [cases[name] for name in chosen],
        "worst": [verdicts.cases[i] for i in order],
    }
    return {kind: several for kind, several in picked.items() if several}


def columns(arms: Mapping[str, str]) -> list[tuple[str, Condition]]:
    """Labels and conditions of a panel's images, from the arms and what each is given."""
    found: list[tuple[str, Condition]] = []
    for arm, given in arms.items():
        if given == "graphs":
            found += [(f"{arm} {sign}", Condition(arm, HEADLINE, g)) for sign, g in (("g⁺", "positive"), ("g⁻", "negative"))]
        else:
            found.append((arm, Condition(arm, HEADLINE, NO_GRAPH)))
    return found


def panels(
    cases: Sequence[EvaluationTriple], arms: Mapping[str, str], files: Mapping[str, ImageFile], verdicts: Verdicts, judge: str
) -> list[Panel]:
    """A panel per case, of the first seed under the neutral prompt."""
    rows = {case.triple_id: row for row, case in enumerate(verdicts.cases)}
    seed = verdicts.seeds[0]
    shown_by = columns(arms)
    at: dict[tuple[str, str, str], int] = {}
    for arm in arms:
        items = files[arm].items
        names = (items[name].to_pylist() for name in ("triple_id", "prompt", "graph", "seed"))
        for index, (triple, prompt, graph, of_seed) in enumerate(zip(*names, strict=True)):
            if prompt == HEADLINE and of_seed == seed:
                at[arm, triple, graph] = index
    made = []
    for case in cases:
        shown = []
        for label, condition in shown_by:
            image = files[condition.arm].read([at[condition.arm, case.triple_id, condition.graph]])[0]
            scored = verdicts.scored(condition, judge)
            row = rows[case.triple_id]
            verdict = _verdict(scored.positive[row, 0], scored.negative[row, 0])
            alt = f"{label}: image for {' '.join(case.positive)}; judge {judge} says {verdict}"
            shown.append(Shown(label, data_uri(image), verdict, alt))
        made.append(
            Panel(
                case.triple_id,
                case.prompts["neutral"],
                "; ".join(map(" ".join, case.graph.named)),
                "; ".join(map(" ".join, case.negative_graph.named)),
                "".join(scene_graph(*triple) for triple in case.graph.named),
                tuple(shown),
            )
        )
    return made
