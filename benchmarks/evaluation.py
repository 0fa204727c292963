"""What an evaluation costs: drawing 160 triples × 3 seeds × 2 graphs, and counting everything again from stored pictures.

- `drawing`: g⁺ and g⁻ under neutral prompts, in the batches of params.yaml; with an adapter if `--adapter` names one, else the
  base model twice, which lacks the tokens of graphs and the LoRA's products.
- `rebuilding`: judging with every judge of params.yaml, certificates, and all tables, from the pictures just stored.

Run `python -m benchmarks.evaluation`; `--check` fails above 3 minutes for drawing or 20 s for rebuilding.
"""

import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.compute as pc
import torch
import typer

from sgpipe.backbones.config import Backbone
from sgpipe.datasets.config import Data
from sgpipe.datasets.images import ImageStore, open_images
from sgpipe.datasets.tables import NEGATIVES, TRIPLES, read_table
from sgpipe.errors import DataError
from sgpipe.evaluation.certificates import questions
from sgpipe.evaluation.config import HEADLINE, Evaluate, JudgeParams, Statistics
from sgpipe.evaluation.judge_factory import open_judge
from sgpipe.evaluation.judging import Work, judge_maker, merge_verdicts, true_pictures
from sgpipe.evaluation.samples import PictureFile
from sgpipe.evaluation.sampling import merge_pictures, open_generator, picture_maker
from sgpipe.evaluation.sampling_plan import BASE, NO_GRAPH, Case, Draw, plan, read_cases
from sgpipe.evaluation.summary import Jury, evaluation_figures
from sgpipe.evaluation.verdicts import Verdicts
from sgpipe.params.load import read_section
from sgpipe.runs.atomic import DIGITS, write_json
from sgpipe.runs.processes import Processes
from sgpipe.runs.shards import cut, run_shards

TRIPLES_DRAWN, DRAWING, REBUILDING = 160, 180.0, 20.0
CPU = Processes(0, 1, torch.device("cpu"))


def some_cases(triples: pa.Table, negatives: pa.Table, count: int) -> list[Case]:
    """Val triples and, where they are fewer than `count`, train triples beside them: pictures of either cost the same."""
    parts = [triples.filter(pc.equal(triples["split"], split)) for split in ("val", "train")]
    table = pa.concat_tables(parts).slice(0, count)
    if len(table) < count:
        raise DataError(f"--triples: got {count}; there are {len(table)} val and train triples")
    index = table.schema.get_field_index("split")
    split = pa.array(["val"] * count, table.schema.field(index).type)
    return read_cases(table.set_column(index, table.schema.field(index), split), negatives)


def draw_arm(
    name: str, draws: list[Draw], adapter: Path | None, backbone: Backbone, evaluate: Evaluate, folder: Path
) -> float:
    """Seconds for drawing and packing these pictures, the generator loaded before."""
    generator = open_generator(backbone, adapter, CPU.device, draws)
    state = folder / f"state-{name}"
    state.mkdir(parents=True)
    maker = picture_maker(generator, draws, evaluate.steps, backbone.resolution, evaluate.batch_size)
    shards = cut("pictures", len(draws), evaluate.shard_size)
    begun = time.perf_counter()
    run_shards(shards, state, CPU, lambda: maker, "picture")
    (folder / name).mkdir()
    merge_pictures(shards, state, folder / name, {"arm": name, "adapter": None, "backbone": ""})
    return time.perf_counter() - begun


def rebuild(
    cases: list[Case], folder: Path, params: Path, backbone: Backbone, evaluate: Evaluate
) -> tuple[float, dict[str, Any]]:
    """Seconds from stored pictures to all figures, models of judges loaded within; and the figures."""
    judges = read_section(params, "judge", JudgeParams)
    store = ImageStore(open_images(read_section(params, "data", Data)))
    begun = time.perf_counter()
    files = {
        path.name: PictureFile(path)
        for path in sorted(folder.iterdir())
        if (path / "pictures.parquet").is_file()
    }
    work = Work(cases, files, questions(cases), tuple(judges.judges))
    state = folder / "state-judge"
    state.mkdir()
    maker = judge_maker(
        work,
        lambda name: open_judge(name, judges.judges[name], CPU.device),
        lambda: true_pictures(cases, store, backbone.resolution),
        judges.batch_size,
    )
    shards = work.shards(judges.shard_size)
    run_shards(shards, state, CPU, lambda: maker, "picture")
    said = merge_verdicts(work, shards, state)
    jury = Jury.of(judges, said.asked, read_section(params, "statistics", Statistics))
    found, _ = evaluation_figures(Verdicts(said.verdicts, cases, evaluate.seeds), jury, files)
    return time.perf_counter() - begun, found


def main(
    adapter: Annotated[Path | None, typer.Option(help="adapter whose pictures are drawn")] = None,
    params: Annotated[Path, typer.Option(help="parameter file")] = Path("params.yaml"),
    curated: Annotated[Path, typer.Option(help="folder of the triples")] = Path("outputs/curated"),
    negatives: Annotated[Path, typer.Option(help="table of the negatives")] = Path(
        "outputs/negatives/negatives.parquet"
    ),
    triples: Annotated[
        int, typer.Option(min=2, help="triples drawn, val before train; the bars are for 160")
    ] = TRIPLES_DRAWN,
    check: Annotated[bool, typer.Option("--check", help="fail where a bar is missed")] = False,
    out: Annotated[Path | None, typer.Option(help="write the figures to this JSON file")] = None,
) -> None:
    """Draw, judge and count."""
    backbone = read_section(params, "backbone", Backbone)
    evaluate = read_section(params, "evaluate", Evaluate)
    cases = some_cases(
        read_table(curated / "triples.parquet", TRIPLES), read_table(negatives, NEGATIVES), triples
    )
    with TemporaryDirectory() as name:
        folder = Path(name)
        if adapter:
            draws = plan(cases, {HEADLINE: ("positive", "negative")}, evaluate.seeds, "graphs")
            base = plan(cases, {HEADLINE: ("positive",)}, evaluate.seeds, "none")
            draw_arm(BASE, base, None, backbone, evaluate, folder)
            seconds = draw_arm("graph", draws, adapter, backbone, evaluate, folder)
            counted = len(draws)
        else:
            base = plan(cases, {HEADLINE: ("positive",)}, evaluate.seeds, "none")
            assert {each.graph for each in base} == {NO_GRAPH}
            seconds = sum(draw_arm(arm, base, None, backbone, evaluate, folder) for arm in (BASE, "again"))
            counted = 2 * len(base)
        rebuilt, found = rebuild(cases, folder, params, backbone, evaluate)
    figures = {
        "drawing": {"pictures": counted, "seconds": seconds, "adapter": adapter is not None},
        "rebuilding": {
            "pictures": found["triples"] * found["seeds"] * (3 if adapter else 2),
            "seconds": rebuilt,
        },
    }
    print(f"drawing {counted} pictures: {seconds:.1f} s (bar {DRAWING:g})")
    print(f"rebuilding all tables from stored pictures: {rebuilt:.1f} s (bar {REBUILDING:g})")
    if out:
        write_json(figures, out, DIGITS)
    if check and (seconds > DRAWING or rebuilt > REBUILDING):
        sys.exit(1)


if __name__ == "__main__":
    typer.run(main)
