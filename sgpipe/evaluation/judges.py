"""Judges behind one interface: images and statements in, a score per statement out.

A score is higher the truer the statement; only scores of the same image by the same judge are compared. NaN is an abstention.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from sgpipe.evaluation.samples import Pixels
from sgpipe.evaluation.sampling_plan import Triple
from sgpipe.relations.boxes import Box, Rule
from sgpipe.relations.predicates import relational_prompt

Scores = NDArray[np.float32]


class Judge(Protocol):
    """What judges."""

    def scores(self, images: Pixels, statements: Sequence[Sequence[Triple]]) -> Scores:
        """`[N, K]` for images `[N, H, W, 3]`, 0–255, and K statements about each."""


class ContrastiveJudge:
    """An open_clip model: logit scale × cosine of image and caption, the units in which the predecessor gave its margin."""

    def __init__(self, model: Any, preprocess: Any, tokenizer: Any, device: torch.device) -> None:
        self._model = model.requires_grad_(False).eval().to(device)
        self._preprocess, self._tokenizer, self._device = preprocess, tokenizer, device

    @torch.no_grad()
    def scores(self, images: Pixels, statements: Sequence[Sequence[Triple]]) -> Scores:
        """See `Judge`; the caption of a statement is its relational prompt."""
        pixels = torch.stack([self._preprocess(Image.fromarray(image)) for image in images])
        image = self._model.encode_image(pixels.to(self._device), normalize=True)
        captions = [relational_prompt(*each) for several in statements for each in several]
        different = sorted(set(captions))
        encoded = self._model.encode_text(self._tokenizer(different).to(self._device), normalize=True)
        place = {caption: row for row, caption in enumerate(different)}
        rows = torch.tensor([place[caption] for caption in captions], device=self._device)
        text = encoded[rows].reshape(len(images), -1, encoded.shape[-1])
        cosine = torch.einsum("nd,nkd->nk", image, text)
        return (self._model.logit_scale.exp() * cosine).float().cpu().numpy()


Finder = Callable[[Pixels, Sequence[Sequence[str]]], list[dict[str, Box]]]
"""What finds objects: for each image the box of the surest detection of each of its names; a name that is not there is left out."""


class BoxJudge:
    """A detector and rules on boxes: 1 where the class holds of the boxes of subject and object, 0 where it does not.

    A class without a rule never holds. It abstains where, and only where, one of the two is not found.
    """

    def __init__(self, find: Finder, rules: Mapping[str, Rule]) -> None:
        self._find, self._rules = find, rules

    def scores(self, images: Pixels, statements: Sequence[Sequence[Triple]]) -> Scores:
        """See `Judge`."""
        names = [sorted({name for subject, _, object_ in several for name in (subject, object_)}) for several in statements]
        found = zip(statements, self._find(images, names), strict=True)
        return np.array([[self._score(each, boxes) for each in several] for several, boxes in found], np.float32)

    def _score(self, statement: Triple, boxes: Mapping[str, Box]) -> float:
        subject, predicate, object_ = statement
        if subject not in boxes or object_ not in boxes:
            return float("nan")
        return float(predicate in self._rules and self._rules[predicate](boxes[subject], boxes[object_]))
