"""The training loop. To resume, run the same command again: what a step draws is a function of (seed, step).

A step costs one forward and backward per accumulated pass, one exchange of gradients where several processes share it, and with
`check_every=1` one wait for the device.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import reduce
from torch import Tensor, nn
from tqdm import tqdm

from sgpipe.errors import ModelError, StateError
from sgpipe.optim.log import LOG, Interval, peak_memory
from sgpipe.optim.weights import Average, assign, copied
from sgpipe.runs.atomic import atomic_path
from sgpipe.runs.checkpoints import last_checkpoint, newest_checkpoint, save_checkpoint
from sgpipe.runs.processes import Processes

Parts = Mapping[str, Tensor | float]
Losses = Callable[[int, int], tuple[Tensor, Parts]]
"""Of a step and one of its accumulated passes, both from 0: the scalar to minimise, and scalars to log beside it."""


@dataclass
class Engine:
    """One training: `resume` goes on from the last good checkpoint in `folder`, `run` takes the steps that are left.

    Without a folder nothing is written.

    Raises `ModelError` for a parameter that requires a gradient and is in no optimiser.
    """

    tensors: Mapping[str, Tensor]
    """What a checkpoint keeps: parameters, trained where they require a gradient, and buffers."""
    optimisers: Sequence[torch.optim.Optimizer]
    """Each group at its peak learning rate."""
    losses: Losses
    schedule: Callable[[int], float]
    """Factor on the peak learning rates at a step."""
    steps: int
    samples: int
    """Samples of a step, over all passes and processes."""
    advice: str
    """What to do about a loss that is not finite."""
    clip: float | None = None
    """Largest norm of the gradient; None leaves it as it is."""
    accumulation: int = 1
    """Passes of a step; the gradient is the mean of theirs."""
    average: Average | None = None
    folder: Path | None = None
    save_every: int | None = None
    """Steps between two checkpoints; the last step has one."""
    save_seconds: float | None = None
    """Seconds after which a step is followed by a checkpoint."""
    log_every: int = 20
    """Steps of an interval."""
    check_every: int = 1
    """Steps whose losses are looked at together: 1 before the optimiser uses them, more spares a GPU the waits."""
    logged: Callable[[Interval], None] = lambda interval: None
    """Called with each interval that is over."""
    after: Callable[[int], bool | None] = lambda step: None
    """Called after each step, before its checkpoint, with the number made; true ends the training."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Plain values of the caller's own that go with a checkpoint."""
    processes: Processes = Processes(0, 1, torch.device("cpu"))  # noqa: RUF009
    progress: str | None = None
    """Label of the progress bar; None shows none."""

    def __post_init__(self) -> None:
        parameters = {name: each for name, each in self.tensors.items() if isinstance(each, nn.Parameter)}
        self.weights = {name: weight for name, weight in parameters.items() if weight.requires_grad}
        held = {id(weight) for group in self._groups() for weight in group["params"]}
        if left := [name for name, weight in self.weights.items() if id(weight) not in held]:
            raise ModelError(
                f"trainable weights that would never be trained: {', '.join(left)}; give them to an optimiser, or freeze them"
            )
        self._peaks = [group["lr"] for group in self._groups()]
        self.step, self.ended = 0, False
        """Steps made, and whether `after` has ended the training."""
        self.taken, self.seconds = 0, 0.0
        """Steps of this process, and the seconds that they took."""
        self.intervals: list[Interval] = []
        self._unread: list[tuple[int, list[Parts], dict[str, Tensor]]] = []

    def _groups(self) -> list[dict[str, Any]]:
        return [group for optimiser in self.optimisers for group in optimiser.param_groups]

    def run(self) -> None:
        """Take the steps that are left. Raises `StateError` for a loss or a gradient that is not finite, and for a full disk."""
        saved = time.monotonic()
        hidden = self.progress is None or not self.processes.is_main
        with tqdm(total=self.steps, initial=self.step, desc=self.progress, unit="step", mininterval=5, disable=hidden) as bar:
            while self.step < self.steps and not self.ended:
                self.update()
                bar.update()
                self.ended = bool(self.after(self.step))
                by_time = self.save_seconds is not None and time.monotonic() - saved > self.save_seconds
                by_step = self.save_every is not None and self.step % self.save_every == 0
                if by_time or by_step or self.ended or self.step == self.steps:
                    self.save()
                    saved = time.monotonic()
        self._look()
        if self.intervals and self.intervals[-1].steps < self.log_every:
            self._write(self.intervals[-1])

    def update(self) -> None:
        """One step of the optimisers, and of the log."""
        start = time.perf_counter()
        if not self.intervals or self.intervals[-1].steps == self.log_every:
            self.intervals.append(Interval())
        factor = self.schedule(self.step)
        for group, peak in zip(self._groups(), self._peaks, strict=True):
            group["lr"] = peak * factor
        for optimiser in self.optimisers:
            optimiser.zero_grad(set_to_none=True)
        passes: list[Parts] = []
        for pass_ in range(self.accumulation):
            loss, parts = self.losses(self.step, pass_)
            (loss / self.accumulation).backward()
            passes.append({name: v.detach() if isinstance(v, Tensor) else v for name, v in {"loss": loss, **parts}.items()})
        average_gradients(self.weights, self.processes.count)
        norm = {}
        if self.clip is not None:
            norm = {"gradient_norm": nn.utils.clip_grad_norm_(self.weights.values(), self.clip)}
        self._unread.append((self.step, passes, norm))
        if len(self._unread) == self.check_every:
            self._look()
        for optimiser in self.optimisers:
            optimiser.step()
        self.step += 1
        if self.average is not None:
            self.average.update(self.weights, self.step)
        spent, interval = time.perf_counter() - start, self.intervals[-1]
        self.taken, self.seconds = self.taken + 1, self.seconds + spent
        interval.seconds += spent
        interval.learning_rate = self._groups()[0]["lr"]
        if interval.steps + len(self._unread) == self.log_every:
            self._look()
            self._write(interval)

    def _look(self) -> None:
        """Take the losses of the steps since the last look into the interval. Raises `StateError` where one is not finite."""
        for step, passes, norm in self._unread:
            means = dict.fromkeys(passes[0], 0.0)
            for name, value in (part for parts in passes for part in parts.items()):
                means[name] += float(value) / self.accumulation
            means |= {name: float(value) for name, value in norm.items()}
            if not all(math.isfinite(means[name]) for name in ("loss", *norm)):
                shown = ", ".join(f"{name} {value:g}" for name, value in means.items())
                last = f"; the last good checkpoint is {last_checkpoint(self.folder)}" if self.folder else ""
                raise StateError(f"step {step}: the loss is not finite ({shown}){last}; {self.advice}, and run again")
            self.intervals[-1].add(step + 1, means)
        self._unread.clear()

    def _write(self, interval: Interval) -> None:
        """Log an interval that is over."""
        interval.peak_memory = peak_memory(next(iter(self.weights.values())).device)
        if self.folder and self.processes.is_main:
            with (self.folder / LOG).open("a", encoding="utf-8") as stream:
                stream.write(interval.line(self.samples) + "\n")
        self.logged(interval)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within the body the weights are the averaged ones, where there is an average."""
        if self.average is None:
            yield
            return
        own = copied(self.weights)
        assign(self.weights, self.average.values)
        try:
            yield
        finally:
            assign(self.weights, own)

    def save(self) -> None:
        """Write a checkpoint: everything that the next step depends on, and the log so far."""
        if self.folder is None or not self.processes.is_main:
            return
        self._look()
        content = {
            "tensors": {name: tensor.detach() for name, tensor in self.tensors.items()},
            "average": self.average.values if self.average else {},
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
            "intervals": [asdict(interval) for interval in self.intervals],
            "extra": self.extra,
            "ended": self.ended,
        }
        save_checkpoint(content, self.step, self.folder)

    def resume(self) -> None:
        """Go on from the newest checkpoint that is whole, if there is one; the log then ends where it does."""
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        newest_checkpoint(self.folder, self._accept)
        if self.processes.is_main:
            whole = [each for each in self.intervals if each.steps == self.log_every]
            with atomic_path(self.folder / LOG) as temporary:
                lines = (f"{interval.line(self.samples)}\n" for interval in whole)
                temporary.write_text("".join(lines), encoding="utf-8")

    def _accept(self, path: Path, stored: Mapping[str, Any]) -> None:
        """Take a checkpoint over, or raise with everything as it was."""
        intervals = [Interval(**row) for row in stored["intervals"]]
        step, ended, extra = int(stored["step"]), bool(stored["ended"]), dict(stored["extra"])
        averages = self.average.values if self.average else {}
        for what, own, theirs in (("tensors", self.tensors, stored["tensors"]), ("averages", averages, stored["average"])):
            if other := {(name, tuple(t.shape)) for name, t in own.items()} ^ {
                (name, tuple(t.shape)) for name, t in theirs.items()
            }:
                shown = sorted(f"{name} {list(shape)}" for name, shape in other)
                raise StateError(f"{path}: {what} of another model: {', '.join(shown[:3])}")
        sizes, own_sizes = (
            [[len(group["params"]) for group in each["param_groups"]] for each in states]
            for states in (stored["optimisers"], [each.state_dict() for each in self.optimisers])
        )
        if sizes != own_sizes:
            raise StateError(f"{path}: is of other optimisers")
        for optimiser, state in zip(self.optimisers, stored["optimisers"], strict=True):
            optimiser.load_state_dict(state)
        assign(self.tensors, stored["tensors"])
        assign(averages, stored["average"])
        self.step, self.ended, self.intervals = step, ended, intervals
        self.extra.clear()
        self.extra |= extra


def average_gradients(weights: Mapping[str, nn.Parameter], processes: int) -> None:
    """The mean of every gradient over the processes, in place, in one exchange.

    A weight that the loss of some processes reached counts as zero in the others; one that none reached keeps no gradient, so that
    the optimiser leaves it alone as it does with one process.
    """
    if processes == 1:
        return
    sizes = [weight.numel() for weight in weights.values()]
    own = [weight.grad if weight.grad is not None else torch.zeros_like(weight) for weight in weights.values()]
    reached = own[0].new_tensor([float(weight.grad is not None) for weight in weights.values()])
    mean = reduce(torch.cat([*(gradient.flatten() for gradient in own), reached]), reduction="mean")
    parts, shares = mean[: sum(sizes)].split(sizes), mean[sum(sizes) :].tolist()
    for weight, part, share in zip(weights.values(), parts, shares, strict=True):
        weight.grad = part.view_as(weight) if share else None
