"""SGDiff's published checkpoint (latent-diffusion's layout in a Lightning file) as an `SgDiff`.

The noise predictor is the averaged one (`model_ema.`), as the official sampling takes it. Every tensor of the file must be one of
those that the sizes ask for, of its shape, and none may lack; the noise schedule in the file must be SGDiff's.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Size, Tensor

from sgpipe.backbones.strict import name_problems, refuse
from sgpipe.errors import ModelError
from sgpipe.graph_encoder.cgip import Cgip
from sgpipe.graph_encoder.checkpoints import cgip_config, check_vocabulary, read_state_dict
from sgpipe.graph_encoder.vocabulary import Vocabulary
from sgpipe.sgdiff.model import SgDiff
from sgpipe.sgdiff.names import EMA, ENCODER, FIRST_STAGE, LOCAL, PREDICTOR, ema_name, first_stage_name, is_kernel, unet_name
from sgpipe.sgdiff.networks import FirstStageConfig, NoisePredictor, PredictorConfig, first_stage
from sgpipe.sgdiff.schedule import registered_buffers

_COUNTERS: Final = ("decay", "num_updates")
"""Scalars of the moving average, beside its tensors."""
_REMEDY: Final = "get a checkpoint that SGDiff's own training wrote"
RESOLUTION: Final = 256


def predictor_names(predictor: NoisePredictor) -> dict[str, str]:
    """Published name, without prefix, of each tensor of the predictor."""
    return {
        name: LOCAL + name.removeprefix("local.") if name.startswith("local.") else unet_name(name.removeprefix("unet."))
        for name in predictor.state_dict()
    }


def expected_shapes(predictor: NoisePredictor, stage: Any, encoder: Cgip) -> dict[str, Size]:
    """Name and shape of every tensor of a published state dict with these parts, which may be on the meta device."""
    shapes = {name: table.shape for name, table in registered_buffers().items()}
    names, own = predictor_names(predictor), predictor.state_dict()
    for name, published in names.items():
        shapes[PREDICTOR + published] = shapes[EMA + ema_name(published)] = own[name].shape
    shapes |= {EMA + name: Size() for name in _COUNTERS}
    levels = len(stage.config.block_out_channels)
    for name, tensor in stage.state_dict().items():
        kernel = (1, 1) if is_kernel(name) else ()
        shapes[FIRST_STAGE + first_stage_name(name, levels)] = Size((*tensor.shape, *kernel))
    return shapes | {ENCODER + name: tensor.shape for name, tensor in encoder.state_dict().items()}


def parts_of(state: Mapping[str, Tensor], path: Path) -> tuple[NoisePredictor, Any, Cgip]:
    """Fresh parts on the meta device, of the sizes that the tensors have. Raises `ModelError` where these are no SGDiff's."""
    encoder_state = {name.removeprefix(ENCODER): value for name, value in state.items() if name.startswith(ENCODER)}
    try:
        base = state[PREDICTOR + "time_embed.0.weight"].shape[1]
        context = state[PREDICTOR + LOCAL + "weight"].shape[0]
        width = state[FIRST_STAGE + "encoder.conv_in.weight"].shape[0]
        codes = state[FIRST_STAGE + "quantize.embedding.weight"].shape[0]
        predictor_config = PredictorConfig(base=base, context=context)
    except (KeyError, IndexError, ValueError) as error:
        raise ModelError(
            f"{path}: no checkpoint of SGDiff's generator ({error}); found {', '.join(sorted(state)[:3]) or 'nothing'}; the file "
            f"of the whole model is needed, not sip_*.pt or vq-f8's; {_REMEDY}"
        ) from None
    with torch.device("meta"):
        stage = first_stage(FirstStageConfig(base=width, codes=codes))
        return NoisePredictor(predictor_config), stage, Cgip(cgip_config(encoder_state, path))


def check_published(state: Mapping[str, Tensor], shapes: Mapping[str, Size], path: Path) -> None:
    """The tensors are exactly those expected. Raises `ModelError` naming what is missing, unexpected or misshapen."""
    problems = name_problems(shapes.keys() - state.keys(), state.keys() - shapes.keys())
    problems += [
        f"{name} is {tuple(state[name].shape)}, expected {tuple(shape)}"
        for name, shape in shapes.items()
        if name in state and state[name].shape != shape
    ]
    refuse(problems, path, _REMEDY)


def _value_problems(state: Mapping[str, Tensor]) -> Iterator[str]:
    for name, table in registered_buffers().items():
        if not torch.allclose(state[name].float(), table, rtol=1e-5, atol=1e-6):
            yield f"{name} is of another noise schedule than SGDiff's"
    for name, value in state.items():
        if not name.startswith(PREDICTOR) and not torch.isfinite(value).all():
            yield f"{name} holds values that are not finite"


def read_published(path: Path, vocabulary: Path) -> SgDiff:
    """The generator in a checkpoint of SGDiff's training (VG or COCO), with the vocab.json of the same preprocessing.

    Raises `ModelError` for a file that would run code, is damaged, or whose tensors are not exactly SGDiff's; `DataError` for a
    vocabulary that is absent or has another number of names.
    """
    state = read_state_dict(path, "authors and users of SGDiff publish checkpoints of the whole model (VG, COCO)")
    predictor, stage, encoder = parts_of(state, path)
    check_published(state, expected_shapes(predictor, stage, encoder), path)
    refuse(list(_value_problems(state)), path, _REMEDY)
    names = Vocabulary.read(vocabulary)
    check_vocabulary(names, encoder.config, vocabulary, path)
    levels = len(stage.config.block_out_channels)
    averaged = {name: state[EMA + ema_name(published)] for name, published in predictor_names(predictor).items()}
    pixels = {
        name: state[FIRST_STAGE + first_stage_name(name, levels)].reshape(tensor.shape)
        for name, tensor in stage.state_dict().items()
    }
    encoding = {name: state[ENCODER + name] for name in encoder.state_dict()}
    for module, tensors in ((predictor, averaged), (stage, pixels), (encoder, encoding)):
        module.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, assign=True)
    return SgDiff(encoder, names, predictor, stage, RESOLUTION)
