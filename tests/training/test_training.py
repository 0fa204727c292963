"""The loop: killed = not killed, what is kept, what stops it, and adapters that come back."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline
from msgspec.structs import replace
from PIL import Image
from typer.testing import CliRunner

from sgpipe.arms.generation import GraphGenerator
from sgpipe.backbones.base import TextCondition
from sgpipe.backbones.denoiser import Denoiser
from sgpipe.backbones.families.flux import pack
from sgpipe.backbones.text import EncodedTexts
from sgpipe.cli import app
from sgpipe.errors import DataError, ModelError, ParamsError, StateError
from sgpipe.graph_encoder.config import GraphTokens
from sgpipe.graphs.scene_graph import SceneGraph
from sgpipe.params.blocks import Blocks
from sgpipe.relations.predicates import neutral_prompt
from sgpipe.runs.checkpoints import checkpoints
from sgpipe.training import state
from sgpipe.training.config import Conditions, Losses, Margin, Optimiser, Preference, Train
from sgpipe.training.fit import Fitted, fit
from sgpipe.training.loop import Training
from sgpipe.training.optimise import schedule
from tests.tiny import SIDE, write_pipeline
from tests.training.world import ALONE, LORA, TOKENS, World, tiny_train

SLOW = pytest.mark.slow


def train(
    world: World, folder: Path, recipe: Train, tokens: GraphTokens = TOKENS, name: str = "graph"
) -> Fitted:
    folder.mkdir(parents=True, exist_ok=True)
    return fit(
        world.arm(recipe, tokens, name), world.denoiser(), world.backbone, world.data(), folder, ALONE, {"config": "abc"}
    )  # fmt: skip


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


class Killed(Exception):
    """Stands for a kill: nothing after it runs."""


@pytest.fixture(scope="module")
def whole(world: World, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Fitted]:
    folder = tmp_path_factory.mktemp("whole")
    return folder, train(world, folder, tiny_train(ema_decay=0.9))


@pytest.mark.parametrize("step", [pytest.param(2, marks=SLOW), 5, pytest.param(7, marks=SLOW)])
def test_a_training_that_was_interrupted_ends_with_the_same_bytes(
    world: World, whole: tuple[Path, Fitted], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """At a step before, between and after checkpoints (every third step) and the kept epoch (step 5)."""
    update = Training._update

    def dying(self: Training) -> dict[str, float]:
        if self.step == step:
            raise Killed
        return update(self)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Training, "_update", dying)
        train(world, tmp_path, tiny_train(ema_decay=0.9))
    again = train(world, tmp_path, tiny_train(ema_decay=0.9))
    folder, fitted = whole
    for name in ("adapter", "epoch-1"):
        assert files(tmp_path / name) == files(folder / name)
    assert again.history == fitted.history


@pytest.mark.slow
def test_compiled_blocks_in_bfloat16_resume_to_the_same_bytes(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And checkpointing changes memory, not weights."""
    recipe = tiny_train(compile=True, precision="bfloat16", attention="math", keep_epochs=())
    train(world, tmp_path / "whole", recipe)
    update = Training._update

    def dying(self: Training) -> dict[str, float]:
        if self.step == 7:
            raise Killed
        return update(self)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Training, "_update", dying)
        train(world, tmp_path / "killed", recipe)
    torch.compiler.reset()
    train(world, tmp_path / "killed", recipe)
    assert files(tmp_path / "killed" / "adapter") == files(tmp_path / "whole" / "adapter")


@pytest.mark.slow
def test_gradient_checkpointing_trains_the_same(world: World, tmp_path: Path) -> None:
    recipe = tiny_train(epochs=1, keep_epochs=())
    plain, saving = (
        train(world, tmp_path / str(on), replace(recipe, gradient_checkpointing=on)).model.trainable()
        for on in (False, True)
    )
    for name, weight in plain.items():
        torch.testing.assert_close(saving[name], weight, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_accumulation_and_schedules_step_as_they_say(world: World, tmp_path: Path) -> None:
    recipe = tiny_train(
        batch_size=2,
        gradient_accumulation_steps=2,
        optimiser=Optimiser(schedule="cosine", warmup=2, token_lr_multiplier=3.0),
    )
    assert train(world, tmp_path, recipe).steps == 10
    factors = [schedule(step, 10, recipe.optimiser) for step in range(10)]
    assert factors[:3] == [0.5, 1.0, 1.0] and factors == pytest.approx(
        [*factors[:2], *sorted(factors[2:], reverse=True)]
    )
    assert schedule(6, 10, recipe.optimiser) == pytest.approx(0.5)
    assert schedule(6, 10, replace(recipe.optimiser, schedule="linear")) == pytest.approx(0.5)
    assert schedule(9, 10, replace(recipe.optimiser, schedule="constant")) == 1.0


def test_an_adapter_states_what_it_was_trained_on(world: World, whole: tuple[Path, Fitted]) -> None:
    """Names and predicates of the train triples alone, sorted; of val triples and negatives nothing."""
    stated = json.loads((whole[0] / "adapter" / "adapter.json").read_text())["trained_on"]
    graphs = [example.graph for example in world.data().train]
    assert stated == {
        "names": sorted({name for graph in graphs for name in graph.objects}),
        "predicates": sorted({graph.triples[0][1] for graph in graphs}),
        "triples": 1,
    }


def test_a_training_leaves_its_adapters_and_two_checkpoints(whole: tuple[Path, Fitted]) -> None:
    folder, fitted = whole
    assert fitted.steps == 10
    assert [path.name for path in checkpoints(folder)] == ["step-00000009.pt", "step-00000010.pt"]
    assert files(folder / "adapter") != files(folder / "epoch-1")
    about = json.loads((folder / "adapter" / "adapter.json").read_text())
    assert (
        about["settings"]["lora"]["blocks"] == "[1..2]"
        and about["config"] == "abc"
        and about["arm"] == "graph"
    )
    assert "commit" not in about
    assert about["lora_parameters"] == 2 * 4 * 2 * (32 * 4)
    assert about["token_parameters"] == 24 * 2 * 24


def test_the_first_control_losses_say_that_lora_starts_at_nothing(whole: tuple[Path, Fitted]) -> None:
    """Without tokens, an untrained adapter is the base; with them it is not, and graphs differ from each other."""
    first = whole[1].history.controls[0]["losses"]
    assert first["empty"] == pytest.approx(first["base"], abs=1e-7)
    assert len({round(first[name], 9) for name in ("base", "graph", "shuffled", "swapped")}) == 4
    last = whole[1].history.controls[-1]
    assert last["step"] == 10 and last["losses"]["base"] == first["base"]
    assert 0 <= last["preferred"] <= 1 and len(last["preferred_by_t"]) == 3


def test_a_loss_that_is_not_finite_stops_with_what_is_needed_to_go_on(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = torch.optim.AdamW.step

    def exploding(self: torch.optim.AdamW, closure: None = None) -> None:
        step(self)
        next(iter(self.param_groups[0]["params"])).data.mul_(
            float("inf") if len(list(tmp_path.glob("step*"))) else 1
        )

    monkeypatch.setattr(torch.optim.AdamW, "step", exploding)
    with pytest.raises(
        StateError, match=r"step 4: the loss is not finite \(loss nan.*flow nan.*step-00000003\.pt"
    ):
        train(world, tmp_path, tiny_train())


@pytest.mark.parametrize(
    "name", ["text_only", *(pytest.param(name, marks=SLOW) for name in ("projector_only", "random_blocks"))]
)
def test_every_arm_trains_and_comes_back(world: World, tmp_path: Path, name: str) -> None:
    recipe = tiny_train(
        epochs=1, keep_epochs=(), losses=Losses(margin=Margin(weight=0.5), preference=Preference(0.1))
    )
    train(world, tmp_path, recipe, name=name)
    about = json.loads((tmp_path / "adapter" / "adapter.json").read_text())
    assert (about["lora_parameters"] == 0) == (name == "projector_only")
    assert (about["token_parameters"] == 0) == (name == "text_only")
    generator = GraphGenerator.load(world.backbone.model, tmp_path / "adapter")
    graphs = [None, SceneGraph(), SceneGraph.of("dog", "above", "cat")]
    pictures = generator.draw(["a photo of dog and cat"] * 3, graphs, [1, 1, 1], steps=2, size=SIDE)
    base = GraphGenerator.load(world.backbone.model, None, backbone=world.backbone)
    plain = base.draw(["a photo of dog and cat"], [None], [1], steps=2, size=SIDE)
    assert np.array_equal(pictures[0], plain[0])
    assert np.array_equal(pictures[1], pictures[0]) == (name == "projector_only")
    assert np.array_equal(pictures[2], pictures[1]) == (name == "text_only")


def test_offloaded_and_encoded_ahead_the_pictures_are_the_same(
    world: World, whole: tuple[Path, Fitted], monkeypatch: pytest.MonkeyPatch
) -> None:
    """T5 is gone before the transformer is there; transformer and VAE are on the device by turns."""
    model, adapter = world.backbone.model, whole[0] / "adapter"
    prompts, graphs, seeds = (
        ["a photo of dog and cat"] * 2,
        [None, SceneGraph.of("dog", "above", "cat")],
        [1, 2],
    )
    plain = GraphGenerator.load(model, adapter).draw(prompts, graphs, seeds, steps=2, size=SIDE)
    generator = GraphGenerator.load(model, adapter, offload="model", ahead=(prompts, graphs))
    assert isinstance(generator.texts, EncodedTexts)
    moved: list[str] = []
    for name, module in (("transformer", generator.denoiser.transformer), ("vae", generator.vae)):
        monkeypatch.setattr(module, "to", lambda where, name=name: moved.append(f"{name} {where}"))
    pictures = generator.draw(prompts, graphs, seeds, steps=2, size=SIDE)
    assert np.abs(pictures.astype(int) - plain.astype(int)).max() <= 1
    assert moved == ["transformer cpu"] * 2 + ["vae cpu"] * 2 + ["transformer cpu"] * 2 + ["vae cpu"] * 2


def test_an_adapter_draws_what_it_drew_when_it_was_trained(world: World, whole: tuple[Path, Fitted]) -> None:
    """Through files, and through diffusers' own pipeline with `load_lora_weights`."""
    folder, fitted = whole
    graph, prompt = SceneGraph.of("dog", "left of", "cat"), neutral_prompt("dog", "cat")
    loaded = GraphGenerator.load(world.backbone.model, folder / "adapter")
    latents = loaded.latents([prompt], [graph], [5], 3, SIDE)
    assert loaded.adapter is not None
    averaged = state.load_last(folder)
    assert averaged is not None and averaged.average is not None
    weights = fitted.model.trainable()
    for name, value in averaged.average.items():
        weights[name].data.copy_(value)
    inside = GraphGenerator(fitted.model.denoiser, loaded.vae, loaded.texts, fitted.model)
    torch.testing.assert_close(inside.latents([prompt], [graph], [5], 3, SIDE), latents, atol=1e-5, rtol=0)

    pipeline = FluxPipeline.from_pretrained(world.backbone.model)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.load_lora_weights(folder / "adapter")
    encoded = loaded.texts.prompts([prompt])
    context = loaded.adapter.condition([graph], [prompt], encoded, loaded._table([graph]))

    def stop(
        pipeline: FluxPipeline, step: int, t: float, kept: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
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


def test_an_adapter_works_at_the_times_it_was_trained_at(world: World, whole: tuple[Path, Fitted]) -> None:
    generator = GraphGenerator.load(world.backbone.model, whole[0] / "adapter")
    assert generator.adapter is not None and generator.adapter.times == (0.7, 1.0)
    graph, prompt = SceneGraph.of("dog", "left of", "cat"), neutral_prompt("dog", "cat")
    encoded = generator.texts.prompts([prompt])
    context = generator.adapter.condition([graph], [prompt], encoded, generator._table([graph]))
    on: list[tuple[float, bool]] = []
    velocity = Denoiser.velocity

    def watched(
        self: Denoiser, latents: torch.Tensor, t: torch.Tensor, prompts: TextCondition, *rest: Any
    ) -> torch.Tensor:
        length = prompts.states.shape[1]
        assert length in (
            encoded.states.shape[1],
            context.states.shape[1],
        )
        on.append((round(t[0].item(), 3), length == context.states.shape[1]))
        return velocity(self, latents, t, prompts, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Denoiser, "velocity", watched)
        drawn = generator.latents([prompt], [graph], [5], 4, SIDE)
    assert on == [(1.0, True), (0.75, True), (0.5, False), (0.25, False)]
    generator.adapter.times = (0.0, 1.0)
    assert not torch.equal(generator.latents([prompt], [graph], [5], 4, SIDE), drawn)


def test_graphs_of_any_size_are_drawn_in_one_call_as_alone(world: World, whole: tuple[Path, Fitted]) -> None:
    generator = GraphGenerator.load(world.backbone.model, whole[0] / "adapter")
    graphs = [
        SceneGraph.of("dog", "above", "cat"),
        None,
        SceneGraph(("dog", "cat", "tree"), ((0, "on", 1), (1, "left of", 2))),
        SceneGraph(),
        SceneGraph.of("cat", "above", "dog"),
    ]
    prompts = ["a photo of dog and cat"] * len(graphs)
    together = generator.draw(prompts, graphs, range(5), steps=2, size=SIDE)
    for i, graph in enumerate(graphs):
        alone = generator.draw(prompts[:1], [graph], [i], steps=2, size=SIDE)[0]
        assert np.abs(together[i].astype(int) - alone).max() <= 1
    swapped = generator.draw(prompts[:1], [graphs[0].reversed()], [0], steps=2, size=SIDE)[0]
    assert not np.array_equal(swapped, together[0])


def test_a_foreign_base_is_refused(world: World, whole: tuple[Path, Fitted], tmp_path: Path) -> None:
    other = write_pipeline(tmp_path / "other", seed=1)
    with pytest.raises(ModelError, match="trained on another base"):
        GraphGenerator.load(other, whole[0] / "adapter")
    with pytest.raises(ModelError, match="no adapter is loaded"):
        GraphGenerator.load(other, None).draw(["a"], [SceneGraph()], [0], size=SIDE)
    with pytest.raises(ParamsError, match="1 prompts, 0 graphs"):
        GraphGenerator.load(other, None).draw(["a"], [], [0], size=SIDE)


@pytest.mark.parametrize(
    "tokens",
    [
        GraphTokens(injection="residual"),
        pytest.param(GraphTokens(layout="triple", relation="encoder", global_token=True), marks=SLOW),
        pytest.param(GraphTokens(layout="roles", relation="encoder"), marks=SLOW),
    ],
    ids=["residual", "triple", "roles"],
)
def test_other_tokens_train_and_come_back(world: World, tmp_path: Path, tokens: GraphTokens) -> None:
    fitted = train(world, tmp_path, tiny_train(epochs=1, keep_epochs=()), tokens)
    graph, prompt = SceneGraph.of("dog", "left of", "cat"), neutral_prompt("dog", "cat")
    loaded = GraphGenerator.load(world.backbone.model, tmp_path / "adapter")
    inside = GraphGenerator(fitted.model.denoiser, loaded.vae, loaded.texts, fitted.model)
    one, other = (each.latents([prompt], [graph], [5], 2, SIDE) for each in (inside, loaded))
    torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


def test_what_cannot_be_trained_is_refused(world: World, tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match="more than 2 epochs of 20 triples"):
        train(world, tmp_path, tiny_train(batch_size=64))
    with pytest.raises(ParamsError, match=r"keep_epochs: got 1, which ends before the first step.*has 20"):
        train(world, tmp_path, tiny_train(batch_size=32))
    with pytest.raises(ParamsError, match=r"keep_epochs: got 2 and 3, which both end at step 1 .*has 20"):
        train(world, tmp_path, tiny_train(batch_size=36, epochs=4, keep_epochs=(2, 3)))
    with pytest.raises(ParamsError, match=r"valid: 0\.\.2"):
        world.arm(tiny_train(), lora=replace(LORA, blocks=Blocks.parse("7..12")))
    recipe = tiny_train(conditions=Conditions(neutral=0.5, dropped=0.5))
    with pytest.raises(DataError, match="its dropped prompt is not cached; add dropped"):
        train(world, tmp_path, recipe)


@pytest.mark.parametrize("name, condition", [("graph", "wrong"), ("text_only", "conflicting")])
def test_prompts_that_are_missing_are_found_before_the_first_step(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, condition: str
) -> None:
    """However rarely they are sampled, and though one triple alone lacks one, or one text its encoding."""
    recipe, data = tiny_train(conditions=Conditions(neutral=0.999, wrong=0.001)), world.data()
    monkeypatch.setattr(Training, "run", lambda self: pytest.fail("trained"))
    last = data.train[-1]
    kept = {kind: text for kind, text in last.prompts.items() if kind != condition}
    for prompts, says in (
        (kept, f"triple {last.triple_id}: its {condition} prompt is not cached; add"),
        (
            {**kept, condition: "no such text"},
            f"triple {last.triple_id}: the encoding of its {condition} prompt",
        ),
    ):
        lacking = dataclasses.replace(
            data, train=(*data.train[:-1], dataclasses.replace(last, prompts=prompts))
        )
        with pytest.raises(DataError, match=says):
            fit(world.arm(recipe, name=name), world.denoiser(), world.backbone, lacking, tmp_path, ALONE, {})


def test_a_person_draws_a_graph(world: World, whole: tuple[Path, Fitted], tmp_path: Path) -> None:
    """`sgpipe generate`, with a graph in text and in a file: the pictures are those of `draw`."""
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
    wanted = generator.draw([neutral_prompt("dog", "cat")], [scene], [3], steps=2, size=SIDE)[0]
    assert np.array_equal(np.asarray(Image.open(tmp_path / "one.png")), wanted)
    assert sorted(path.name for path in tmp_path.glob("two*")) == ["two-3.png", "two-4.png"]
    assert "warning" not in done.stderr
    two = runner.invoke(app, several)
    assert "the graph has 2 triples, the adapter was trained on graphs of 1 at most" in two.stderr
    unheard = [*common, "--graph", "unicorn, left of, cat", "--out", str(tmp_path / "unheard.png")]
    warned = runner.invoke(app, unheard)
    assert warned.exit_code == 0 and (tmp_path / "unheard.png").is_file()
    assert (
        "warning: 'unicorn' is no name that the adapter was trained on; valid: ball, cat, dog"
        in warned.stderr
    )
    (tmp_path / "unheard.png").unlink()
    strict = runner.invoke(app, [*unheard, "--strict"])
    assert isinstance(strict.exception, ParamsError) and "--strict: 'unicorn' is no name" in str(
        strict.exception
    )
    assert not (tmp_path / "unheard.png").exists()
    said = ["--graph", "dog, left of, cat", "--prompt", "a photo of düg and cat on a sofa"]
    words = str(runner.invoke(app, [*common, *said, "--strict"]).exception)
    assert "'düg' has characters that the tokenizer of T5 does not know" in words
    assert "the word 'sofa' of the prompt is in no text" in words
    long = " and ".join(["dog", "cat"] * 8)
    cut = str(
        runner.invoke(app, [*common, "--graph", "dog, left of, cat", "--prompt", long, "--strict"]).exception
    )
    assert "1 texts are truncated, 1 of them in a name or relation: T5 takes 12 of 32 tokens" in cut
    absent = runner.invoke(app, [*common, "--graph", "dog, left of, cat", "--device", "tpu"])
    assert isinstance(absent.exception, ParamsError) and "--device: got tpu" in str(absent.exception)
    if not torch.cuda.is_available():
        absent = runner.invoke(app, [*common, "--graph", "dog, left of, cat", "--device", "cuda"])
        assert isinstance(absent.exception, ParamsError) and "--device: got cuda" in str(absent.exception)
    refused = runner.invoke(app, ["generate", "--graph", "dog, left of, cat"])
    assert isinstance(refused.exception, ParamsError) and "needs --adapter" in str(refused.exception)
