"""The fits of one layer group: what each one is, and how it is run and kept.

A fit is a function of the maps, the parameters and its own name, on one thread of a CPU; so results do not depend on how many run
at a time or on what was killed and continued.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sgpipe.backbones.strict import write_tensors
from sgpipe.errors import DataError, ParamsError, StateError
from sgpipe.probes.config import Feature, Kind, Probes
from sgpipe.probes.controls import NAME_EPOCHS, NAME_RATE, NameProbe, NameSource, check_conditions, shuffled
from sgpipe.probes.data import Indices, MapSet, MapSource, Pairs, Source
from sgpipe.probes.fit import Fitted, fit, predict, scale
from sgpipe.probes.noise_aware import NoiseAwareProbe, calibrate
from sgpipe.probes.probe import Probe, ProbeConfig
from sgpipe.probes.splits import Groups, Split, split
from sgpipe.runs.hashing import hashed

ORDER: tuple[Kind, ...] = ("wrn", "cnn", "mlp")
"""Slowest first, so that no process ends with a long fit."""
TRACE = ("relational",)


@dataclass(frozen=True)
class Unit:
    """One fit. `what`: `cell`, `shuffled`, `names`, `noise_aware` or `trace` (as noise_aware, of true prompts alone)."""

    what: str
    repeat: int = 0
    kind: Kind = "mlp"
    feature: Feature = "saliency"

    @property
    def name(self) -> str:
        """Unique within a layer group; names its file."""
        own = f"-{self.kind}-{self.feature}" if self.what in ("cell", "shuffled") else ""
        return f"{self.what}{own}-{self.repeat}"


def units(params: Probes) -> list[Unit]:
    """Every fit of a layer group, in the order of their running."""
    noised = params.noise_aware.conditions
    found = [Unit("noise_aware")] + ([Unit("trace")] if noised != TRACE else [])
    for kind in ORDER:
        if kind in params.epochs:
            for what, repeats in (("cell", params.seeds), ("shuffled", params.shuffled_seeds)):
                found += [Unit(what, i, kind, feature) for feature in params.features for i in range(repeats)]
    return found + [Unit("names", i) for i in range(params.seeds)]


@dataclass(frozen=True)
class Result:
    """A fit as it is kept: rows and predicted classes, the weights, and how the fit went."""

    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any]

    @property
    def weights(self) -> dict[str, Tensor]:
        """The model's state."""
        return {name.removeprefix("w."): value for name, value in self.tensors.items() if name.startswith("w.")}

    def indices(self, name: str) -> Indices:
        """One of `rows`, `predicted`, `noised_rows`, `noised_predicted`, `labels`."""
        return self.tensors[name].numpy()

    def save(self, path: Path) -> None:
        """Write to a temporary name, then rename."""
        write_tensors(self.tensors, path, {"facts": json.dumps(self.facts)})

    @classmethod
    def load(cls, path: Path) -> "Result":
        """Read what `save` wrote. Raises `StateError` for a damaged file."""
        try:
            with safe_open(path, "pt") as stream:
                tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
                return cls(tensors, json.loads(stream.metadata()["facts"]))
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise StateError(f"{path}: not a whole fit ({error})") from error


@dataclass
class Bench:
    """The maps of one layer group and what is needed to fit probes on them."""

    generated: MapSet
    noised: MapSet
    pairs: Pairs
    embeddings: Mapping[str, Tensor]
    """Of every subject and object name, `[d]`."""
    params: Probes
    device: torch.device
    _splits: dict[int, Split] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.noised.expect(self.generated.classes, self.generated.shape, str(self.generated.path))
        check_conditions(self.noised)
        missing = set(self.params.noise_aware.conditions) - set(self.noised.conditions)
        if missing:
            raise ParamsError(
                f"probes.noise_aware.conditions: got {sorted(missing)}, under which no maps were made; valid: "
                f"{', '.join(sorted(set(self.noised.conditions)))}; or add it to saliency_noised.conditions"
            )

    @cached_property
    def groups(self) -> Groups:
        """Of the map triples: what stays on one side of every split."""
        return Groups.of(self.pairs, self.params.folds)

    def split(self, repeat: int) -> Split:
        """The split of fit number `repeat`, made once."""
        if repeat not in self._splits:
            self._splits[repeat] = split(self.pairs, self.groups, self.params.folds, self.params.seed, repeat)
        return self._splits[repeat]

    def seed(self, unit: Unit) -> int:
        """A seed that depends on the unit's name and `probes.seed` alone."""
        return int(hashed(self.params.seed, unit.name)[0] >> np.uint64(33))

    def config(self, unit: Unit) -> ProbeConfig:
        """What a cell's probe, or the noise-aware one, is built from."""
        own = self.params.noise_aware
        timed = unit.what in ("noise_aware", "trace")
        kind, feature = (own.probe, own.feature) if timed else (unit.kind, unit.feature)
        maps = self.generated
        return ProbeConfig(kind, feature, maps.classes, maps.shape, self.params.width, timed)

    def run(self, unit: Unit) -> Result:
        """Fit, and predict the test rows."""
        if unit.what in ("noise_aware", "trace"):
            return self._noised(unit)
        maps, parts = self.generated, self.split(unit.repeat)
        train, val, test = (parts.rows(maps.triples, part) for part in ("train", "val", "test"))
        labels = maps.labels
        if unit.what == "shuffled":
            labels = shuffled(labels, maps.triples, parts, self.seed(unit))
        source: Source
        if unit.what == "names":
            source = NameSource(self.pairs, self.embeddings, self.pairs.of_row[maps.triples])
            channels = scale(source, train)
            fitted: Fitted[Any] = self._fit(
                unit, lambda: NameProbe(*channels, len(maps.classes)), source, labels, train, val, NAME_EPOCHS, NAME_RATE
            )
        else:
            source = MapSource(maps, unit.feature)
            fitted = self._fit_probe(unit, source, labels, train, val, self.params.epochs[unit.kind])
        tensors = {
            "rows": torch.from_numpy(test),
            "labels": torch.from_numpy(labels[test]),
            "predicted": self._predicted(fitted, source, test),
        }
        if unit.what == "cell":
            rows = parts.rows(self.noised.triples, "test")
            tensors |= {
                "noised_rows": torch.from_numpy(rows),
                "noised_predicted": self._predicted(fitted, MapSource(self.noised, unit.feature), rows),
                **_weights(fitted.model),
            }
        return Result(tensors, {**_facts(fitted), "train": len(train), "val": len(val), "test": len(test)})

    def _fit(
        self, unit: Unit, build: Callable[[], Any], source: Source, labels: Indices, train: Indices, val: Indices,
        epochs: int, highest: float,
    ) -> Fitted[Any]:  # fmt: skip
        own, seed = self.params.fitting, self.seed(unit)
        return fit(build, source, labels, train, val, epochs, highest, own, seed, self.device)

    def _fit_probe(self, unit: Unit, source: MapSource, labels: Indices, train: Indices, val: Indices, epochs: int) -> Fitted[Any]:
        config, channels = self.config(unit), scale(source, train)

        def build() -> Probe:
            probe = Probe(config)
            probe.set_scale(*(values[: config.channels] for values in channels))
            return probe

        return self._fit(unit, build, source, labels, train, val, epochs, self.params.fitting.learning_rate[config.kind])

    def _predicted(self, fitted: Fitted[Any], source: Source, rows: Indices) -> Tensor:
        if not len(rows):
            return torch.zeros(0, dtype=torch.int64)
        return torch.from_numpy(predict(fitted.model, source, rows, self.device, fitted.clock).argmax(axis=1))

    def _noised(self, unit: Unit) -> Result:
        """Fit on noised maps of the unit's conditions; predict test rows of all conditions; calibrate on validation rows."""
        maps, parts, own = self.noised, self.split(unit.repeat), self.params.noise_aware
        wanted = np.isin(maps.conditions.astype(str), own.conditions if unit.what == "noise_aware" else TRACE)
        train, val, test = (parts.rows(maps.triples, part) for part in ("train", "val", "test"))
        train, val = train[wanted[train]], val[wanted[val]]
        for part, rows in (("train", train), ("val", val)):
            if not len(rows):
                raise DataError(
                    f"{maps.path}: no maps of {part} triples under the prompts of probes.noise_aware.conditions; see the rejects "
                    "of cache_latents, or raise curate.maps_per_class"
                )
        source = MapSource(maps, own.feature, timed=True)
        fitted = self._fit_probe(unit, source, maps.labels, train, val, own.epochs)
        of_val, logits = (predict(fitted.model, source, rows, self.device, fitted.clock) for rows in (val, test))
        logits = logits.reshape(len(test), len(maps.classes))
        times, log_t = calibrate(of_val, maps.labels[val], maps.t[val])
        tensors = {
            "noised_rows": torch.from_numpy(test),
            "noised_predicted": torch.from_numpy(logits.argmax(axis=1)),
            "logits": torch.from_numpy(logits).float(),
            "fitted_on": torch.from_numpy(wanted[test]),
            **_weights(NoiseAwareProbe(fitted.model.cpu(), times, log_t)),
        }
        sizes = {"train": len(train), "val": len(val), "test": int(wanted[test].sum())}
        return Result(tensors, {**_facts(fitted), **sizes, "times": times.tolist()})


def _weights(model: torch.nn.Module) -> dict[str, Tensor]:
    return {f"w.{name}": value.detach().cpu().contiguous() for name, value in model.state_dict().items()}


def _facts(fitted: Fitted[Any]) -> dict[str, Any]:
    found = {name: getattr(fitted, name) for name in ("epochs", "best_epoch", "val_accuracy")}
    return {**found, "seconds": fitted.clock.total, "waiting": fitted.clock.waiting}
