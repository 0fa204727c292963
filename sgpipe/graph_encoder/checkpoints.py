"""Graph encoders on disk: SGDiff's published files, and folders of our own.

A folder holds `encoder.safetensors`, `encoder.json` (kind and sizes), for CGIP `vocabulary.json`, and, where the pre-training
left one, `reconstruction.safetensors`. Weights are read as tensors only, and every name must be the one expected.
"""

import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from sgpipe.backbones.strict import check_state, write_tensors
from sgpipe.errors import DataError, ModelError, first_line
from sgpipe.graph_encoder.cgip import Cgip, CgipConfig
from sgpipe.graph_encoder.open_vocabulary import OpenVocabularyConfig, OpenVocabularyEncoder
from sgpipe.graph_encoder.vocabulary import Vocabulary
from sgpipe.runs.atomic import write_json

Encoder = Cgip | OpenVocabularyEncoder
_CONFIGS: Final[dict[str, type[CgipConfig | OpenVocabularyConfig]]] = {"cgip": CgipConfig, "open_vocabulary": OpenVocabularyConfig}

IGNORED: Final = "clip_model."
"""SGDiff saved the frozen CLIP of its pre-training along; nothing else may be in the file beyond the encoder."""

_WRAPPER: Final = "module."
_NUMPY: Final[list[Any]] = [np.float64(0).__reduce__()[0], np.dtype, np.dtypes.Float64DType, np.dtypes.Float32DType]
"""Harmless types that the optimiser's state in a published file can hold."""

LIGHTNING: Final = "pytorch_lightning.callbacks."

WEIGHTS, SIZES, VOCABULARY = "encoder.safetensors", "encoder.json", "vocabulary.json"
RECONSTRUCTION = "reconstruction.safetensors"


def load_sgdiff(path: Path, vocabulary: Path) -> tuple[Cgip, Vocabulary]:
    """SGDiff's `sip_vg.pt` or `sip_coco.pt` with the vocab.json of its preprocessing; sizes are read off the tensors.

    Raises `ModelError` for a pickle that holds anything but tensors and plain values, for a missing, unexpected, misshapen or
    not finite tensor; `DataError` for a vocabulary that is absent or does not fit the tables.
    """
    state = _official_state(read_state_dict(path, "SGDiff publishes sip_vg.pt and sip_coco.pt"), path)
    config = cgip_config(state, path)
    names = Vocabulary.read(vocabulary)
    check_vocabulary(names, config, vocabulary, path)
    model = Cgip(config)
    load_strictly(model, state, path)
    return model.eval(), names


class _Inert:
    """Stands for an object that a file names beside its tensors: built without running anything, and never looked at."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass


def _ignored_classes(path: Path) -> list[tuple[type, str]]:
    """Lightning's callbacks in a checkpoint, which it keys by their classes: read as `_Inert`, whatever they are."""
    try:
        named = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # no archive of torch's: the loader says what it is
        return []
    return [(_Inert, name) for name in named if name.startswith(LIGHTNING)]


def read_state_dict(path: Path, published: str) -> Mapping[str, Tensor]:
    """The tensors of a PyTorch file, alone or under the key `state_dict`, mapped from the disk and read without running code.

    `published` says in the errors where such a file comes from. Raises `ModelError` for a file that is absent, damaged, without
    tensors, or that holds anything but tensors, plain values and the state of Lightning's callbacks.
    """
    if not path.is_file():
        raise ModelError(f"{path}: no such file; {published}")
    try:
        with torch.serialization.safe_globals([*_NUMPY, *_ignored_classes(path)]):
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        if culprit := re.search(r"GLOBAL (\S+)", str(error)):
            raise ModelError(
                f"{path}: refused: the file asks to run or build {culprit[1]}, and only tensors and plain values are read; "
                f"get the published file, or save its state_dict alone with torch.save"
            ) from None
        raise ModelError(f"{path}: not a PyTorch file of tensors and plain values; get it again") from None
    except Exception as error:  # damaged bytes end in many, struct.error among them
        raise ModelError(f"{path}: not a readable PyTorch file ({first_line(error)}); get it again") from None
    state = found.get("state_dict", found) if isinstance(found, dict) else None
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ModelError(f"{path}: no state_dict; a mapping of names to tensors, alone or under the key `state_dict`, is needed")
    return state


def _official_state(found: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The encoder's tensors without wrapper prefixes, in float32, and without the frozen CLIP."""
    state: dict[str, Tensor] = {}
    for name, tensor in found.items():
        plain = re.sub(rf"^({re.escape(_WRAPPER)})+", "", name)
        if plain.startswith(IGNORED):
            continue
        if plain in state:
            raise ModelError(f"{path}: tensor {plain} is given twice, with and without the prefix {_WRAPPER!r}")
        state[plain] = tensor.float()
    return state


def cgip_config(state: Mapping[str, Tensor], path: Path) -> CgipConfig:
    """Sizes as the tensors have them; `load_strictly` finds what contradicts them."""
    try:
        objects, embed = state["obj_embeddings.weight"].shape
        predicates = state["pred_embeddings.weight"].shape[0]
        width = state["graph_conv.net1.0.weight"].shape[0]
    except (KeyError, ValueError, IndexError) as error:
        raise ModelError(
            f"{path}: no CGIP encoder: {error} is missing or no table; found {', '.join(sorted(state)[:5]) or 'nothing'}"
        ) from None
    numbers = [int(found[1]) for name in state if (found := re.match(r"graph_net\.gconvs\.(\d+)\.", name))]
    return CgipConfig(objects - 1, predicates, width, embed, max(numbers, default=-1) + 1)


def check_vocabulary(names: Vocabulary, config: CgipConfig, vocabulary: Path, weights: Path) -> None:
    """Raises `DataError` unless a vocabulary names as many rows as the tables of `weights` have."""
    for what, named, rows in (("object", names.objects, config.objects), ("predicate", names.predicates, config.predicates)):
        if len(named) != rows:
            raise DataError(
                f"{vocabulary}: {len(named)} {what} names, {weights} has rows for {rows}; give the vocabulary these weights "
                f"were trained with"
            )


def load_strictly(model: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Load exactly the tensors of `model`. Raises `ModelError` naming what is missing, unexpected, misshapen or not finite."""
    check_state(state, model.state_dict(), path, "get the file that fits")
    model.load_state_dict(dict(state))


def save_encoder(
    folder: Path, encoder: Encoder, vocabulary: Vocabulary | None = None, reconstruction: nn.Module | None = None
) -> None:
    """Write an encoder's folder. CGIP needs its `vocabulary`; `reconstruction` is the trained block of the masked loss."""
    kind = "cgip" if isinstance(encoder, Cgip) else "open_vocabulary"
    if isinstance(encoder, Cgip):
        if vocabulary is None:
            raise DataError(f"{folder}: a CGIP encoder is of no use without its vocabulary; give it to be saved")
        check_vocabulary(vocabulary, encoder.config, folder / VOCABULARY, folder / WEIGHTS)
        vocabulary.write(folder / VOCABULARY)
    write_tensors(encoder.state_dict(), folder / WEIGHTS, {"format": "pt"})
    if reconstruction is not None:
        write_tensors(reconstruction.state_dict(), folder / RECONSTRUCTION, {"format": "pt"})
    write_json({"kind": kind, **vars(encoder.config)}, folder / SIZES)


def load_module(module: nn.Module, path: Path) -> None:
    """Read a module's written state into `module`. Raises `ModelError` for a damaged file or one of another module."""
    if not path.is_file():
        raise ModelError(f"{path}: no such file; run the stage that writes it")
    try:
        state = load_file(path)
    except SafetensorError as error:
        raise ModelError(f"{path}: not a readable safetensors file ({error}); get it again") from None
    load_strictly(module, state, path)


def load_encoder(folder: Path) -> tuple[Encoder, Vocabulary | None]:
    """An encoder that `save_encoder` wrote, in evaluation mode, with its vocabulary if it is CGIP."""
    encoder: Encoder
    vocabulary: Vocabulary | None
    sizes = folder / SIZES
    try:
        raw = msgspec.json.decode(sizes.read_bytes(), type=dict[str, int | str])
        kind = raw.pop("kind", None)
        if kind not in _CONFIGS:
            raise ModelError(f"{sizes}: kind is {kind!r}; valid: {', '.join(_CONFIGS)}")
        config = msgspec.convert(raw, _CONFIGS[str(kind)])
    except FileNotFoundError:
        raise ModelError(f"{sizes}: no such file; a graph encoder's folder has {SIZES} and {WEIGHTS}") from None
    except (msgspec.ValidationError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ModelError(f"{sizes}: not the sizes of a graph encoder: {error}") from None
    if isinstance(config, OpenVocabularyConfig):
        encoder, vocabulary = OpenVocabularyEncoder(config), None
    else:
        encoder, vocabulary = Cgip(config), Vocabulary.read(folder / VOCABULARY)
        check_vocabulary(vocabulary, config, folder / VOCABULARY, folder / WEIGHTS)
    load_module(encoder, folder / WEIGHTS)
    return encoder.eval(), vocabulary
