"""One arm from its inputs to its adapters: what the stage and the recipe search both run.

Pictures of held-out triples along a training, at fixed seeds: the graph, its swap and no graph side by side.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from sgpipe.arms.adapter import build, counts, save_adapter
from sgpipe.arms.coverage import TRAINED_ON, training_vocabulary
from sgpipe.arms.model import GraphLora
from sgpipe.arms.resolve import Arm
from sgpipe.arms.targeting import target_modules
from sgpipe.attention_maps.options import MapOptions
from sgpipe.backbones.config import Backbone
from sgpipe.backbones.denoiser import Denoiser
from sgpipe.backbones.images import decode
from sgpipe.runs.atomic import atomic_path
from sgpipe.runs.processes import Processes
from sgpipe.tracking.run import StageRun
from sgpipe.training.config import Lora
from sgpipe.training.controls import chosen_condition, spoken
from sgpipe.training.examples import Data, Example, check_prompts
from sgpipe.training.loop import History, Training
from sgpipe.training.objective import Objective, Probe

COLUMNS = ("base", "graph", "swapped", "empty")


def spread(examples: Sequence[Example], count: int) -> list[Example]:
    """`count` examples, evenly spread over all; fewer where there are fewer."""
    places = np.linspace(0, len(examples) - 1, min(count, len(examples))).round().astype(int)
    return [examples[place] for place in places]


@torch.no_grad()
def draw_samples(model: GraphLora, data: Data, lora: Lora, vae: Any, resolution: int, path: Path) -> None:
    """Write one sheet of sample images, without dropout: a row per triple, the columns of `COLUMNS`.

    The noise is the same in a row and in every sheet.
    """
    examples = spread(data.held_out, lora.validation.pictures)
    kind = chosen_condition(lora, model.way)
    columns = []
    for name in COLUMNS:
        said = spoken(name, examples, examples, kind, model.way)
        prompts = data.prompts.get(said.texts)
        sampling = (range(len(examples)), resolution, lora.validation.steps, lora.guidance)
        with model.evaluating():
            if name == "base":
                with model.off():
                    latents = model.denoiser.sample(prompts, *sampling)
            else:
                context = model.context(said.graphs, said.texts, prompts, data.names)
                latents = model.sample(context, prompts, *sampling)
        columns.append(np.concatenate(list(decode(vae, latents))))
    with atomic_path(path) as temporary:
        Image.fromarray(np.concatenate(columns, axis=1)).save(temporary, format="PNG")


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
        with training.engine.averaged():
            keep("adapter")
    engine = training.engine
    return Fitted(model, history, engine.steps, engine.taken, engine.seconds, training.waiting)


def _shortened(modules: list[str]) -> list[str]:
    """Module names with all blocks of one kind as a range: `transformer_blocks.{7,8}.attn.to_q`."""
    blocks: dict[tuple[str, str], list[str]] = {}
    for name in modules:
        stream, index, part = name.split(".", 2)
        blocks.setdefault((stream, part), []).append(index)
    return [f"{stream}.{{{','.join(found)}}}.{part}" for (stream, part), found in blocks.items()]
