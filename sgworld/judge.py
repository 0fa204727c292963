"""The exact detector of the drawn world as a judge: the entry point `sgworld` of the group `sgpipe.judges`."""

import hashlib
from collections.abc import Sequence

import torch

from sgpipe.evaluation.judges import BoxJudge, Judge
from sgpipe.evaluation.samples import Pixels
from sgpipe.relations.boxes import Box
from sgworld.arrangement import RULES
from sgworld.detector import Detection, detect


class ExactDetector:
    """Finds the world's objects by their exact pixels; no threshold, no weights.

    An image is searched once however often it is asked about: what is found depends on the image alone.
    """

    def __init__(self) -> None:
        self._seen: dict[bytes, list[Detection]] = {}

    def __call__(self, images: Pixels, names: Sequence[Sequence[str]]) -> list[dict[str, Box]]:
        """Boxes `(x, y, w, h)` in pixels of images `[N, H, W, 3]`, 0–255; see `sgpipe.evaluation.judges.Finder`."""
        keys = [hashlib.sha256(image.tobytes()).digest() for image in images]
        new = {key: image for key, image in zip(keys, images, strict=True) if key not in self._seen}
        self._seen |= {key: detect(image) for key, image in new.items()}
        found: list[dict[str, Box]] = []
        for key, wanted in zip(keys, names, strict=True):
            by_score = sorted(self._seen[key], key=lambda detection: detection.score)
            found.append({each.name: (each.x, each.y, each.w, each.h) for each in by_score if each.name in wanted})
        return found


def build_judge(device: torch.device) -> Judge:
    """The exact detector with the world's drawing rules; it runs on the CPU whatever the `device`."""
    return BoxJudge(ExactDetector(), RULES)
