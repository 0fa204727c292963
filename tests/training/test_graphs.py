"""Training on scene graphs of one to three triples in one batch, from the curated table to the adapter."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from sgpipe.arms.adapter import read_about
from sgpipe.arms.coverage import TRAINED_ON
from sgpipe.arms.generation import GraphGenerator
from sgpipe.backbones.families import open_tokenizers
from sgpipe.graph_encoder.config import GraphTokens
from sgpipe.graph_encoder.injection import named_spans
from sgpipe.graphs.prompts import words
from sgpipe.graphs.scene_graph import SceneGraph, graphs_of
from sgpipe.training.controls import spoken
from sgpipe.training.fit import fit
from sgpipe.training.objective import Noised, Objective
from tests.tiny import NAMES, SIDE, backbone_of, graph_columns, write_pipeline
from tests.training.world import ALONE, World, tiny_train, write_world

CHAIN = ("on", "around/near")


def lengthened(triples: pa.Table) -> pa.Table:
    """Graphs of one, two and three triples by turns: each further triple hangs on the last object; prompts say all of it."""
    rows = triples.to_pylist()
    for number, (row, graph) in enumerate(zip(rows, graphs_of(triples), strict=True)):
        for predicate in CHAIN[: number % 3]:
            other = next(name for name in NAMES if name not in graph.objects)
            last = len(graph.objects)
            graph = SceneGraph((*graph.objects, other), (*graph.triples, (last - 1, predicate, last)))
        row |= graph_columns(graph) | {"prompt": words(graph), "neutral_prompt": words(graph, "neutral")}
    return pa.Table.from_pylist(rows, schema=triples.schema)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("graphs")
    backbone = backbone_of(write_pipeline(root / "models" / "tiny", longest=40), max_sequence_length=40)
    return write_world(root, 12, 4, backbone, lengthened)


def test_examples_hold_whole_graphs_and_prompts_that_name_every_object(world: World) -> None:
    data = world.data()
    assert [len(each.graph.triples) for each in data.train] == [1, 2, 3] * 4
    for each in data.train:
        (s, p, o), (ns, np_, no) = each.graph.named[0], each.negative.named[0]
        assert (ns, no) == (o, s) or np_ != p
        assert each.negative.named[1:] == each.graph.named[1:], "the negative turns the first triple alone"
        assert all(name in prompt for name in each.graph.objects for prompt in each.prompts.values())
        assert set(each.prompts) == {"relational", "neutral", "wrong", "conflicting"}


@pytest.mark.parametrize("tokens", [GraphTokens(), GraphTokens(injection="residual")], ids=["prepend", "residual"])
def test_graphs_of_different_sizes_in_a_batch_are_each_alone(world: World, tokens: GraphTokens) -> None:
    data, model = world.data(), world.model(tiny_train(), tokens)
    residual = model.adapter.conditioner.residual  # type: ignore[attr-defined]
    if residual is not None:
        torch.nn.init.ones_(residual.gate)
    objective = Objective(model, data, tiny_train().losses)
    noise = torch.randn(data.latents.latents([e.triple_id for e in data.train[:6]]).shape)

    def velocity(rows: list[int]) -> torch.Tensor:
        examples = [data.train[row] for row in rows]
        latents = data.latents.latents([each.triple_id for each in examples])
        noised = Noised(examples, latents, noise[rows], torch.full([len(rows)], 0.8))
        positive = spoken("graph", examples, "neutral", tokens.injection)
        return objective.velocity(noised, positive).detach()

    together = velocity([0, 1, 2, 3, 4, 5])
    for row in range(6):
        torch.testing.assert_close(together[row], velocity([row])[0], atol=2e-5, rtol=1e-4)


def test_an_adapter_of_larger_graphs_knows_their_size_and_reads_who_is_related_to_whom(world: World, tmp_path: Path) -> None:
    recipe = tiny_train(epochs=3, keep_epochs=())
    fit(world.arm(recipe), world.denoiser(), world.backbone, world.data(), tmp_path, ALONE, {})
    assert read_about(tmp_path / "adapter")[TRAINED_ON]["triples"] == 3
    generator = GraphGenerator.load(world.backbone.model, tmp_path / "adapter", backbone=world.backbone)
    objects = ("dog", "cat", "table", "ball")
    pairs = [SceneGraph(objects, ((0, "on", 1), (2, "on", 3))), SceneGraph(objects, ((0, "on", 3), (2, "on", 1)))]
    one, other = generator.sample([words(pairs[0], "neutral")] * 2, pairs, [5, 5], size=SIDE)
    assert np.abs(one.astype(int) - other).max() > 0, "the same objects and relations, told of other pairs"


@pytest.mark.parametrize("layout", ["objects", "edges"])
def test_objects_are_named_by_the_prompts_own_rows(world: World, layout: str) -> None:
    """A token differs by what the prompt's rows say of the name, read there and alone; where no prompt names it, by nothing."""
    data = world.data()
    graph, text = data.train[0].graph, data.train[0].prompts["relational"]
    alone, own = (world.model(tiny_train(), GraphTokens(layout=layout, names=names)) for names in ("alone", "prompt"))  # type: ignore[arg-type]
    encoded = data.prompts.get([text, ""])
    first, second = (each.condition([graph, graph], [text, ""], encoded, data.names).states for each in (alone, own))
    spans = named_spans(graph, open_tokenizers(world.backbone).mentions(text, graph.objects))
    assert set(spans) == {0, 1}
    for number, span in spans.items():
        rows = encoded.states[0, span.start : span.stop].float().mean(0)
        assert torch.allclose(second[0, number] - first[0, number], rows - data.names.vectors[graph.objects[number]], atol=1e-4)
        assert not torch.allclose(first[0, number], second[0, number], atol=1e-2)
    assert torch.equal(first[1], second[1])
