"""The VAE's posterior for the crop of every curated triple."""

from pathlib import Path
from typing import Annotated

import pyarrow as pa
import typer

from sgpipe.backbones.config import Backbone, CacheLatents
from sgpipe.backbones.images import Scaling, say_rescaled
from sgpipe.backbones.latent_cache import Crops, latent_identity, latent_maker, merge_latents
from sgpipe.backbones.loading import load_module, place
from sgpipe.backbones.source import locate, part_configs
from sgpipe.datasets.config import Data
from sgpipe.datasets.images import ImageStore, open_images
from sgpipe.datasets.tables import TRIPLES, read_table
from sgpipe.params.load import read_section, to_builtins
from sgpipe.runs.atomic import new_folder
from sgpipe.runs.command import run, write_metrics
from sgpipe.runs.config import Compute
from sgpipe.runs.processes import start
from sgpipe.runs.shards import Make, cut, run_shards
from sgpipe.runs.state import config_hash
from stages._stage import working

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    params: Annotated[Path, typer.Option(help="parameter file")] = Path("params.yaml"),
    curated: Annotated[Path, typer.Option(help="folder of the triples")] = Path("outputs/curated"),
    out: Annotated[Path, typer.Option(help="folder of the cache")] = Path("outputs/latents"),
    metrics: Annotated[Path, typer.Option(help="metrics file")] = Path("metrics/cache_latents.json"),
) -> None:
    """Encode every different crop once; unreadable images become rejects; killed at any point, the same command goes on."""
    config = read_section(params, "cache_latents", CacheLatents)
    backbone = read_section(params, "backbone", Backbone)
    compute = read_section(params, "compute", Compute)
    data = read_section(params, "data", Data)
    processes = start(compute)
    who, store = latent_identity(backbone), ImageStore(open_images(data))
    inputs = [curated / "triples.parquet", curated / "map_triples.parquet"]
    crops = Crops.of(pa.concat_tables([read_table(path, TRIPLES) for path in inputs]))
    shards = cut("latents", len(crops), config.shard_size)

    def open_maker() -> Make:
        vae = load_module(backbone, "vae")
        place(vae, processes.device, "none")
        return latent_maker(vae, store.load, crops, backbone.resolution, config.batch_size, config_hash(who))

    plain = {"cache_latents": to_builtins(config), "encoder": who}
    sections = {"cache_latents": config, "backbone": backbone, "data": data}
    state_config = {**plain, "images": store.signature()}
    with working("cache_latents", state_config, sections, inputs, params, processes) as (state, recorded):
        run_shards(shards, state, processes, open_maker, "crop")
        if processes.is_main:
            with new_folder(out) as folder:
                vae_config = part_configs(locate(backbone, ("vae",)), ("vae",))["vae"]
                counts = merge_latents(shards, state, folder, crops, who, Scaling.of(vae_config))
            found = {**counts, "shards": len(shards), "encoder": config_hash(who)}
            write_metrics(found, metrics, plain)
            say_rescaled("cache_latents", counts["crops"]["rescaled"], counts["crops"]["read"])
            recorded.log_metrics(found)


if __name__ == "__main__":
    run(app)
