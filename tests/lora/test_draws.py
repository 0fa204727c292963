"""What is random is a function of (seed, step), and has the distribution asked for."""

import pytest
import torch

from sgpipe.backbones.rectified_flow import generator
from sgpipe.lora.draws import bin_names, bin_of, conditions_of, even_times, rows_of, times_of
from sgpipe.params.lora import Conditions, Times


@pytest.mark.parametrize("size, batch", [(7, 3), (10, 4), (3, 8)])
def test_every_pass_takes_every_row_once_however_it_is_cut(size: int, batch: int) -> None:
    rows = [row for start in range(0, 5 * size * batch, batch) for row in rows_of(start, batch, size, 1)]
    passes = [rows[start : start + size] for start in range(0, len(rows) - size + 1, size)]
    assert all(sorted(each) == list(range(size)) for each in passes)
    assert passes[0] != passes[1] and rows_of(0, 5 * size, size, 1) == rows[: 5 * size]
    assert rows_of(0, 5 * size, size, 2) != rows[: 5 * size]


def test_conditions_come_with_their_probabilities() -> None:
    drawn = conditions_of(4000, Conditions(neutral=0.5, relational=0.3, wrong=0.2), generator("c"))
    shares = {name: drawn.count(name) / 4000 for name in set(drawn)}
    assert shares == pytest.approx({"neutral": 0.5, "relational": 0.3, "wrong": 0.2}, abs=0.03)
    with pytest.raises(ValueError, match=r"together 0\.8; the probabilities must sum to 1"):
        Conditions(neutral=0.8)


def test_times_keep_their_bounds_and_density() -> None:
    uniform = times_of(4000, Times(low=0.7), generator("u"))
    assert (
        uniform.min() >= 0.7 and uniform.max() < 1 and uniform.mean().item() == pytest.approx(0.85, abs=0.01)
    )
    skewed = times_of(4000, Times(density="logit_normal", low=0.5, mean=2.0, deviation=0.5), generator("n"))
    assert skewed.min() >= 0.5 and skewed.max() < 1
    assert skewed.median().item() == pytest.approx(0.5 + 0.5 / (1 + torch.e**-2), abs=0.01)
    asked = times_of(4000, Times(density="sampler", low=0.5), generator("s"))
    shares = [float((asked == t).float().mean()) for t in (0.5, 0.75, 1.0)]
    assert sum(shares) == pytest.approx(1) and shares == pytest.approx([1 / 3] * 3, abs=0.03)
    with pytest.raises(ValueError, match=r"no k/4 lies within 0\.8 to 0\.9"):
        Times(density="sampler", low=0.8, high=0.9)
    even = even_times(100, Times(low=0.5))
    assert even.sort().values.tolist() == pytest.approx([0.5 + 0.005 * (i + 0.5) for i in range(100)])
    assert not torch.equal(even, even.sort().values)
    turns = even_times(90, Times(density="sampler", low=0.5))
    assert turns.unique(return_counts=True)[1].tolist() == [30, 30, 30]
    assert not torch.equal(turns, turns.sort().values)


def test_bins_divide_the_range() -> None:
    times = Times(low=0.7, high=1.0)
    assert bin_names(times, 3) == ["t_0.70_0.80", "t_0.80_0.90", "t_0.90_1.00"]
    assert bin_of(torch.tensor([0.7, 0.79, 0.81, 0.95, 1.0]), times, 3).tolist() == [0, 0, 1, 2, 2]
