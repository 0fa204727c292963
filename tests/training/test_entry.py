"""Graph tokens that enter at a later block: trained with a shared prefix, saved, loaded, sampled; at block 0 all is as before."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from msgspec.structs import replace

from sgpipe.arms.generation import GraphGenerator
from sgpipe.arms.resolve import Arm
from sgpipe.errors import ParamsError
from sgpipe.graph_encoder.config import GraphTokens
from sgpipe.graphs.scene_graph import SceneGraph
from sgpipe.params.blocks import Blocks
from sgpipe.relations.predicates import neutral_prompt
from sgpipe.training import controls, loop
from sgpipe.training.config import Losses, Weighted
from sgpipe.training.objective import Noised, Objective, Spoken
from tests.tiny import SIDE
from tests.training.test_objective import batch, both, perturbed
from tests.training.world import LORA, World, tiny_train, train

LATE = GraphTokens(enter=1)
"""The first block with LoRA is block 1, too."""


def losses(
    world: World, monkeypatch: pytest.MonkeyPatch, shared: bool, blocks: str
) -> tuple[dict[str, torch.Tensor], list[torch.Tensor]]:
    """Loss parts of a batch, and the gradients of all that is trained."""
    model = perturbed(world.model(tiny_train(), LATE, lora=replace(LORA, blocks=Blocks.parse(blocks))))
    data = world.data()
    objective, noised = Objective(model, data, Losses()), batch(data)
    if not shared:
        velocity = objective.velocity

        def apart(noised: Noised, spoken: Spoken) -> torch.Tensor:
            parts = (slice(n, n + 3) for n in range(0, len(spoken.texts), 3))
            return torch.cat([velocity(noised, Spoken(spoken.texts[part], spoken.graphs[part])) for part in parts])

        monkeypatch.setattr(objective, "velocity", apart)
    loss, parts = objective(noised, *both(noised.examples, "prepend"))
    return parts, list(torch.autograd.grad(loss, list(model.trainable().values()), allow_unused=True))


@pytest.mark.parametrize("blocks", ["1..2", "0..1"])
def test_a_shared_prefix_gives_the_losses_and_gradients_of_two_forwards(
    world: World, blocks: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With LoRA from block 1 on, and with LoRA in the prefix, too."""
    (one, slopes), (other, wanted) = (losses(world, monkeypatch, shared, blocks) for shared in (True, False))
    for name in one:
        torch.testing.assert_close(one[name], other[name], atol=1e-5, rtol=1e-5)
    assert any(slope is not None and slope.any() for slope in slopes)
    for slope, each in zip(slopes, wanted, strict=True):
        assert (slope is None) == (each is None)
        if slope is not None:
            torch.testing.assert_close(slope, each, atol=1e-5, rtol=1e-4)


def test_the_prefix_of_a_step_runs_once_and_keeps_nothing(world: World) -> None:
    """Half as many samples as the blocks behind it, and no gradient."""
    model, data = world.model(tiny_train(), LATE), world.data()
    seen: list[tuple[int, bool]] = []
    blocks = model.denoiser.family.by_blocks(model.denoiser.transformer).blocks
    for block in blocks:
        block.register_forward_hook(lambda block, args, made: seen.append((len(made[1]), made[1].requires_grad)))
    noised = batch(data)
    Objective(model, data, Losses())(noised, *both(noised.examples, "prepend"))
    assert seen == [(3, False)] + [(6, True)] * (len(blocks) - 1)


@pytest.mark.parametrize("base", [None, 0.5])
def test_control_losses_share_the_prefix_to_rounding(world: World, base: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = perturbed(world.model(tiny_train(), LATE)), world.data()
    objective = Objective(model, data, Losses())
    runs: list[int] = []
    blocks = model.denoiser.family.by_blocks(model.denoiser.transformer).blocks
    blocks[0].register_forward_hook(lambda block, args, made: runs.append(len(made[0])))
    shared = controls.measure(objective, data.held_out, tiny_train(batch_size=4), base)
    assert runs == [4, 4]
    monkeypatch.setattr(controls, "_sharing", lambda objective: False)
    apart = controls.measure(objective, data.held_out, tiny_train(batch_size=4), base)
    assert list(shared.losses) == list(apart.losses)
    assert shared.losses == pytest.approx(apart.losses, abs=1e-5) and shared.preferred == apart.preferred
    assert len({round(value, 5) for value in shared.losses.values()}) >= 4


@pytest.mark.slow
def test_compiled_blocks_train_with_a_shared_prefix_as_eager_ones(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first step to rounding; AdamW then divides roundings by each other, so that later ones drift."""
    monkeypatch.setattr(loop, "LOGGED", 1)
    recipe = tiny_train(epochs=1, keep_epochs=())
    torch.compiler.reset()
    eager, fused = (train(world, tmp_path / str(on), replace(recipe, compile=on), LATE) for on in (False, True))
    blocks = fused.model.denoiser.family.by_blocks(fused.model.denoiser.transformer).blocks
    assert all(block._compiled_call_impl is not None for block in blocks)
    one, other = ([row["loss"] for row in each.history.steps] for each in (eager, fused))
    assert len(one) == eager.steps == 5 and len(set(one)) == 5
    assert other[0] == pytest.approx(one[0], abs=1e-5)
    assert other == pytest.approx(one, abs=2e-3)


def test_an_adapter_of_late_tokens_comes_back(world: World, tmp_path: Path) -> None:
    """adapter.json says where they enter, and the images show it."""
    train(world, tmp_path, tiny_train(epochs=1, keep_epochs=()), LATE)
    about = json.loads((tmp_path / "adapter" / "adapter.json").read_text())
    assert about["settings"]["graph_tokens"]["enter"] == 1
    graph, prompt = SceneGraph.of("dog", "left of", "cat"), neutral_prompt("dog", "cat")

    def sample() -> Any:
        return GraphGenerator.load(world.backbone.model, tmp_path / "adapter").latents([prompt], [graph], [5], 2, SIDE)

    late = sample()
    assert torch.equal(late, sample())
    about["settings"]["graph_tokens"].pop("enter")
    (tmp_path / "adapter" / "adapter.json").write_text(json.dumps(about))
    assert not torch.equal(sample(), late)


def test_tokens_that_enter_at_block_0_are_said_as_before_the_knob(world: World) -> None:
    plain = world.arm(tiny_train(), GraphTokens(enter=0)).plain()
    assert "enter" not in plain["settings"]["graph_tokens"]
    assert Arm.read(plain, "tests").settings.graph_tokens == GraphTokens()  # type: ignore[attr-defined]
    late = world.arm(tiny_train(), LATE).plain()
    assert late["settings"]["graph_tokens"].pop("enter") == 1 and late == plain


def test_an_entry_that_cannot_be_is_refused(world: World) -> None:
    with pytest.raises(ParamsError, match=r"graph_tokens\.enter: got 4; valid: 0\.\.3, the blocks of this model"):
        world.arm(tiny_train(), GraphTokens(enter=4))
    with pytest.raises(ParamsError, match="losses that read saliency maps need tokens in all blocks"):
        world.arm(tiny_train(losses=Losses(saliency=Weighted(1.0))), LATE)
    with pytest.raises(ValueError, match="enter: got 1; residual adds to words before the first block"):
        GraphTokens(injection="residual", enter=1)
