"""Zero-shot detectors of transformers, by name."""

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image

from sgpipe.errors import ModelError
from sgpipe.evaluation.boxes import Box
from sgpipe.evaluation.pictures import Pixels

DETECTORS = ("owlv2", "owlvit", "grounding-dino")


class ZeroShotFinder:
    """OWLv2, OWL-ViT or Grounding DINO: each name is asked for in words, boxes below `threshold` do not count.

    Raises `ModelError` for a model of another kind.
    """

    def __init__(self, model: Any, processor: Any, threshold: float, device: torch.device) -> None:
        self._kind = model.config.model_type
        if self._kind not in DETECTORS:
            raise ModelError(
                f"detector: a {self._kind!r} is no zero-shot detector; valid: {', '.join(DETECTORS)}"
            )
        self._model = model.requires_grad_(False).eval().to(device)
        self._processor, self._threshold, self._device = processor, threshold, device

    @torch.no_grad()
    def __call__(self, pictures: Pixels, names: Sequence[Sequence[str]]) -> list[dict[str, Box]]:
        """See `judges.Finder`. One picture at a time: pictures differ in how many names they are asked for."""
        return [self._find(picture, list(wanted)) for picture, wanted in zip(pictures, names, strict=True)]

    def _find(self, picture: Pixels, wanted: list[str]) -> dict[str, Box]:
        dino = self._kind == "grounding-dino"
        words = ". ".join(wanted) + "." if dino else [[f"a photo of a {name}" for name in wanted]]
        inputs = self._processor(text=words, images=Image.fromarray(picture), return_tensors="pt").to(
            self._device
        )
        outputs = self._model(**inputs)
        size = torch.tensor([picture.shape[:2]])
        if dino:
            result = self._processor.post_process_grounded_object_detection(
                outputs,
                inputs["input_ids"],
                threshold=self._threshold,
                text_threshold=self._threshold,
                target_sizes=size,
            )[0]
        else:
            result = self._processor.post_process_grounded_object_detection(
                outputs, threshold=self._threshold, target_sizes=size, text_labels=[wanted]
            )[0]
        best: dict[str, tuple[float, Box]] = {}
        for score, label, corners in zip(
            result["scores"].tolist(), result["text_labels"], result["boxes"].tolist(), strict=True
        ):
            name = (
                label
                if label in wanted
                else next((n for n in wanted if n in label or (label and label in n)), None)
            )
            if name is not None and score > best.get(name, (0.0,))[0]:
                left, top, right, bottom = corners
                best[name] = (score, (left, top, right - left, bottom - top))
        return {name: box for name, (_, box) in best.items()}
