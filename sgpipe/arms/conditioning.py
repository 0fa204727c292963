"""Graphs beside a prompt: what the transformer is given as text when it is given a graph, too."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from sgpipe.arms.kinds.base import Base, Prompts
from sgpipe.arms.lora import load_tensors
from sgpipe.attention_maps.options import concept_embeddings
from sgpipe.backbones.base import TextCondition
from sgpipe.backbones.strict import write_tensors
from sgpipe.graph_encoder.batches import batch_graphs
from sgpipe.graph_encoder.checkpoints import Encoder, load_encoder, load_strictly, save_encoder
from sgpipe.graph_encoder.config import GraphTokens
from sgpipe.graph_encoder.injection import GatedResidual, named_spans, prepend
from sgpipe.graph_encoder.open_vocabulary import NameTable, OpenVocabularyConfig, OpenVocabularyEncoder
from sgpipe.graph_encoder.tokens import GraphTokenizer
from sgpipe.graph_encoder.vocabulary import Vocabulary
from sgpipe.graphs.scene_graph import SceneGraph

TOKENS_FILE, ENCODER = "graph_tokens.safetensors", "graph_encoder"


def name_table(states: Tensor, mask: Tensor, texts: Sequence[str]) -> NameTable:
    """One vector per text, the mean over its own tokens of states `[K, N, D]`, float32."""
    vectors = concept_embeddings(states.float(), mask, "mean")
    return NameTable(dict(zip(texts, vectors, strict=True)))


class GraphConditioner(nn.Module):
    """Graph tokens with all they are made of: projector, gate and graph encoder. `train_encoder` says what is trained."""

    def __init__(self, params: GraphTokens, base: Base, source: Path | None) -> None:
        """Fresh weights of the base's seed, and the graph encoder of the folder `source`; a fresh one for None."""
        super().__init__()
        width = base.denoiser.layout.text_width
        self.params, self._word_rows = params, base.backbone.max_sequence_length
        if params.enter:
            params.check(len(base.denoiser.family.by_blocks(base.denoiser.transformer).blocks))
        self.encoder: Encoder | None = None
        self.vocabulary: Vocabulary | None = None
        if source is not None:
            self.encoder, self.vocabulary = load_encoder(source)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(base.seed)
            if params.needs_encoder and self.encoder is None:
                self.encoder = OpenVocabularyEncoder(OpenVocabularyConfig(width))
            embed = self.encoder.config.embed if self.encoder is not None else None
            self.tokenizer = GraphTokenizer(params, width, text_scale=base.text_scale, embed=embed, classes=base.classes)
            self.residual = GatedResidual() if params.injection == "residual" else None
        by_words = self.residual is not None or params.names == "prompt"
        self._tokenizers = base.denoiser.family.tokenizers(base.backbone) if by_words else None
        if self.encoder is not None:
            self.encoder.requires_grad_(params.train_encoder or params.encoder is None)
        self.to(base.denoiser.device)

    @classmethod
    def open(cls, params: GraphTokens, base: Base, folder: Path | None) -> Self:
        """What `save` wrote in `folder`; for None fresh, by the graph encoder that the parameters name.

        Raises `ModelError` for damaged files, or a folder that holds no encoder.
        """
        if folder is None:
            return cls(params, base, Path(params.encoder) if params.encoder else None)
        made = cls(params, base, folder / ENCODER if params.needs_encoder else None)
        encoder = {k: v for k, v in made.state_dict().items() if k.startswith("encoder.")}
        load_strictly(made, {**load_tensors(folder / TOKENS_FILE), **encoder}, folder / TOKENS_FILE)
        return made

    def save(self, folder: Path) -> None:
        """Write projector, roles and gate, and the graph encoder, where there is one."""
        own = {name: value for name, value in self.state_dict().items() if not name.startswith("encoder.")}
        write_tensors(own, folder / TOKENS_FILE, {"format": "pt"})
        if self.encoder is not None:
            (folder / ENCODER).mkdir(exist_ok=True)
            save_encoder(folder / ENCODER, self.encoder, self.vocabulary)

    def trained(self) -> dict[str, nn.Parameter]:
        """The weights that are trained, by name."""
        return {name: weight for name, weight in self.named_parameters() if weight.requires_grad}

    def forward(self, prompts: Prompts) -> TextCondition:
        """The prompts' encoding with their graphs. Where no graph has a triple, tensors stay as they are."""
        graphs, text, names = prompts.graphs, prompts.text, prompts.names
        encoded = None
        if self.encoder is not None:
            batch = batch_graphs(graphs, names if self.vocabulary is None else self.vocabulary)
            encoded = self.encoder(batch.to(text.states.device))
        spans: list[dict[int, range]] = []
        if self._tokenizers is not None:
            words_from = max(text.states.shape[1] - self._word_rows, 0)  # without padding there are fewer
            spans = [self._spans(*pair, words_from) for pair in zip(graphs, prompts.texts, strict=True)]
        if self.residual is not None:
            return replace(text, states=self.residual(self.tokenizer(graphs, encoded, names), text.states, spans))
        said = [
            {i: rows[at.start : at.stop].float().mean(0) for i, at in own.items()}
            for rows, own in zip(text.states, spans, strict=False)
        ]
        return prepend(self.tokenizer(graphs, encoded, names, said), text, self.params.enter)

    def _spans(self, graph: SceneGraph, text: str, words_from: int) -> dict[int, range]:
        """Rows of a condition that hold each named object; those of the encoder of names are the last, from `words_from` on."""
        assert self._tokenizers is not None
        mentions = self._tokenizers.mentions(text, graph.objects)
        found = named_spans(graph, mentions, every=self.residual is not None)
        return {place: range(words_from + at.start, words_from + at.stop) for place, at in found.items()}
