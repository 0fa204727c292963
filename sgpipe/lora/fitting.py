"""One arm from its inputs to its adapters: what the stage and the recipe search both run."""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sgpipe.attention_maps import MapOptions
from sgpipe.backbones.denoiser import Denoiser
from sgpipe.lora.adapter import build, counts, save_adapter
from sgpipe.lora.arms import Arm
from sgpipe.lora.coverage import TRAINED_ON, training_vocabulary
from sgpipe.lora.examples import Data, check_prompts
from sgpipe.lora.model import GraphLora
from sgpipe.lora.objective import Objective, Probe
from sgpipe.lora.state import History
from sgpipe.lora.targeting import target_modules
from sgpipe.lora.training import Training
from sgpipe.params.backbone import Backbone
from sgpipe.runs.processes import Processes
from sgpipe.tracking.run import StageRun

ATTENTION = {"native": "native", "math": "_native_math"}
Validated = Callable[[GraphLora, int], None]


@dataclass(frozen=True)
class Fitted:
    """A trained arm: the model with its final weights, what was seen on the way, and what it took.

    `taken` of its `steps` were made by this process, in `spent` seconds, of which it was `waiting` for data.
    """

    model: GraphLora
    history: History
    steps: int
    taken: int
    spent: float
    waiting: float


def prepare(denoiser: Denoiser, arm: Arm) -> None:
    """Set attention, checkpointing and fusion of blocks as the arm asks."""
    transformer: Any = denoiser.transformer
    transformer.set_attention_backend(ATTENTION[arm.lora.attention])
    if arm.lora.checkpointing:
        transformer.enable_gradient_checkpointing()
    transformer.train(arm.lora.dropout > 0)
    if arm.lora.compile:
        transformer.compile_repeated_blocks(fullgraph=True, dynamic=False)


def fit(
    arm: Arm,
    denoiser: Denoiser,
    backbone: Backbone,
    data: Data,
    folder: Path,
    processes: Processes,
    facts: Mapping[str, Any],
    *,
    probe: Probe | None = None,
    validated: Validated = lambda model, step: None,
    recorded: StageRun | None = None,
) -> Fitted:
    """Train an arm; `folder` holds its checkpoints, then `adapter` and `epoch-<n>`, as they are to be put out.

    Raises `DataError` before the first step where a prompt is missing that any step could take.
    """
    in_words = ("relational", "conflicting", "neutral")
    check_prompts(data, in_words if arm.graph_tokens is None else list(arm.lora.conditions.shares()))
    modules = target_modules(denoiser.layout, arm.lora)
    model = build(denoiser, backbone, arm, data.names.rms)
    numbers = counts(model)
    if processes.is_main:
        print(
            f"{arm.name}: LoRA on {numbers['lora_modules']} modules ({', '.join(_shortened(modules)) or 'none'}), "
            f"{numbers['lora_parameters']:,} numbers; tokens {numbers['token_parameters']:,}"
        )
    prepare(denoiser, arm)
    maps = MapOptions(arm.maps.groups, arm.maps.normalisation) if arm.maps else None
    pooling = arm.maps.concept_tokens if arm.maps else "first"
    objective = Objective(model, data, arm.lora.losses, maps=maps, pooling=pooling, probe=probe)

    shown = {TRAINED_ON: training_vocabulary(example.graph for example in data.train)}

    def keep(name: str) -> None:
        made = folder / f".{name}.tmp"
        shutil.rmtree(made, ignore_errors=True)
        save_adapter(made, model, arm, backbone, modules, {**facts, **shown})
        shutil.rmtree(folder / name, ignore_errors=True)
        made.rename(folder / name)

    training = Training(
        objective,
        arm.lora,
        folder,
        processes,
        validated=lambda step: validated(model, step),
        kept=lambda epoch: keep(f"epoch-{epoch}"),
        recorded=recorded,
    )
    history = training.run()
    if processes.is_main:
        with training.exported():
            keep("adapter")
    return Fitted(model, history, training.steps, training.taken, training.spent, training.waiting)


def _shortened(modules: list[str]) -> list[str]:
    """Module names with all blocks of one kind as a range: `transformer_blocks.{7,8}.attn.to_q`."""
    blocks: dict[tuple[str, str], list[str]] = {}
    for name in modules:
        stream, index, part = name.split(".", 2)
        blocks.setdefault((stream, part), []).append(index)
    return [f"{stream}.{{{','.join(found)}}}.{part}" for (stream, part), found in blocks.items()]
