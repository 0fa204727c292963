"""open_clip models with exactly the weights that were asked for."""

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from sgpipe.backbones.strict import refuse
from sgpipe.backbones.weights import loaded_files, loaded_hash
from sgpipe.errors import ModelError

LOCAL = "local-dir:"
FILES = ("open_clip_config.json", "open_clip_model.safetensors")
"""What is read of a local folder, beside a tokenizer of transformers."""


def open_clip_hash(folder: Path) -> str:
    """SHA-256 of what is read of a judge's or tower's local folder. Raises `ModelError` for one that cannot be read."""
    own = [path for path in (folder / name for name in FILES) if path.is_file()]
    try:
        return loaded_hash(folder, {*own, *loaded_files(folder)})
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{folder}: cannot be read ({error}); fetch the checkpoint again") from None


def load_open_clip(name: str, pretrained: str | None, device: torch.device) -> tuple[Any, Any]:
    """An open_clip model and its preprocessing of images, from a folder (`local-dir:…`), a hub id or an architecture with weights.

    Raises `ModelError` where open_clip would resize tables of positions to another architecture's, and `OSError`, `ValueError` or
    `RuntimeError` as open_clip does, also for a model without weights, which it would leave random.
    """
    import open_clip

    folder = Path(name.removeprefix(LOCAL)) if name.startswith(LOCAL) else None
    for path in [folder / file for file in FILES] if folder is not None else []:
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file")
    model, preprocess = open_clip.create_model_from_pretrained(name, pretrained=pretrained, device=device)
    if folder is not None:
        wanted = model.state_dict()
        with safe_open(folder / FILES[1], "pt") as stream:
            found = {key: tuple(stream.get_slice(key).get_shape()) for key in stream.keys()}  # noqa: SIM118
        problems = [
            f"{key} is {shape}, expected {tuple(wanted[key].shape)}"
            for key, shape in found.items()
            if key in wanted and shape != tuple(wanted[key].shape)
        ]
        refuse(problems, folder, f"{FILES[0]} describes another model than {FILES[1]}: fetch both from one place")
    return model, preprocess
