"""SGDiff's generator as one object: graph encoder, noise predictor and first stage; its folder, and images of graphs.

A folder holds `sgdiff.json` (sizes), `graph_encoder/` with the vocabulary, `unet/` and `first_stage/` as diffusers'
`from_pretrained` takes them, and `local.safetensors`, the Linear that no class of diffusers has.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Self

import msgspec
import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel, VQModel
from numpy.typing import NDArray
from torch import Tensor

from sgpipe.backbones.rectified_flow import generator, noise
from sgpipe.backbones.strict import check_config, check_report, write_tensors
from sgpipe.errors import DataError, ModelError, ParamsError, first_line
from sgpipe.graph_encoder.batches import GraphEncoding, batch_graphs
from sgpipe.graph_encoder.cgip import Cgip
from sgpipe.graph_encoder.checkpoints import load_encoder, load_module, save_encoder
from sgpipe.graph_encoder.vocabulary import Vocabulary
from sgpipe.graphs.scene_graph import SceneGraph
from sgpipe.relations.predicates import PREDICATES, phrase
from sgpipe.runs.atomic import new_folder, write_json
from sgpipe.runs.command import is_out_of_memory
from sgpipe.sgdiff.networks import NoisePredictor, PredictorConfig
from sgpipe.sgdiff.schedule import DdimTables, ddim

ABOUT, UNET, FIRST_STAGE, ENCODER, LOCAL = "sgdiff.json", "unet", "first_stage", "graph_encoder", "local.safetensors"
MOST_OBJECTS: Final = 30
"""Objects of a graph in the official sampling script, without the image node; training had 10."""
_FIRST_STAGES: Final = {"VQModel": VQModel, "AutoencoderKL": AutoencoderKL}


class _About(msgspec.Struct, forbid_unknown_fields=True):
    resolution: int
    predictor: PredictorConfig


@dataclass
class SgDiff:
    """`first_stage` maps pixels in [-1, 1] to latents: `VQModel`, or `AutoencoderKL` where a twin was trained on its latents.

    `resolution`: side of an image in pixels. Raises `ModelError` where encoder and U-Net do not fit.
    """

    encoder: Cgip
    vocabulary: Vocabulary
    predictor: NoisePredictor
    first_stage: Any
    resolution: int

    def __post_init__(self) -> None:
        widths = self.encoder.config.embed, self.predictor.config.context
        if widths[0] != widths[1]:
            raise ModelError(
                f"sgdiff: the graph encoder gives vectors of width {widths[0]} and the U-Net takes {widths[1]}; they pass through "
                "no layer, so train both with one width"
            )
        for module in (self.encoder, self.predictor, self.first_stage):
            module.requires_grad_(False).eval()

    @property
    def device(self) -> torch.device:
        """Where the noise predictor is."""
        return self.predictor.local.weight.device

    def to(self, device: torch.device) -> Self:
        """All parts on a device."""
        for module in (self.encoder, self.predictor, self.first_stage):
            module.to(device)
        return self

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image's latents."""
        side = self.resolution // 2 ** (len(self.first_stage.config.block_out_channels) - 1)
        return self.predictor.config.channels, side, side

    @property
    def predicates(self) -> frozenset[str]:
        """Predicates that a graph may have: the vocabulary's, and classes whose phrase is one of them."""
        known = frozenset(self.vocabulary.predicates[1:])
        return known | {name for name in PREDICATES if phrase(name) in known}

    def encode(self, graphs: Sequence[SceneGraph]) -> GraphEncoding:
        """Local rows and vectors of graphs. Raises `DataError` for a name outside the vocabulary, or more than 30 objects."""
        for graph in graphs:
            if len(graph.objects) > MOST_OBJECTS:
                raise DataError(
                    f"graph `{graph}`: {len(graph.objects)} objects; SGDiff takes {MOST_OBJECTS} at most; leave some out"
                )
        return self.encoder(batch_graphs(graphs, self.vocabulary).to(self.device))

    def cut(self, graphs: Sequence[SceneGraph]) -> list[str]:
        """One sentence for each different graph with more triples than there are local tokens."""
        most = self.encoder.config.most
        return [
            f"graph `{graph}`: {len(graph.triples)} triples; the first {most} have a local token each, the others reach the U-Net "
            "by the graph's one vector alone"
            for graph in dict.fromkeys(graphs)
            if len(graph.triples) > most
        ]

    @torch.no_grad()
    def latents(self, graphs: Sequence[SceneGraph], seeds: Sequence[int], steps: int, eta: float) -> Tensor:
        """x₀ `[B, 4, h, w]` by DDIM; the noise of an image depends on its seed alone."""
        encoded = self.encode(graphs)
        context = self.predictor.context(encoded.local, encoded.pooled)
        shape = self.latent_shape

        def drawn(step: int) -> Tensor:
            return torch.stack([torch.randn(shape, generator=generator("sgdiff", seed, step)) for seed in seeds]).to(self.device)

        start = noise(seeds, shape).to(self.device)
        states = ddim(lambda x, t: self.predictor(x, t, context), start, DdimTables.of(steps, eta), drawn)
        return deque(states, maxlen=1)[0]

    @torch.no_grad()
    def decode(self, latents: Tensor) -> NDArray[np.uint8]:
        """Images `[B, H, W, 3]`, 0–255, truncated as officially; a VQ first stage takes the nearest codes first."""
        config = self.first_stage.config
        decoded = self.first_stage.decode(latents / config.scaling_factor + (config.get("shift_factor") or 0.0)).sample
        pixels = ((decoded + 1) / 2).clamp(0, 1).permute(0, 2, 3, 1).float().cpu().numpy()
        return (pixels * 255).astype(np.uint8)

    def sample(
        self, graphs: Sequence[SceneGraph], seeds: Sequence[int], *, steps: int = 200, eta: float = 1.0, batch: int = 16
    ) -> NDArray[np.uint8]:
        """Images `[N, resolution, resolution, 3]`, 0–255, of graphs with a seed each; the defaults are the official ones."""
        if len(graphs) != len(seeds) or not graphs:
            raise ParamsError(f"sample: got {len(graphs)} graphs and {len(seeds)} seeds; one of each per image, one image at least")
        parts = [slice(start, start + batch) for start in range(0, len(graphs), batch)]
        return np.concatenate([self.decode(self.latents(graphs[part], seeds[part], steps, eta)) for part in parts])

    def save(self, out: Path) -> None:
        """Write the folder, whole or not at all."""
        with new_folder(out) as folder:
            self.predictor.unet.save_pretrained(folder / UNET)
            self.first_stage.save_pretrained(folder / FIRST_STAGE)
            write_tensors(self.predictor.local.state_dict(), folder / LOCAL, {"format": "pt"})
            (folder / ENCODER).mkdir()
            save_encoder(folder / ENCODER, self.encoder, self.vocabulary)
            write_json({"resolution": self.resolution, "predictor": asdict(self.predictor.config)}, folder / ABOUT)

    @classmethod
    def load(cls, folder: Path, device: torch.device | None = None) -> Self:
        """What `save` wrote. Raises `ModelError` for a folder that lacks a part, or weights that are not exactly its tensors."""
        about = _read_about(folder / ABOUT)
        encoder, vocabulary = load_encoder(folder / ENCODER)
        if not isinstance(encoder, Cgip) or vocabulary is None:
            raise ModelError(f"{folder / ENCODER}: no CGIP encoder; SGDiff's U-Net was trained on one")
        with torch.device("meta"):
            predictor = NoisePredictor(about.predictor)
        unet = _load_part(UNet2DConditionModel, folder / UNET)
        settings, stated = (_settings(each) for each in (predictor.unet, unet))
        if odd := [name for name in settings if settings[name] != stated.get(name)]:
            raise ModelError(
                f"{folder / UNET}/config.json: {', '.join(odd[:5])}: not SGDiff's U-Net of the sizes in {ABOUT}; import again"
            )
        predictor.unet = unet
        predictor.local = predictor.local.to_empty(device="cpu")
        load_module(predictor.local, folder / LOCAL)
        kind = _class_of(folder / FIRST_STAGE / "config.json")
        return cls(encoder, vocabulary, predictor, _load_part(kind, folder / FIRST_STAGE), about.resolution).to(
            device or torch.device("cpu")
        )


def _settings(unet: Any) -> dict[str, Any]:
    """A U-Net's configuration as JSON holds it, without what diffusers notes beside."""
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in unet.config.items()}
    return {name: value for name, value in plain.items() if not name.startswith("_")}


def _read_about(path: Path) -> _About:
    try:
        return msgspec.json.decode(path.read_bytes(), type=_About)
    except FileNotFoundError:
        raise ModelError(f"{path}: no such file; `sgpipe sgdiff import` makes such a folder of a published checkpoint") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ModelError(f"{path}: not the sizes of an SGDiff model: {error}; import the checkpoint again") from None


def _class_of(path: Path) -> Any:
    try:
        name = msgspec.json.decode(path.read_bytes())["_class_name"]
        return _FIRST_STAGES[name]
    except (OSError, msgspec.DecodeError, KeyError, TypeError) as error:
        raise ModelError(
            f"{path}: names no first stage ({first_line(error)}); valid: {', '.join(_FIRST_STAGES)}; import the checkpoint again"
        ) from None


def _load_part(kind: Any, folder: Path) -> Any:
    check_config(folder / "config.json", kind)
    try:
        module, report = kind.from_pretrained(folder, use_safetensors=True, local_files_only=True, output_loading_info=True)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise ModelError(f"{folder}: cannot be loaded: {first_line(error)}; import the checkpoint again") from error
    check_report(module, report, folder, "import the checkpoint again")
    return module
