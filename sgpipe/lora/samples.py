"""Pictures of held-out triples along a training, at fixed seeds: the graph, its swap and no graph side by side."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from sgpipe.backbones.images import decode
from sgpipe.lora.controls import chosen_condition, spoken
from sgpipe.lora.examples import Data, Example
from sgpipe.lora.model import GraphLora
from sgpipe.params.lora import Lora
from sgpipe.runs.atomic import atomic_path

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
