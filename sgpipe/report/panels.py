"""Panels: prompt, scene graph, and the same noise sampled by every arm, for the page and as a sheet for the README."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from matplotlib.figure import Figure
from PIL import Image

from sgpipe.datasets.given import given_table
from sgpipe.datasets.tables import TRIPLES
from sgpipe.errors import ParamsError
from sgpipe.evaluation.config import HEADLINE
from sgpipe.evaluation.samples import ImageFile, Pixels
from sgpipe.evaluation.sampling_plan import BASE, NO_GRAPH, EvaluationTriple
from sgpipe.evaluation.summary import QualifiedJudges
from sgpipe.evaluation.verdicts import Condition, Verdicts
from sgpipe.report.config import Report
from sgpipe.report.figures import scene_graph
from sgpipe.runs.atomic import atomic_path
from sgpipe.runs.hashing import hashed, text_ids

ROWS = ((BASE, NO_GRAPH, "base"), ("graph", "positive", "graph g⁺"), ("graph", "negative", "graph g⁻"))
"""Arm, graph and label of each row of the README's sheet."""
ABOUT = {
    "chosen": "Named by report.chosen.",
    "random": "Taken by report.seed, never by eye.",
    "worst": "The triples of whose images under g⁺ the fewest show it, over all seeds, among the classes that the judge may judge.",
}
"""What each kind of `pick` is."""
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
    predicates: tuple[str, ...] = ()
    """The classes of g⁺, by which the page filters."""
    right: str = ""
    """In how many of the seeds each arm that is given graphs shows g⁺."""


def at_random(triple_ids: Sequence[str], seed: int, count: int) -> list[str]:
    """`count` of the ids; the choice depends on the seed and the ids alone."""
    return [triple_ids[i] for i in np.argsort(hashed(seed, "panels", text_ids(triple_ids)), kind="stable")[:count]]


def sample_sheet(images: Path, triples: Path, seed: int, count: int, out: Path) -> None:
    """Write a PNG of `count` val triples in columns (`at_random`), of the least seed under neutral prompts.

    `images` is the folder of the arms' images. Raises `DataError` where `base` or `graph` was not sampled, and for a file that
    is no table of triples.
    """
    columns = ["triple_id", "split", "subject", "predicate", "object"]
    table = given_table("--triples", triples, TRIPLES, "outputs/curated/triples.parquet", columns)
    files = {arm: ImageFile(images / arm) for arm, _, _ in ROWS}
    known = pl.DataFrame(table).filter(split="val").rows_by_key("triple_id", named=True, unique=True)
    chosen = at_random(list(known), seed, count)
    first = [min(files[BASE].items["seed"].to_pylist())]
    figure = Figure(figsize=(1.15 * len(chosen), 3.9), layout="constrained")
    axes = figure.subplots(len(ROWS), len(chosen), squeeze=False)
    for (arm, graph, label), row in zip(ROWS, axes, strict=True):
        row[0].set_ylabel(label, fontsize=9)
        pixels = files[arm].read(files[arm].rows(HEADLINE, graph, chosen, first)[:, 0])
        for axis, image in zip(row, pixels, strict=True):
            axis.imshow(image, interpolation="nearest")
            axis.set(xticks=[], yticks=[])
    for axis, triple in zip(axes[0], chosen, strict=True):
        said = known[triple]
        axis.set_title(f"{said['subject']}\n{said['predicate']}\n{said['object']}", fontsize=8)
    with atomic_path(out) as temporary:
        figure.savefig(temporary, format="png", dpi=100, metadata={"Software": None})


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
    judge = qualified.judges.headline
    right = (verdicts.scored(Condition(arm, HEADLINE, "positive"), judge).choices == 1).mean(1)
    may = qualified.mask(judge, verdicts.cases, directional=False)
    order = [i for i in np.argsort(right, kind="stable") if may[i]][: report.worst]
    picked = {
        "chosen": [cases[name] for name in report.chosen],
        "random": [cases[name] for name in at_random(list(cases), report.seed, report.random)],
        "worst": [verdicts.cases[i] for i in order],
    }
    return {kind: several for kind, several in picked.items() if several}


def panels(
    cases: Sequence[EvaluationTriple], arms: Mapping[str, str], files: Mapping[str, ImageFile], verdicts: Verdicts, judge: str
) -> list[Panel]:
    """A panel per case, of the first seed under neutral prompts; `arms` are those shown, with what each is given."""
    columns: list[tuple[str, Condition]] = []
    for arm, given in arms.items():
        if given == "graphs":
            columns += [(f"{arm} {sign}", Condition(arm, HEADLINE, g)) for sign, g in (("g⁺", "positive"), ("g⁻", "negative"))]
        else:
            columns.append((arm, Condition(arm, HEADLINE, NO_GRAPH)))
    rows = [verdicts.cases.index(case) for case in cases]
    given_graphs = [arm for arm, given in arms.items() if given == "graphs"]
    right = {arm: (verdicts.scored(Condition(arm, HEADLINE, "positive"), judge).choices == 1).sum(1) for arm in given_graphs}
    shown: list[list[Shown]] = [[] for _ in cases]
    for label, condition in columns:
        file, scored = files[condition.arm], verdicts.scored(condition, judge)
        at = file.rows(HEADLINE, condition.graph, [case.triple_id for case in cases], verdicts.seeds[:1])
        for case, row, image, own in zip(cases, rows, file.read(at[:, 0]), shown, strict=True):
            verdict = _verdict(scored.positive[row, 0], scored.negative[row, 0])
            alt = f"{label}: image for {' '.join(case.positive)}; judge {judge} says {verdict}"
            own.append(Shown(label, data_uri(image), verdict, alt))
    return [
        Panel(
            case.triple_id,
            case.prompts["neutral"],
            "; ".join(map(" ".join, case.graph.named)),
            "; ".join(map(" ".join, case.negative_graph.named)),
            "".join(scene_graph(*triple) for triple in case.graph.named),
            tuple(own),
            tuple(predicate for _, predicate, _ in case.graph.triples),
            "; ".join(f"{arm} shows g⁺ in {of[row]} of {len(verdicts.seeds)} seeds" for arm, of in right.items()),
        )
        for case, row, own in zip(cases, rows, shown, strict=True)
    ]
