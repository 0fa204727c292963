"""What an evaluation costs: sampling 160 triples × 3 seeds × 2 graphs, and counting everything again from stored images.

- `sampling`: g⁺ and g⁻ under neutral prompts, in the batches of params.yaml; with an adapter if `--adapter` names one, else the
  base model twice, which lacks the tokens of graphs and the LoRA's products.
- `rebuilding`: judging with every judge of params.yaml, calibrations, and all tables, from the images just stored.

Run `python -m benchmarks.evaluation`; `--check` fails above 3 minutes for sampling or 20 s for rebuilding.
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
from sgpipe.evaluation.calibration import questions
from sgpipe.evaluation.config import HEADLINE, Evaluate, JudgeParams, Statistics
from sgpipe.evaluation.judge_factory import open_judge
from sgpipe.evaluation.judging import Work, ground_truth_images, judge_maker, merge_verdicts
from sgpipe.evaluation.samples import ImageFile
from sgpipe.evaluation.sampling import image_maker, merge_images, open_generator
from sgpipe.evaluation.sampling_plan import BASE, NO_GRAPH, EvaluationTriple, SampleRequest, plan, read_evaluation_triples
from sgpipe.evaluation.summary import QualifiedJudges, evaluation_figures
from sgpipe.evaluation.verdicts import Verdicts
from sgpipe.params.load import read_section
from sgpipe.runs.atomic import DIGITS, write_json
from sgpipe.runs.processes import Processes
from sgpipe.runs.shards import cut, run_shards

TRIPLES_DRAWN, SAMPLING, REBUILDING = 160, 180.0, 20.0
CPU = Processes(0, 1, torch.device("cpu"))


def some_cases(triples: pa.Table, negatives: pa.Table, count: int) -> list[EvaluationTriple]:
    """Val triples and, where they are fewer than `count`, train triples beside them: images of either cost the same."""
    parts = [triples.filter(pc.equal(triples["split"], split)) for split in ("val", "train")]
    table = pa.concat_tables(parts).slice(0, count)
    if len(table) < count:
        raise DataError(f"--triples: got {count}; there are {len(table)} val and train triples")
    index = table.schema.get_field_index("split")
    split = pa.array(["val"] * count, table.schema.field(index).type)
    return read_evaluation_triples(table.set_column(index, table.schema.field(index), split), negatives)


def sample_arm(
    name: str, requests: list[SampleRequest], adapter: Path | None, backbone: Backbone, evaluate: Evaluate, folder: Path
) -> float:
    """Seconds for sampling and packing these images, the generator loaded before."""
    generator = open_generator(backbone, adapter, CPU.device, requests)
    state = folder / f"state-{name}"
    state.mkdir(parents=True)
    maker = image_maker(generator, requests, evaluate.steps, backbone.resolution, evaluate.batch_size)
    shards = cut("images", len(requests), evaluate.shard_size)
    begun = time.perf_counter()
    run_shards(shards, state, CPU, lambda: maker, "image")
    (folder / name).mkdir()
    merge_images(shards, state, folder / name, {"arm": name, "adapter": None, "backbone": ""})
    return time.perf_counter() - begun


def rebuild(
    cases: list[EvaluationTriple], folder: Path, params: Path, backbone: Backbone, evaluate: Evaluate
) -> tuple[float, dict[str, Any]]:
    """Seconds from stored images to all figures, models of judges loaded within; and the figures."""
    judges = read_section(params, "judge", JudgeParams)
    store = ImageStore(open_images(read_section(params, "data", Data)))
    begun = time.perf_counter()
    files = {path.name: ImageFile(path) for path in sorted(folder.iterdir()) if (path / "images.parquet").is_file()}
    work = Work(cases, files, questions(cases), tuple(judges.judges))
    state = folder / "state-judge"
    state.mkdir()
    maker = judge_maker(
        work,
        lambda name: open_judge(name, judges.judges[name], CPU.device),
        lambda: ground_truth_images(cases, store, backbone.resolution),
        judges.batch_size,
    )
    shards = work.shards(judges.shard_size)
    run_shards(shards, state, CPU, lambda: maker, "image")
    said = merge_verdicts(work, shards, state)
    qualified = QualifiedJudges.of(judges, said.calibration, read_section(params, "statistics", Statistics))
    found, _ = evaluation_figures(Verdicts(said.verdicts, cases, evaluate.seeds), qualified, files)
    return time.perf_counter() - begun, found


def main(
    adapter: Annotated[Path | None, typer.Option(help="adapter to sample with")] = None,
    params: Annotated[Path, typer.Option(help="parameter file")] = Path("params.yaml"),
    curated: Annotated[Path, typer.Option(help="folder of the triples")] = Path("outputs/curated"),
    negatives: Annotated[Path, typer.Option(help="table of the negatives")] = Path("outputs/negatives/negatives.parquet"),
    triples: Annotated[int, typer.Option(min=2, help="triples sampled, val before train; the bars are for 160")] = TRIPLES_DRAWN,
    check: Annotated[bool, typer.Option("--check", help="fail where a bar is missed")] = False,
    out: Annotated[Path | None, typer.Option(help="write the figures to this JSON file")] = None,
) -> None:
    """SampleRequest, judge and count."""
    backbone = read_section(params, "backbone", Backbone)
    evaluate = read_section(params, "evaluate", Evaluate)
    cases = some_cases(read_table(curated / "triples.parquet", TRIPLES), read_table(negatives, NEGATIVES), triples)
    with TemporaryDirectory() as name:
        folder = Path(name)
        if adapter:
            requests = plan(cases, {HEADLINE: ("positive", "negative")}, evaluate.seeds, "graphs")
            base = plan(cases, {HEADLINE: ("positive",)}, evaluate.seeds, "none")
            sample_arm(BASE, base, None, backbone, evaluate, folder)
            seconds = sample_arm("graph", requests, adapter, backbone, evaluate, folder)
            counted = len(requests)
        else:
            base = plan(cases, {HEADLINE: ("positive",)}, evaluate.seeds, "none")
            assert {each.graph for each in base} == {NO_GRAPH}
            seconds = sum(sample_arm(arm, base, None, backbone, evaluate, folder) for arm in (BASE, "again"))
            counted = 2 * len(base)
        rebuilt, found = rebuild(cases, folder, params, backbone, evaluate)
    figures = {
        "sampling": {"images": counted, "seconds": seconds, "adapter": adapter is not None},
        "rebuilding": {"images": found["triples"] * found["seeds"] * (3 if adapter else 2), "seconds": rebuilt},
    }
    print(f"sampling {counted} images: {seconds:.1f} s (bar {SAMPLING:g})")
    print(f"rebuilding all tables from stored images: {rebuilt:.1f} s (bar {REBUILDING:g})")
    if out:
        write_json(figures, out, DIGITS)
    if check and (seconds > SAMPLING or rebuilt > REBUILDING):
        sys.exit(1)


if __name__ == "__main__":
    typer.run(main)
