"""A probe as it is fitted, saved and used: raw maps in, logits out."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sgpipe.probes.config import Feature, Kind
from sgpipe.probes.data import KINDS_OF, PARTS, fuse
from sgpipe.probes.models import build


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
