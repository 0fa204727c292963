"""Which blocks the generator uses for a relation: patched and ablated blocks, and what the judge says of the samples."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from sgpipe.attention_maps.config import Maps
from sgpipe.backbones.config import Backbone
from sgpipe.backbones.families import pipeline_parts, read_layout
from sgpipe.backbones.source import identity, locate
from sgpipe.datasets.tables import NEGATIVES, TRIPLES, read_table, write_table
from sgpipe.evaluation.config import JudgeParams, Statistics
from sgpipe.evaluation.judge_factory import judge_identity
from sgpipe.evaluation.sampling import check_adapter
from sgpipe.evaluation.sampling_plan import read_evaluation_triples
from sgpipe.evaluation.statistics import Bootstrap
from sgpipe.localisation.config import Localise
from sgpipe.localisation.figures import head_figures, localisation_figures, strongest
from sgpipe.localisation.measure import EFFECTS, HEADS, SAMPLES, Opened, Plan
from sgpipe.localisation.pairs import items_of
from sgpipe.params.load import read_params, to_builtins
from sgpipe.runs.atomic import new_folder
from sgpipe.runs.command import run, write_metrics
from sgpipe.runs.config import Compute
from sgpipe.runs.processes import start
from sgpipe.runs.shards import Shard, cut, run_shards
from sgpipe.runs.state import config_hash, file_hash
from stages import METRICS, NEGATIVES_FILE, TRIPLES_FILE
from stages._stage import working

OUT = Path("outputs/localisation")


def main() -> None:
    """Intervene on every block; killed at any point, the same command goes on."""
    config, backbone, judges, statistics = read_params(Localise, Backbone, JudgeParams, Statistics)
    compute, maps = read_params(Compute, Maps)
    adapter = Path(config.adapter) if config.adapter else None
    if adapter is not None:
        check_adapter(adapter)
    layout = read_layout(locate(backbone, ("transformer", "vae", "scheduler")), backbone)
    plan = Plan.of(config, maps, layout)
    processes = start(compute)
    triples, negatives = read_table(TRIPLES_FILE, TRIPLES), read_table(NEGATIVES_FILE, NEGATIVES)
    items = items_of(read_evaluation_triples(triples, negatives), config.pairs, config.seeds)
    shards = cut("items", len(items) * plan.units, config.shard_size * plan.units)

    opened = Opened(backbone, plan, items, judges, processes.device, compute.offload)
    plain = {
        "localise": to_builtins(config),
        "groups": {name: list(blocks) for name, blocks in plan.groups.items()},
        "backbone": config_hash(identity(backbone, pipeline_parts(backbone), resolution=backbone.resolution)),
        "adapter": file_hash(adapter)[:16] if adapter else None,
        "judge": judge_identity(judges.headline, judges.judges[judges.headline]),
    }
    sections = {"localise": config, "backbone": backbone, "judge": judges, "statistics": statistics}
    inputs = [TRIPLES_FILE, NEGATIVES_FILE, *([adapter] if adapter else [])]
    with working("localise", plain, sections, inputs, processes) as (state, recorded):
        run_shards(shards, state, processes, opened.maker, "intervention")
        heads = _read(shards, state, "heads", HEADS)
        sets = strongest(heads, config.heads) if config.heads else {}
        by_item = cut("heads", len(items), config.shard_size) if sets else []
        run_shards(by_item, state, processes, lambda: opened.head_maker(sets), "triple")
        if processes.is_main:
            effects, samples = _read(shards, state, "effects", EFFECTS), _read(shards, state, "samples", SAMPLES)
            bootstrap = Bootstrap(statistics.resamples, statistics.confidence, statistics.seed)
            found = localisation_figures(effects, samples, plan.groups, bootstrap)
            if sets:
                heads = pa.concat_tables([heads, _read(by_item, state, "heads", HEADS)])
                found |= head_figures(heads, sets, bootstrap)
            with new_folder(OUT) as folder:
                for name, table in (("effects", effects), ("samples", samples), ("heads", heads)):
                    write_table(table, folder / f"{name}.parquet")
            write_metrics({"judge": judges.headline, **found}, METRICS / "localisation.json", plain, recorded)


def _read(shards: Sequence[Shard], state: Path, name: str, schema: pa.Schema) -> pa.Table:
    """A table of all finished shards, in their order."""
    return pa.concat_tables(pq.read_table(state / shard.name / f"{name}.parquet") for shard in shards).cast(schema)


if __name__ == "__main__":
    run(main)
