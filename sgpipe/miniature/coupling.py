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
    """Draws noise for pictures of a bank, each by an exact assignment among `candidates` pictures of the same caption."""

    def __init__(self, bank: Bank, latents: NDArray[np.float16], candidates: int) -> None:
        self._latents, self._candidates = latents, candidates
        self._triples = bank.triples
        rows: dict[tuple[str, ...], list[int]] = defaultdict(list)
        for row, (subject, predicate, object_) in enumerate(bank.triples):
            pair = (min(subject, object_), max(subject, object_))
            rows[pair].append(row)
            rows[(*pair, predicate)].append(row)
        self._rows = {key: np.array(values) for key, values in rows.items()}

    def _same_caption(self, row: int, neutral: bool) -> NDArray[np.int64]:
        """Rows that a caption of `row` describes as well: the same two names and, unless neutral, the same class."""
        subject, predicate, object_ = self._triples[row]
        pair = (min(subject, object_), max(subject, object_))
        return self._rows[pair if neutral else (*pair, predicate)]

    def draw(
        self,
        rng: np.random.Generator,
        generator: torch.Generator,
        rows: NDArray[np.int64],
        neutral: NDArray[np.bool_],
    ) -> tuple[Tensor, Tensor]:
        """Latents `[B, 64, C]` of `rows` and the noise of each.

        For every row, as many noises as candidates are drawn; the row itself is one of these, at a random position, among pictures
        of its caption, all equally often if they are few. The assignment minimises Σ‖x − ε‖², that is, maximises Σ⟨x, ε⟩, and the
        row keeps what its position got. (At a fixed position, the way the solver breaks ties would bias the noise.)
        """
        count, shape = self._candidates, self._latents.shape[1:]
        chosen = np.stack(
            [
                np.resize(rng.permutation(self._same_caption(int(row), bool(plain))), count)
                for row, plain in zip(rows, neutral, strict=True)
            ]
        )
        every = np.arange(len(rows))
        place = (rng.random(chosen.shape) + (chosen == rows[:, None])).argmax(1)
        chosen[every, place] = rows
        pictures = torch.from_numpy(self._latents[chosen.ravel()].astype(np.float32))
        pictures = pictures.view(len(rows), count, -1)
        noise = torch.randn(pictures.shape, generator=generator)
        gains = (pictures @ noise.transpose(1, 2)).numpy()
        assigned = np.stack([linear_sum_assignment(gain, maximize=True)[1] for gain in gains])
        clean, mine = pictures[every, place], noise[every, assigned[every, place]]
        return clean.view(-1, *shape), mine.view(-1, *shape)
