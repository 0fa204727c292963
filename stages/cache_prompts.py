"""Encodings of the unique prompts and concepts of the curated triples, or of the prompts of their negatives."""

import sys
from pathlib import Path
from typing import Annotated, Final

import pyarrow as pa
import typer

from sgpipe.backbones.config import Backbone, CachePrompts
from sgpipe.backbones.families import open_text_encoders, open_tokenizers
from sgpipe.backbones.prompt_cache import merge_prompts, prompt_identity, prompt_maker, prompt_shards
from sgpipe.backbones.truncation import unknown_tokens, warn
from sgpipe.datasets.tables import NEGATIVES, TRIPLES, read_table, write_table
from sgpipe.graphs.prompts import conflicting_prompts, curated_prompts, joined_concepts, unique_concepts, unique_texts
from sgpipe.params.load import read_params, to_builtins
from sgpipe.runs.atomic import new_folder
from sgpipe.runs.command import run, write_metrics
from sgpipe.runs.config import Compute
from sgpipe.runs.processes import start
from sgpipe.runs.shards import Make, run_shards
from sgpipe.runs.state import config_hash
from stages import MAP_TRIPLES_FILE, METRICS, PROMPTS, TRIPLES_FILE
from stages._stage import working

SHOWN: Final = 10
"""Unknown words are printed, no more than so many."""


def main(
    negatives: Annotated[
        Path | None, typer.Option(help="encode the prompts of this table of negatives, not those of the triples")
    ] = None,
    out: Annotated[Path, typer.Option(help="folder of the cache")] = PROMPTS,
    metrics: Annotated[Path, typer.Option(help="metrics file")] = METRICS / "cache_prompts.json",
) -> None:
    """Run T5 and CLIP once over every different prompt and concept; killed at any point, the same command goes on."""
    config, backbone, compute = read_params(CachePrompts, Backbone, Compute)
    processes = start(compute)
    stage, who = ("cache_negative_prompts" if negatives else "cache_prompts"), prompt_identity(backbone)
    inputs = [negatives] if negatives else [TRIPLES_FILE, MAP_TRIPLES_FILE]
    concepts: list[str] = []
    if negatives:
        asked = conflicting_prompts(read_table(negatives, NEGATIVES))
    else:
        triples = pa.concat_tables([read_table(path, TRIPLES) for path in inputs])
        asked, concepts = curated_prompts(triples, config.conditions, config.seed), unique_concepts(triples)
        if config.joined_concepts:
            concepts = sorted({*concepts, *joined_concepts(triples, asked)})
    prompts = unique_texts(asked)
    shards = prompt_shards(prompts, concepts, config.shard_size)

    def open_maker() -> Make:
        encoders = open_text_encoders(backbone, processes.device, compute.offload)
        return prompt_maker(encoders, prompts, concepts, config.batch_size, config_hash(who))

    plain = {"cache_prompts": to_builtins(config), "encoder": who}
    sections = {"cache_prompts": config, "backbone": backbone}
    with working(stage, plain, sections, inputs, processes, "cache_prompts") as (state, recorded):
        run_shards(shards, state, processes, open_maker, "text")
        if processes.is_main:
            with new_folder(out) as folder:
                counts = merge_prompts(shards, state, folder, prompts, concepts, who)
                write_table(asked, folder / "prompts.parquet")
            tokenizers = open_tokenizers(backbone)
            texts = tokenizers.prompts(prompts) + tokenizers.names(concepts)
            warn(texts, stage)
            for said in unknown_tokens(texts)[:SHOWN]:
                print(f"warning: {stage}: {said}", file=sys.stderr)
            truncated = {
                "texts": len({each.text for each in texts if each.truncated}),
                "in_names_or_relation": len({each.text for each in texts if each.loses_names}),
            }
            found = {
                **counts,
                "truncated": truncated,
                "unknown_words": len({word for each in texts for word in each.unknown}),
                "shards": len(shards),
                "encoder": config_hash(who),
            }
            write_metrics(found, metrics, plain, recorded)


if __name__ == "__main__":
    run(main)
