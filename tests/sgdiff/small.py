"""A small SGDiff with random weights, and its state dict as the official training writes it."""

from typing import Any

import torch
from torch import Tensor

from sgpipe.graph_encoder.cgip import Cgip, CgipConfig
from sgpipe.graph_encoder.vocabulary import Vocabulary
from sgpipe.sgdiff.model import SgDiff
from sgpipe.sgdiff.names import EMA, ENCODER, FIRST_STAGE, PREDICTOR, ema_name, first_stage_name, is_kernel
from sgpipe.sgdiff.networks import FirstStageConfig, NoisePredictor, PredictorConfig, first_stage
from sgpipe.sgdiff.published import predictor_names
from sgpipe.sgdiff.schedule import registered_buffers

OBJECTS = ("dog", "cat", "mat", *(f"thing{n}" for n in range(40)))
VOCABULARY = Vocabulary.of(OBJECTS, ("left of", "on", "near"))


def small(resolution: int = 64, seed: int = 0) -> SgDiff:
    """A generator of base width 32 and two codes' dozen; every weight is random, the zero-initialised ones too."""
    torch.manual_seed(seed)
    encoder = Cgip(CgipConfig(len(VOCABULARY.objects), len(VOCABULARY.predicates), width=24, embed=32, layers=2))
    predictor = NoisePredictor(PredictorConfig(base=32, context=32))
    model = SgDiff(encoder, VOCABULARY, predictor, first_stage(FirstStageConfig(base=32, codes=64)), resolution)
    for part in (encoder, predictor, model.first_stage):
        for weight in part.parameters():
            if weight.ndim > 1:
                torch.nn.init.normal_(weight, std=1.2 / weight[0].numel() ** 0.5)
            else:
                weight.data += 0.1 * torch.randn_like(weight)
    return model


def official_state(model: SgDiff) -> dict[str, Tensor]:
    """The model's state dict under the published names; the raw predictor differs from its average."""
    state: dict[str, Tensor] = dict(registered_buffers())
    own = model.predictor.state_dict()
    for name, published in predictor_names(model.predictor).items():
        state[PREDICTOR + published] = own[name] + 1
        state[EMA + ema_name(published)] = own[name]
    state |= {f"{EMA}decay": torch.tensor(0.9999), f"{EMA}num_updates": torch.tensor(7, dtype=torch.int32)}
    for name, tensor in model.first_stage.state_dict().items():
        kernel = tensor[..., None, None] if is_kernel(name) else tensor
        state[FIRST_STAGE + first_stage_name(name, 4)] = kernel.clone()
    return state | {ENCODER + name: tensor for name, tensor in model.encoder.state_dict().items()}


def lightning(state: dict[str, Tensor], **more: Any) -> dict[str, Any]:
    """A file as Lightning writes it, without its callbacks."""
    return {"epoch": 3, "global_step": 9, "pytorch-lightning_version": "1.4.2", "state_dict": state, "optimizer_states": [], **more}
