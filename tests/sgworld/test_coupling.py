"""A noise means one picture of its caption, all equally often, and is still noise."""

import numpy as np
import pytest
import torch

from sgworld.bank import Bank
from sgworld.coupling import Coupling, prices

TRIPLES = [
    ("dog", "left of", "cat"),
    ("cat", "left of", "dog"),
    ("cat", "right of", "dog"),
    ("dog", "touching", "cat"),
    ("dog", "riding", "horse"),
]
RELATIONAL, NEUTRAL, ALONE = 0, 1, 4


@pytest.fixture
def coupling() -> Coupling:
    """Pictures of a bank; the first and the third are equal, the second is longer than these."""
    first = np.linspace(-2, 2, 12).reshape(3, 4)
    shown = [first, -1.5 * first, first, np.full((3, 4), 3.0), np.full((3, 4), 5.0)]
    pictures = np.array([0, 1, 0, 2, 3], np.uint8).reshape(5, 1, 1, 1)
    return Coupling(Bank(pictures, TRIPLES), np.stack(shown).astype(np.float16))


def meant(coupling: Coupling, caption: int, count: int = 6000) -> tuple[torch.Tensor, torch.Tensor]:
    return coupling.draw(torch.Generator().manual_seed(0), np.full(count, caption))


def test_captions_are_relational_or_neutral_and_a_pair_without_places_is_always_relational(coupling: Coupling) -> None:
    rows = np.arange(5)
    relational = coupling.captions(rows, np.zeros(5, bool))
    neutral = coupling.captions(rows, np.ones(5, bool))
    assert relational[0] == relational[1] != relational[2]
    assert set(neutral[:4]) == {neutral[0]} and neutral[0] not in relational
    assert neutral[4] == relational[4]
    rng = np.random.default_rng(0)
    assert {coupling.text(rng, int(neutral[0])) for _ in range(20)} == {
        "a photo of cat and dog on a plain background",
        "a photo of dog and cat on a plain background",
    }
    assert {coupling.text(rng, int(relational[0])) for _ in range(20)} == {
        "a photo of cat left of dog on a plain background",
        "a photo of dog left of cat on a plain background",
    }


def test_each_picture_is_meant_equally_often_and_equal_ones_count_once(coupling: Coupling) -> None:
    """Of two pictures opposite to one another, and of a neutral caption that does not describe touching."""
    for caption in coupling.captions(np.array([0, 0]), np.array([False, True])):
        clean, noise = meant(coupling, int(caption))
        first = (clean[:, 0, 0] < 0).float().mean()
        assert float(first) == pytest.approx(0.5, abs=0.03)
        assert set(clean[:, 0, 0].tolist()) == {-2.0, 3.0}
        assert abs(float(noise.mean())) < 0.02 and abs(float(noise.std()) - 1) < 0.02


def test_noise_leans_towards_its_picture_and_of_one_picture_is_independent(coupling: Coupling) -> None:
    for row, least, most in ((0, 0.6, 1.0), (4, -0.06, 0.06)):
        clean, noise = meant(coupling, int(coupling.captions(np.array([row]), np.array([False]))[0]))
        towards = (clean * noise).sum((1, 2)) / clean.square().sum((1, 2)).sqrt()
        assert least < float(towards.mean()) < most


def test_prices_give_equal_shares_where_pictures_differ_much_in_length() -> None:
    generator = torch.Generator().manual_seed(3)
    pictures = torch.randn(2, 8, 40, generator=generator) * torch.linspace(0.3, 3, 8)[:, None]
    noise = torch.randn(20_000, 40, generator=generator)
    for one, priced in zip(pictures, prices(pictures), strict=True):
        shares = torch.bincount((noise @ one.T + priced).argmax(1), minlength=8) / len(noise)
        assert float((shares - 1 / 8).abs().max()) < 0.03
        unpriced = torch.bincount((noise @ one.T).argmax(1), minlength=8) / len(noise)
        assert float((unpriced - 1 / 8).abs().max()) > 0.1


def test_the_nearest_picture_is_one_of_the_captions_own(coupling: Coupling) -> None:
    captions = coupling.captions(np.array([0, 0, 4]), np.zeros(3, bool))
    guesses = torch.full((3, 3, 4), 4.0)
    guesses[0] = torch.linspace(-1, 1, 12).view(3, 4)
    guesses[1] = -guesses[0]
    nearest = coupling.nearest(captions, guesses)
    assert nearest[:, 0, 0].tolist() == [-2.0, 3.0, 5.0]
    assert coupling.nearest(captions[:1], guesses[2:])[0, 0, 0].item() in {-2.0, 3.0}


def test_a_draw_is_a_function_of_its_seed(coupling: Coupling) -> None:
    for one, other in zip(meant(coupling, 0, 4), meant(coupling, 0, 4), strict=True):
        assert torch.equal(one, other)
