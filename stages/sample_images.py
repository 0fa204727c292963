"""The images of one arm for the evaluation: every validation triple, seed, prompt and graph."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from sgpipe.backbones.config import Backbone
from sgpipe.backbones.families import pipeline_parts
from sgpipe.backbones.source import identity
from sgpipe.datasets.tables import NEGATIVES, TRIPLES, read_table
from sgpipe.errors import ParamsError
from sgpipe.evaluation.config import HEADLINE, Evaluate, Graph, Prompt, check_runs
from sgpipe.evaluation.sampling import check_adapter, image_maker, merge_images, open_generator
from sgpipe.evaluation.sampling_plan import BASE, plan, read_evaluation_triples
from sgpipe.params.load import read_section, to_builtins
from sgpipe.runs.atomic import new_folder
from sgpipe.runs.command import run
from sgpipe.runs.config import Compute
from sgpipe.runs.processes import start
from sgpipe.runs.shards import Make, cut, run_shards
from sgpipe.runs.state import config_hash, file_hash
from stages._stage import working

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    arm: Annotated[str, typer.Option(help="base, or a training run in the folder of adapters")],
    epoch: Annotated[
        int | None, typer.Option(help="sample from this epoch's checkpoint, neutral prompts with g⁺ and g⁻ alone")
    ] = None,
    params: Annotated[Path, typer.Option(help="parameter file")] = Path("params.yaml"),
    curated: Annotated[Path, typer.Option(help="folder of the triples")] = Path("outputs/curated"),
    negatives: Annotated[Path, typer.Option(help="table of the negatives")] = Path("outputs/negatives/negatives.parquet"),
    adapters: Annotated[Path, typer.Option(help="folder of the adapters")] = Path("outputs/lora"),
    out: Annotated[
        Path | None, typer.Option(help="folder of the images; outputs/images/<arm>, or outputs/images_by_epoch/<arm>-<epoch>")
    ] = None,
) -> None:
    """SampleRequest the images; killed at any point, the same command goes on."""
    config = read_section(params, "evaluate", Evaluate)
    backbone = read_section(params, "backbone", Backbone)
    compute = read_section(params, "compute", Compute)
    if epoch is not None:
        check_runs([arm], config.adapters)
    given = "none" if arm == BASE else config.adapters.get(arm, "graphs" if epoch is not None else None)
    if given is None:
        raise ParamsError(f"--arm: got {arm!r}; valid: {BASE}, {', '.join(config.adapters)}")
    adapter = None if arm == BASE else adapters / arm / ("adapter" if epoch is None else f"epoch-{epoch}")
    if adapter is not None:
        check_adapter(adapter)
    conditions: Mapping[Prompt, Sequence[Graph]] = config.conditions
    if epoch is not None:
        conditions = {HEADLINE: ("positive", "negative")}
    name = arm if epoch is None else f"{arm}-{epoch}"
    out = out or Path("outputs/images" if epoch is None else "outputs/images_by_epoch") / name
    processes = start(compute)
    tables = [curated / "triples.parquet", negatives]
    cases = read_evaluation_triples(read_table(tables[0], TRIPLES), read_table(tables[1], NEGATIVES), config.per_class)
    requests = plan(cases, conditions, config.seeds, given)
    shards = cut("images", len(requests), config.shard_size)
    who = {
        "arm": name,
        "given": given,
        "backbone": config_hash(identity(backbone, pipeline_parts(backbone), resolution=backbone.resolution)),
        "adapter": file_hash(adapter)[:16] if adapter else None,
    }

    def open_maker() -> Make:
        generator = open_generator(backbone, adapter, processes.device, requests, config.guidance, compute.offload)
        return image_maker(generator, requests, config.steps, backbone.resolution, config.batch_size)

    read = {**to_builtins(config), "conditions": to_builtins(conditions)}
    del read["adapters"]  # another arm samples nothing anew
    plain = {"evaluate": read, **who}
    stage, inputs = f"sample_images@{name}", [*tables, *([adapter] if adapter else [])]
    with working(stage, plain, {"evaluate": config, "backbone": backbone}, inputs, params, processes) as (state, recorded):
        run_shards(shards, state, processes, open_maker, "image")
        if processes.is_main:
            with new_folder(out) as folder:
                count = merge_images(shards, state, folder, {**who, "config": config_hash(plain)})
            recorded.log_metrics({"images": count})


if __name__ == "__main__":
    run(app)
