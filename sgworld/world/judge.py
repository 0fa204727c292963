"""The exact reader as a judge of group `sgpipe.judges`: several triples about an image, duplicates counted."""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from sgpipe.evaluation.judges import Scores
from sgpipe.evaluation.samples import Pixels
from sgworld.world.reader import Reading, read
from sgworld.world.reading import same

Triple = tuple[str, str, str]


class ExactReader:
    """Scores 1 where the pair shows the statement, 0 where it shows another class or none, NaN where one of the two is not there.

    An image is read once however often it is asked about.
    """

    def __init__(self) -> None:
        self._known: dict[bytes, Reading] = {}

    def readings(self, images: Pixels) -> list[Reading]:
        """What images `[N, 64, 64, 3]`, 0–255, show."""
        keys = [hashlib.sha256(image.tobytes()).digest() for image in images]
        new = {key: image for key, image in zip(keys, images, strict=True) if key not in self._known}
        if new:
            self._known |= dict(zip(new, read(np.stack(list(new.values()))), strict=True))
        return [self._known[key] for key in keys]

    def scores(self, images: Pixels, statements: Sequence[Sequence[Triple]]) -> Scores:
        """`[N, K]`; see `sgpipe.evaluation.judges.Judge`."""
        read_ = zip(self.readings(images), statements, strict=True)
        return np.array([[_score(reading, each) for each in several] for reading, several in read_], np.float32)

    def duplicates(self, images: Pixels, names: Sequence[Sequence[str]]) -> NDArray[np.bool_]:
        """`[N]`: whether an image shows more than one object of one of its names; see `sgpipe.evaluation.judges.Counter`."""
        read_ = zip(self.readings(images), names, strict=True)
        return np.array([bool(set(reading.duplicates) & set(wanted)) for reading, wanted in read_], bool)


def _score(reading: Reading, statement: Triple) -> float:
    shown = {each.name for each in reading.objects}
    if not {statement[0], statement[2]} <= shown:
        return float("nan")
    found = reading.between(statement[0], statement[2])
    return float(found is not None and same(found, statement))


def build_judge(device: torch.device) -> ExactReader:
    """The exact reader; it runs on the CPU whatever the `device`."""
    return ExactReader()
