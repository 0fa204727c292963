"""An external arm's folder, which stands where an adapter's would: which generator it is, and that it has not changed."""

from pathlib import Path

import torch

from sgpipe.arms.adapter import ABOUT, read_about
from sgpipe.arms.kinds.base import External, Generator
from sgpipe.arms.resolve import Arm
from sgpipe.backbones.config import Backbone
from sgpipe.errors import ModelError
from sgpipe.params.load import to_builtins
from sgpipe.runs.atomic import write_json
from sgpipe.runs.state import file_hash

FILES = "files"


def _hashes(arm: Arm) -> dict[str, str]:
    return {knob: file_hash(path)[:16] for knob, path in arm.kind_class.files(arm.settings).items()}


def save_external(folder: Path, arm: Arm, backbone: Backbone) -> None:
    """Write `adapter.json`: the arm, and the hashes of the files that its generator is loaded from, which stay where they are."""
    folder.mkdir(parents=True, exist_ok=True)
    about = {**arm.plain(), FILES: _hashes(arm), "backbone": to_builtins(backbone), "base": None}
    write_json(about, folder / ABOUT, digits=None)


def open_external(folder: Path, device: torch.device) -> Generator | None:
    """The generator of an external arm's folder; None for the folder of an adapter.

    Raises `ModelError` where the generator's files are no longer those that the arm was resolved with.
    """
    about = read_about(folder)
    arm = Arm.read(about, str(folder / ABOUT))
    if not issubclass(arm.kind_class, External):
        return None
    if about[FILES] != _hashes(arm):
        raise ModelError(f"{folder}: {', '.join(about[FILES])}: other files than when it was written; run `dvc repro resolve`")
    return arm.kind_class.open(arm.settings, device)
