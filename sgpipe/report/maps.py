"""`sgpipe maps`: where a transformer looks for each concept, by layer group, over one image."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from matplotlib.figure import Figure
from msgspec.structs import replace
from numpy.typing import NDArray
from PIL import Image

from sgpipe.attention_maps.config import Maps
from sgpipe.attention_maps.extract import Observer
from sgpipe.attention_maps.files import KINDS
from sgpipe.attention_maps.options import MapOptions
from sgpipe.backbones.base import TextCondition
from sgpipe.backbones.config import Backbone
from sgpipe.backbones.denoiser import Denoiser
from sgpipe.backbones.families import open_text_encoders, open_tokenizers
from sgpipe.backbones.images import decode, encode
from sgpipe.backbones.loading import load_module
from sgpipe.backbones.prompt_cache import PromptCache
from sgpipe.backbones.text import EncodedTexts
from sgpipe.backbones.truncation import check_names_kept, warn
from sgpipe.errors import DataError
from sgpipe.params.blocks import LayerGroup
from sgpipe.runs.atomic import atomic_path
from sgpipe.runs.progress import progress, tick

Pixels = NDArray[np.uint8]
MapsByName = dict[str, NDArray[np.float32]]
NAMES = ("early", "middle", "late")


def layer_thirds(double: int, single: int) -> dict[str, LayerGroup]:
    """The double-stream blocks in thirds, or the single-stream ones of a model without others: 19 are 0..6, 7..12 and 13..18."""
    stream, count = ("blocks", double) if double else ("single_blocks", single)
    parts = np.array_split(np.arange(count), len(NAMES))
    return {name: LayerGroup.parse({stream: part.tolist()}) for name, part in zip(NAMES, parts, strict=True) if len(part)}


class _Prompts(PromptCache):
    """Encodings of a few texts, made at once instead of read from a cache."""

    def __init__(self, backbone: Backbone, prompt: str, concepts: Sequence[str], device: torch.device) -> None:
        tokenizers = open_tokenizers(backbone)
        warn(tokenizers.prompts([prompt]), "--prompt")
        check_names_kept(tokenizers.names(concepts), "--concepts")
        self._encoded = EncodedTexts(open_text_encoders(backbone, device), [prompt], concepts, apart=[""])

    def get(self, prompts: Sequence[str]) -> TextCondition:
        return self._encoded.prompts(prompts)

    def _rows(self, kind: str, text: str) -> dict[str, Any]:
        return {"states": self._encoded.concepts([text])[0]}


def read_square(path: Path, side: int) -> Pixels:
    """The middle square of an image file, `[side, side, 3]`. Raises `DataError` for a file that is no image."""
    try:
        with Image.open(path) as opened:
            whole = opened.convert("RGB")
    except (OSError, ValueError) as error:
        raise DataError(f"--image {path}: cannot be read ({error}); give a PNG or JPEG file") from None
    (width, height), short = whole.size, min(whole.size)
    left, top = (width - short) / 2, (height - short) / 2
    return np.asarray(whole.resize((side, side), Image.Resampling.LANCZOS, box=(left, top, left + short, top + short)))


def concept_maps(
    backbone: Backbone, maps: Maps, prompt: str, concepts: Sequence[str], image: Path | None, device: torch.device, *,
    seed: int = 0, steps: int = 4, t: float = 0.6, guidance: float | None = None,
) -> tuple[Pixels, MapsByName]:  # fmt: skip
    """An image `[S, S, 3]` (0–255) and its maps `[K, H, W]` as `<kind>_<group>`, where the kinds are saliency and cross.

    Without `image` it is sampled from the noise of `seed`, and maps are means over the steps; of a given one, cropped to its middle
    square, they are those of one forward at z_t. Raises `SgpipeError` for what the model does not take, and for a file
    that is no image before anything is loaded.
    """
    real = None if image is None else read_square(image, backbone.resolution)
    cache = _Prompts(backbone, prompt, concepts, device)
    denoiser, vae = Denoiser.load(backbone, device), load_module(backbone, "vae").to(device)
    options = MapOptions(maps.groups, maps.normalisation, variant=maps.variant)
    observer = Observer(denoiser, cache, options, maps.concept_tokens, backbone.resolution, guidance)
    item = pa.Table.from_pylist([{"prompt": prompt, "concepts": list(concepts), "seed": seed, "t": t}])
    family = denoiser.family
    if real is None:
        with progress(steps, "sampling", "step"):
            seen = observer.along_sampling(item, steps)
        assert seen.latents is not None
        pixels = decode(family, vae, seen.latents)[0]
    else:
        pixels = real
        with progress(2, "encoding and one forward", "step"):
            clean = family.normalised(family.statistics(vae), encode(family, vae, [pixels])[0])
            tick()
            seen = observer.of_noised(item, clean)
            tick()
    found = {f"{kind}_{group}": getattr(made, kind)[0].cpu().numpy() for group, made in seen.maps.items() for kind in KINDS}
    return pixels, found


def write_figure(pixels: Pixels, concepts: Sequence[str], maps: Mapping[str, NDArray[np.floating]], title: str, out: Path) -> None:
    """A PNG: a row per concept, and for each kind a column per group with the map over the image, from its least to its greatest
    value."""
    figure = Figure(figsize=(1.7 * (1 + len(maps)), 1.75 * len(concepts) + 0.9), dpi=110, layout="constrained")
    axes = figure.subplots(len(concepts), 1 + len(maps), squeeze=False)
    side = len(pixels)
    names = sorted(maps, key=lambda name: KINDS.index(name.partition("_")[0]))
    for row, (concept, cells) in enumerate(zip(concepts, axes, strict=True)):
        cells[0].imshow(pixels, interpolation="nearest")
        cells[0].set_ylabel(concept, fontsize=11)
        for name, cell in zip(names, cells[1:], strict=True):
            cell.imshow(pixels, interpolation="nearest", alpha=0.4)
            cell.imshow(maps[name][row], cmap="magma", alpha=0.65, extent=(-0.5, side - 0.5, side - 0.5, -0.5))
            if row == 0:
                kind, _, group = name.partition("_")
                cell.set_title(f"{'saliency' if kind == 'saliency' else 'cross-attention'}\n{group}", fontsize=9)
        for cell in cells:
            cell.set(xticks=[], yticks=[])
    figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    with atomic_path(out) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})


def write_arrays(pixels: Pixels, concepts: Sequence[str], maps: MapsByName, prompt: str, out: Path) -> None:
    """The same as numbers, by name: `image`, `concepts`, `prompt` and each map `[K, H, W]`. The same ones give the same bytes."""
    arrays: dict[str, Any] = {"image": pixels, "concepts": np.array(concepts), "prompt": np.array(prompt), **maps}
    with atomic_path(out) as temporary, temporary.open("wb") as stream:
        np.savez(stream, **arrays)


def of_model(backbone: Backbone, size: int) -> tuple[Backbone, Maps]:
    """Both sections for a model that params.yaml does not name: layers in thirds, all else by default."""
    return replace(backbone, resolution=size), Maps(layer_thirds(backbone.double_blocks, backbone.single_blocks))
