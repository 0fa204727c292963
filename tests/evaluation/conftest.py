"""Validation triples of the drawn world with ground-truth images, judges whose verdicts are known, and judges' folders."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from sgpipe.evaluation.judges import Scores
from sgpipe.evaluation.samples import Pixels
from sgpipe.evaluation.sampling_plan import EvaluationTriple, Triple
from sgpipe.graphs.prompts import words
from sgpipe.graphs.scene_graph import SceneGraph
from sgpipe.relations.predicates import DIRECTIONAL
from sgworld.contrast import Tower, build_clip, save_local
from sgworld.language import clip_tokenizer

PAIRS = (("dog", "cat"), ("apple", "horse"), ("cup", "bird"), ("car", "person"))
PREDICATES = ("left of", "right of", "above", "below", "riding")


def make_case(index: int, subject: str, predicate: str, object_: str) -> EvaluationTriple:
    kind = "swap" if predicate in DIRECTIONAL else "replace"
    graph = SceneGraph.of(subject, predicate, object_)
    negative = graph.negated(kind, predicate if kind == "swap" else "pulling")
    prompts = {"neutral": words(graph, "neutral"), "relational": words(graph), "conflicting": words(negative)}
    name = f"{index:03d}-{predicate}"
    return EvaluationTriple(name, index, (0.0, 0.0, 64.0, 64.0), graph, negative, kind, prompts)


@pytest.fixture(scope="session")
def cases() -> list[EvaluationTriple]:
    made = [(s, predicate, o) for predicate in PREDICATES for s, o in PAIRS]
    return [make_case(i, *triple) for i, triple in enumerate(made)]


class Written:
    """An image of a triple is a code of it; `read` says what it shows. Noise fills the rest."""

    def __init__(self, triples: Sequence[Triple]) -> None:
        self.triples = list(dict.fromkeys(triples))

    def image(self, triple: Triple | None, seed: int, side: int = 16) -> Pixels:
        pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3)).astype(np.uint8)
        pixels[0, 0] = (255, 255, 255) if triple is None else (self.triples.index(triple), 0, 0)
        return pixels

    def read(self, image: Pixels) -> Triple | None:
        code = int(image[0, 0, 0])
        return None if code == 255 else self.triples[code]


class Oracle:
    """Reads what an image shows; abstains where that has other names than the statement's."""

    def __init__(self, written: Written) -> None:
        self._written = written

    def scores(self, images: Pixels, statements: Sequence[Sequence[Triple]]) -> Scores:
        made = []
        for image, several in zip(images, statements, strict=True):
            shown = self._written.read(image)
            made.append([self._score(shown, each) for each in several])
        return np.array(made, np.float32)

    @staticmethod
    def _score(shown: Triple | None, statement: Triple) -> float:
        if shown is None or {shown[0], shown[2]} != {statement[0], statement[2]}:
            return float("nan")
        mirrored = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
        told = {shown, (shown[2], mirrored.get(shown[1], shown[1]), shown[0])}
        return float(statement in told and (statement == shown or shown[1] in mirrored))


class Blind:
    """Likes statements by their words alone: the alphabetically greater subject."""

    def scores(self, images: Pixels, statements: Sequence[Sequence[Triple]]) -> Scores:
        return np.array([[float(ord(s[0])) + 0.01 * len(p) for s, p, _ in several] for several in statements], np.float32)


class FakeGenerator:
    """Draws what the graph says, or with a tenth of a chance its swap; without a graph, a coin decides the roles."""

    def __init__(self, written: Written) -> None:
        self.written, self.calls = written, 0

    def sample(
        self, prompts: Sequence[str], graphs: Sequence[SceneGraph | None], seeds: Sequence[int], *, steps: int, size: int
    ) -> Pixels:
        self.calls += 1
        return np.stack([self._one(prompt, graph, seed, size) for prompt, graph, seed in zip(prompts, graphs, seeds, strict=True)])

    def _one(self, prompt: str, graph: SceneGraph | None, seed: int, size: int) -> Pixels:
        rng = np.random.default_rng(seed)
        if graph is None or not graph.triples:
            same = [t for t in self.written.triples if t[1] == "left of" and all(f" {name} " in prompt for name in (t[0], t[2]))]
            swapped = [(t[2], t[1], t[0]) for t in same]
            return self.written.image([*same, *swapped][int(rng.random() < 0.5)] if same else None, seed, size)
        (s, predicate, o), *_ = graph.triples
        said = (graph.objects[s], predicate, graph.objects[o])
        wrong = rng.random() < 0.1 and predicate != "riding" and predicate != "pulling"
        return self.written.image((said[2], said[1], said[0]) if wrong else said, seed, size)


@pytest.fixture(scope="session")
def written(cases: list[EvaluationTriple]) -> Written:
    return Written([triple for case in cases for triple in (case.positive, case.negative)])


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An open_clip folder of random weights."""
    folder = tmp_path_factory.mktemp("clip")
    tower = Tower(width=32, layers=1, patch=16, embed=16)
    save_local(build_clip(tower, 0), tower, folder)
    return folder


@pytest.fixture(scope="module")
def owl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An OWLv2 folder of random weights with its processor; OWLv2 takes a text that begins with token 0 for none."""
    from transformers import CLIPTokenizer, Owlv2Config, Owlv2ForObjectDetection, Owlv2ImageProcessor, Owlv2Processor

    folder = tmp_path_factory.mktemp("owl")
    learned = json.loads(clip_tokenizer(["a photo of a dog a cat"]).backend_tokenizer.to_str())["model"]
    vocabulary = {token: len(learned["vocab"]) - 1 - place for token, place in learned["vocab"].items()}
    merges = [tuple(merge) for merge in learned["merges"]]
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=16)
    config = Owlv2Config(
        text_config={
            "vocab_size": len(tokenizer), "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
            "num_attention_heads": 2, "max_position_embeddings": 16,
            "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": 0,
        },
        vision_config={
            "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32,
            "patch_size": 8,
        },
        projection_dim=16,
    )  # fmt: skip
    torch.manual_seed(0)
    Owlv2ForObjectDetection(config).save_pretrained(folder)
    processor = Owlv2ImageProcessor(size={"height": 32, "width": 32})
    Owlv2Processor(image_processor=processor, tokenizer=tokenizer).save_pretrained(folder)
    return folder
