"""Which of a caption's pictures a noise means: semi-discrete optimal transport.

With independent noise the first of four Euler steps can only aim at the mean of all pictures of a caption, and what it mixes the
later ones must take apart. Here a noise ε means the picture argmax_i ⟨x_i, ε⟩ + ψ_i of those that its caption describes, with
prices ψ for which all are meant equally often: the optimal coupling of a Gaussian with a discrete measure (Peyré & Cuturi 2019,
§5), so paths are straight and do not cross (Tong et al. 2024, §3.3; Pooladian et al. 2023, §3). What a noise means is a function
of noise and caption, which a generator can learn. Both marginals stay as they were, so the rectified flow's target distribution
does too.
"""

from collections import defaultdict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sgworld.bank import Bank, caption

PLACES = frozenset({"left of", "right of", "above", "below"})
"""Classes whose pictures a neutral caption ("A and B") describes: two things beside or above one another."""
DRAWS, ROUNDS = 2048, 60
"""Noises by which the prices of a caption are fitted, and rounds of that fit."""


@torch.no_grad()
def prices(pictures: Tensor) -> Tensor:
    """Prices ψ `[C, n]` of n pictures `[C, n, D]` of each of C captions, under which each is meant by 1/n of all noises.

    ⟨x_i, ε⟩ are jointly normal with the pictures' Gram matrix as covariance, so n numbers per noise suffice. Ascends the concave
    dual (Peyré & Cuturi 2019, eq. 5.7), whose gradient is 1/n less the share of each picture. Shares end within about 0.03 of 1/n.
    """
    count = pictures.shape[1]
    values, vectors = torch.linalg.eigh(pictures @ pictures.mT)
    roots = vectors * values.clamp(min=0).sqrt()[:, None]
    noises = torch.randn(DRAWS, count, generator=torch.Generator().manual_seed(0))
    scores = noises @ roots.mT
    spread = scores.std(1).mean(1, keepdim=True)
    found = torch.zeros(scores.shape[0], count)
    for round_ in range(ROUNDS):
        meant = (scores + found[:, None]).argmax(2)
        shares = torch.stack([(meant == index).float().mean(1) for index in range(count)], 1)
        found += 4 * spread * (1 / count - shares) / (1 + round_ / 15)
    return found


class Coupling:
    """Draws, for captions given by a row of the bank each, a noise and the picture that it means.

    A relational caption describes all pictures of its class and two names, whatever their roles; a neutral one those of `PLACES`
    with its two names. Pictures that are equal (a dog left of a cat, a cat right of a dog) count as one.
    """

    def __init__(self, bank: Bank, latents: NDArray[np.float16]) -> None:
        self._latents = latents
        rows: dict[tuple[str, ...], dict[bytes, int]] = defaultdict(dict)
        relational: list[tuple[str, ...]] = []
        neutral: list[tuple[str, ...]] = []
        for row, (subject, predicate, object_) in enumerate(bank.triples):
            pair = (min(subject, object_), max(subject, object_))
            relational.append((*pair, predicate))
            neutral.append(pair)
            rows[*pair, predicate][bank.pictures[row].tobytes()] = row
            if predicate in PLACES:
                rows[pair].setdefault(bank.pictures[row].tobytes(), row)
        self._keys = list(rows)
        numbers = {key: number for number, key in enumerate(rows)}
        self._relational = np.array([numbers[key] for key in relational])
        self._neutral = np.array([numbers.get(key, -1) for key in neutral])
        width = max(map(len, rows.values()))
        self._members = np.zeros((len(rows), width), np.int64)
        self._prices = torch.full((len(rows), width), -torch.inf)
        by_size: dict[int, list[int]] = defaultdict(list)
        for number, members in enumerate(rows.values()):
            self._members[number, : len(members)] = list(members.values())
            by_size[len(members)].append(number)
        for size, of_size in by_size.items():
            for start in range(0, len(of_size), 128):
                some = of_size[start : start + 128]
                self._prices[some, :size] = prices(self._pictures(np.array(some))[:, :size].flatten(2))

    def _pictures(self, captions: NDArray[np.int64]) -> Tensor:
        """Latents `[B, n, 64, C]` of all pictures of `captions`; those past a caption's own count repeat some picture."""
        chosen = self._members[captions]
        found = self._latents[chosen.ravel()].astype(np.float32)
        return torch.from_numpy(found).view(*chosen.shape, *self._latents.shape[1:])

    def captions(self, rows: NDArray[np.int64], neutral: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Numbers of the captions that describe `rows`: relational where no picture of `PLACES` shows the pair."""
        return np.where(neutral & (self._neutral[rows] >= 0), self._neutral[rows], self._relational[rows])

    def text(self, rng: np.random.Generator, number: int) -> str:
        """The caption's words, its two names in either order."""
        first, second, *predicate = self._keys[number]
        return caption(rng, (first, predicate[0] if predicate else "", second), not predicate)

    def draw(self, generator: torch.Generator, captions: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Latents `[B, 64, C]` of the pictures meant, and the noise of each."""
        pictures = self._pictures(captions)
        noise = torch.randn(pictures[:, 0].shape, generator=generator)
        scores = torch.einsum("bnd,bd->bn", pictures.flatten(2), noise.flatten(1)) + self._prices[captions]
        return pictures[torch.arange(len(captions)), scores.argmax(1)], noise

    def nearest(self, captions: NDArray[np.int64], guesses: Tensor) -> Tensor:
        """Of each caption's pictures the latents `[B, 64, C]` nearest to a guess `[B, 64, C]`."""
        pictures = self._pictures(captions)
        distances = (pictures - guesses[:, None]).square().sum((2, 3))
        distances[self._prices[captions].isinf()] = torch.inf
        return pictures[torch.arange(len(captions)), distances.argmin(1)]
