"""One arm, from caches to its adapters."""

import csv
import shutil
import subprocess
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from msgspec import structs

from sgpipe.arms.adapter import base_identity, counts
from sgpipe.arms.model import ArmModel
from sgpipe.arms.resolve import Arm, read_arm
from sgpipe.backbones.config import Backbone
from sgpipe.backbones.denoiser import Denoiser
from sgpipe.backbones.families import family_of_backbone
from sgpipe.backbones.loading import load_module, place
from sgpipe.backbones.source import identity
from sgpipe.optim.log import TIMINGS, publish_log
from sgpipe.params.load import read_section
from sgpipe.runs.atomic import atomic_path, new_folder, write_json
from sgpipe.runs.command import run, write_metrics
from sgpipe.runs.config import Compute
from sgpipe.runs.processes import start
from sgpipe.runs.shards import shared_state
from sgpipe.runs.state import config_hash, fingerprint
from sgpipe.tracking.run import StageRun, track
from sgpipe.training.controls import CONDITIONS
from sgpipe.training.examples import Sources, read_data
from sgpipe.training.fit import Fitted, draw_samples, fit
from sgpipe.training.loop import History
from sgpipe.training.objective import Probe

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
LIBRARIES = ("torch", "diffusers", "transformers", "peft", "safetensors", "accelerate", "numpy")
PROVENANCE = Path("outputs/provenance")
"""Like `TIMINGS` a folder on which nothing depends: what it holds differs between runs of one training."""


def write_rows(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """A CSV with a column for every key, numbers with six digits."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, names, lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})


def figures(fitted: Fitted) -> dict[str, Any]:
    """What the metrics file holds of a training: the same in every run of it."""
    found: dict[str, Any] = {**counts(fitted.model), "steps": fitted.steps}
    if fitted.history.controls:
        last = fitted.history.controls[-1]
        found |= {f"val_loss_{name}": last["losses"][name] for name in CONDITIONS}
        found |= {"preference_accuracy": last["preferred"], "preference_accuracy_by_t": last["preferred_by_t"]}
    return found


def timings(fitted: Fitted, seconds: float) -> dict[str, float]:
    """What a training took: seconds in all and per step, and the share of a step spent waiting for data."""
    return {
        "seconds": seconds,
        "seconds_per_step": fitted.spent / max(1, fitted.taken),
        "data_share": fitted.waiting / fitted.spent if fitted.spent else 0.0,
    }


def provenance(device: torch.device) -> dict[str, Any]:
    """By what a training was made: commit, library versions, kind of device."""
    done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return {"commit": done.stdout.strip() or None, "libraries": {name: version(name) for name in LIBRARIES}, "device": device.type}


def control_rows(history: History) -> list[dict[str, Any]]:
    """Rows of `controls.csv`."""
    return [
        {"step": row["step"], **{name: row["losses"][name] for name in CONDITIONS}, "preferred": row["preferred"]}
        for row in history.controls
    ]


def separately(arm: Arm) -> list[int]:
    """Kept epochs that need a training of their own: a falling rate has come down at the last epoch alone."""
    if arm.train.optimiser.schedule == "constant":
        return []
    return [epoch for epoch in arm.train.keep_epochs if epoch < arm.train.epochs]


def open_probe(arm: Arm) -> Probe | None:
    """The noise-aware probe of L_rel-rank, where that has a weight."""
    ranking = arm.train.losses.ranking
    if not ranking.weight:
        return None
    from sgpipe.probes.noise_aware import load_noise_aware  # type: ignore[import-not-found,unused-ignore]

    found = load_noise_aware(Path(str(ranking.probe)))
    return Probe(found.logits, found.kinds, found.classes, arm.maps.side if arm.maps else None)


@app.command()
def main(
    arm: Annotated[str, typer.Option(help="which of `arms` to train")],
    params: Annotated[Path, typer.Option(help="parameter file")] = Path("params.yaml"),
    resolved: Annotated[Path, typer.Option(help="folder of the resolved arms")] = Path("outputs/resolved"),
    out: Annotated[Path | None, typer.Option(help="folder; outputs/lora/<arm> by default")] = None,
    metrics: Annotated[Path | None, typer.Option(help="file; metrics/lora/<arm>.json by default")] = None,
    plots: Annotated[Path | None, typer.Option(help="folder; plots/lora/<arm> by default")] = None,
) -> None:
    """Train; killed at any point, the same command goes on and ends with the same adapters."""
    backbone = read_section(params, "backbone", Backbone)
    compute = read_section(params, "compute", Compute)
    chosen = read_arm(resolved / f"{arm}.json")
    processes = start(compute)
    out, metrics = out or Path("outputs/lora") / arm, metrics or Path("metrics/lora") / f"{arm}.json"
    plots = plots or Path("plots/lora") / arm
    sources = Sources()
    plain = chosen.plain()
    who = {**base_identity(backbone, family_of_backbone(backbone)), "vae": identity(backbone, ("vae", "scheduler"))}
    stage = f"train_lora@{arm}"
    inputs = [*sources.paths(), resolved / f"{arm}.json"]
    inputs += chosen.adapter.files(chosen.settings).values()
    sections = {"arm": chosen.settings, "train": chosen.train, "backbone": backbone}
    settings = {**plain, "backbone": who, "threads": torch.get_num_threads(), "deterministic": compute.deterministic}
    digest = fingerprint("stages.train_lora", settings, inputs, Path(), processes.device_kind)
    recording = track(stage, sections, inputs, params, fingerprint=digest) if processes.is_main else nullcontext(StageRun())
    facts = {"config": config_hash(plain)}
    begun = time.perf_counter()
    with shared_state(stage, digest, Path(), processes) as folder, recording as recorded:
        data = read_data(sources, backbone, chosen.train.dev)
        vae = load_module(backbone, "vae")
        place(vae, processes.device, "none")

        def validated(model: ArmModel, step: int) -> None:
            if chosen.train.validation.images:
                path = folder / "samples" / f"step-{step:06d}.png"
                draw_samples(model, data, chosen.train, vae, backbone.resolution, path)
                recorded.log_artifact(path, "samples")

        def trained(arm: Arm, folder: Path, **more: Any) -> Fitted:
            denoiser = Denoiser.load(backbone, processes.device, compute.offload)
            return fit(arm, denoiser, backbone, data, folder, processes, facts, probe=open_probe(arm), **more)

        shorter = separately(chosen)
        for epochs in shorter:
            own = folder / f".{epochs}-epochs"
            own.mkdir(exist_ok=True)
            trained(replace(chosen, train=structs.replace(chosen.train, epochs=epochs, keep_epochs=())), own)
        kept = tuple(epoch for epoch in chosen.train.keep_epochs if epoch not in shorter)
        whole = replace(chosen, train=structs.replace(chosen.train, keep_epochs=kept))
        fitted = trained(whole, folder, validated=validated, recorded=recorded)
        if processes.is_main:
            with new_folder(out) as new:
                for made in sorted(folder.iterdir()):
                    if made.is_dir() and not made.name.startswith("."):
                        shutil.copytree(made, new / made.name)
                for epochs in shorter:
                    shutil.copytree(folder / f".{epochs}-epochs" / "adapter", new / f"epoch-{epochs}")
            write_rows(control_rows(fitted.history), plots / "controls.csv")
            write_rows(fitted.history.steps, plots / "training.csv")
            found, took = figures(fitted), timings(fitted, time.perf_counter() - begun)
            write_metrics(found, metrics, plain)
            sizes = ("steps", *counts(fitted.model))
            recorded.log_params({name: found[name] for name in sizes})
            recorded.log_metrics({**{name: value for name, value in found.items() if name not in sizes}, **took})
            stem = stage.replace("@", "-")
            name = f"{stem}.json"
            publish_log(folder, stem)
            for epochs in shorter:
                publish_log(folder / f".{epochs}-epochs", f"{stem}-{epochs}-epochs")
            write_json(took, TIMINGS / name)
            write_json(provenance(processes.device), PROVENANCE / name)
            recorded.log_artifact(PROVENANCE / name)
            recorded.log_artifact(out / "adapter", "adapter")


if __name__ == "__main__":
    run(app)
