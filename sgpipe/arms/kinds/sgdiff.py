"""Kind `sgdiff`: SGDiff's own generator (Yang et al. 2022), which is given the graph alone and reads no prompt."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from sgpipe.arms.config import ArmOptions
from sgpipe.arms.kinds.base import External, Generator, Sections
from sgpipe.errors import ModelError, ParamsError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from sgpipe.graphs.scene_graph import SceneGraph
    from sgpipe.sgdiff.model import SgDiff


class SgDiffSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """The generator's folder and its sampler."""

    checkpoint: str
    steps: int
    eta: float


class SgDiffArm(External):
    """SGDiff's own generator, of section `sgdiff`, given the graph alone; prompts, backbone and training have no part in it."""

    options = ArmOptions
    settings = SgDiffSettings
    command = "sgpipe sgdiff sample"

    @classmethod
    def resolve(cls, key: str, options: ArmOptions, sections: Sections) -> SgDiffSettings:
        """Section `sgdiff`. Raises `ParamsError` without a checkpoint, and for a training seed or learning rate."""
        given = sections.sgdiff
        if given is None or given.checkpoint is None:
            raise ParamsError(
                f"{key}: kind sgdiff samples with a trained generator; set sgdiff.checkpoint to the folder that "
                "`sgpipe sgdiff import` wrote"
            )
        for name in ("seed", "triples", "learning_rate"):
            if (value := getattr(options, name)) is not None:
                raise ParamsError(f"{key}.{name}: got {value}; kind sgdiff is not trained with the arms; leave it out")
        return SgDiffSettings(given.checkpoint, given.steps, given.eta)

    @classmethod
    def files(cls, settings: SgDiffSettings) -> dict[str, Path]:
        """The generator's folder."""
        return {"sgdiff.checkpoint": Path(settings.checkpoint)}

    @classmethod
    def open(cls, settings: SgDiffSettings, device: "torch.device") -> Generator:
        """The generator of the folder."""
        from sgpipe.sgdiff.model import SgDiff

        return _Images(SgDiff.load(Path(settings.checkpoint), device), settings)


class _Images:
    """SGDiff's images in the size of the other arms'; says once for each graph what of it has no token."""

    def __init__(self, model: "SgDiff", settings: SgDiffSettings) -> None:
        self._model, self._settings = model, settings
        self._said: set[str] = set()

    def _say(self, message: str) -> None:
        if message not in self._said:
            self._said.add(message)
            print(f"warning: {message}", file=sys.stderr)

    def sample(
        self, prompts: Sequence[str], graphs: "Sequence[SceneGraph | None]", seeds: Sequence[int], *, steps: int, size: int
    ) -> "NDArray[np.uint8]":
        """Images `[N, size, size, 3]` of the graphs, resized by Lanczos where the generator's own size is another.

        The DDIM steps are those of section `sgdiff`, not `steps`. Raises `ModelError` for an image without a graph.
        """
        import numpy as np
        from PIL import Image

        given = [graph for graph in graphs if graph is not None]
        if len(given) < len(graphs):
            raise ModelError("sample: got no graph; SGDiff was never trained without one; give an empty graph")
        for message in self._model.cut(given):
            self._say(message)
        images: Any = self._model.sample(given, seeds, steps=self._settings.steps, eta=self._settings.eta, batch=len(given))
        if self._model.resolution == size:
            return images
        self._say(f"SGDiff's images of {self._model.resolution} px are resized to the {size} px of the other arms")
        return np.stack([np.asarray(Image.fromarray(each).resize((size, size), Image.Resampling.LANCZOS)) for each in images])
