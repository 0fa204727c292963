"""The frozen image tower that teaches a graph encoder, through open_clip."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from sgpipe.backbones.open_clip_models import load_open_clip, open_clip_hash
from sgpipe.errors import ModelError
from sgpipe.graph_encoder.config import LOCAL, GraphEncoder


def tower_identity(params: GraphEncoder) -> dict[str, Any]:
    """What the features of a crop depend on. Raises `ModelError` for a folder that is not there."""
    weights: Any = {"model": params.tower, "pretrained": params.pretrained}
    if params.tower.startswith(LOCAL):
        folder = Path(params.tower.removeprefix(LOCAL))
        if not folder.is_dir():
            raise ModelError(
                f"graph_encoder.tower: {params.tower}: no such folder; `dvc pull models.dvc` gets the embedded one, or name an "
                f"open_clip model with graph_encoder.pretrained"
            )
        weights = open_clip_hash(folder)
    return {"weights": weights, "block": params.block}


class ImageTower:
    """A vision transformer of open_clip up to one of its blocks: pixels to patch features of zero mean and unit variance.

    `side`: pixels of its square input; `patches`: their number; `width`: of a feature. Raises `ModelError` for a model that cannot
    be loaded, has no such block or no grid of patches.
    """

    def __init__(self, params: GraphEncoder, device: torch.device) -> None:
        import open_clip

        self._name, self._block, self._device = params.tower, params.block, device
        try:
            model, _ = load_open_clip(params.tower, params.pretrained, device)
        except (RuntimeError, OSError, ValueError, KeyError) as error:
            raise ModelError(
                f"graph_encoder.tower: {params.tower}: open_clip cannot load it ({' '.join(str(error).split())[:300]})"
            ) from None
        self._visual: Any = model.visual.eval().requires_grad_(False)
        wanted = open_clip.get_model_preprocess_cfg(model)
        self._mean, self._std = (torch.tensor(wanted[name], device=device)[:, None, None] for name in ("mean", "std"))
        size = self._visual.image_size
        self.side = int(size if isinstance(size, int) else size[0])
        blank = np.zeros((1, self.side, self.side, 3), dtype=np.uint8)
        self.patches, self.width = self.features(self.pixels(blank)).shape[1:]
        self.grid = round(self.patches**0.5)
        if self.grid**2 != self.patches or self.side % self.grid:
            raise ModelError(
                f"graph_encoder.tower: {params.tower}: {self.patches} patches of an image of {self.side} px are no grid"
            )

    def pixels(self, images: NDArray[np.uint8]) -> Tensor:
        """Images `[B, side, side, 3]`, 0–255, as the tower takes them: `[B, 3, side, side]`, 0 where the mean colour is."""
        unit = torch.from_numpy(images).to(self._device).permute(0, 3, 1, 2).float() / 255
        return (unit - self._mean) / self._std

    @torch.no_grad()
    def features(self, pixels: Tensor) -> Tensor:
        """Features `[B, patches, width]` in row order."""
        try:
            seen = self._visual.forward_intermediates(
                pixels, indices=[self._block], stop_early=True, intermediates_only=True, output_fmt="NLC"
            )["image_intermediates"][0]
        except (AssertionError, AttributeError, TypeError) as error:
            raise ModelError(
                f"graph_encoder.block: got {self._block}; {self._name} gives no patches of it ({error}); a vision transformer and "
                f"one of its blocks are needed, −1 for the last"
            ) from None
        return F.layer_norm(seen, seen.shape[-1:])
