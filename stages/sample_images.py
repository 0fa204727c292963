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
from sgpipe.params.load import read_params, to_builtins
from sgpipe.runs.atomic import new_folder
from sgpipe.runs.command import run
from sgpipe.runs.config import Compute
from sgpipe.runs.processes import start
from sgpipe.runs.shards import Make, cut, run_shards
from sgpipe.runs.state import config_hash, file_hash
from stages import IMAGES, LORA, NEGATIVES_FILE, TRIPLES_FILE
from stages._stage import working


def main(
    arm: Annotated[str, typer.Option(help="base, or a training run in the folder of adapters")],
    epoch: Annotated[
        int | None, typer.Option(help="sample from this epoch's checkpoint, neutral prompts with g⁺ and g⁻ alone")
    ] = None,
) -> None:
    """Sample the images; killed at any point, the same command goes on."""
    config, backbone, compute = read_params(Evaluate, Backbone, Compute)
    if epoch is not None:
        check_runs([arm], config.adapters)
    given = "none" if arm == BASE else config.adapters.get(arm, "graphs" if epoch is not None else None)
    if given is None:
        raise ParamsError(f"--arm: got {arm!r}; valid: {BASE}, {', '.join(config.adapters)}")
    adapter = None if arm == BASE else LORA / arm / ("adapter" if epoch is None else f"epoch-{epoch}")
    if adapter is not None:
        check_adapter(adapter)
    name, out = arm, IMAGES / arm
    conditions: Mapping[Prompt, Sequence[Graph]] = config.conditions
    if epoch is not None:
        name, conditions = f"{arm}-{epoch}", {HEADLINE: ("positive", "negative")}
        out = Path("outputs/images_by_epoch") / name
    processes = start(compute)
    triples, negatives = read_table(TRIPLES_FILE, TRIPLES), read_table(NEGATIVES_FILE, NEGATIVES)
    requests = plan(read_evaluation_triples(triples, negatives, config.per_class, config.seen), conditions, config.seeds, given)
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
    plain, sections = {"evaluate": read, **who}, {"evaluate": config, "backbone": backbone}
    inputs = [TRIPLES_FILE, NEGATIVES_FILE, *([adapter] if adapter else [])]
    with working(f"sample_images@{name}", plain, sections, inputs, processes) as (state, recorded):
        run_shards(shards, state, processes, open_maker, "image")
        if processes.is_main:
            with new_folder(out) as folder:
                count = merge_images(shards, state, folder, {**who, "config": config_hash(plain)})
            recorded.log_metrics({"images": count})


if __name__ == "__main__":
    run(main)
