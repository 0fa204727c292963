"""The training of an arm: killed = not killed, what is kept, what stops it, and what is refused."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from msgspec.structs import replace

from sgpipe.arms.generation import GraphGenerator
from sgpipe.errors import DataError, ParamsError, StateError
from sgpipe.graph_encoder.config import GraphTokens
from sgpipe.graphs.scene_graph import SceneGraph
from sgpipe.optim.engine import Engine
from sgpipe.optim.log import LOG
from sgpipe.optim.schedules import warmup_then
from sgpipe.params.blocks import Blocks
from sgpipe.relations.predicates import neutral_prompt
from sgpipe.runs.checkpoints import checkpoints
from sgpipe.training.config import Conditions, Losses, Margin, Optimiser, Preference
from sgpipe.training.fit import fit
from sgpipe.training.loop import Training
from tests.tiny import SIDE
from tests.training.world import ALONE, LORA, World, files, tiny_train, train

SLOW = pytest.mark.slow


class Killed(Exception):
    """Stands for a kill: nothing after it runs."""


def dying_at(step: int) -> Callable[[Engine], None]:
    """An `Engine.update` that is killed at a step."""
    update = Engine.update

    def dying(self: Engine) -> None:
        if self.step == step:
            raise Killed
        update(self)

    return dying


@pytest.mark.parametrize("step", [pytest.param(2, marks=SLOW), 5, pytest.param(7, marks=SLOW)])
def test_a_training_that_was_interrupted_ends_with_the_same_bytes(
    world: World, whole: tuple[Path, Training], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """At a step before, between and after checkpoints (every third step) and the kept epoch (step 5)."""
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Engine, "update", dying_at(step))
        train(world, tmp_path, tiny_train(ema_decay=0.9))
    again = train(world, tmp_path, tiny_train(ema_decay=0.9))
    folder, fitted = whole
    for name in ("adapter", "epoch-1"):
        assert files(tmp_path / name) == files(folder / name)
    assert again.history == fitted.history
    lines, wanted = ([json.loads(line) for line in (at / LOG).open()] for at in (tmp_path, folder))
    timed = ("samples_per_second", "peak_memory_bytes")
    assert [{k: v for k, v in line.items() if k not in timed} for line in lines] == [
        {k: v for k, v in line.items() if k not in timed} for line in wanted
    ]


@pytest.mark.slow
def test_compiled_blocks_in_bfloat16_resume_to_the_same_bytes(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And checkpointing changes memory, not weights."""
    recipe = tiny_train(compile=True, precision="bfloat16", attention="math", keep_epochs=())
    train(world, tmp_path / "whole", recipe)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Engine, "update", dying_at(7))
        train(world, tmp_path / "killed", recipe)
    torch.compiler.reset()
    train(world, tmp_path / "killed", recipe)
    assert files(tmp_path / "killed" / "adapter") == files(tmp_path / "whole" / "adapter")


@pytest.mark.slow
def test_gradient_checkpointing_trains_the_same(world: World, tmp_path: Path) -> None:
    recipe = tiny_train(epochs=1, keep_epochs=())
    plain, saving = (
        train(world, tmp_path / str(on), replace(recipe, gradient_checkpointing=on)).model.trainable() for on in (False, True)
    )
    for name, weight in plain.items():
        torch.testing.assert_close(saving[name], weight, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_accumulation_and_schedules_step_as_they_say(world: World, tmp_path: Path) -> None:
    recipe = tiny_train(
        batch_size=2, gradient_accumulation_steps=2, optimiser=Optimiser(schedule="cosine", warmup=2, token_lr_multiplier=3.0)
    )
    assert train(world, tmp_path, recipe).steps == 10
    rates = [json.loads(line)["learning_rate"] for line in (tmp_path / LOG).open()]
    assert rates == pytest.approx([recipe.optimiser.learning_rate * warmup_then("cosine", 9, 10, 2)], rel=1e-5)


def test_an_adapter_states_what_it_was_trained_on(world: World, whole: tuple[Path, Training]) -> None:
    """Names and predicates of the train triples alone, sorted; of val triples and negatives nothing."""
    stated = json.loads((whole[0] / "adapter" / "adapter.json").read_text())["trained_on"]
    graphs = [example.graph for example in world.data().train]
    assert stated == {
        "names": sorted({name for graph in graphs for name in graph.objects}),
        "predicates": sorted({graph.triples[0][1] for graph in graphs}),
        "triples": 1,
    }


def test_a_training_leaves_its_adapters_and_two_checkpoints(whole: tuple[Path, Training]) -> None:
    folder, fitted = whole
    assert fitted.steps == 10
    assert [path.name for path in checkpoints(folder)] == ["step-00000009.pt", "step-00000010.pt"]
    assert files(folder / "adapter") != files(folder / "epoch-1")
    about = json.loads((folder / "adapter" / "adapter.json").read_text())
    assert about["settings"]["lora"]["blocks"] == "[1..2]" and about["config"] == "abc" and about["arm"] == "graph"
    assert "commit" not in about
    assert about["lora_parameters"] == 2 * 4 * 2 * (32 * 4)
    assert about["token_parameters"] == 24 * 2 * 24


def test_the_first_control_losses_say_that_lora_starts_at_nothing(whole: tuple[Path, Training]) -> None:
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
        next(iter(self.param_groups[0]["params"])).data.mul_(float("inf") if len(list(tmp_path.glob("step*"))) else 1)

    monkeypatch.setattr(torch.optim.AdamW, "step", exploding)
    with pytest.raises(StateError, match=r"step 4: the loss is not finite \(loss nan.*flow nan.*step-00000003\.pt"):
        train(world, tmp_path, tiny_train())


@pytest.mark.parametrize("name", ["text_only", *(pytest.param(name, marks=SLOW) for name in ("projector_only", "random_blocks"))])
def test_every_arm_trains_and_comes_back(world: World, tmp_path: Path, name: str) -> None:
    recipe = tiny_train(epochs=1, keep_epochs=(), losses=Losses(margin=Margin(weight=0.5), preference=Preference(0.1)))
    train(world, tmp_path, recipe, name=name)
    about = json.loads((tmp_path / "adapter" / "adapter.json").read_text())
    assert (about["lora_parameters"] == 0) == (name == "projector_only")
    assert (about["token_parameters"] == 0) == (name == "text_only")
    generator = GraphGenerator.load(world.backbone.model, tmp_path / "adapter")
    graphs = [None, SceneGraph(), SceneGraph.of("dog", "above", "cat")]
    images = generator.sample(["a photo of dog and cat"] * 3, graphs, [1, 1, 1], steps=2, size=SIDE)
    base = GraphGenerator.load(world.backbone.model, None, backbone=world.backbone)
    plain = base.sample(["a photo of dog and cat"], [None], [1], steps=2, size=SIDE)
    assert np.array_equal(images[0], plain[0])
    assert np.array_equal(images[1], images[0]) == (name == "projector_only")
    assert np.array_equal(images[2], images[1]) == (name == "text_only")


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
        ({**kept, condition: "no such text"}, f"triple {last.triple_id}: the encoding of its {condition} prompt"),
    ):
        lacking = dataclasses.replace(data, train=(*data.train[:-1], dataclasses.replace(last, prompts=prompts)))
        with pytest.raises(DataError, match=says):
            fit(world.arm(recipe, name=name), world.denoiser(), world.backbone, lacking, tmp_path, ALONE, {})
