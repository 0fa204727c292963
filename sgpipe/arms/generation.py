"""Images of prompts with graphs, by a generator and an adapter."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from msgspec.structs import replace
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from sgpipe.arms.adapter import backbone_of, load_adapter, read_about
from sgpipe.arms.conditioning import name_table
from sgpipe.arms.model import ArmModel
from sgpipe.backbones.base import TextCondition, TextEncoders
from sgpipe.backbones.config import Backbone
from sgpipe.backbones.denoiser import Denoiser
from sgpipe.backbones.families import family_of, layout_of, open_text_encoders, open_tokenizers
from sgpipe.backbones.images import decode
from sgpipe.backbones.loading import load_module, on_device, place
from sgpipe.backbones.source import locate, snapshot_folder
from sgpipe.backbones.text import EncodedTexts
from sgpipe.backbones.truncation import warn
from sgpipe.errors import ModelError, ParamsError
from sgpipe.graph_encoder.open_vocabulary import NameTable, texts_of
from sgpipe.graphs.scene_graph import SceneGraph


def read_backbone(model: str | Path) -> Backbone:
    """Section `backbone` for a pipeline folder (or a hub id in the cache), read off its own files. Raises `ModelError`."""
    folder = snapshot_folder(str(model), None)
    if folder is None:
        raise ModelError(f"{model}: no such pipeline folder; give a local folder of a diffusers pipeline")
    family, layout = family_of(folder), layout_of(folder)
    backbone = Backbone(
        model=str(folder),
        files=str(folder),
        double_blocks=layout.double_blocks,
        single_blocks=layout.single_blocks,
        resolution=layout.pixels_per_token,
        max_sequence_length=family.longest,
    )
    return replace(backbone, max_sequence_length=min(family.longest, family.tokenizers(backbone).longest))


def backbone_for(model: str | Path, adapter: Path | None) -> Backbone:
    """As the adapter was trained, if there is one: prompts must be padded alike, and the precision be the same."""
    if adapter is None:
        return read_backbone(model)
    trained = backbone_of(read_about(adapter), adapter)
    if str(model) == trained.model:
        return trained
    found = read_backbone(model)
    return replace(trained, model=found.model, files=found.files, revision=None)


@dataclass
class GraphGenerator:
    """Draws images; `adapter` is None for the base alone.

    With `offload: model` transformer and VAE are on the device by turns.
    """

    denoiser: Denoiser
    vae: Any
    texts: TextEncoders
    adapter: ArmModel | None = None
    guidance: float | None = None
    offload: str = "none"
    batch: int = 16
    _names: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def load(
        cls,
        model: str | Path,
        adapter: Path | None,
        *,
        device: str = "cpu",
        backbone: Backbone | None = None,
        guidance: float | None = None,
        offload: str = "none",
        ahead: tuple[Sequence[str], Sequence[SceneGraph | None]] | None = None,
    ) -> "GraphGenerator":
        """The pipeline of folder `model` and the adapter of a folder that `train_lora` wrote.

        Prompt length and precision come from `backbone`, else from the adapter, else from the pipeline's own files; a guidance of
        None is the adapter's, and one above 1 is classifier-free guidance where the transformer takes no scale. With `ahead`, all
        prompts and graphs that will be drawn, the text encoders are gone before the transformer is loaded; without it they stay
        beside it. Raises `ModelError` if the adapter belongs to another base.
        """
        backbone = backbone or backbone_for(model, adapter)
        where = torch.device(device)
        texts = encoders = open_text_encoders(backbone, where, offload)
        if ahead is not None:
            prompts, graphs = ahead
            guided = layout_of(locate(backbone, ("transformer", "vae"))).classifier_free(guidance)
            named = texts_of([graph for graph in graphs if graph is not None])
            different = list(dict.fromkeys(prompts))
            tokenizers = open_tokenizers(backbone)
            warn(tokenizers.prompts(different) + tokenizers.names(named), "prompts")
            texts = EncodedTexts(encoders, prompts, ["", *named], apart=[""] if guided else [])
        del encoders
        denoiser = Denoiser.load(backbone, where, offload)
        made = cls(denoiser, load_module(backbone, "vae"), texts, guidance=guidance, offload=offload)
        if adapter is not None:
            made.adapter = load_adapter(adapter, denoiser, backbone)
            made.guidance = made.adapter.guidance if guidance is None else guidance
        if offload == "model":
            place(denoiser.transformer, torch.device("cpu"), offload)
        else:
            place(made.vae, where, "none")
        return made

    def sample(
        self, prompts: Sequence[str], graphs: Sequence[SceneGraph | None], seeds: Sequence[int], *, steps: int = 4, size: int
    ) -> NDArray[np.uint8]:
        """Images `[N, size, size, 3]`, 0–255, of prompts with a graph each; the noise of each depends on its seed alone.

        Graph None switches the adapter off: those are the base's images. An *empty* graph leaves it on (at the times at which it
        works) without tokens, and so does any graph where the adapter reads none (kind `text_lora`). Raises `ModelError` for a
        graph without an adapter.
        """
        if not len(prompts) == len(graphs) == len(seeds):
            raise ParamsError(
                f"sample: got {len(prompts)} prompts, {len(graphs)} graphs, {len(seeds)} seeds; one of each per image"
            )
        self.denoiser.layout.grid(size)
        groups: dict[tuple[int, int] | None, list[int]] = {}
        for row, graph in enumerate(graphs):
            groups.setdefault(_shape(graph), []).append(row)
        images = np.zeros((len(prompts), size, size, 3), np.uint8)
        for rows in groups.values():
            for start in range(0, len(rows), self.batch):
                part = rows[start : start + self.batch]
                with on_device(self.denoiser.transformer, self.denoiser.device, self.offload):
                    latents = self.latents(
                        [prompts[i] for i in part], [graphs[i] for i in part], [seeds[i] for i in part], steps, size
                    )
                with on_device(self.vae, self.denoiser.device, self.offload):
                    images[part] = decode(self.denoiser.family, self.vae, latents)
        return images

    @torch.no_grad()
    def latents(
        self, prompts: Sequence[str], graphs: Sequence[SceneGraph | None], seeds: Sequence[int], steps: int, size: int
    ) -> Tensor:
        """Latents `[N, C, h, w]` of one batch; either all graphs or none are None."""
        encoded = self.texts.prompts(prompts).to(self.denoiser.device)
        empty = self._empty_prompt if self.denoiser.layout.classifier_free(self.guidance) else None
        given = [graph for graph in graphs if graph is not None]
        if self.adapter is None:
            if given:
                raise ModelError("sample: a graph is given, but no adapter is loaded; load one, or give None")
            return self.denoiser.sample(encoded, seeds, size, steps, self.guidance, unconditional=empty)
        if not given:
            with self.adapter.off():
                return self.denoiser.sample(encoded, seeds, size, steps, self.guidance, unconditional=empty)
        condition = self.adapter.condition(given, prompts, encoded, add_names(self._names, self.texts.concepts, given))
        return self.adapter.sample(condition, encoded, seeds, size, steps, self.guidance, empty)

    @cached_property
    def _empty_prompt(self) -> TextCondition:
        """The other side of classifier-free guidance, encoded once."""
        return self.texts.prompts([""]).to(self.denoiser.device)


def _shape(graph: SceneGraph | None) -> tuple[int, int] | None:
    """Graphs of equal shape have equally many tokens and need no mask."""
    if graph is None:
        return None
    return len(graph.triples), len({index for s, _, o in graph.triples for index in (s, o)})


def add_names(
    known: dict[str, Tensor], concepts: Callable[[Sequence[str]], list[Tensor]], graphs: Sequence[SceneGraph]
) -> NameTable:
    """Vectors of all names and phrases in the graphs, and of those in `known`, to which they are added.

    `concepts` is that of `TextEncoders`.
    """
    new = [text for text in ["", *texts_of(graphs)] if text not in known]
    if new:
        rows = concepts(new)
        mask = pad_sequence([torch.ones(len(row), dtype=torch.bool) for row in rows], batch_first=True)
        known |= name_table(pad_sequence(rows, batch_first=True), mask, new).vectors
    return NameTable(known)
