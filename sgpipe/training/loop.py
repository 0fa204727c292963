"""The training loop. To resume, run the same command again: every draw is a function of (seed, step)."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from sgpipe.arms.kinds.base import InjectionMode
from sgpipe.backbones.rectified_flow import generator
from sgpipe.errors import ParamsError, StateError
from sgpipe.graphs.scene_graph import SceneGraph
from sgpipe.runs.checkpoints import checkpoints
from sgpipe.runs.processes import Processes
from sgpipe.tracking.run import StageRun
from sgpipe.training import controls, state
from sgpipe.training.config import Train
from sgpipe.training.examples import Example, prompt_of
from sgpipe.training.objective import Noised, Objective, Spoken
from sgpipe.training.optimise import Average, adamw, average_gradients, schedule, set_rates
from sgpipe.training.timesteps import conditions_of, rows_of, times_of

LOGGED = 10
"""Steps whose mean loss parts make one row of the log."""
CURVES = {"loss": "loss/train", "preferred": "preference/train", "gradient": "optimiser/gradient_norm"}
"""Groups of curves in MLflow, which shows them in alphabetical order: losses, their terms, optimiser, direction preference."""


class Training:
    """One arm's training: `run` goes on from the last checkpoint in `folder` and calls `kept` after each epoch to be kept."""

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
        self.objective, self.train, self.folder, self.processes = objective, train, folder, processes
        self._validated, self._kept = validated, kept
        self.recorded = recorded or StageRun()
        self.weights: dict[str, nn.Parameter] = objective.model.trainable()
        if not self.weights:
            raise ParamsError("arms: nothing is trained: no blocks, and no graph tokens; set lora.blocks")
        self._sigmas = objective.sigmas(train.times)
        self.optimiser = adamw(self.weights, train.optimiser)
        self.average = Average(self.weights, train.ema_decay) if train.ema_decay else None
        self.history = state.History()
        self.step = 0
        self.taken, self.waiting, self.spent = 0, 0.0, 0.0
        """Steps of this process, seconds spent on their data, and on them in all."""
        per_step = train.batch_size * train.gradient_accumulation_steps
        self._triples = len(objective.data.train)
        self.steps = train.steps_after(train.epochs, self._triples)
        if train.batch_size % processes.count:
            raise ParamsError(
                f"train.batch_size: got {train.batch_size}; {processes.count} processes share it, so it must be a multiple"
            )
        if self.steps == 0:
            raise ParamsError(
                f"train.batch_size × train.gradient_accumulation_steps = {per_step}, more than {train.epochs} epochs of "
                f"{self._triples} triples; lower one of the two"
            )
        try:
            self._keep = train.kept_steps(self._triples)
        except ValueError as error:
            raise ParamsError(str(error)) from None

    def run(self) -> state.History:
        """Train to the end; the weights are then those of the last step, within `exported` those that are exported.

        Raises `StateError` for a loss that is not finite.
        """
        self._resume()
        every = {
            self.train.steps_after(epoch, self._triples)
            for epoch in range(0, self.train.epochs, self.train.validation.every)
        }
        if self.step == 0 and not self.history.controls:
            self._validate()
        bar = tqdm(
            total=self.steps,
            initial=self.step,
            unit="step",
            mininterval=5,
            disable=not self.processes.is_main,
        )
        while self.step < self.steps:
            start = time.perf_counter()
            parts = self._update()
            self.taken, self.spent = self.taken + 1, self.spent + time.perf_counter() - start
            self._log(parts)
            bar.update()
            if self.step in every or self.step == self.steps:
                self._validate()
            if self.step in self._keep and self.processes.is_main:
                with self.exported():
                    self._kept(self._keep[self.step])
            if self.step % self.train.save_every == 0 or self.step == self.steps:
                self._save()
        bar.close()
        return self.history

    @contextmanager
    def exported(self) -> Iterator[None]:
        """Within the body the model has the weights that are exported: the averaged ones, if there are any."""
        if self.average is None:
            yield
            return
        own = {name: weight.detach().clone() for name, weight in self.weights.items()}
        _assign(self.weights, self.average.values)
        try:
            yield
        finally:
            _assign(self.weights, own)

    def _update(self) -> dict[str, float]:
        """One step of the optimiser; the mean of each loss part."""
        set_rates(self.optimiser, schedule(self.step, self.steps, self.train.optimiser))
        self.optimiser.zero_grad(set_to_none=True)
        sums: dict[str, float] = {}
        for pass_ in range(self.train.gradient_accumulation_steps):
            start = time.perf_counter()
            noised, positive, negative = self._batch(pass_)
            self.waiting += time.perf_counter() - start
            torch.manual_seed(
                generator(self.train.seed, "dropout", self.step, pass_, self.processes.index).initial_seed()
            )
            loss, parts = self.objective(noised, positive, negative)
            values = {
                "loss": float(loss.detach()),
                **{name: float(part.mean()) for name, part in parts.items()},
            }
            if not math.isfinite(values["loss"]):
                self._stop(values)
            (loss / self.train.gradient_accumulation_steps).backward()
            for name, value in values.items():
                sums[name] = sums.get(name, 0.0) + value / self.train.gradient_accumulation_steps
        average_gradients(self.weights, self.processes.count)
        norm = nn.utils.clip_grad_norm_(self.weights.values(), self.train.optimiser.clip)
        sums["gradient"] = float(norm)
        if not math.isfinite(sums["gradient"]):
            self._stop(sums)
        self.optimiser.step()
        self.step += 1
        if self.average is not None:
            self.average.update(self.weights, self.step)
        return sums

    def _batch(self, pass_: int) -> tuple[Noised, Spoken, Spoken]:
        """This process's part of a batch; what is drawn for a sample does not depend on how many processes share it."""
        train, data = self.train, self.objective.data
        number = self.step * train.gradient_accumulation_steps + pass_
        rows = rows_of(number * train.batch_size, train.batch_size, len(data.train), train.seed)
        kinds = conditions_of(train.batch_size, train.conditions, generator(train.seed, "prompts", number))
        t = times_of(train.batch_size, train.times, generator(train.seed, "times", number), self._sigmas)
        share = slice(self.processes.index, None, self.processes.count)
        examples = [data.train[row] for row in rows][share]
        latents = data.latents.latents([each.triple_id for each in examples])
        drawn = torch.randn(
            train.batch_size, *latents.shape[1:], generator=generator(train.seed, "noise", number)
        )
        device = self.objective.model.denoiser.device
        noised = Noised(examples, latents.to(device), drawn[share].to(device), t[share].to(device))
        return (noised, *spoken(examples, kinds[share], self.objective.model.mode))

    def _validate(self) -> None:
        """Control losses with the weights that would be exported, in eager mode: compiled blocks are for training shapes."""
        chosen = self.objective.data.held_out[: self.train.validation.triples or None]
        if not self.processes.is_main or not chosen:
            return
        base = self.history.controls[0]["losses"]["base"] if self.history.controls else None
        with self.exported(), torch.compiler.set_stance("force_eager"):
            found = controls.measure(self.objective, chosen, self.train, base)
            self._validated(self.step)
        self.history.controls.append({"step": self.step, **asdict(found)})
        curves = {f"loss/val_{name}": value for name, value in found.losses.items()}
        self.recorded.log_step(self.step, {**curves, "preference/val": found.preferred})

    def _log(self, parts: Mapping[str, float]) -> None:
        """Keep running means; every `LOGGED` steps they become a row."""
        rows = self.history.steps
        if not rows or rows[-1]["steps"] == LOGGED:
            rows.append({"step": self.step, "steps": 0, **dict.fromkeys(parts, 0.0)})
        row, count = rows[-1], rows[-1]["steps"] + 1
        for name, value in parts.items():
            row[name] += (value - row[name]) / count
        row |= {"step": self.step, "steps": count}
        if count == LOGGED:
            curves = {CURVES.get(name, f"loss_terms/{name}"): row[name] for name in parts}
            rate = self.optimiser.param_groups[0]["lr"]
            self.recorded.log_step(self.step, {**curves, "optimiser/learning_rate": rate})

    def _resume(self) -> None:
        found = state.load_last(self.folder)
        if found is None:
            return
        _assign(self.weights, found.weights)
        self.optimiser.load_state_dict(found.optimiser)
        if self.average is not None and found.average is not None:
            self.average.values = {
                name: value.to(self.weights[name].device) for name, value in found.average.items()
            }
        self.step, self.history = found.step, found.history

    def _save(self) -> None:
        if not self.processes.is_main:
            return
        weights = {name: weight.detach().cpu().clone() for name, weight in self.weights.items()}
        average = self.average.values if self.average is not None else None
        state.save(
            state.Checkpoint(self.step, weights, average, self.optimiser.state_dict(), self.history),
            self.folder,
        )

    def _stop(self, values: Mapping[str, float]) -> None:
        last = checkpoints(self.folder)
        shown = ", ".join(f"{name} {value:g}" for name, value in values.items())
        raise StateError(
            f"step {self.step}: the loss is not finite ({shown}); the last good checkpoint is {last[-1] if last else 'none'}; "
            "lower train.optimiser.learning_rate, or set train.precision to float32, and run again"
        )


def spoken(
    examples: Sequence[Example], conditions: Sequence[str], mode: InjectionMode
) -> tuple[Spoken, Spoken]:
    """g⁺ and g⁻ of each example beside the prompt of its condition; or in words, with empty graphs."""
    if mode == "text":
        none = [SceneGraph()] * len(examples)
        kinds = ("relational", "conflicting")
        positive, negative = (Spoken([prompt_of(each, kind) for each in examples], none) for kind in kinds)
        return positive, negative
    texts = [prompt_of(each, kind) for each, kind in zip(examples, conditions, strict=True)]
    return Spoken(texts, [each.graph for each in examples]), Spoken(
        texts, [each.negative for each in examples]
    )


@torch.no_grad()
def _assign(weights: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]) -> None:
    for name, weight in weights.items():
        weight.copy_(values[name])
