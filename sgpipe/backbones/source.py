"""Where the parts of a pipeline are: a local folder, or the hub's cache at a pinned revision; and what identifies them."""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sgpipe.backbones.config import Backbone
from sgpipe.backbones.weights import loaded_files, loaded_hash, part_problem
from sgpipe.errors import ModelError, ParamsError, first_line

HUB_FILES = "presets/hub"
"""What `backbone.files` names for a hub id (see its README)."""
_WANTED = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")


def snapshot_folder(model: str, revision: str | None) -> Path | None:
    """The folder of a pipeline: `model` itself, or the hub cache's snapshot of it; None where neither
    is there.
    """
    if Path(model).is_dir():
        return Path(model)
    from huggingface_hub.constants import HF_HUB_CACHE

    repository = Path(HF_HUB_CACHE) / f"models--{model.replace('/', '--')}"
    reference = repository / "refs" / (revision or "main")
    commit = reference.read_text(encoding="utf-8").strip() if reference.is_file() else revision or ""
    snapshot = repository / "snapshots" / commit
    return snapshot if commit and snapshot.is_dir() else None


def check_source(backbone: Backbone) -> None:
    """Refuse a model that is not pinned, or whose files DVC does not watch. Raises `ParamsError` with what to set."""
    folder = Path(backbone.model)
    if folder.is_dir():
        if backbone.revision is not None:
            raise ParamsError(
                f"backbone.revision: got {backbone.revision!r}, but backbone.model {backbone.model} is a folder, which has "
                "no revisions; set backbone.revision to null"
            )
        if Path(backbone.files).resolve() != folder.resolve():
            raise ParamsError(
                f"backbone.files: got {backbone.files!r}, but backbone.model is the folder {backbone.model}; set "
                "backbone.files to the same folder, so that DVC sees when its weights change"
            )
        return
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", backbone.model) or backbone.files == backbone.model:
        raise ModelError(
            f"backbone.model: {backbone.model} is no folder; `dvc pull models.dvc` gets the embedded checkpoints, or give the "
            f"folder of a diffusers pipeline or a hub id (owner/name) with backbone.revision and backbone.files {HUB_FILES}"
        )
    if not re.fullmatch(r"[0-9a-f]{40}", backbone.revision or ""):
        raise ParamsError(
            f"backbone.revision: got {backbone.revision!r}; the hub id {backbone.model} needs a commit (40 hex digits), so "
            "that another day brings the same weights"
        )
    if Path(backbone.files) != Path(HUB_FILES):
        raise ParamsError(
            f"backbone.files: got {backbone.files!r}, but backbone.model {backbone.model} is a hub id, whose files DVC cannot "
            f"watch; set backbone.files to {HUB_FILES}"
        )


def _problem(folder: Path, parts: Iterable[str]) -> str | None:
    for part in parts:
        if not (folder / part).is_dir():
            return f"{part}: no such folder"
        if problem := part_problem(folder / part):
            return problem
    return None if (folder / "model_index.json").is_file() else "model_index.json: no such file"


def locate(backbone: Backbone, parts: Iterable[str]) -> Path:
    """The folder that holds these parts whole; a hub id's missing parts are downloaded. Raises `ModelError` or `ParamsError`."""
    check_source(backbone)
    parts = tuple(parts)
    folder = snapshot_folder(backbone.model, backbone.revision)
    problem = "not in the hub cache" if folder is None else _problem(folder, parts)
    if folder is not None and problem is None:
        return folder
    if Path(backbone.model).is_dir():
        raise ModelError(
            f"backbone.model: {backbone.model}: {problem}; a diffusers pipeline folder with safetensors weights is needed: "
            "`dvc pull models.dvc` gets the embedded checkpoints, `hf download` others"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HTTPError

    patterns = ["model_index.json", *(f"{part}/{name}" for part in parts for name in _WANTED)]
    try:
        folder = Path(snapshot_download(backbone.model, revision=backbone.revision, allow_patterns=patterns))
        problem = _problem(folder, parts)
    except (OSError, ValueError, RuntimeError, ImportError, HTTPError) as error:
        problem = f"{problem}, and the hub cannot be reached or refuses ({type(error).__name__}: {first_line(error)})"
    if folder is None or problem is not None:
        raise ModelError(
            f"backbone.model: {backbone.model} at {backbone.revision}: {problem}; run `hf download {backbone.model} "
            f"--revision {backbone.revision}` where there is a network (a gated checkpoint needs `hf auth login` and its "
            "licence accepted), copy the hub cache here and set HF_HOME, or give a local folder"
        )
    return folder


def part_configs(folder: Path, parts: Iterable[str]) -> dict[str, dict[str, Any]]:
    """config.json of parts, or `model_index.json` under the name "". Raises `ModelError` naming the file at fault."""
    configs: dict[str, dict[str, Any]] = {}
    for part in parts:
        path = folder / part / "config.json" if part else folder / "model_index.json"
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ModelError(f"{path}: no such file; {folder} is not a whole diffusers pipeline folder") from None
        except (ValueError, OSError) as error:
            raise ModelError(f"{path}: cannot be read ({error}); fetch the checkpoint again") from None
        if not isinstance(config, dict):
            raise ModelError(f"{path}: a JSON object is needed, got {type(config).__name__}")
        configs[part] = config
    return configs


def identity(backbone: Backbone, parts: Iterable[str], **settings: Any) -> dict[str, Any]:
    """What an encoder's results depend on: the content of its parts, its precision and `settings`.

    A hub id's pinned commit stands for the content; of a folder the files that are loaded are hashed, wherever it lies.
    """
    check_source(backbone)
    parts = tuple(parts)
    if "transformer" in parts and backbone.quantisation is not None:
        settings["quantisation"] = backbone.quantisation
    weights: dict[str, Any] = {"hub": backbone.model, "revision": backbone.revision}
    if Path(backbone.model).is_dir():
        folder = locate(backbone, parts)
        weights = {part: loaded_hash(folder / part, loaded_files(folder / part)) for part in parts}
    return {"weights": weights, "dtype": backbone.dtype, **settings}
