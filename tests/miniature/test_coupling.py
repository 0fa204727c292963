"""Coupled noise is still noise, pulls towards its own picture, and mixes only what one caption describes."""

import numpy as np
import pytest
import torch

from sgpipe.miniature.bank import Bank
from sgpipe.miniature.coupling import Coupling

TRIPLES = [("dog", "left of", "cat"), ("cat", "left of", "dog"), ("dog", "riding", "horse")]


def draw(candidates: int, rows: list[int], neutral: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents and noise of a bank of three pictures, the first two of one caption and opposite to one another."""
    first = np.linspace(-2, 2, 12).reshape(3, 4)
    latents = np.stack([first, -first, np.full((3, 4), 5.0)]).astype(np.float16)
    bank = Bank(np.empty((3, 1, 1, 3), np.uint8), TRIPLES)
    return Coupling(bank, latents, np.full(3, 1 / 3), candidates, candidates).draw(
        np.random.default_rng(0),
        torch.Generator().manual_seed(0),
        np.array(rows),
        np.full(len(rows), neutral),
    )


@pytest.mark.parametrize("neutral", [False, True])
def test_noise_leans_towards_its_picture_and_is_still_standard_normal(neutral: bool) -> None:
    rows = [0, 1] * 2000
    clean, noise = draw(8, rows, neutral)
    assert abs(float(noise.mean())) < 0.02 and abs(float(noise.std()) - 1) < 0.02
    towards = (clean * noise).sum((1, 2)) / clean.square().sum((1, 2)).sqrt()
    assert float((towards > 0).float().mean()) > (0.75 if neutral else 0.85)
    assert abs(float(towards.square().mean()) - 1) < 0.08


def test_candidates_of_a_neutral_caption_come_by_their_chances() -> None:
    latents = np.zeros((3, 3, 4), np.float16)
    bank = Bank(np.empty((3, 1, 1, 3), np.uint8), TRIPLES)
    coupling = Coupling(bank, latents, np.array([0.3, 0.1, 0.6]), 6, 4000)
    rng = np.random.default_rng(0)
    assert np.mean(coupling._candidates(rng, 0, True) == 0) == pytest.approx(0.75, abs=0.03)
    assert sorted(coupling._candidates(rng, 0, False)) == [0, 0, 0, 1, 1, 1]


def test_a_single_candidate_or_a_caption_of_one_picture_leaves_noise_independent() -> None:
    for candidates, rows in ((1, [0, 1] * 2000), (8, [2] * 4000)):
        clean, noise = draw(candidates, rows, False)
        towards = (clean * noise).sum((1, 2)) / clean.square().sum((1, 2)).sqrt()
        assert abs(float(towards.mean())) < 0.06


def test_a_draw_is_a_function_of_its_seeds() -> None:
    for one, other in zip(draw(4, [0, 2, 1], True), draw(4, [0, 2, 1], True), strict=True):
        assert torch.equal(one, other)
