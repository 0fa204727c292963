"""Files of a cache: a manifest that says which encoder made it, and safetensors shards that say so too."""

import json
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from sgpipe.errors import DataError
from sgpipe.runs.atomic import atomic_path
from sgpipe.runs.state import config_hash

MANIFEST = "manifest.json"
VERSION = 1


def open_tensors(path: Path, encoder: str) -> dict[str, Tensor]:
    """Tensors of a shard, mapped into memory and read when they are used. Raises `DataError` for a foreign or broken file."""
    try:
        with safe_open(path, "pt") as stream:
            made_by = (stream.metadata() or {}).get("encoder")
            tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path}: cannot be read ({error}); run its stage again") from error
    if made_by != encoder:
        raise DataError(f"{path}: made by encoder {made_by}, the cache's manifest says {encoder}; run its stage again")
    return tensors


def shard_reader(identity: Mapping[str, Any]) -> Callable[[Path], dict[str, Tensor]]:
    """`open_tensors` for the encoder of `identity`, which opens each file once."""
    return cache(partial(open_tensors, encoder=config_hash(identity)))


def write_manifest(folder: Path, kind: str, identity: Mapping[str, Any], **facts: Any) -> None:
    """Write `manifest.json`: what was cached, what its encoder depended on, that encoder's hash, and further facts."""
    content = {"kind": kind, "version": VERSION, "encoder": config_hash(identity), "identity": identity, **facts}
    with atomic_path(folder / MANIFEST) as temporary:
        temporary.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def read_manifest(folder: Path, kind: str, identity: Mapping[str, Any], stage: str) -> dict[str, Any]:
    """The manifest of a cache of this kind that the encoder of `identity` made. Raises `DataError` for any other."""
    path = folder / MANIFEST
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found = content["kind"], content["version"]
        made_by, encoder = content["identity"], content["encoder"]
    except FileNotFoundError:
        raise DataError(f"{folder}: no cache (no {MANIFEST}); run `dvc repro {stage}`") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not a manifest ({error}); run `dvc repro {stage}`") from None
    if found != (kind, VERSION):
        raise DataError(
            f"{folder}: holds {found[0]} in version {found[1]}, not {kind} in version {VERSION}; run `dvc repro {stage}`"
        )
    if encoder != config_hash(identity) or made_by != identity:
        made_by = made_by if isinstance(made_by, dict) else {}
        other = sorted(name for name in {*made_by, *identity} if made_by.get(name) != identity.get(name))
        shown = "; ".join(f"{name} {made_by.get(name)} there, {identity.get(name)} here" for name in other)
        raise DataError(f"{folder}: made by another encoder than backbone.model's now ({shown}); run `dvc repro {stage}`")
    return content
