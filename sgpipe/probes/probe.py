"""A probe as it is fitted, saved and used: raw maps in, logits out.

On disk: `probe.safetensors` with the weights, `probe.json` with what they are and what was measured of them.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from sgpipe.backbones.strict import check_state, write_tensors
from sgpipe.errors import ModelError
from sgpipe.probes.config import Feature, Kind
from sgpipe.probes.data import KINDS_OF, PARTS, fuse
from sgpipe.probes.models import build
from sgpipe.runs.atomic import write_json

WEIGHTS, ABOUT = "probe.safetensors", "probe.json"


@dataclass(frozen=True)
class ProbeConfig:
    """Architecture, features and classes of a probe; `shape` [K, H, W] is that of one map of one kind."""

    kind: Kind
    feature: Feature
    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    width: int = 1
    timed: bool = False
    """Whether the probe is told t, as a further channel that holds t everywhere."""

    @property
    def channels(self) -> int:
        """Channels of the maps that the probe takes, t's not counted."""
        return len(KINDS_OF[self.feature]) * self.shape[0]


class Probe(nn.Module):
    """Standardise each channel by the training set's mean and deviation, fuse, classify.

    Both kinds are brought to one scale before they are fused: cross-attention scores are tens of times larger than saliency, and
    their difference would be the scores alone.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, config: ProbeConfig) -> None:
        super().__init__()
        self.config = config
        channels = PARTS[config.feature] * config.shape[0] + config.timed
        self.net = build(config.kind, channels, config.shape[1:], len(config.classes), config.width)
        self.net.to(memory_format=torch.channels_last)
        self.register_buffer("mean", torch.zeros(config.channels, 1, 1))
        self.register_buffer("deviation", torch.ones(config.channels, 1, 1))

    def set_scale(self, mean: Tensor, deviation: Tensor) -> None:
        """Mean and deviation `[channels]` of the training maps; a channel that never varies keeps its scale."""
        self.mean.copy_(mean[:, None, None])
        self.deviation.copy_(torch.where(deviation > 0, deviation, 1.0)[:, None, None])

    def forward(self, maps: Tensor) -> Tensor:
        """Logits `[B, classes]` of raw maps `[B, channels (+ 1: t), H, W]`, kinds in the order of `KINDS_OF`.

        Raises `ValueError` for maps of another shape.
        """
        config = self.config
        wanted = (config.channels + config.timed, *config.shape[1:])
        if maps.shape[1:] != wanted:
            raise ValueError(f"maps are {list(maps.shape)}; this probe takes [B, {', '.join(map(str, wanted))}]")
        scaled = (maps[:, : config.channels] - self.mean) / self.deviation
        fused = fuse(scaled, config.feature)
        if config.timed:
            fused = torch.cat([fused, maps[:, config.channels :]], dim=1)
        return self.net(fused.contiguous(memory_format=torch.channels_last))


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
