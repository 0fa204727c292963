"""Measures of an encoder: without dropout, undefined where nothing can be told, one by one as all together."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from sgpipe.graph_encoder.batches import Names, batch_graphs
from sgpipe.graph_encoder.config import GraphEncoder
from sgpipe.graph_encoder.evaluate import LAYOUTS, measure, token_cosines
from sgpipe.graph_encoder.examples import Examples
from sgpipe.graph_encoder.features import Features
from sgpipe.graph_encoder.open_vocabulary import NameTable, OpenVocabularyConfig, OpenVocabularyEncoder
from sgpipe.graph_encoder.training import Learner, Lessons
from sgpipe.relations.predicates import DIRECTIONAL
from tests.graph_encoder.world import CPU, learner, lesson


def test_measures_are_taken_without_dropout(examples: Examples, features: Features, params: GraphEncoder, texts: NameTable) -> None:
    """Of a model in train mode, as it is before its first step: the figures are those of eval mode, and again the same."""
    lessons = lesson(examples, features, "val")
    model = learner(lessons, features, params)
    projection = model.encoder.graph_projection
    model.encoder.graph_projection = nn.Sequential(projection, nn.Dropout(0.5))
    model.encoder.graph_conv.net2.append(nn.Dropout(0.5))
    model.head.leave.append(nn.Dropout(0.5))
    model.reconstruction.mlp.append(nn.Dropout(0.5))
    graphs = [examples.graphs[row] for row in lessons.rows]
    expected = (measure(model.eval(), lessons), token_cosines(model.encoder.eval(), graphs, lessons.names, texts, 0))
    for _ in range(2):
        assert measure(model.train(), lessons) == expected[0]
        assert token_cosines(model.encoder.train(), graphs, lessons.names, texts, 0) == expected[1]


@pytest.mark.parametrize("kind", ["cgip", "open_vocabulary"])
def test_what_is_undefined_is_none(
    examples: Examples, features: Features, params: GraphEncoder, texts: NameTable, kind: str
) -> None:
    """Validation without directional relations, and crops that hide no patch."""
    lessons = lesson(examples, features, "val")
    model = learner(lessons, features, params)
    names: Names = lessons.names
    if kind == "open_vocabulary":
        sizes = OpenVocabularyConfig(texts.width, params.width, params.embed, params.layers)
        names, model = texts, Learner(OpenVocabularyEncoder(sizes), features.shape, params, CPU)
    none: dict[str, None] = {"mean": None, "worst": None}
    assert token_cosines(model.encoder, [], names, texts, 0) == dict.fromkeys(LAYOUTS, none)
    others = [row for row in lessons.rows if examples.graphs[row].triples[0][1] not in DIRECTIONAL]
    blank = BlankFeatures(features)
    found = measure(model, Lessons(examples, blank, np.array(others[:5]), names))  # type: ignore[arg-type]
    assert found["masked"] == {"with_graph": None, "without_graph": None}
    assert found["true_above_swap"]["directional"] is None


class BlankFeatures:
    """Features whose boxes hide no patch."""

    def __init__(self, features: Features) -> None:
        self._features = features

    def get(self, name: str, crops: Any) -> torch.Tensor:
        found = self._features.get(name, crops)
        return torch.zeros_like(found) if name == "region" else found


def test_measures_of_an_encoder(examples: Examples, features: Features, params: GraphEncoder, texts: NameTable) -> None:
    """What is measured for all together is what is measured one by one; identical encodings tell nothing apart."""
    lessons = lesson(examples, features, "val")
    model = learner(lessons, features, params).eval()
    found = measure(model, lessons)
    graphs = [examples.graphs[row] for row in lessons.rows]
    wins = []
    for row, graph in zip(lessons.rows.tolist(), graphs, strict=True):
        if graph.triples[0][1] != "left of":
            continue
        with torch.no_grad():
            image = lessons.images([row], model.head, CPU).pooled
            both = model.encoder(batch_graphs([graph, graph.reversed()], lessons.names)).pooled
        cosine = torch.nn.functional.cosine_similarity(image, both)
        wins.append(bool(cosine[0] > cosine[1]))
    assert found["true_above_swap"]["by_class"]["left of"] == pytest.approx(np.mean(wins))
    assert "around/near" not in found["true_above_swap"]["by_class"]
    assert found["masked"]["with_graph"] > 0
    cosines = token_cosines(model.encoder, graphs, lessons.names, texts, seed=0)
    assert set(cosines) == set(LAYOUTS)
    assert all(each["mean"] <= each["worst"] < 1 for each in cosines.values())
    assert token_cosines(model.encoder, [], lessons.names, texts, seed=0) == {
        name: {"mean": None, "worst": None} for name in LAYOUTS
    }
    for parameter in model.encoder.parameters():
        parameter.data.zero_()
    blind = token_cosines(model.encoder, graphs, lessons.names, texts, seed=0)
    assert blind["triple"]["mean"] == pytest.approx(1)
    assert measure(model, lessons)["true_above_swap"]["directional"] == 0
