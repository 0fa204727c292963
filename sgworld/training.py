"""What the trainings of the embedded checkpoints share: schedule, averaged weights, checkpoints, a log."""

import copy
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from tqdm import tqdm

from sgpipe.errors import StateError
from sgpipe.runs.atomic import atomic_path
from sgpipe.runs.checkpoints import read_checkpoint

SAVE_SECONDS = 180.0


def learning_rate(step: int, steps: int, peak: float, warmup: int, decay: int) -> float:
    """Linear warm-up, constant, then linear decay to zero over the last `decay` steps (warmup–stable–decay)."""
    return peak * min(1.0, (step + 1) / max(1, warmup), (steps - step) / max(1, decay))


M = TypeVar("M", bound=nn.Module)


class Average(Generic[M]):
    """Exponential moving average of a model's parameters; the window grows with the steps taken (at most `decay`)."""

    def __init__(self, model: M, decay: float) -> None:
        self.model: M = copy.deepcopy(model).eval().requires_grad_(False)
        self._decay = decay
        self._pairs = list(zip(self.model.parameters(), model.parameters(), strict=True))

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move towards the trained parameters."""
        weight = 1.0 - min(self._decay, (1 + step) / (10 + step))
        averages: list[Tensor] = [average for average, _ in self._pairs]
        torch._foreach_lerp_(averages, [trained.detach() for _, trained in self._pairs], weight)


class Trainer(Generic[M]):
    """Steps a model with resume by construction: every draw is a function of (seed, step).

    Matrices inside `muon` (a prefix-free part of parameter names, e.g. `transformer_blocks`) step under Muon (Jordan et al. 2024),
    its rate matched to AdamW's as Moonlight does (Liu et al. 2025), everything else under AdamW.

    `folder` holds `checkpoint.pt` (model, average, optimiser, step) and `log.jsonl`. To continue, run the same command again;
    `decay` and `steps` may be changed on the way, which is how a training of unknown length is ended.
    """

    def __init__(
        self,
        model: M,
        folder: Path,
        *,
        steps: int,
        rate: float,
        warmup: int = 200,
        decay: int = 0,
        muon: str | None = None,
        muon_rate: float = 0.0,
        average: float = 0.999,
        weight_decay: float = 0.01,
        clip: float = 1.0,
    ) -> None:
        self.model: M = model.train()
        self.folder, self.steps = folder, steps
        self._warmup, self._decay, self._clip = warmup, decay, clip
        trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        orthogonal = [p for name, p in trained if muon is not None and muon in name and p.ndim == 2]
        taken = set(map(id, orthogonal))
        others = [p for _, p in trained if id(p) not in taken]
        self.optimizers: list[tuple[torch.optim.Optimizer, float]] = [
            (
                torch.optim.AdamW(others, rate, betas=(0.9, 0.99), weight_decay=weight_decay, foreach=True),
                rate,
            )
        ]
        if orthogonal:
            made = torch.optim.Muon(
                orthogonal, muon_rate, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"
            )
            self.optimizers.append((made, muon_rate))
        self.average = Average(model, average)
        self.step = 0
        folder.mkdir(parents=True, exist_ok=True)
        self._file, self._log = folder / "checkpoint.pt", folder / "log.jsonl"
        if stored := read_checkpoint(self._file):
            model.load_state_dict(stored["model"])
            self.average.model.load_state_dict(stored["average"])
            for (optimizer, _), state in zip(self.optimizers, stored["optimizers"], strict=True):
                optimizer.load_state_dict(state)
            self.step = int(stored["step"])

    def __iter__(self) -> Iterator[int]:
        """The steps still to be taken, with a progress bar; a checkpoint every few minutes and at the end."""
        saved = time.monotonic()
        bar = tqdm(total=self.steps, initial=self.step, desc=self.folder.name, unit="step", mininterval=5)
        while self.step < self.steps:
            for optimizer, peak in self.optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(self.step, self.steps, peak, self._warmup, self._decay)
            yield self.step
            bar.update()
            if time.monotonic() - saved > SAVE_SECONDS:
                self.save()
                saved = time.monotonic()
        bar.close()
        self.save()

    def backward(self, loss: Tensor, **parts: float) -> None:
        """One update from `loss`; `parts` are logged beside it every 20 steps. A loss that is not finite ends the training."""
        value = float(loss.detach())
        if not torch.isfinite(loss):
            raise StateError(f"step {self.step}: loss is {value}; the last good checkpoint is {self._file}")
        for optimizer, _ in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self._clip)
        for optimizer, _ in self.optimizers:
            optimizer.step()
        self.average.update(self.step)
        if self.step % 20 == 0:
            with self._log.open("a") as stream:
                stream.write(json.dumps({"step": self.step, "loss": round(value, 5), **parts}) + "\n")
        self.step += 1

    def save(self) -> None:
        """Write the checkpoint atomically."""
        state: dict[str, Any] = {
            "model": self.model.state_dict(),
            "average": self.average.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer, _ in self.optimizers],
            "step": self.step,
        }
        with atomic_path(self._file) as temporary:
            torch.save(state, temporary)


def step_generator(seed: int, step: int) -> torch.Generator:
    """The random numbers of one step: a function of (seed, step), so that a resumed training draws what a whole one does."""
    return torch.Generator().manual_seed((seed << 32) + step)
