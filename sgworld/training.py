"""What trainings of embedded checkpoints share: optimisers, schedule, averaged weights, on the engine of `sgpipe.optim`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final, TypeVar

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from sgpipe.optim.engine import Engine, Losses
from sgpipe.optim.precision import choose
from sgpipe.optim.schedules import trapezoid
from sgpipe.optim.weights import Average, assign, tensors_of
from sgpipe.runs.processes import Processes

SAVE_SECONDS = 180.0
ALONE: Final = Processes(0, 1, torch.device("cpu"))
M = TypeVar("M", bound=nn.Module)
T = TypeVar("T")


def quick_products() -> torch.autocast:
    """Matrix products in the precision that is the faster one on this machine (`sgpipe.optim.precision`)."""
    with torch.enable_grad():  # the choice is measured forward and backward
        chosen = choose(ALONE.device)
    return torch.autocast("cpu", torch.bfloat16, enabled=chosen == "bfloat16")


def learning_rate(step: int, steps: int, warmup: int, decay: int) -> float:
    """Share of the peak: linear warm-up, constant, then linear decay to zero over the last `decay` steps."""
    return trapezoid(step, warmup, (steps - step) / max(1, decay))


def optimisers_of(
    model: nn.Module, rate: float, weight_decay: float, muon: str | None, muon_rate: float
) -> list[torch.optim.Optimizer]:
    """AdamW; and where `muon` is given, Muon for the matrices whose names contain it (e.g. `transformer_blocks`).

    Muon: Jordan et al. 2024, its rate matched to AdamW's as Moonlight does (Liu et al. 2025).
    """
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    orthogonal = [p for name, p in trained if muon is not None and muon in name and p.ndim == 2]
    taken = set(map(id, orthogonal))
    others = [p for _, p in trained if id(p) not in taken]
    made: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(others, rate, betas=(0.9, 0.99), weight_decay=weight_decay, foreach=True)
    ]
    if orthogonal:
        made.append(torch.optim.Muon(orthogonal, muon_rate, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"))
    return made


def train_model(
    model: M,
    losses: Losses,
    folder: Path,
    *,
    steps: int,
    samples: int,
    rate: float,
    warmup: int = 200,
    decay: int = 0,
    muon: str | None = None,
    muon_rate: float = 0.0,
    average: float = 0.999,
    weight_decay: float = 0.01,
    processes: Processes = ALONE,
) -> M:
    """Train `model` from the last checkpoint in `folder`; returned in evaluation mode with its averaged weights.

    `samples` are those of a step of one process; where several share a step, its gradient is the mean of theirs.

    `folder` gets checkpoints and `log.jsonl`. To continue, run the same command again; `decay` and `steps` may be changed on the
    way, which is how a training of unknown length is ended.
    """
    tensors = tensors_of(model.train())
    trained = {name: each for name, each in model.named_parameters() if each.requires_grad}
    engine = Engine(
        tensors, optimisers_of(model, rate, weight_decay, muon, muon_rate), losses,
        lambda step: learning_rate(step, steps, warmup, decay),
        steps=steps, samples=samples * processes.count, advice="lower its rate in sgworld/recipe.py", clip=1.0,
        average=Average(trained, average, first=0), folder=folder, save_seconds=SAVE_SECONDS,
        progress=folder.name, processes=processes,
    )  # fmt: skip
    engine.resume()
    engine.run()
    assert engine.average is not None
    assign(tensors, engine.average.values)
    return model.eval()


def step_generator(seed: int, step: int) -> torch.Generator:
    """The random numbers of one step: a function of (seed, step), so that a resumed training draws what a whole one does."""
    return torch.Generator().manual_seed((seed << 32) + step)


class Ahead(Iterator[T]):
    """The batches of a training's steps in turn, the first asked for being that of `step`.

    Where one process trains, another makes them meanwhile; where several do, each makes its own: of step s the batch of index
    s × count + its number.
    """

    def __init__(self, batches: Dataset[T], step: int, steps: int, processes: Processes) -> None:
        numbers = range(step * processes.count + processes.index, steps * processes.count, processes.count)
        workers = int(processes.count == 1)
        context = "spawn" if workers else None
        self._batches = iter(DataLoader(batches, None, sampler=numbers, num_workers=workers, multiprocessing_context=context))

    def __next__(self) -> T:
        return next(self._batches)
