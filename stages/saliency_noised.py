"""Saliency and cross-attention maps of the real images of the map triples, noised, under true, wrong and neutral prompts."""

import pyarrow as pa

from sgpipe.attention_maps.config import NoisedMaps
from sgpipe.attention_maps.extract import Observer, Seen, map_items
from sgpipe.backbones.config import Backbone
from sgpipe.backbones.latent_cache import LatentCache
from sgpipe.datasets.tables import PROMPTS as PROMPT_TABLE
from sgpipe.datasets.tables import TRIPLES, read_table
from sgpipe.params.load import read_params
from sgpipe.runs.command import run
from stages import LATENTS, MAP_TRIPLES_FILE, METRICS, PROMPTS, SALIENCY_NOISED
from stages._maps import make_maps


def main() -> None:
    """One forward per triple, prompt and time, of its real image's latents with noise added."""
    config, backbone = read_params(NoisedMaps, Backbone)
    cache = LatentCache(LATENTS, backbone)
    table = cache.available(read_table(MAP_TRIPLES_FILE, TRIPLES))
    said = read_table(PROMPTS / "prompts.parquet", PROMPT_TABLE)
    items = map_items(table, said, config.conditions, config.times, config.seed)

    def see(observer: Observer, rows: pa.Table) -> Seen:
        return observer.of_noised(rows, cache.latents(rows["triple_id"].to_pylist()))

    facts = {"source": "noised", "times": list(config.times), "conditions": list(config.conditions)}
    metrics, none = METRICS / "saliency_noised.json", [False] * items.num_rows
    make_maps(config, items, see, facts, SALIENCY_NOISED, metrics, kept=none, inputs=[LATENTS])


if __name__ == "__main__":
    run(main)
