"""This working tree against another revision of it, side by side: how much faster, on a quiet machine and on a busy one.

Both are checked out into folders of their own, with the same parameters, and make their outputs once. Then every pair is run one
after the other, in alternating order; a ratio is the median of the pairs' ratios, this tree over REV. Below 1 is better.

- `idle_stage_seconds`: the slowest stage all of whose work is done in its working state, less `import torch`; `idle` has each.
- `step_ratio`: seconds of a training step of the default, by the log of the stage, compilation left out.
- `busy_ratio`: this tree's training beside one busy process of the lowest priority, over its own quiet time; with `--repro`
  that of the whole pipeline.
- `maps_ratio`: sampling with concept maps over sampling without, within this tree (`benchmarks.attention_maps`).
- `evaluation_ratio`: the stages that sample and judge, per image.
- `peak_gib`: the largest resident size of a process of a stage of this tree; `peak` has each. Short settings hold fewer maps and
  crops than the default: the figure of the default is that with `--repro`.
- `repro_ratio` (`--repro`): `dvc repro` from nothing.
- `script_ratio` (`--script`): samples/s of this tree's training over those of another program, which prints them last.

Run `python -m benchmarks.against --rev REV` on a machine that does nothing else.
"""

import shlex
import shutil
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks._workspace import Workspace, busy_process, timed
from sgpipe.errors import SgpipeError
from sgpipe.runs.atomic import DIGITS, write_json
from sgpipe.runs.command import call

TRAINING = ("stages.train_lora", "--arm", "graph")
RESUMABLE: Mapping[str, tuple[str, ...]] = {
    "cache_prompts": ("stages.cache_prompts",),
    "cache_latents": ("stages.cache_latents",),
    "saliency": ("stages.saliency",),
    "saliency_noised": ("stages.saliency_noised",),
    "sample_base": ("stages.sample_images", "--arm", "base"),
    "sample_images@graph": ("stages.sample_images", "--arm", "graph"),
    "judge": ("stages.judge",),
    "localise": ("stages.localise",),
}
"""Stages that find all their work done in their working state, and then compute nothing."""
OTHERS: Mapping[str, tuple[str, ...]] = {
    "train_lora@graph": TRAINING,
    "graph_encoder": ("stages.graph_encoder",),
    "probe@early": ("stages.probe", "early"),
    "probe_words": ("stages.probe_words",),
    "saliency_sheets": ("stages.saliency_sheets",),
    "evaluate": ("stages.evaluate",),
    "report": ("stages.report",),
}
"""Further stages that may be large."""
EVALUATION = ("sample_base", "sample_images@graph", "judge")
SHORT: Mapping[str, Any] = {
    "curate.maps_per_class": 8, "probes.folds": 3, "probes.epochs": {"mlp": 1, "cnn": 1, "wrn": 1}, "probes.seeds": 1,
    "probes.noise_aware.epochs": 1, "graph_encoder.steps": 20, "train.epochs": 2, "train.keep_epochs": [1, 2],
    "train.validation.every": 2, "train.validation.triples": 8, "train.validation.images": 0, "ablation.epochs": [1, 2],
    "localise.pairs": 2, "statistics.resamples": 100,
}  # fmt: skip
"""Of the default what makes it shorter and no unit of it cheaper: fewer steps, fits, maps and pairs."""
TINY: Mapping[str, Any] = {
    **SHORT, "curate.train": 64, "curate.val": 16, "evaluate.seeds": [0], "saliency.steps": 1, "maps.batch_size": 4,
    "train.compile": False, "train.epochs": 4, "train.keep_epochs": [2, 4], "ablation.epochs": [2, 4],
    "localise.blocks": "7..8", "localise.heads": 0, "localise.steps": 1, "quality.reference": 16,
}  # fmt: skip
"""To see that all of it runs."""
MAPS = """
import json, sys, torch
from benchmarks.attention_maps import Shape, measure_time
small = Shape(heads=int(sys.argv[1]), width_t5=512, width_pooled=128, side=16, text=64, single=int(sys.argv[2]))
print(json.dumps(measure_time(small, "cpu", torch.float32, (1,), 4, int(sys.argv[3]))["batch_1"]["ratio"]))
"""

Measure = Callable[[Workspace], float]


def paired(measure: Measure, one: Workspace, other: Workspace, pairs: int) -> dict[str, Any]:
    """Median of both, and of `one` over `other`, over pairs in alternating order."""
    found: dict[str, list[float]] = {one.name: [], other.name: []}
    for pair in range(pairs):
        for workspace in (one, other) if pair % 2 else (other, one):
            found[workspace.name].append(measure(workspace))
    ratios = [a / b for a, b in zip(found[one.name], found[other.name], strict=True)]
    medians = {name: statistics.median(values) for name, values in found.items()}
    return {**medians, "ratio": statistics.median(ratios), "lowest": min(ratios), "highest": max(ratios)}


def step_seconds(workspace: Workspace) -> float:
    """Seconds of a training step: the median interval of the log, without the first, in which blocks are compiled."""
    workspace.forget_states()
    workspace.run(*TRAINING)
    lines = workspace.json("outputs/timings/train_lora-graph.jsonl")
    rates = [line["samples_per_second"] for line in lines[1:] or lines]
    return samples_of(workspace) / statistics.median(rates)


def samples_of(workspace: Workspace) -> int:
    """Samples of a training step."""
    train = workspace.json("outputs/resolved/graph.json")["train"]
    return train["batch_size"] * train["gradient_accumulation_steps"]


def evaluation_seconds(workspace: Workspace) -> float:
    """Seconds of the stages that sample and judge, from nothing, by image."""
    workspace.forget_states()
    seconds = sum(workspace.run(*RESUMABLE[name]).seconds for name in EVALUATION)
    return seconds / images(workspace)


COUNT = """
import sys, pyarrow.parquet as pq
print(sum(pq.read_metadata(path).num_rows for path in sys.argv[1:]))
"""


def images(workspace: Workspace) -> int:
    """Images of the evaluation."""
    files = [str(path) for name in ("base", "graph") for path in (workspace.folder / "outputs/images" / name).glob("*.parquet")]
    workspace.script(COUNT, *files)
    return int(workspace.said().split()[-1])


def measure_idle(workspaces: Sequence[Workspace], pairs: int) -> tuple[dict[str, Any], dict[str, float]]:
    """Seconds above `import torch` of each stage without work, by workspace; and the peak in GiB of the stages at work."""
    now = workspaces[0]
    seconds: dict[str, dict[str, list[float]]] = {name: {each.name: [] for each in workspaces} for name in RESUMABLE}
    peaks: dict[str, float] = {}
    for name, words in RESUMABLE.items():
        for workspace in workspaces:
            ran = workspace.keep_done(words)
            if workspace is now:
                peaks[name] = ran.peak_bytes / 2**30
    for name, words in OTHERS.items():
        now.forget_states()
        peaks[name] = now.run(*words).peak_bytes / 2**30
    for pair in range(pairs):
        for name, words in RESUMABLE.items():
            for workspace in workspaces[:: 1 if pair % 2 else -1]:
                base = workspace.script("import torch").seconds
                seconds[name][workspace.name].append(workspace.run_done(words).seconds - base)
    medians = {name: {each: statistics.median(values) for each, values in found.items()} for name, found in seconds.items()}
    return medians, peaks


def measure_busy(measure: Measure, workspace: Workspace, pairs: int) -> float:
    """Median of the ratios of a busy run to the quiet run beside it, in alternating order."""
    ratios = []
    for pair in range(pairs):
        found: dict[bool, float] = {}
        for busy in (False, True) if pair % 2 else (True, False):
            if busy:
                with busy_process():
                    found[busy] = measure(workspace)
            else:
                found[busy] = measure(workspace)
        ratios.append(found[True] / found[False])
    return statistics.median(ratios)


def revision(repository: Path) -> str:
    """A commit of the working tree as it is, edits of tracked files included."""
    made = subprocess.run(["git", "-C", str(repository), "stash", "create"], capture_output=True, text=True, check=True)
    return made.stdout.strip() or "HEAD"


def main(
    rev: Annotated[str, typer.Option(help="revision to compare with")],
    pairs: Annotated[int, typer.Option(min=1, help="pairs of runs")] = 3,
    tiny: Annotated[bool, typer.Option("--tiny", help="small settings, to see that all of it runs")] = False,
    only: Annotated[str, typer.Option(help="of step, busy, maps, evaluation, idle; `idle` measures peaks, too")] = "all",
    repro: Annotated[bool, typer.Option("--repro", help="whole runs with unchanged parameters, too; hours")] = False,
    script: Annotated[str | None, typer.Option(help="command of another trainer whose last line is samples per second")] = None,
    folder: Annotated[Path | None, typer.Option(help="keep the two checkouts here")] = None,
    out: Annotated[Path, typer.Option(help="metrics file")] = Path("metrics/speed.json"),
) -> None:
    """Measure, print, write."""
    known = ("step", "busy", "maps", "evaluation", "idle")
    chosen = known if only == "all" else tuple(only.split(","))
    if odd := set(chosen) - set(known):
        raise SgpipeError(f"--only: got {', '.join(sorted(odd))}; valid: all, {', '.join(known)}")
    repository = Path().resolve()
    place = folder.resolve() if folder else Path(tempfile.mkdtemp(prefix="against-"))
    settings = {} if repro else TINY if tiny else SHORT
    with ExitStack() as stack:
        made = []
        if folder is None:
            stack.callback(shutil.rmtree, place, ignore_errors=True)
        for name, commit in {"now": revision(repository), "rev": rev}.items():
            made.append(Workspace.make(name, repository, commit, place / name, settings))
            if folder is None:
                stack.callback(made[-1].remove, repository)
        found = measure(made, chosen, pairs, repro, tiny, script)
    for name, value in found.items():
        print(f"{name}: {value}")
    write_json({**found, "pairs": pairs, "rev": rev, "settings": "default" if repro else "tiny" if tiny else "short"}, out, DIGITS)


def measure(
    made: Sequence[Workspace], chosen: Sequence[str], pairs: int, repro: bool, tiny: bool, script: str | None
) -> dict[str, Any]:
    """All figures that are asked for."""
    now, rev = made
    found: dict[str, Any] = {}
    if repro:
        found["repro"] = paired(lambda each: each.pipeline().seconds, now, rev, pairs)
        found["repro_ratio"] = found["repro"]["ratio"]
        found["busy_ratio"] = measure_busy(lambda each: each.pipeline().seconds, now, pairs)
    else:
        for workspace in made:
            workspace.pipeline()
    if "step" in chosen:
        found["step"] = paired(step_seconds, now, rev, pairs)
        found["step_ratio"] = found["step"]["ratio"]
    if "busy" in chosen and not repro:
        found["busy_ratio"] = measure_busy(step_seconds, now, pairs)
    if "maps" in chosen:
        ratios = []
        for _ in range(pairs):
            now.script(MAPS, *(("1", "2", "1") if tiny else ("4", "38", "3")))
            ratios.append(float(now.said().split()[-1]))
        found["maps_ratio"] = statistics.median(ratios)
    if "evaluation" in chosen:
        found["evaluation"] = paired(evaluation_seconds, now, rev, pairs)
        found["evaluation_ratio"] = found["evaluation"]["ratio"]
    if "idle" in chosen:
        found["idle"], found["peak"] = measure_idle(made, pairs)
        found["idle_stage_seconds"] = max(each["now"] for each in found["idle"].values())
        found["peak_gib"] = max(found["peak"].values())
    if script is not None:
        log = now.folder / ".dvc" / "script.txt"
        rates = []
        for _ in range(pairs):
            own = samples_of(now) / step_seconds(now)
            timed(shlex.split(script), Path(), now.environment, log)
            rates.append(own / float(log.read_text(encoding="utf-8").split()[-1]))
        found["script_ratio"] = statistics.median(rates)
    return found


if __name__ == "__main__":
    call(lambda: typer.run(main))
