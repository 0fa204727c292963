"""What holds in every family whose prompts are as long as their tokens, asked by the tests of each."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from sgpipe.arms.adapter import build
from sgpipe.arms.config import Lora
from sgpipe.arms.kinds.base import Sections
from sgpipe.arms.model import ArmModel
from sgpipe.arms.resolve import resolve
from sgpipe.backbones.config import Backbone
from sgpipe.backbones.denoiser import Denoiser
from sgpipe.backbones.families import open_text_encoders
from sgpipe.graph_encoder.config import GraphTokens
from sgpipe.graph_encoder.open_vocabulary import NameTable
from sgpipe.graphs.scene_graph import SceneGraph
from sgpipe.training.fit import prepare
from tests.training.world import ARMS, CPU, tiny_train


def compiles_for_texts_of_any_length(backbone: Backbone, lora: Lora) -> None:
    """Lengths differ from batch to batch: with a compiled graph for each, dynamo soon ends the training at its limit."""
    arm = resolve("graph", ARMS["graph"], Sections(lora, tiny_train(compile=True), GraphTokens(), backbone))
    model, given = build(Denoiser.load(backbone, CPU), backbone, arm, 1.0), {}
    transformer: Any = model.denoiser.transformer
    transformer.compile_repeated_blocks = lambda **how: given.update(how)
    prepare(model, arm)
    assert given == {"fullgraph": True, "dynamic": None}


def adds_residual_tokens_at_words(
    model: ArmModel, backbone: Backbone, graph: SceneGraph, names: NameTable, wanted: Mapping[str, Sequence[int]]
) -> None:
    """A graph of dog and cat changes the `wanted` rows of each prompt and no others, at the start of a prompt, too."""
    model.adapter.parameters()["tokens"]["residual.gate"].data.fill_(0.5)
    encoders = open_text_encoders(backbone, CPU)
    for prompt, rows in wanted.items():
        plain = encoders.prompts([prompt])
        with torch.no_grad():
            found = model.condition([graph], [prompt], plain, names)
        assert (found.states != plain.states).any(-1)[0].nonzero().flatten().tolist() == rows
