"""Fitting: the same bits again, early stopping, refusal of a loss that is not finite; figures of predictions."""

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score
from torch import nn

from sgpipe.errors import DataError, StateError
from sgpipe.probes.config import Fitting
from sgpipe.probes.fit import Fitted, calibration_error, confusion_matrix, cut, fit, interval, macro_f1, predict, scale
from tests.probes.world import Rows

CPU = torch.device("cpu")
LABELS = np.arange(90) % 3
TRAIN, VAL = np.arange(60), np.arange(60, 90)


def inputs() -> torch.Tensor:
    draw = torch.randn(90, 5, generator=torch.Generator().manual_seed(0))
    draw[torch.arange(90), torch.from_numpy(LABELS)] += 3
    return draw


def fitted(
    epochs: int = 8, seed: int = 0, labels: np.ndarray = LABELS, highest: float = 0.02, patience: int = 4
) -> Fitted[nn.Sequential]:
    def build() -> nn.Sequential:
        return nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 3))

    options = Fitting(batch_size=16, patience=patience)
    return fit(build, Rows(inputs()), labels, TRAIN, VAL, epochs, highest, options, seed, CPU)


def test_the_same_seed_gives_the_same_bits_whatever_was_drawn_before() -> None:
    first = fitted()
    torch.randn(7)
    again, other = fitted(), fitted(seed=1)
    for name, value in first.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name])
    assert not torch.equal(first.model[0].weight, other.model[0].weight)
    assert first.val_accuracy > 0.8 and not first.model.training


def test_predictions_are_made_without_dropout() -> None:
    """Of a model in train mode too; and the validation accuracy that chose the best epoch is that of the kept weights."""
    found = fitted(labels=np.random.default_rng(0).integers(0, 3, 90))
    first = predict(found.model.train(), Rows(inputs()), VAL, CPU)
    again = predict(found.model.train(), Rows(inputs()), VAL, CPU)
    assert np.array_equal(first, again)
    with torch.no_grad():
        assert np.array_equal(first, found.model.eval()(inputs()[VAL]).double().numpy())
    with torch.no_grad():
        assert not np.array_equal(first, found.model.train()(inputs()[VAL]).double().numpy())


def test_fitting_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.randn(3)
    torch.manual_seed(5)
    fitted(epochs=1)
    assert torch.equal(torch.randn(3), expected)


def test_it_stops_early_and_keeps_the_best_epoch() -> None:
    """On labels that mean nothing; a fit that ends at the best epoch has its weights."""
    noise = np.random.default_rng(0).integers(0, 3, 90)
    found = fitted(epochs=40, labels=noise, patience=2, highest=0.05)
    assert found.epochs == found.best_epoch + 2 < 40
    logits = predict(found.model, Rows(inputs()), VAL, CPU)
    assert (logits.argmax(axis=1) == noise[VAL]).mean() == pytest.approx(found.val_accuracy)


def test_a_loss_that_is_not_finite_is_refused() -> None:
    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(5, 3))

    values = inputs()
    values[7] = float("inf")
    with pytest.raises(StateError, match=r"the loss is not finite \(loss nan\); lower probes\.fitting\.learning_rate"):
        fit(build, Rows(values), LABELS, TRAIN, VAL, 2, 0.01, Fitting(), 0, CPU)


def test_a_fit_without_rows_is_refused() -> None:
    with pytest.raises(DataError, match="no training rows"):
        fit(lambda: nn.Linear(5, 3), Rows(inputs()), LABELS, TRAIN[:0], VAL, 2, 0.01, Fitting(), 0, CPU)


def test_batches_and_scale() -> None:
    for count, size in ((129, 128), (128, 128), (5, 2), (3, 8)):
        parts = cut(np.arange(count), size)
        lengths = [len(part) for part in parts]
        assert np.concatenate(parts).tolist() == list(range(count))
        assert max(lengths) <= size and max(lengths) - min(lengths) <= 1
    values = torch.randn(40, 3, 4, 4) * torch.tensor([1.0, 30, 0])[:, None, None] + 5
    mean, deviation = scale(Rows(values), np.arange(10, 30), size=7)
    flat = values[10:30].transpose(0, 1).flatten(1)
    assert torch.allclose(mean, flat.mean(dim=1), atol=1e-5)
    assert torch.allclose(deviation, flat.std(dim=1, correction=0), atol=1e-3)


def test_macro_f1_is_that_of_scikit_learn() -> None:
    draw = np.random.default_rng(0)
    labels, predicted = draw.integers(0, 4, 200), draw.integers(0, 5, 200)
    confusion = confusion_matrix(labels, predicted, 5)
    assert confusion.sum() == 200 and confusion.diagonal().sum() == (labels == predicted).sum()
    expected = f1_score(labels, predicted, labels=range(4), average="macro")
    assert macro_f1(confusion) == pytest.approx(expected)


def test_the_interval_takes_rows_of_one_pair_as_one() -> None:
    """The same 40 answers said ten times each are no more evidence: the interval stays, while independent rows narrow it."""
    correct = np.random.default_rng(0).random(40) < 0.6
    low, high = interval(correct, np.arange(40), 2000, 0)
    assert low < correct.mean() < high
    assert interval(np.repeat(correct, 10), np.repeat(np.arange(40), 10), 2000, 0) == (low, high)
    narrow = interval(np.repeat(correct, 10), np.arange(400), 2000, 0)
    assert narrow[1] - narrow[0] < 0.5 * (high - low)
    assert interval(np.ones(9, bool), np.arange(9), 100, 0) == (1.0, 1.0)


def test_calibration_error_of_known_cases() -> None:
    """Sure and right: 0; sure and wrong: 1; a fair coin at one half: the share by which it misses one half."""
    logits, labels = np.array([[50.0, 0.0]] * 10), np.zeros(10, np.int64)
    assert calibration_error(logits, labels) == pytest.approx(0)
    assert calibration_error(logits, 1 - labels) == pytest.approx(1)
    assert calibration_error(np.zeros((10, 2)), np.arange(10) // 6) == pytest.approx(0.1)
