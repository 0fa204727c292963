"""Graphs as the text encoder reads them in a sentence, in the place of a neutral prompt's rows: arms of `benchmarks.world_arms`."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sgpipe.arms.model import ArmModel
from sgpipe.backbones.base import TextCondition
from sgpipe.graph_encoder.open_vocabulary import NameTable
from sgpipe.graphs.prompts import words
from sgpipe.graphs.scene_graph import SceneGraph
from sgpipe.relations.predicates import phrase


@dataclass(frozen=True)
class Told:
    """Rows of the text encoder for a graph, read in a sentence: `[k, D]` of each object where it is first named, and those of the
    predicates and of later mentions, in the order of the sentence.
    """

    names: dict[int, Tensor]
    predicates: Tensor
    again: Tensor


class Phrases:
    """Graphs as the text encoder reads them in a sentence."""

    def __init__(self, model: Path) -> None:
        from diffusers import FluxPipeline

        parts = FluxPipeline.from_pretrained(model, transformer=None, vae=None)
        self._tokenizer: Any = parts.tokenizer_2
        self._encoder: Any = parts.text_encoder_2
        self._known: dict[SceneGraph, Told] = {}

    def length(self, text: str) -> int:
        """Number of its tokens."""
        return len(self._tokenizer.tokenize(text))

    @torch.no_grad()
    def told(self, graph: SceneGraph) -> Told:
        """Rows of the words of a graph that has triples."""
        if graph not in self._known:
            text, said = words(graph), "a photo of"
            ids = self._tokenizer([text], padding="max_length", return_tensors="pt").input_ids
            states = self._encoder(ids)[0][0].float()
            names, predicates, again = dict[int, Tensor](), list[Tensor](), list[Tensor]()
            for number, (subject, predicate, object_) in enumerate(graph.triples):
                if number:
                    said += " and" if number == len(graph.triples) - 1 else ","
                for part, place in (
                    (graph.objects[subject], subject),
                    (phrase(predicate), None),
                    (graph.objects[object_], object_),
                ):
                    start, said = self.length(said), f"{said} {part}"
                    rows = states[start : self.length(said)]
                    if place is None:
                        predicates.append(rows)
                    elif place in names:
                        again.append(rows)
                    else:
                        names[place] = rows
            assert text.startswith(said)
            none = states[:0]
            self._known[graph] = Told(names, torch.cat([none, *predicates]), torch.cat([none, *again]))
        return self._known[graph]


@dataclass
class PhraseModel(ArmModel):
    """An arm whose graphs also stand as phrases in place of the last rows of the prompt, which are padding; with `names` the
    prompt's rows of names are those of the sentence, too.
    """

    phrases: Phrases | None = None
    names: bool = False

    def condition(self, graphs: Sequence[SceneGraph], texts: Sequence[str], text: TextCondition, names: NameTable) -> TextCondition:
        """See `ArmModel.condition`."""
        if self.phrases is None:
            return super().condition(graphs, texts, text, names)
        states = text.states.float().clone()
        for row, graph, prompt in zip(states, graphs, texts, strict=True):
            if not graph.triples:
                continue
            told = self.phrases.told(graph)
            further = torch.cat([told.predicates, told.again]) if self.names else told.predicates
            row[-len(further) :] = further
            for place, own in told.names.items() if self.names else ():
                found = re.search(rf"\b{re.escape(graph.objects[place])}\b", prompt)
                assert found is not None
                start = self.phrases.length(prompt[: found.start()].strip())
                row[start : start + len(own)] = own
        return super().condition(graphs, texts, replace(text, states=states.to(text.states.dtype)), names)
