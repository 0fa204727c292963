"""The VAE's posterior for the crop of every curated triple."""

import json

import pyarrow as pa

from sgpipe.backbones.config import Backbone, CacheLatents
from sgpipe.backbones.families import family_of_backbone
from sgpipe.backbones.images import say_rescaled
from sgpipe.backbones.latent_cache import Crops, latent_identity, latent_maker, merge_latents
from sgpipe.backbones.loading import load_module, place
from sgpipe.datasets.config import Data
from sgpipe.datasets.images import ImageStore, open_images
from sgpipe.datasets.tables import TRIPLES, read_table
from sgpipe.params.load import read_params, to_builtins
from sgpipe.runs.atomic import new_folder, write_json
from sgpipe.runs.command import run, write_metrics
from sgpipe.runs.config import Compute
from sgpipe.runs.processes import start
from sgpipe.runs.shards import Make, cut, run_shards
from sgpipe.runs.state import config_hash
from stages import LATENTS, MAP_TRIPLES_FILE, METRICS, TRIPLES_FILE
from stages._stage import working

STATISTICS = "statistics.json"
"""Beside the shards: the scale of the latents, as the VAE that made them says."""


def main() -> None:
    """Encode every different crop once; unreadable images become rejects; killed at any point, the same command goes on."""
    config, backbone, compute, data = read_params(CacheLatents, Backbone, Compute, Data)
    processes = start(compute)
    family, who, store = family_of_backbone(backbone), latent_identity(backbone), ImageStore(open_images(data))
    inputs = [TRIPLES_FILE, MAP_TRIPLES_FILE]
    crops = Crops.of(pa.concat_tables([read_table(path, TRIPLES) for path in inputs]))
    shards = cut("latents", len(crops), config.shard_size)

    def open_maker() -> Make:
        vae = load_module(backbone, "vae")
        write_json(family.statistics(vae), state / STATISTICS)
        place(vae, processes.device, "none")
        return latent_maker(family, vae, store.load, crops, backbone.resolution, config.batch_size, config_hash(who))

    plain = {"cache_latents": to_builtins(config), "encoder": who}
    sections = {"cache_latents": config, "backbone": backbone, "data": data}
    settings = {**plain, "images": store.signature()}
    with working("cache_latents", settings, sections, inputs, processes) as (state, recorded):
        run_shards(shards, state, processes, open_maker, "crop")
        if processes.is_main:
            with new_folder(LATENTS) as folder:
                statistics = json.loads((state / STATISTICS).read_bytes()) if shards else {}
                counts = merge_latents(shards, state, folder, crops, who, statistics)
            found = {**counts, "shards": len(shards), "encoder": config_hash(who)}
            write_metrics(found, METRICS / "cache_latents.json", plain, recorded)
            say_rescaled("cache_latents", counts["crops"]["rescaled"], counts["crops"]["read"])


if __name__ == "__main__":
    run(main)
