"""A probe for training losses: it reads maps of noised images, is told t, and its logits are calibrated at every t."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sgpipe.probes.data import KINDS_OF, Indices, with_time
from sgpipe.probes.fit import Floats, calibration_error, mean_loss
from sgpipe.probes.probe import Probe, ProbeConfig, load_weights, read_about, save_weights

_HIGHEST = 4.0
"""Bound of |ln T|."""


def log_temperature(logits: Floats, labels: Indices) -> float:
    """ln T that minimises the cross-entropy of logits / T (Guo et al. 2017, section 4.2), within ± 4."""
    from scipy.optimize import minimize_scalar

    bounds = (-_HIGHEST, _HIGHEST)
    return float(minimize_scalar(lambda log_t: mean_loss(logits / np.exp(log_t), labels), bounds=bounds, method="bounded").x)


class NoiseAwareProbe(nn.Module):
    """A timed probe and a temperature per time; ln T is linear in t between the times it was fitted at and constant beyond.

    Frozen and in eval mode: gradients reach the maps alone.
    """

    times: Tensor
    log_temperatures: Tensor

    def __init__(self, probe: Probe, times: Tensor, log_temperatures: Tensor) -> None:
        super().__init__()
        if not probe.config.timed:
            raise ValueError("a noise-aware probe needs one that is told t (ProbeConfig.timed)")
        self.probe = probe
        self.register_buffer("times", times.float())
        self.register_buffer("log_temperatures", log_temperatures.float())
        self.requires_grad_(False)
        super().train(False)

    @classmethod
    def of_state(cls, config: ProbeConfig, state: Mapping[str, Tensor]) -> Self:
        """With the weights and temperatures of a state dict."""
        made = cls(Probe(config), state["times"], state["log_temperatures"])
        made.load_state_dict(state)
        return made

    def train(self, mode: bool = True) -> Self:
        """Stays in eval mode, whatever the module it is part of is set to: a frozen batch norm must not move."""
        return self

    @property
    def config(self) -> ProbeConfig:
        """Architecture, features, classes and shape."""
        return self.probe.config

    @property
    def classes(self) -> tuple[str, ...]:
        """Classes in the order of the logits."""
        return self.config.classes

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of map whose channels `logits` takes, in their order."""
        return KINDS_OF[self.config.feature]

    def temperatures(self, t: Tensor) -> Tensor:
        """T at times `[B]`."""
        t = t.to(self.times)
        if len(self.times) == 1:
            return self.log_temperatures.exp().expand(len(t))
        right = torch.searchsorted(self.times, t).clamp(1, len(self.times) - 1)
        low, high = self.times[right - 1], self.times[right]
        part = ((t - low) / (high - low)).clamp(0, 1)
        return torch.lerp(self.log_temperatures[right - 1], self.log_temperatures[right], part).exp()

    def logits(self, maps: Tensor, t: Tensor) -> Tensor:
        """Calibrated logits `[B, classes]`, float32 and differentiable in the maps.

        `maps` `[B, C, H, W]`: raw maps of `kinds`, one kind after the other, C = kinds · 3 concepts; `t` `[B]`, 0–1.
        Raises `ValueError` for other shapes.
        """
        if t.shape != maps.shape[:1]:
            raise ValueError(f"t is {list(t.shape)}; valid: [{maps.shape[0]}], one per map")
        wanted = (self.config.channels, *self.config.shape[1:])
        if maps.shape[1:] != wanted:
            raise ValueError(
                f"maps are {list(maps.shape)}; this probe takes [B, {', '.join(map(str, wanted))}]: the maps of "
                f"{' and '.join(self.kinds)}, {self.config.shape[0]} concepts each"
            )
        with torch.autocast(maps.device.type, enabled=False):
            return self.probe(with_time(maps.float(), t)) / self.temperatures(t)[:, None]

    def forward(self, maps: Tensor, t: Tensor) -> Tensor:
        """`logits`."""
        return self.logits(maps, t)


def calibrate(logits: Floats, labels: Indices, t: NDArray[np.float32]) -> tuple[Tensor, Tensor]:
    """Times and ln T: one temperature for each distinct t of these (validation) rows."""
    times = np.unique(t)
    fitted = [log_temperature(logits[t == time], labels[t == time]) for time in times]
    return torch.from_numpy(times), torch.tensor(fitted)


def calibration(logits: Floats, labels: Indices, t: NDArray[np.float32], temperatures: Floats) -> dict[str, Any]:
    """Expected calibration error before and after division by `temperatures` `[N]`, over all rows and for each t."""

    def errors(rows: NDArray[np.bool_]) -> dict[str, float | None]:
        return {
            "ece_before": calibration_error(logits[rows], labels[rows]),
            "ece_after": calibration_error((logits / temperatures[:, None])[rows], labels[rows]),
        }

    by_time = {f"{time:.4g}": {**errors(t == time), "temperature": float(temperatures[t == time][0])} for time in np.unique(t)}
    return {**errors(np.ones(len(t), bool)), "by_time": by_time}


def save_noise_aware(probe: NoiseAwareProbe, facts: dict[str, Any], folder: Path) -> None:
    """Write the probe with its temperatures and facts into `folder`."""
    save_weights(probe.state_dict(), probe.config, {**facts, "times": probe.times.tolist()}, folder)


def load_noise_aware(folder: Path) -> NoiseAwareProbe:
    """A saved noise-aware probe. Raises `ModelError` for a missing, damaged or foreign folder."""
    config, facts = read_about(folder)
    times = torch.tensor(facts.get("times", [0.0]))
    probe = NoiseAwareProbe(Probe(config), times, torch.zeros_like(times))
    load_weights(probe, folder)
    return probe
