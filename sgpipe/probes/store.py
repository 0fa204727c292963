"""Probes on disk: `probe.safetensors` with the weights, `probe.json` with what they are and what was measured of them."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from sgpipe.backbones.strict import check_state, write_tensors
from sgpipe.errors import ModelError
from sgpipe.probes.probe import Probe, ProbeConfig
from sgpipe.runs.atomic import write_json

WEIGHTS, ABOUT = "probe.safetensors", "probe.json"


def save_weights(state: Mapping[str, Tensor], config: ProbeConfig, facts: Mapping[str, Any], folder: Path) -> None:
    """Write tensors, the probe's configuration and further facts into `folder`."""
    write_tensors(state, folder / WEIGHTS)
    write_json({"config": asdict(config), "facts": dict(facts)}, folder / ABOUT)


def read_about(folder: Path) -> tuple[ProbeConfig, dict[str, Any]]:
    """Configuration and facts of a saved probe. Raises `ModelError`."""
    path = folder / ABOUT
    try:
        about = msgspec.json.decode(path.read_bytes())
        return msgspec.convert(about["config"], ProbeConfig), about["facts"]
    except FileNotFoundError:
        raise ModelError(f"{folder}: no probe (no {ABOUT}); run `dvc repro probe`") from None
    except (msgspec.MsgspecError, KeyError, TypeError) as error:
        raise ModelError(f"{path}: not a probe's description ({error}); run `dvc repro probe`") from None


def load_weights(module: nn.Module, folder: Path) -> None:
    """Fill `module` with the saved tensors; every name and shape must be the one expected. Raises `ModelError`."""
    path = folder / WEIGHTS
    try:
        state = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path}: cannot be read ({error}); run `dvc repro probe`") from None
    check_state(state, module.state_dict(), path, f"{ABOUT} describes other weights than these; run `dvc repro probe`")
    module.load_state_dict(state)


def load_probe(folder: Path) -> tuple[Probe, dict[str, Any]]:
    """A saved probe in eval mode, and its facts. Raises `ModelError` for a missing, damaged or foreign folder."""
    config, facts = read_about(folder)
    probe = Probe(config)
    load_weights(probe, folder)
    return probe.eval(), facts
