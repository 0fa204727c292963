"""Judges behind one interface: images and statements in, a score per statement out.

A score is higher the truer the statement; only scores of the same image by the same judge are compared. NaN is an abstention.
"""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from sgpipe.errors import ModelError
from sgpipe.evaluation.samples import Pixels
from sgpipe.evaluation.sampling_plan import Triple
from sgpipe.relations.boxes import Box, Rule
from sgpipe.relations.predicates import relational_prompt

Scores = NDArray[np.float32]
Features = NDArray[np.float32]


class Judge(Protocol):
    """What judges."""

    def scores(self, images: Pixels, statements: Sequence[Sequence[Triple]]) -> Scores:
        """`[N, K]` for images `[N, H, W, 3]`, 0–255, and K statements about each."""


@runtime_checkable
class Counter(Judge, Protocol):
    """A judge that also counts objects."""

    def duplicates(self, images: Pixels, names: Sequence[Sequence[str]]) -> NDArray[np.bool_]:
        """`[N]`: whether an image shows more than one object of one of its names."""
        ...


@runtime_checkable
class DetectorJudge(Judge, Protocol):
    """A judge that finds objects and says which."""

    def present(self, images: Pixels, names: Sequence[Sequence[str]]) -> list[frozenset[str]]:
        """Of each of images `[N, H, W, 3]`, 0–255, those of its names that it shows."""
        ...


@runtime_checkable
class FeatureJudge(Judge, Protocol):
    """A judge that scores an image by its embedding and gives that, too; `scores` is `compare` of `features`."""

    def features(self, images: Pixels) -> Features:
        """Image embeddings `[N, D]` of length 1 for images `[N, H, W, 3]`, 0–255."""
        ...

    def compare(self, features: Features, statements: Sequence[Sequence[Triple]]) -> Scores:
        """`[N, K]` for image embeddings `[N, D]` and K statements about each."""
        ...


class ContrastiveJudge:
    """An open_clip model: logit scale × cosine of image and caption, the units in which the predecessor gave its margin."""

    def __init__(self, model: Any, preprocess: Any, tokenizer: Any, device: torch.device) -> None:
        self._model = model.requires_grad_(False).eval().to(device)
        self._preprocess, self._tokenizer, self._device = preprocess, tokenizer, device

    def scores(self, images: Pixels, statements: Sequence[Sequence[Triple]]) -> Scores:
        """See `Judge`; the caption of a statement is its relational prompt."""
        return self.compare(self.features(images), statements)

    @torch.no_grad()
    def features(self, images: Pixels) -> Features:
        """See `FeatureJudge`."""
        pixels = torch.stack([self._preprocess(Image.fromarray(image)) for image in images])
        return self._model.encode_image(pixels.to(self._device), normalize=True).float().cpu().numpy()

    @torch.no_grad()
    def compare(self, features: Features, statements: Sequence[Sequence[Triple]]) -> Scores:
        """See `FeatureJudge`."""
        captions = [relational_prompt(*each) for several in statements for each in several]
        different = sorted(set(captions))
        encoded = self._model.encode_text(self._tokenizer(different).to(self._device), normalize=True)
        place = {caption: row for row, caption in enumerate(different)}
        rows = torch.tensor([place[caption] for caption in captions], device=self._device)
        text = encoded[rows].reshape(len(features), -1, encoded.shape[-1])
        cosine = torch.einsum("nd,nkd->nk", torch.from_numpy(features).to(text), text)
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

    def present(self, images: Pixels, names: Sequence[Sequence[str]]) -> list[frozenset[str]]:
        """See `DetectorJudge`."""
        return [frozenset(found) for found in self._find(images, names)]

    def _score(self, statement: Triple, boxes: Mapping[str, Box]) -> float:
        subject, predicate, object_ = statement
        if subject not in boxes or object_ not in boxes:
            return float("nan")
        return float(predicate in self._rules and self._rules[predicate](boxes[subject], boxes[object_]))


DETECTORS = ("owlv2", "owlvit", "grounding-dino")
Found = tuple[float, int, tuple[float, float, float, float]]
"""A detection: score, number of the name, and corners (left, top, right, bottom) in pixels."""


class ZeroShotFinder:
    """OWLv2, OWL-ViT or Grounding DINO: each name is asked for in words, boxes below `threshold` do not count.

    Raises `ModelError` for a model of another kind.
    """

    def __init__(self, model: Any, processor: Any, threshold: float, device: torch.device) -> None:
        self._kind = model.config.model_type
        if self._kind not in DETECTORS:
            raise ModelError(f"detector: a {self._kind!r} is no zero-shot detector; valid: {', '.join(DETECTORS)}")
        self._model = model.requires_grad_(False).eval().to(device)
        self._processor, self._threshold, self._device = processor, threshold, device
        self._warned: set[str] = set()

    @torch.no_grad()
    def __call__(self, images: Pixels, names: Sequence[Sequence[str]]) -> list[dict[str, Box]]:
        """See `Finder`. One image at a time: images differ in how many names they are asked for."""
        return [self._find(image, list(wanted)) for image, wanted in zip(images, names, strict=True)]

    def _find(self, image: Pixels, wanted: list[str]) -> dict[str, Box]:
        seen = self._by_tokens if self._kind == "grounding-dino" else self._by_queries
        best: dict[str, tuple[float, Box]] = {}
        for score, number, (left, top, right, bottom) in seen(image, wanted):
            name = wanted[number]
            if score > best.get(name, (0.0,))[0]:
                best[name] = (score, (left, top, right - left, bottom - top))
        return {name: box for name, (_, box) in best.items()}

    def _warn(self, name: str, said: str) -> None:
        """Once for each name."""
        if name not in self._warned:
            self._warned.add(name)
            print(f"warning: {self._kind} reads {said}", file=sys.stderr)

    def _by_queries(self, image: Pixels, wanted: list[str]) -> Iterator[Found]:
        """OWL: a text query per name."""
        queries = [f"a photo of a {name}" for name in wanted]
        tokenizer = self._processor.tokenizer
        longest = tokenizer.model_max_length
        for name, tokens in zip(wanted, tokenizer(queries, verbose=False)["input_ids"], strict=True):
            if len(tokens) > longest:
                asked = f"what it is asked for {name!r} has {len(tokens)} and is cut"
                self._warn(name, f"{longest} tokens; {asked}; shorten the name with an alias to have it judged whole")
        inputs = self._processor(text=[queries], images=Image.fromarray(image), return_tensors="pt", truncation=True).to(
            self._device
        )
        (result,) = self._processor.post_process_grounded_object_detection(
            self._model(**inputs), threshold=self._threshold, target_sizes=torch.tensor([image.shape[:2]])
        )
        yield from zip(*(result[name].tolist() for name in ("scores", "labels", "boxes")), strict=True)

    def _by_tokens(self, image: Pixels, wanted: list[str]) -> Iterator[Found]:
        """Grounding DINO: all names as one text; a box belongs to the name of the token that it is surest of.

        The library joins tokens to text again, which spells `t-shirt` as `t - shirt`; here the tokens' places
        in the text decide.
        """
        from transformers.image_transforms import center_to_corners_format

        inputs = self._processor(
            text=". ".join(wanted) + ".", images=Image.fromarray(image), return_tensors="pt", return_offsets_mapping=True
        ).to(self._device)  # fmt: skip
        offsets = inputs.pop("offset_mapping")[0].tolist()
        outputs = self._model(**inputs)
        probabilities, by_name, start = outputs.logits[0].sigmoid().cpu(), [], 0
        for name in wanted:
            inside = [i for i, (a, b) in enumerate(offsets) if start <= a < b <= start + len(name)]
            if not inside:
                lost = f"{name!r} lies beyond and is never found"
                self._warn(name, f"{len(offsets)} tokens of an image's names; {lost}; shorten the names with aliases")
            by_name.append(probabilities[:, inside].amax(1) if inside else torch.zeros(len(probabilities)))
            start += len(name) + 2
        scores, numbers = torch.stack(by_name, dim=1).max(dim=1)
        height, width = image.shape[:2]
        corners = center_to_corners_format(outputs.pred_boxes[0].cpu()) * torch.tensor([width, height] * 2)
        kept = scores > self._threshold
        yield from zip(*(each[kept].tolist() for each in (scores, numbers, corners)), strict=True)
