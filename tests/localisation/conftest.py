"""A tiny FLUX with an arm of graph tokens, and items of directional triples."""

from collections.abc import Callable

import pytest

from sgpipe.arms.adapter import build
from sgpipe.arms.generation import GraphGenerator
from sgpipe.arms.kinds.base import Sections
from sgpipe.arms.resolve import resolve
from sgpipe.backbones.config import Backbone
from sgpipe.backbones.denoiser import Denoiser
from sgpipe.backbones.families import open_text_encoders, open_tokenizers
from sgpipe.backbones.loading import load_module
from sgpipe.evaluation.sampling_plan import EvaluationTriple
from sgpipe.graph_encoder.config import GraphTokens
from sgpipe.graphs.prompts import words
from sgpipe.graphs.scene_graph import SceneGraph
from sgpipe.localisation.pairs import Item, conditions, items_of
from sgpipe.localisation.runs import Runs
from tests.tiny import NAMES, SIDE, TOKENS, backbone_of, write_pipeline
from tests.training.world import ARMS, CPU, LORA, tiny_train

STEPS, PAIRS = 3, 2


def case(name: str, subject: str, predicate: str, object_: str, kind: str = "swap") -> EvaluationTriple:
    graph = SceneGraph.of(subject, predicate, object_)
    negative = graph.negated(kind, predicate if kind == "swap" else "on")
    prompts = {"neutral": words(graph, "neutral"), "relational": words(graph), "conflicting": words(negative)}
    return EvaluationTriple(name, 1, (0.0, 0.0, 1.0, 1.0), graph, negative, kind, prompts)


@pytest.fixture(scope="session")
def cases() -> list[EvaluationTriple]:
    """Three of each of two directional classes, and one without a direction."""
    made = [case(f"{i}", NAMES[i], "left of" if i % 2 else "above", NAMES[(i + 1) % 5]) for i in range(4)]
    return [
        *made,
        case("4", "tree", "left of", "dog"),
        case("5", "ball", "above", "cat"),
        case("6", "dog", "near", "cat", "replace"),
    ]


@pytest.fixture(scope="session")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return backbone_of(write_pipeline(tmp_path_factory.mktemp("localisation") / "tiny"))


Make = Callable[[str | None], GraphGenerator]


@pytest.fixture
def generator(backbone: Backbone) -> Make:
    """The base, or the base with a fresh arm; a new transformer each time."""

    def make(arm: str | None = "graph") -> GraphGenerator:
        denoiser = Denoiser.load(backbone, CPU)
        made = GraphGenerator(denoiser, load_module(backbone, "vae"), open_text_encoders(backbone, CPU))
        if arm is not None:
            sections = Sections(LORA, tiny_train(), GraphTokens(), backbone)
            made.adapter = build(denoiser, backbone, resolve(arm, ARMS[arm], sections), 1.0)
            for part in (denoiser.transformer, *made.adapter.adapter.modules()):
                part.requires_grad_(False).eval()
        return made

    return make


Open = Callable[..., tuple[Runs, list[Item]]]


@pytest.fixture
def runs(backbone: Backbone, cases: list[EvaluationTriple], generator: Make) -> Open:
    """Runs of `PAIRS` items, a forward of as many samples."""

    def make(arm: str | None = "graph", made: GraphGenerator | None = None) -> tuple[Runs, list[Item]]:
        items = items_of(cases, PAIRS, (0,))
        made = made or generator(arm)
        told = conditions(made, open_tokenizers(backbone), items, TOKENS)
        return Runs(made, told, [item.noise_seed for item in items], SIDE, STEPS, PAIRS), items

    return make
