"""Saliency and cross-attention maps of the curated map triples, averaged over the sampling of an image each."""

from collections import Counter

import pyarrow as pa

from sgpipe.attention_maps.config import Saliency
from sgpipe.attention_maps.extract import Observer, Seen, map_items
from sgpipe.datasets.tables import PROMPTS as PROMPT_TABLE
from sgpipe.datasets.tables import TRIPLES, read_table
from sgpipe.params.load import read_params
from sgpipe.runs.command import run
from stages import MAP_TRIPLES_FILE, METRICS, PROMPTS, SALIENCY
from stages._maps import make_maps


def main() -> None:
    """Sample an image per triple with its concepts riding along; one Parquet of maps per layer group."""
    config = read_params(Saliency)
    said = read_table(PROMPTS / "prompts.parquet", PROMPT_TABLE)
    items = map_items(read_table(MAP_TRIPLES_FILE, TRIPLES), said, [config.condition], [None], config.seed)
    of_class, kept = Counter[str](), list[bool]()
    for predicate in items["predicate"].to_pylist():
        of_class[predicate] += 1
        kept.append(of_class[predicate] <= config.images)

    def see(observer: Observer, rows: pa.Table) -> Seen:
        return observer.along_sampling(rows, config.steps)

    facts = {"source": "generate", "steps": config.steps, "condition": config.condition}
    make_maps(config, items, see, facts, SALIENCY, METRICS / "saliency_maps.json", kept=kept, counted=config.counted)


if __name__ == "__main__":
    run(main)
