"""Adapters that come back: the same images from files, in diffusers, on the command line; a foreign base is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline
from PIL import Image
from typer.testing import CliRunner

from sgpipe.arms.generation import GraphGenerator, add_names
from sgpipe.backbones.base import TextCondition
from sgpipe.backbones.denoiser import Denoiser
from sgpipe.backbones.families.flux import pack
from sgpipe.backbones.text import EncodedTexts
from sgpipe.cli import app
from sgpipe.errors import ModelError, ParamsError
from sgpipe.graphs.scene_graph import SceneGraph
from sgpipe.optim.weights import assign
from sgpipe.relations.predicates import neutral_prompt
from sgpipe.runs.checkpoints import checkpoints, read_checkpoint
from sgpipe.tracking.models import write_model
from sgpipe.training.loop import Training
from stages.train_lora import LOADER
from tests.tiny import SIDE, write_pipeline
from tests.training.world import World

SLOW = pytest.mark.slow


def test_offloaded_and_encoded_ahead_the_pictures_are_the_same(
    world: World, whole: tuple[Path, Training], monkeypatch: pytest.MonkeyPatch
) -> None:
    """T5 is gone before the transformer is there; transformer and VAE are on the device by turns."""
    model, adapter = world.backbone.model, whole[0] / "adapter"
    prompts, graphs, seeds = (["a photo of dog and cat"] * 2, [None, SceneGraph.of("dog", "above", "cat")], [1, 2])
    plain = GraphGenerator.load(model, adapter).sample(prompts, graphs, seeds, steps=2, size=SIDE)
    generator = GraphGenerator.load(model, adapter, offload="model", ahead=(prompts, graphs))
    assert isinstance(generator.texts, EncodedTexts)
    moved: list[str] = []
    for name, module in (("transformer", generator.denoiser.transformer), ("vae", generator.vae)):
        monkeypatch.setattr(module, "to", lambda where, name=name: moved.append(f"{name} {where}"))
    images = generator.sample(prompts, graphs, seeds, steps=2, size=SIDE)
    assert np.abs(images.astype(int) - plain.astype(int)).max() <= 1
    assert moved == ["transformer cpu"] * 2 + ["vae cpu"] * 2 + ["transformer cpu"] * 2 + ["vae cpu"] * 2


def test_an_adapter_draws_what_it_drew_when_it_was_trained(world: World, whole: tuple[Path, Training]) -> None:
    """Through files, and through diffusers' own pipeline with `load_lora_weights`."""
    folder, fitted = whole
    graph, prompt = SceneGraph.of("dog", "left of", "cat"), neutral_prompt("dog", "cat")
    loaded = GraphGenerator.load(world.backbone.model, folder / "adapter")
    latents = loaded.latents([prompt], [graph], [5], 3, SIDE)
    assert loaded.adapter is not None
    averaged = read_checkpoint(checkpoints(folder)[-1])
    assert averaged is not None
    assign(fitted.model.trainable(), averaged["average"])
    inside = GraphGenerator(fitted.model.denoiser, loaded.vae, loaded.texts, fitted.model)
    torch.testing.assert_close(inside.latents([prompt], [graph], [5], 3, SIDE), latents, atol=1e-5, rtol=0)

    pipeline = FluxPipeline.from_pretrained(world.backbone.model)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.load_lora_weights(folder / "adapter")
    encoded = loaded.texts.prompts([prompt])
    context = loaded.adapter.condition([graph], [prompt], encoded, add_names({}, loaded.texts.concepts, [graph]))

    def stop(pipeline: FluxPipeline, step: int, t: float, kept: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        pipeline._interrupt = step == 0  # the next time, 2/3, is below those it was trained at
        return kept

    asked = {"height": SIDE, "width": SIDE, "guidance_scale": 0.0, "output_type": "latent"}
    led = pipeline(
        prompt_embeds=context.states, pooled_prompt_embeds=context.pooled,
        sigmas=[1.0, 2 / 3, 1 / 3], generator=[torch.Generator().manual_seed(5)], callback_on_step_end=stop, **asked,
    ).images  # fmt: skip
    pipeline.unload_lora_weights()
    drawn = pipeline(
        prompt_embeds=encoded.states, pooled_prompt_embeds=encoded.pooled,
        sigmas=[2 / 3, 1 / 3], latents=led, **asked,
    ).images  # fmt: skip
    torch.testing.assert_close(drawn, pack(latents), atol=1e-5, rtol=0)


def test_an_adapter_works_at_the_times_it_was_trained_at(world: World, whole: tuple[Path, Training]) -> None:
    generator = GraphGenerator.load(world.backbone.model, whole[0] / "adapter")
    assert generator.adapter is not None and generator.adapter.times == (0.7, 1.0)
    graph, prompt = SceneGraph.of("dog", "left of", "cat"), neutral_prompt("dog", "cat")
    encoded = generator.texts.prompts([prompt])
    context = generator.adapter.condition([graph], [prompt], encoded, add_names({}, generator.texts.concepts, [graph]))
    on: list[tuple[float, bool]] = []
    velocity = Denoiser.velocity

    def watched(self: Denoiser, latents: torch.Tensor, t: torch.Tensor, prompts: TextCondition, *rest: Any) -> torch.Tensor:
        length = prompts.states.shape[1]
        assert length in (encoded.states.shape[1], context.states.shape[1])
        on.append((round(t[0].item(), 3), length == context.states.shape[1]))
        return velocity(self, latents, t, prompts, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Denoiser, "velocity", watched)
        drawn = generator.latents([prompt], [graph], [5], 4, SIDE)
    assert on == [(1.0, True), (0.75, True), (0.5, False), (0.25, False)]
    generator.adapter.times = (0.0, 1.0)
    assert not torch.equal(generator.latents([prompt], [graph], [5], 4, SIDE), drawn)


def test_graphs_of_any_size_are_drawn_in_one_call_as_alone(world: World, whole: tuple[Path, Training]) -> None:
    generator = GraphGenerator.load(world.backbone.model, whole[0] / "adapter")
    graphs = [
        SceneGraph.of("dog", "above", "cat"),
        None,
        SceneGraph(("dog", "cat", "tree"), ((0, "on", 1), (1, "left of", 2))),
        SceneGraph(),
        SceneGraph.of("cat", "above", "dog"),
    ]
    prompts = ["a photo of dog and cat"] * len(graphs)
    together = generator.sample(prompts, graphs, range(5), steps=2, size=SIDE)
    for i, graph in enumerate(graphs):
        alone = generator.sample(prompts[:1], [graph], [i], steps=2, size=SIDE)[0]
        assert np.abs(together[i].astype(int) - alone).max() <= 1
    swapped = generator.sample(prompts[:1], [graphs[0].reversed()], [0], steps=2, size=SIDE)[0]
    assert not np.array_equal(swapped, together[0])


def test_a_foreign_base_is_refused(world: World, whole: tuple[Path, Training], tmp_path: Path) -> None:
    other = write_pipeline(tmp_path / "other", seed=1)
    with pytest.raises(ModelError, match="trained on another base"):
        GraphGenerator.load(other, whole[0] / "adapter")
    with pytest.raises(ModelError, match="no adapter is loaded"):
        GraphGenerator.load(other, None).sample(["a"], [SceneGraph()], [0], size=SIDE)
    with pytest.raises(ParamsError, match="1 prompts, 0 graphs"):
        GraphGenerator.load(other, None).sample(["a"], [], [0], size=SIDE)


def test_a_person_draws_a_graph(world: World, whole: tuple[Path, Training], tmp_path: Path) -> None:
    """`sgpipe generate`, with a graph in text and in a file: the images are those of `draw`."""
    runner, adapter = CliRunner(), whole[0] / "adapter"
    common = ["generate", "--adapter", str(adapter), "--model", world.backbone.model, "--steps", "2", "--seed", "3"]  # fmt: skip
    graph = tmp_path / "graph.json"
    graph.write_text('{"objects": ["dog", "cat", "tree"], "triples": [[0, "left of", 1], [2, "near", 0]]}')
    done = runner.invoke(app, [*common, "--graph", "a dog, left of, cat", "--out", str(tmp_path / "one.png")])
    assert done.exit_code == 0, done.output
    several = [*common, "--graph", str(graph), "--count", "2", "--out", str(tmp_path / "two.png")]
    assert runner.invoke(app, several).exit_code == 0
    generator = GraphGenerator.load(world.backbone.model, adapter)
    scene = SceneGraph.of("dog", "left of", "cat")
    wanted = generator.sample([neutral_prompt("dog", "cat")], [scene], [3], steps=2, size=SIDE)[0]
    assert np.array_equal(np.asarray(Image.open(tmp_path / "one.png")), wanted)
    assert sorted(path.name for path in tmp_path.glob("two*")) == ["two-3.png", "two-4.png"]
    assert "warning" not in done.stderr
    two = runner.invoke(app, several)
    assert "the graph has 2 triples, the adapter was trained on graphs of 1 at most" in two.stderr
    assert "boxes" not in two.stderr
    graph.write_text('{"objects": ["dog", "cat"], "triples": [[0, "left of", 1]], "boxes": [[0, 0, 0.5, 1], null]}')
    placed = runner.invoke(app, [*common, "--graph", str(graph), "--out", str(tmp_path / "placed.png")])
    assert "warning: the boxes of the graph are not used" in placed.stderr and placed.exit_code == 0
    unheard = [*common, "--graph", "unicorn, left of, cat", "--out", str(tmp_path / "unheard.png")]
    warned = runner.invoke(app, unheard)
    assert warned.exit_code == 0 and (tmp_path / "unheard.png").is_file()
    assert "warning: 'unicorn' is no name that the adapter was trained on; valid: ball, cat, dog" in warned.stderr
    (tmp_path / "unheard.png").unlink()
    strict = runner.invoke(app, [*unheard, "--strict"])
    assert isinstance(strict.exception, ParamsError) and "--strict: 'unicorn' is no name" in str(strict.exception)
    assert not (tmp_path / "unheard.png").exists()
    said = ["--graph", "dog, left of, cat", "--prompt", "a photo of düg and cat on a sofa"]
    words = str(runner.invoke(app, [*common, *said, "--strict"]).exception)
    assert "'düg' has characters that the tokenizer of T5 does not know" in words
    assert "the word 'sofa' of the prompt is in no text" in words
    long = " and ".join(["dog", "cat"] * 8)
    cut = str(runner.invoke(app, [*common, "--graph", "dog, left of, cat", "--prompt", long, "--strict"]).exception)
    assert "1 texts are truncated, 1 of them in a name or relation: T5 takes 12 of 32 tokens" in cut
    absent = runner.invoke(app, [*common, "--graph", "dog, left of, cat", "--device", "tpu"])
    assert isinstance(absent.exception, ParamsError) and "--device: got tpu" in str(absent.exception)
    if not torch.cuda.is_available():
        absent = runner.invoke(app, [*common, "--graph", "dog, left of, cat", "--device", "cuda"])
        assert isinstance(absent.exception, ParamsError) and "--device: got cuda" in str(absent.exception)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("sgpipe.arms.generation.GraphGenerator.load", lambda *_, **__: pytest.fail("a pipeline is loaded"))
        odd = runner.invoke(app, [*common, "--graph", "dog, left of, cat", "--size", "33"])
        assert isinstance(odd.exception, ParamsError) and "--size: got 33" in str(odd.exception)
    refused = runner.invoke(app, ["generate", "--graph", "dog, left of, cat"])
    assert isinstance(refused.exception, ParamsError) and "needs --adapter" in str(refused.exception)


def test_mlflow_loads_an_adapter_that_samples_the_same_images(world: World, whole: tuple[Path, Training], tmp_path: Path) -> None:
    import pandas as pd
    from mlflow import pyfunc

    settings = {"model": world.backbone.model, "device": "cpu", "steps": 4, "size": SIDE}
    write_model(whole[0] / "adapter", LOADER, settings, tmp_path / "model")
    loaded = pyfunc.load_model(str(tmp_path / "model"), model_config={"steps": 2})
    prompt = "a photo of dog and cat"
    images = loaded.predict(pd.DataFrame({"prompt": [prompt] * 2, "graph": ["dog, left of, cat", ""], "seed": [1, 2]}))
    generator = GraphGenerator.load(world.backbone.model, whole[0] / "adapter")
    graphs = [SceneGraph.of("dog", "left of", "cat"), None]
    assert np.array_equal(images, generator.sample([prompt] * 2, graphs, [1, 2], steps=2, size=SIDE))
