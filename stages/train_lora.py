"""One arm, from caches to its adapters."""

import csv
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from msgspec import structs

from sgpipe.arms.adapter import base_identity, counts
from sgpipe.arms.external import save_external
from sgpipe.arms.model import ArmModel
from sgpipe.arms.resolve import Arm, read_arm
from sgpipe.backbones.config import Backbone
from sgpipe.backbones.denoiser import Denoiser
from sgpipe.backbones.families import family_of_backbone
from sgpipe.backbones.loading import load_module, place
from sgpipe.backbones.source import identity
from sgpipe.optim.compiled import cache_use
from sgpipe.optim.log import TIMINGS, publish_log
from sgpipe.params.load import read_params
from sgpipe.runs.atomic import atomic_path, new_folder, write_json
from sgpipe.runs.command import run, write_metrics
from sgpipe.runs.config import Compute
from sgpipe.runs.processes import start
from sgpipe.runs.state import config_hash
from sgpipe.tracking.git import said
from sgpipe.training.controls import CONDITIONS
from sgpipe.training.examples import Sources, read_data
from sgpipe.training.fit import Images, draw_samples, fit
from sgpipe.training.groups import group_figures
from sgpipe.training.loop import Training
from sgpipe.training.objective import Probe
from stages import LORA, METRICS, PLOTS, RESOLVED
from stages._stage import working

LIBRARIES = ("torch", "diffusers", "transformers", "peft", "safetensors", "accelerate", "numpy")
LOADER = "sgpipe.arms.logged_model"
"""What opens an adapter for MLflow."""
PROVENANCE = Path("outputs/provenance")
"""Like `TIMINGS` a folder on which nothing depends: what it holds differs between runs of one training."""


def write_rows(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """A CSV with a column for every key, numbers with six digits."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)


def figures(training: Training) -> dict[str, Any]:
    """What the metrics file holds of a training: the same in every run of it."""
    found: dict[str, Any] = {**counts(training.model), "steps": training.steps, "precision": training.train.precision}
    if training.history.controls:
        last = training.history.controls[-1]
        found |= {f"val_loss_{name}": last["losses"][name] for name in CONDITIONS}
        found |= {"preference_accuracy": last["preferred"], "preference_accuracy_by_t": last["preferred_by_t"]}
    return found


def open_probe(arm: Arm) -> Probe | None:
    """The noise-aware probe of L_rel-rank, where that has a weight."""
    ranking = arm.train.losses.ranking
    if not ranking.weight:
        return None
    from sgpipe.probes.noise_aware import load_noise_aware  # type: ignore[import-not-found,unused-ignore]

    found = load_noise_aware(Path(str(ranking.probe)))
    return Probe(found.logits, found.kinds, found.classes, arm.maps.side if arm.maps else None)


def record_external(arm: Arm, backbone: Backbone) -> None:
    """The outputs of an arm that is a generator of its own: nothing is trained, so figures and curves are empty."""
    with new_folder(LORA / arm.name) as new:
        save_external(new / "adapter", arm, backbone)
    for name in ("controls", "training"):
        write_rows([], PLOTS / "lora" / arm.name / f"{name}.csv")
    write_metrics({"external": True}, METRICS / "lora" / f"{arm.name}.json", arm.plain())
    print(f"{arm.name}: kind {arm.kind} is a generator of its own; nothing is trained")


def main(arm: Annotated[str, typer.Option(help="which of `arms` to train")]) -> None:
    """Train; killed at any point, the same command goes on and ends with the same adapters."""
    backbone, compute = read_params(Backbone, Compute)
    chosen = read_arm(RESOLVED / f"{arm}.json")
    if chosen.external:
        return record_external(chosen, backbone)
    train, plain = chosen.train, chosen.plain()
    processes = start(compute)
    sources, stage = Sources(), f"train_lora@{arm}"
    who = {**base_identity(backbone, family_of_backbone(backbone)), "vae": identity(backbone, ("vae", "scheduler"))}
    inputs = [*sources.paths(), RESOLVED / f"{arm}.json", *chosen.adapter.files(chosen.settings).values()]
    sections = {"arm": chosen.settings, "train": train, "backbone": backbone}
    settings = {**plain, "backbone": who, "threads": torch.get_num_threads(), "deterministic": compute.deterministic}
    begun = time.perf_counter()
    with working(stage, settings, sections, inputs, processes) as (folder, recorded):
        data = read_data(sources, backbone)
        vae = load_module(backbone, "vae")
        place(vae, processes.device, "none")

        sheets: dict[str, Images] = {}

        def validated(model: ArmModel, step: int) -> None:
            if train.validation.images:
                path = folder / "samples" / f"step-{step:06d}.png"
                draw_samples(model, data, train, vae, backbone.resolution, path, sheets)
                recorded.log_image(path, "samples", step)

        def trained(folder: Path, epochs: int, keep_epochs: Sequence[int], **more: Any) -> Training:
            arm = replace(chosen, train=structs.replace(train, epochs=epochs, keep_epochs=tuple(keep_epochs)))
            denoiser, facts = Denoiser.load(backbone, processes.device, compute.offload), {"config": config_hash(plain)}
            return fit(arm, denoiser, backbone, data, folder, processes, facts, probe=open_probe(arm), **more)

        # an epoch needs a training of its own where the rate falls, which has come down at the last one alone
        kept = [epoch for epoch in train.keep_epochs if train.optimiser.schedule == "constant" or epoch == train.epochs]
        shorter = {epochs: folder / f".{epochs}-epochs" for epochs in train.keep_epochs if epochs not in kept}
        for epochs, own in shorter.items():
            own.mkdir(exist_ok=True)
            trained(own, epochs, ())
        training = trained(folder, train.epochs, kept, validated=validated, recorded=recorded)
        if processes.is_main:
            with new_folder(LORA / arm) as new:
                for made in sorted(folder.iterdir()):
                    if made.is_dir() and not made.name.startswith("."):
                        shutil.copytree(made, new / made.name)
                for epochs, own in shorter.items():
                    shutil.copytree(own / "adapter", new / f"epoch-{epochs}")
            plots, stem, found = PLOTS / "lora" / arm, stage.replace("@", "-"), figures(training)
            found |= group_figures(training) if chosen.triples is not None else {}
            history, engine = training.history, training.engine
            controls = [{"step": e["step"], **e["losses"], "preferred": e["preferred"]} for e in history.controls]
            write_rows(controls, plots / "controls.csv")
            write_rows(history.steps, plots / "training.csv")
            took = {
                "seconds": time.perf_counter() - begun,
                "seconds_per_step": engine.seconds / max(1, engine.taken),
                "data_share": training.waiting / engine.seconds if engine.seconds else 0.0,
            }
            write_metrics(found, METRICS / "lora" / f"{arm}.json", plain)
            sizes = ("steps", *counts(training.model))
            recorded.log_params({name: found[name] for name in sizes})
            recorded.log_metrics({**{name: value for name, value in found.items() if name not in sizes}, **took})
            publish_log(folder, stem)
            for epochs, own in shorter.items():
                publish_log(own, f"{stem}-{epochs}-epochs")
            write_json({**took, **({"compiled": cache_use()} if train.compile else {})}, TIMINGS / f"{stem}.json")
            libraries = {name: version(name) for name in LIBRARIES}
            provenance = {"commit": said(Path(), "rev-parse", "HEAD") or None, "libraries": libraries}
            write_json({**provenance, "device": processes.device.type}, PROVENANCE / f"{stem}.json")
            recorded.log_artifact(PROVENANCE / f"{stem}.json")
            used = {"model": backbone.model, "device": "cpu", "steps": train.validation.steps, "size": backbone.resolution}
            told = {"kind": chosen.kind, "config": config_hash(plain)}
            recorded.log_model(LORA / arm / "adapter", LOADER, arm, training.steps, used, told)


if __name__ == "__main__":
    run(main)
