"""A twin of SGDiff: its noise predictor trained on the crops and graphs of the other arms, for arms of kind `sgdiff`."""

from pathlib import Path
from typing import Annotated

import pyarrow.compute as pc
import torch
import typer

from sgpipe.backbones.config import Backbone
from sgpipe.backbones.latent_cache import LatentCache
from sgpipe.backbones.loading import load_module
from sgpipe.backbones.source import identity
from sgpipe.datasets.tables import TRIPLES, read_table
from sgpipe.errors import ParamsError
from sgpipe.graphs.scene_graph import graphs_of
from sgpipe.optim.log import Interval, publish_log
from sgpipe.params.load import read_params, to_builtins
from sgpipe.runs.command import run, write_metrics
from sgpipe.runs.config import Compute
from sgpipe.runs.processes import start
from sgpipe.sgdiff.config import SgDiffParams
from sgpipe.sgdiff.training import TrainingSet, fresh_twin, train
from stages import LATENTS, METRICS, SGDIFF, TRIPLES_FILE
from stages._stage import working

ENCODER = Path("outputs/graph_encoder")


def main(seed: Annotated[int, typer.Option(help="which of `sgdiff.twins` to train")]) -> None:
    """Train and write the generator's folder; killed at any point, the same command goes on."""
    params, backbone, compute = read_params(SgDiffParams, Backbone, Compute)
    if seed not in params.twins:
        raise ParamsError(f"--seed: got {seed}; valid: {', '.join(map(str, params.twins)) or 'none'}, as sgdiff.twins has them")
    processes = start(compute)
    if processes.count > 1:
        raise ParamsError(f"compute.launch: got {processes.count} processes; train_sgdiff is of one")
    name, plain = f"train_sgdiff@{seed}", {"twin": to_builtins(params.twin), "seed": seed}
    who = identity(backbone, ("vae",), resolution=backbone.resolution)
    settings = {**plain, "vae": who, "threads": torch.get_num_threads(), "deterministic": compute.deterministic}
    inputs = [TRIPLES_FILE, LATENTS, ENCODER]
    with working(name, settings, {"twin": params.twin, "backbone": backbone}, inputs, processes) as (state, recorded):
        cache = LatentCache(LATENTS, backbone)
        table = read_table(TRIPLES_FILE, TRIPLES)
        table = cache.available(table.filter(pc.equal(table["split"], "train")))
        vae = load_module(backbone, "vae").float()
        model = fresh_twin(ENCODER, vae, backbone.resolution, params.twin, seed, processes.device)
        data = TrainingSet.of(model, table["triple_id"].to_pylist(), graphs_of(table), cache)

        def logged(interval: Interval) -> None:
            recorded.log_step(interval.step, {"loss/train": interval.means["loss"]})

        engine = train(model, data, params.twin, seed, state, logged)
        model.save(SGDIFF / str(seed))
        count = sum(weight.numel() for weight in model.predictor.parameters())
        found = {"steps": engine.step, "parameters": count, "triples": len(data.ids), "loss": engine.intervals[-1].means["loss"]}
        publish_log(state, name.replace("@", "-"))
        write_metrics(found, METRICS / "sgdiff" / f"{seed}.json", plain, recorded)


if __name__ == "__main__":
    run(main)
