"""Zero-shot detectors of transformers, by name."""

import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from PIL import Image

from sgpipe.errors import ModelError
from sgpipe.evaluation.samples import Pixels
from sgpipe.relations.boxes import Box

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
        """See `judges.Finder`. One image at a time: images differ in how many names they are asked for."""
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
