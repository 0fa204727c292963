"""Fitting a classifier by mini-batches, with early stopping on validation; the same bits on a CPU for the same seed.

Figures of predictions: accuracy, macro-F1, intervals by group, confusions, calibration.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sgpipe.errors import DataError
from sgpipe.optim.engine import Engine
from sgpipe.optim.schedules import one_cycle
from sgpipe.optim.weights import Best, tensors_of
from sgpipe.probes.config import Fitting
from sgpipe.probes.data import Indices, Source

Floats = NDArray[np.float64]


def mean(values: ArrayLike) -> float | None:
    """Mean of numbers or of truths; None of none, which metrics hold as null."""
    array = np.asarray(values, np.float64)
    return float(array.mean()) if array.size else None


def difference(one: float | None, other: float | None) -> float | None:
    """one − other; None where either is undefined."""
    return None if one is None or other is None else one - other


def confusion_matrix(labels: Indices, predicted: Indices, classes: int) -> Indices:
    """Counts `[classes, classes]`: row the true class, column the predicted one."""
    return np.bincount(labels * classes + predicted, minlength=classes**2).reshape(classes, classes)


def macro_f1(confusion: Indices) -> float:
    """Mean over the classes that occur of 2 · hits / (true + predicted)."""
    true, predicted = confusion.sum(axis=1), confusion.sum(axis=0)
    return float((2 * confusion.diagonal()[true > 0] / (true + predicted)[true > 0]).mean())


def interval(correct: NDArray[np.bool_], groups: Indices, resamples: int, seed: int) -> tuple[float, float]:
    """95 % percentile interval of the accuracy, by bootstrap over groups `[N]`: rows of one group stand and fall together."""
    _, place = np.unique(groups, return_inverse=True)
    hits, rows = np.bincount(place, weights=correct), np.bincount(place)
    weights = np.random.default_rng(seed).multinomial(len(rows), np.full(len(rows), 1 / len(rows)), resamples)
    low, high = np.quantile((weights @ hits) / (weights @ rows), (0.025, 0.975))
    return float(low), float(high)


def mean_loss(logits: Floats, labels: Indices) -> float:
    """Mean cross-entropy of logits `[N, classes]` to labels `[N]`, in float64."""
    top = logits.max(axis=1)
    log_sum = top + np.log(np.exp(logits - top[:, None]).sum(axis=1))
    return float((log_sum - logits[np.arange(len(labels)), labels]).mean())


def calibration_error(logits: Floats, labels: Indices, bins: int = 15) -> float | None:
    """Expected calibration error (Guo et al. 2017, eq. 3): |accuracy − confidence| over equal bins of confidence, weighted.

    None without rows.
    """
    if not len(labels):
        return None
    confidence = 1 / np.exp(logits - logits.max(axis=1, keepdims=True)).sum(axis=1)
    correct = logits.argmax(axis=1) == labels
    bin_of = np.minimum((confidence * bins).astype(np.int64), bins - 1)
    gaps = np.bincount(bin_of, weights=correct - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(labels))


Model = TypeVar("Model", bound=nn.Module)
_AHEAD = 3
"""Batches that are gathered while a GPU computes."""


@dataclass
class Clock:
    """Seconds that fitting took and, of these, those in which it waited for maps."""

    total: float = 0.0
    waiting: float = 0.0


@dataclass(frozen=True)
class Fitted(Generic[Model]):
    """A fitted model in eval mode, with the weights of its best epoch on validation."""

    model: Model
    epochs: int
    """Epochs run."""
    best_epoch: int
    val_accuracy: float
    clock: Clock = field(default_factory=Clock)


def cut(rows: Indices, size: int) -> list[Indices]:
    """Rows in parts of at most `size` whose sizes differ by one at most: a batch norm never sees a last batch of one."""
    return [part for part in np.array_split(rows, max(1, -(-len(rows) // size))) if len(part)]


def _batches(source: Source, parts: Sequence[Indices], device: torch.device, clock: Clock) -> Iterator[Tensor]:
    """Inputs of each part on the device; a thread gathers ahead for a GPU. The wait for them is counted."""

    def gather(part: Indices) -> Tensor:
        return source.batch(part).pin_memory() if device.type == "cuda" else source.batch(part)

    gathered = map(gather, parts) if device.type == "cpu" else _ahead(gather, parts)
    for _ in parts:
        start = time.perf_counter()
        made = next(gathered)
        clock.waiting += time.perf_counter() - start
        yield made.to(device, non_blocking=True)


def _ahead(gather: Callable[[Indices], Tensor], parts: Sequence[Indices]) -> Iterator[Tensor]:
    with ThreadPoolExecutor(1) as pool:
        running = deque(pool.submit(gather, part) for part in parts[:_AHEAD])
        for at in range(len(parts)):
            made = running.popleft().result()
            running.extend(pool.submit(gather, part) for part in parts[at + _AHEAD : at + _AHEAD + 1])
            yield made


def _autocast(device: torch.device) -> Any:
    return torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else nullcontext()


@torch.no_grad()
def predict(
    model: nn.Module, source: Source, rows: Indices, device: torch.device, clock: Clock | None = None, size: int = 512
) -> Floats:
    """Logits `[N, classes]` of these rows, in eval mode."""
    model.eval()
    found = []
    for inputs in _batches(source, cut(rows, size), device, clock or Clock()):
        with _autocast(device):
            found.append(model(inputs).double())
    return torch.cat(found).cpu().numpy() if found else np.empty((0, 0))


def scale(source: Source, rows: Indices, size: int = 512) -> tuple[Tensor, Tensor]:
    """Mean and deviation `[C]` of every channel of these rows' inputs `[B, C, …]`, accumulated in float64."""
    count, total, squares = 0, torch.zeros(()), torch.zeros(())
    for part in cut(rows, size):
        values = source.batch(part).double().transpose(0, 1).flatten(1)
        count += values.shape[1]
        total, squares = total + values.sum(dim=1), squares + values.square().sum(dim=1)
    mean = total / count
    return mean.float(), (squares / count - mean.square()).clamp(min=0).sqrt().float()


def fit(
    build: Callable[[], Model],
    source: Source,
    labels: Indices,
    train: Indices,
    val: Indices,
    epochs: int,
    highest: float,
    config: Fitting,
    seed: int,
    device: torch.device,
) -> Fitted[Model]:
    """Fit `build()` on the rows `train` to `labels` `[N]` with AdamW and cross-entropy; keep the weights of the best epoch.

    The learning rate is `highest` times `one_cycle` over `epochs`; an epoch is better by validation accuracy, then by loss.
    Weights, order and dropout are functions of `seed`; bfloat16 autocast on a GPU, float32 elsewhere. Raises `StateError` where
    the loss is not finite.
    """
    began = time.perf_counter()
    clock = Clock()
    per_epoch = len(cut(train, config.batch_size))
    if not per_epoch:
        raise DataError("a probe cannot be fitted: there are no training rows; raise curate.maps_per_class")
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        model = build().to(device)
        optimizer = torch.optim.AdamW(model.parameters(), highest, weight_decay=config.weight_decay, fused=device.type != "mps")
        best = Best(tensors_of(model))

        def batches() -> Iterator[tuple[Indices, Tensor]]:
            for epoch in range(1, epochs + 1):
                model.train()
                order = np.random.default_rng((seed, epoch)).permutation(train)
                parts = cut(order, config.batch_size)
                yield from zip(parts, _batches(source, parts, device, clock), strict=True)

        batch = batches()

        def losses(step: int, _: int) -> tuple[Tensor, dict[str, Tensor]]:
            part, inputs = next(batch)
            with _autocast(device):
                return cross_entropy(model(inputs).float(), torch.from_numpy(labels[part]).to(device)), {}

        def validated(step: int) -> bool:
            """Whether the fit ends here: after an epoch, for want of a better one."""
            epoch, inside = divmod(step, per_epoch)
            if inside:
                return False
            score = _score(predict(model, source, val, device, clock), labels[val])
            return not best.offer(score, epoch) and epoch - best.at >= config.patience

        steps = epochs * per_epoch
        engine = Engine(
            best.tensors, [optimizer], losses, lambda step: one_cycle(step, steps), steps=steps, samples=config.batch_size,
            advice="lower probes.fitting.learning_rate", log_every=per_epoch, check_every=per_epoch, after=validated,
        )  # fmt: skip
        engine.run()
        best.restore()
    clock.total = time.perf_counter() - began
    return Fitted(model.eval(), engine.step // per_epoch, best.at, best.score[0], clock)


def _score(logits: Floats, labels: Indices) -> tuple[float, float]:
    """Accuracy, and the negative loss that decides between equals."""
    if not len(labels):
        return 0.0, 0.0
    return float((logits.argmax(axis=1) == labels).mean()), -mean_loss(logits, labels)
