"""Which noise meets which picture: optimal transport among pictures that share a caption.

With independent noise the first of four Euler steps can only aim at the mean of all pictures of a caption, and what it mixes the
later ones must take apart. If noise is paired with the nearest of the caption's pictures, the noise itself tells which of them is
meant: paths are straighter and few steps do (multisample flow matching, Pooladian et al. 2023, §3; Tong et al. 2024, §3.3). Both
marginals stay as they were, so the rectified flow's target distribution does too.
"""

from collections import defaultdict

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from sgpipe.miniature.bank import Bank


class Coupling:
    """Draws noise for pictures of a bank, each by an exact assignment among pictures of the same caption.

    `chances` are those with which pictures are drawn. A caption with a relation has few pictures, `relational` of which are
    candidates, all equally often; a neutral one has many, of which `neutral` are drawn by their chances.
    """

    def __init__(
        self,
        bank: Bank,
        latents: NDArray[np.float16],
        chances: NDArray[np.float64],
        relational: int,
        neutral: int,
    ) -> None:
        self._latents, self._chances = latents, chances
        self._counts = {False: relational, True: neutral}
        self._triples = bank.triples
        rows: dict[tuple[str, ...], list[int]] = defaultdict(list)
        for row, (subject, predicate, object_) in enumerate(bank.triples):
            pair = (min(subject, object_), max(subject, object_))
            rows[pair].append(row)
            rows[(*pair, predicate)].append(row)
        self._rows = {key: np.array(values) for key, values in rows.items()}

    def _candidates(self, rng: np.random.Generator, row: int, neutral: bool) -> NDArray[np.int64]:
        """Rows that a caption of `row` describes as well: the same two names and, unless neutral, the same class."""
        subject, predicate, object_ = self._triples[row]
        pair = (min(subject, object_), max(subject, object_))
        if not neutral:
            return np.resize(rng.permutation(self._rows[*pair, predicate]), self._counts[False])
        rows = self._rows[pair]
        chances = self._chances[rows]
        return rng.choice(rows, self._counts[True], p=chances / chances.sum())

    def draw(
        self,
        rng: np.random.Generator,
        generator: torch.Generator,
        rows: NDArray[np.int64],
        neutral: NDArray[np.bool_],
    ) -> tuple[Tensor, Tensor]:
        """Latents `[B, 64, C]` of `rows` and the noise of each."""
        shape = (len(rows), *self._latents.shape[1:])
        clean, noise = torch.empty(shape), torch.empty(shape)
        for plain in (False, True):
            mine = np.flatnonzero(neutral == plain)
            if len(mine):
                clean[mine], noise[mine] = self._assigned(rng, generator, rows[mine], plain)
        return clean, noise

    def _assigned(
        self, rng: np.random.Generator, generator: torch.Generator, rows: NDArray[np.int64], plain: bool
    ) -> tuple[Tensor, Tensor]:
        """For every row, as many noises as candidates; the row itself is one of these, at a random position.

        Where all rows of a caption are candidates alike often it stands in its own place, among drawn ones in any. The assignment
        minimises Σ‖x − ε‖², that is, maximises Σ⟨x, ε⟩, and the row keeps what its position got. (At a fixed position, the way
        the solver breaks ties would bias the noise.)
        """
        chosen = np.stack([self._candidates(rng, int(row), plain) for row in rows])
        every = np.arange(len(rows))
        prefer_own = (chosen == rows[:, None]) & (not plain)
        place = (rng.random(chosen.shape) + prefer_own).argmax(1)
        chosen[every, place] = rows
        pictures = torch.from_numpy(self._latents[chosen.ravel()].astype(np.float32))
        pictures = pictures.view(*chosen.shape, -1)
        noise = torch.randn(pictures.shape, generator=generator)
        gains = (pictures @ noise.transpose(1, 2)).numpy()
        assigned = np.stack([linear_sum_assignment(gain, maximize=True)[1] for gain in gains])
        shape = (len(rows), *self._latents.shape[1:])
        return pictures[every, place].view(shape), noise[every, assigned[every, place]].view(shape)
