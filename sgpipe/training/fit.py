"""One arm from its inputs to its adapters: what the stage and the recipe search both run.

Images of held-out triples along a training, at fixed seeds: the graph, its swap and no graph side by side.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from sgpipe.arms.adapter import build, save_adapter
from sgpipe.arms.coverage import TRAINED_ON, training_vocabulary
from sgpipe.arms.lora import count
from sgpipe.arms.model import ArmModel
from sgpipe.arms.resolve import Arm
from sgpipe.attention_maps.options import MapOptions
from sgpipe.backbones.config import Backbone
from sgpipe.backbones.denoiser import Denoiser
from sgpipe.backbones.images import decode
from sgpipe.optim.compiled import compile_blocks, keep_compiled
from sgpipe.runs.atomic import atomic_path, new_folder
from sgpipe.runs.processes import Processes
from sgpipe.tracking.run import StageRun
from sgpipe.training.config import Train
from sgpipe.training.controls import chosen_condition, spoken
from sgpipe.training.examples import Data, Example, check_prompts
from sgpipe.training.loop import Training
from sgpipe.training.objective import Objective, Probe

Images = NDArray[np.uint8]
COLUMNS = ("base", "graph", "swapped", "empty")


def spread(examples: Sequence[Example], count: int) -> list[Example]:
    """`count` examples, evenly spread over all; fewer where there are fewer."""
    places = np.linspace(0, len(examples) - 1, min(count, len(examples))).round().astype(int)
    return [examples[place] for place in places]


@torch.no_grad()
def draw_samples(
    model: ArmModel, data: Data, train: Train, vae: Any, resolution: int, path: Path, known: dict[str, Images] | None = None
) -> None:
    """Write one sheet of sample images, without dropout: a row per triple, the columns of `COLUMNS`.

    The noise is the same in a row and in every sheet, and so are the base's images: with `known` they are sampled for the first
    sheet alone.
    """
    known = {} if known is None else known
    examples = spread(data.held_out, train.validation.images)
    kind, columns = chosen_condition(train, model.mode), []
    sampling = (range(len(examples)), resolution, train.validation.steps, train.guidance)
    for name in COLUMNS:
        if name in known:
            columns.append(known[name])
            continue
        said = spoken(name, examples, kind, model.mode)
        prompts = data.prompts.get(said.texts)
        with model.evaluating(), model.off() if name == "base" else nullcontext():
            if name == "base":
                latents = model.denoiser.sample(prompts, *sampling)
            else:
                latents = model.sample(model.condition(said.graphs, said.texts, prompts, data.names), prompts, *sampling)
        columns.append(np.concatenate(list(decode(model.denoiser.family, vae, latents))))
        if name == "base":
            known[name] = columns[-1]
    with atomic_path(path) as temporary:
        Image.fromarray(np.concatenate(columns, axis=1)).save(temporary, format="PNG")


def prepare(model: ArmModel, arm: Arm) -> None:
    """Set attention, checkpointing and fusion of blocks as the arm asks."""
    transformer: Any = model.denoiser.transformer
    transformer.set_attention_backend({"native": "native", "math": "_native_math"}[arm.train.attention])
    if arm.train.gradient_checkpointing:
        transformer.enable_gradient_checkpointing()
    transformer.train(model.adapter.dropout > 0)
    if arm.train.compile:
        keep_compiled()
        # one shape that stays is compiled for itself; of several, the second is compiled for all
        compile_blocks(transformer, dynamic=False if model.denoiser.family.fixed_length else None)


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
    validated: Callable[[ArmModel, int], None] = lambda model, step: None,
    recorded: StageRun | None = None,
) -> Training:
    """Train an arm; `folder` holds its checkpoints, then `adapter` and `epoch-<n>`, as they are to be put out.

    Raises `DataError` before the first step where a prompt is missing that any step could take.
    """
    data = data if arm.triples is None else data.only(arm.triples)
    model = build(denoiser, backbone, arm, data.names.rms)
    in_words = ("relational", "conflicting", "neutral")
    check_prompts(data, in_words if model.mode == "text" else list(arm.train.conditions.shares()))
    if processes.is_main:
        groups = model.adapter.parameters()
        numbers = "; ".join(f"{group} {count(weights):,} numbers" for group, weights in groups.items())
        print(f"{arm.name}: {numbers}; LoRA on {', '.join(_modules(groups.get('lora', {}))) or 'no module'}")
    prepare(model, arm)
    maps = MapOptions(arm.maps.groups, arm.maps.normalisation, variant=arm.maps.variant) if arm.maps else None
    pooling = arm.maps.concept_tokens if arm.maps else "first"
    objective = Objective(model, data, arm.train.losses, maps=maps, pooling=pooling, probe=probe)
    shown = {**facts, TRAINED_ON: training_vocabulary(example.graph for example in data.train)}

    def keep(name: str) -> None:
        with new_folder(folder / name) as made:
            save_adapter(made, model, arm, backbone, shown)

    training = Training(
        objective,
        arm.train,
        folder,
        processes,
        validated=lambda step: validated(model, step),
        kept=lambda epoch: keep(f"epoch-{epoch}"),
        recorded=recorded,
    )
    training.run()
    if processes.is_main:
        with training.engine.averaged():
            keep("adapter")
    return training


def _modules(weights: Iterable[str]) -> list[str]:
    """Modules that LoRA's weights sit on, all blocks of one kind as a range: `transformer_blocks.{7,8}.attn.to_q`."""
    blocks: dict[tuple[str, str], list[str]] = {}
    for name in dict.fromkeys(weight.partition(".lora_")[0] for weight in weights):
        stream, index, part = name.split(".", 2)
        blocks.setdefault((stream, part), []).append(index)
    return [f"{stream}.{{{','.join(found)}}}.{part}" for (stream, part), found in blocks.items()]
