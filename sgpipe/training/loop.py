"""The training of an arm: its batches, its validations and the epochs that are kept, on the engine of `sgpipe.optim`."""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sgpipe.backbones.rectified_flow import generator
from sgpipe.errors import ParamsError
from sgpipe.optim.engine import Engine
from sgpipe.optim.log import Interval
from sgpipe.optim.schedules import warmup_then
from sgpipe.optim.weights import Average
from sgpipe.runs.processes import Processes
from sgpipe.tracking.run import StageRun
from sgpipe.training import controls
from sgpipe.training.config import Optimiser, Train
from sgpipe.training.objective import Noised, Objective, Spoken
from sgpipe.training.timesteps import conditions_of, rows_of, times_of

LOGGED = 10
"""Steps whose mean loss parts make one row of the log."""
CURVES = {"loss": "loss/train", "preferred": "preference/train", "gradient_norm": "optimiser/gradient_norm"}
"""Groups of curves in MLflow, which shows them in alphabetical order: losses, their terms, optimiser, direction preference."""


@dataclass
class History:
    """What was seen so far: mean loss parts by step, and controls by step; plain values only."""

    steps: list[dict[str, float]] = field(default_factory=list)
    controls: list[dict[str, Any]] = field(default_factory=list)


def adamw(weights: Mapping[str, nn.Parameter], optimiser: Optimiser) -> torch.optim.AdamW:
    """AdamW over weights by `<group>.<name>`, each group at its peak learning rate: that of `tokens` has a multiplier."""
    groups: dict[str, list[nn.Parameter]] = {}
    for name, weight in weights.items():
        groups.setdefault(name.partition(".")[0], []).append(weight)
    multiplier = {"tokens": optimiser.token_lr_multiplier}
    own = [{"params": group, "lr": optimiser.learning_rate * multiplier.get(name, 1.0)} for name, group in groups.items()]
    return torch.optim.AdamW(own, betas=(0.9, 0.999), weight_decay=optimiser.weight_decay, foreach=True)


class Training:
    """One arm's training: `run` goes on from the last checkpoint in `folder` and calls `kept` after each epoch to be kept.

    Raises `ParamsError` where nothing is trained, and for batches that processes or epochs cannot take.
    """

    def __init__(
        self,
        objective: Objective,
        train: Train,
        folder: Path,
        processes: Processes,
        *,
        validated: Callable[[int], None] = lambda step: None,
        kept: Callable[[int], None] = lambda epoch: None,
        recorded: StageRun | None = None,
    ) -> None:
        self.objective, self.model, self.train, self.processes = objective, objective.model, train, processes
        self._validated, self._kept, self._recorded = validated, kept, recorded or StageRun()
        weights: dict[str, nn.Parameter] = self.model.trainable()
        if not weights:
            raise ParamsError("arms: nothing is trained: no blocks, and no graph tokens; set lora.blocks")
        self._sigmas = objective.sigmas(train.times)
        self.waiting = 0.0
        """Seconds that the steps of this process waited for their data."""
        optimiser, per_step = train.optimiser, train.batch_size * train.gradient_accumulation_steps
        triples = len(objective.data.train)
        self.steps = steps = train.steps_after(train.epochs, triples)
        if train.batch_size % processes.count:
            raise ParamsError(
                f"train.batch_size: got {train.batch_size}; {processes.count} processes share it, so it must be a multiple"
            )
        if steps == 0:
            raise ParamsError(
                f"train.batch_size × train.gradient_accumulation_steps = {per_step}, more than {train.epochs} epochs of {triples} "
                "triples; lower one of the two"
            )
        try:
            self._keep = train.kept_steps(triples)
        except ValueError as error:
            raise ParamsError(str(error)) from None
        self._validations = {steps, *(train.steps_after(each, triples) for each in range(0, train.epochs, train.validation.every))}
        self.engine = Engine(
            weights, [adamw(weights, optimiser)], self._losses,
            lambda step: warmup_then(optimiser.schedule, step, steps, optimiser.warmup),
            steps=steps, samples=per_step, advice="lower train.optimiser.learning_rate, or set train.precision to float32",
            clip=optimiser.clip, accumulation=train.gradient_accumulation_steps,
            average=Average(weights, train.ema_decay) if train.ema_decay else None,
            folder=folder, save_every=train.save_every, log_every=LOGGED, logged=self._logged, after=self._after,
            extra={"controls": []}, processes=processes, progress="",
        )  # fmt: skip

    @property
    def history(self) -> History:
        """What was seen so far."""
        names = {"gradient_norm": "gradient"}
        rows = [
            {"step": e.step, "steps": e.steps, **{names.get(name, name): v for name, v in e.means.items()}}
            for e in self.engine.intervals
        ]
        return History(rows, self.engine.extra["controls"])

    def run(self) -> None:
        """Train to the end; the weights are then those of the last step, within `engine.averaged()` those that are exported.

        Raises `StateError` for a loss that is not finite.
        """
        self.engine.resume()
        if self.engine.step == 0 and not self.engine.extra["controls"]:
            self._validate(0)
        self.engine.run()

    def _losses(self, step: int, pass_: int) -> tuple[Tensor, dict[str, Tensor]]:
        start = time.perf_counter()
        noised, positive, negative = self.batch(step, pass_)
        self.waiting += time.perf_counter() - start
        torch.manual_seed(generator(self.train.seed, "dropout", step, pass_, self.processes.index).initial_seed())
        loss, parts = self.objective(noised, positive, negative)
        return loss, {name: part.mean() for name, part in parts.items()}

    def batch(self, step: int, pass_: int = 0) -> tuple[Noised, Spoken, Spoken]:
        """This process's part of a batch; what is drawn for a sample does not depend on how many processes share it."""
        train, data = self.train, self.objective.data
        number = step * train.gradient_accumulation_steps + pass_
        rows = rows_of(number * train.batch_size, train.batch_size, len(data.train), train.seed)
        kinds = conditions_of(train.batch_size, train.conditions, generator(train.seed, "prompts", number))
        t = times_of(train.batch_size, train.times, generator(train.seed, "times", number), self._sigmas)
        share = slice(self.processes.index, None, self.processes.count)
        examples = [data.train[row] for row in rows][share]
        latents = data.latents.latents([each.triple_id for each in examples])
        drawn = torch.randn(train.batch_size, *latents.shape[1:], generator=generator(train.seed, "noise", number))
        device = self.model.denoiser.device
        noised = Noised(examples, latents.to(device), drawn[share].to(device), t[share].to(device), number)
        mode = self.model.mode
        positive, negative = (controls.spoken(name, examples, kinds[share], mode) for name in ("graph", "negative"))
        return noised, positive, negative

    def _after(self, step: int) -> None:
        if step in self._validations:
            self._validate(step)
        if step in self._keep and self.processes.is_main:
            with self.engine.averaged():
                self._kept(self._keep[step])

    def _validate(self, step: int) -> None:
        """Control losses with the weights that would be exported, in eager mode: compiled blocks are for training shapes."""
        chosen = self.objective.data.held_out[: self.train.validation.triples or None]
        if not self.processes.is_main or not chosen:
            return
        before = self.engine.extra["controls"]
        base = before[0]["losses"]["base"] if before else None
        with self.engine.averaged(), torch.compiler.set_stance("force_eager"):
            found = controls.measure(self.objective, chosen, self.train, base)
            self._validated(step)
        before.append({"step": step, **asdict(found)})
        curves = {f"loss/val_{name}": value for name, value in found.losses.items()}
        self._recorded.log_step(step, {**curves, "preference/val": found.preferred})

    def _logged(self, interval: Interval) -> None:
        curves = {CURVES.get(name, f"loss_terms/{name}"): value for name, value in interval.means.items()}
        self._recorded.log_step(interval.step, {**curves, "optimiser/learning_rate": interval.learning_rate})
