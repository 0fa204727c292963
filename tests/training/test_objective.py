"""The batch's loss: g⁺ and g⁻ at the same noise, what maps and the probe add, and controls that are what they say."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from sgpipe.arms.kinds.base import InjectionMode
from sgpipe.arms.model import ArmModel
from sgpipe.attention_maps.options import MapOptions
from sgpipe.backbones.base import TextCondition
from sgpipe.graph_encoder.config import GraphTokens
from sgpipe.graphs.scene_graph import SceneGraph
from sgpipe.training.config import Losses, Margin, Preference, Ranking, Weighted
from sgpipe.training.controls import measure, spoken
from sgpipe.training.examples import Data, Example, prompt_of
from sgpipe.training.objective import Noised, Objective, Probe, Spoken, sample_losses
from tests.training.world import World, tiny_train

MAPS = MapOptions({"middle": "0..1"})


def perturbed(model: ArmModel) -> ArmModel:
    """The model with LoRA weights moved off the start, where the adapter does nothing."""
    draw = torch.Generator().manual_seed(1)
    for weight in model.adapter.parameters()["lora"].values():
        weight.data.add_(0.1 * torch.randn(weight.shape, generator=draw))
    return model


@pytest.fixture(scope="module")
def model(world: World) -> ArmModel:
    """A model whose LoRA does something."""
    return perturbed(world.model(tiny_train()))


@pytest.fixture(scope="module")
def data(world: World) -> Data:
    return world.data()


def batch(data: Data, count: int = 3) -> Noised:
    examples = data.train[:count]
    latents = data.latents.latents([each.triple_id for each in examples])
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(2))
    return Noised(examples, latents, noise, torch.linspace(0.75, 0.95, count))


def both(examples: Sequence[Example], mode: InjectionMode) -> tuple[Spoken, Spoken]:
    """g⁺ and g⁻ as a batch of the training has them."""
    positive, negative = (spoken(name, examples, ["neutral"] * len(examples), mode) for name in ("graph", "negative"))
    return positive, negative


def test_both_graphs_in_one_forward_are_each_alone(model: ArmModel, data: Data) -> None:
    noised = batch(data)
    positive, negative = both(noised.examples, "prepend")
    objective = Objective(model, data, Losses(flow=0.5, margin=Margin(2.0, 10.0), preference=Preference(3.0, 4.0)))
    loss, parts = objective(noised, positive, negative)
    target = noised.noise - noised.latents
    alone = [sample_losses(objective.velocity(noised, each), target).detach() for each in (positive, negative)]
    torch.testing.assert_close(parts["flow"], alone[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(parts["negative"], alone[1], atol=1e-5, rtol=1e-5)
    wanted = 0.5 * alone[0] + 2 * (10 - alone[1] + alone[0]) + 3 * torch.log1p(torch.exp(2 * (alone[0] - alone[1])))
    torch.testing.assert_close(loss.detach(), wanted.mean(), atol=1e-4, rtol=1e-5)


def test_the_reference_of_graphs_in_words_is_the_base_under_each_prompt(world: World, data: Data) -> None:
    """Graph DPO with ℓ_ref of the base without adapter; g⁺ and g⁻ are different prompts, so that it does not cancel."""
    model = perturbed(world.model(tiny_train(), name="text_only"))
    noised = batch(data)
    positive, negative = both(noised.examples, "text")
    losses = Losses(flow=0, margin=Margin(0.0), preference=Preference(1.0, 40.0))
    loss, parts = Objective(model, data, losses)(noised, positive, negative)
    target = noised.noise - noised.latents
    base = Objective(world.base(), data, losses)
    won, lost = (sample_losses(base.velocity(noised, each), target) for each in (positive, negative))
    assert (won - lost).abs().max() > 1e-3
    advantage = (parts["flow"] - won) - (parts["negative"] - lost)
    torch.testing.assert_close(parts["preference"], torch.log1p(torch.exp(20 * advantage)), atol=1e-4, rtol=1e-5)
    slopes = torch.autograd.grad(loss, list(model.adapter.parameters()["lora"].values()))
    assert all(slope.isfinite().all() for slope in slopes) and any(slope.any() for slope in slopes)


def test_an_untrained_adapter_has_no_advantage_over_its_reference(world: World, data: Data) -> None:
    model = world.model(tiny_train(), name="text_only")
    noised = batch(data)
    losses = Losses(margin=Margin(0.0), preference=Preference(1.0, 50.0))
    _, parts = Objective(model, data, losses)(noised, *both(noised.examples, "text"))
    torch.testing.assert_close(parts["preference"], torch.full((3,), 2.0).log(), atol=1e-3, rtol=0)


def test_the_reference_of_graphs_in_tokens_costs_no_forward(model: ArmModel, data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    """The base reads no graph, and the prompt is the same: its two losses cancel."""
    forwards: list[int] = []
    velocity = ArmModel.velocity

    def counted(self: ArmModel, latents: Tensor, t: Tensor, condition: TextCondition) -> Tensor:
        forwards.append(len(latents))
        return velocity(self, latents, t, condition)

    monkeypatch.setattr(ArmModel, "velocity", counted)
    noised = batch(data)
    losses = Losses(margin=Margin(0.0), preference=Preference(1.0, 4.0))
    _, parts = Objective(model, data, losses)(noised, *both(noised.examples, "prepend"))
    assert forwards == [6]
    advantage = parts["flow"] - parts["negative"]
    torch.testing.assert_close(parts["preference"], torch.log1p(torch.exp(2 * advantage)))


def test_without_contrast_the_negative_costs_nothing(model: ArmModel, data: Data) -> None:
    noised = batch(data)
    positive, negative = both(noised.examples, "prepend")
    objective = Objective(model, data, Losses(margin=Margin(0.0)))
    loss, parts = objective(noised, positive, negative)
    assert set(parts) == {"flow"} and loss.item() == pytest.approx(parts["flow"].mean().item())


def test_maps_weigh_the_loss_and_rank_the_graphs(model: ArmModel, data: Data) -> None:
    """A probe that sums maps up gets them for g⁺ and g⁻; its gradient reaches LoRA and tokens."""
    seen: list[Tensor] = []

    def logits(maps: Tensor, t: Tensor) -> Tensor:
        seen.append(maps)
        assert t.shape == maps.shape[:1]
        return maps.sum(dim=(2, 3))[:, :1] * torch.arange(1.0, 25.0)

    losses = Losses(flow=0, margin=Margin(0.0), ranking=Ranking(1.0, 50.0, "middle", "x"), saliency=Weighted(0.0))
    objective = Objective(model, data, losses, maps=MAPS, probe=Probe(logits, kinds=("saliency", "cross")))
    noised = batch(data)
    loss, parts = objective(noised, *both(noised.examples, "prepend"))
    assert seen[0].shape[:2] == (6, 6) and set(parts) == {"flow", "negative", "preferred", "ranking"}
    weights = model.trainable()
    reached = {
        name.partition(".")[0]
        for name, slope in zip(weights, torch.autograd.grad(loss, weights.values(), allow_unused=True), strict=True)
        if slope is not None and slope.any()
    }
    assert reached == {"lora", "tokens"}

    weighted = Objective(model, data, Losses(margin=Margin(0.0), saliency=Weighted(1.0)), maps=MAPS)
    _, parts = weighted(noised, *both(noised.examples, "prepend"))
    assert (parts["saliency"] > 0).all() and not torch.allclose(parts["saliency"], parts["flow"])


def test_switched_off_the_model_is_the_base_to_the_bit(world: World, model: ArmModel, data: Data) -> None:
    noised = batch(data)
    said = spoken("base", noised.examples, "neutral", "prepend")
    plain = world.base()
    base = Objective(plain, data, Losses()).velocity(noised, said)
    objective = Objective(model, data, Losses())
    on = objective.velocity(noised, said)
    with model.off():
        assert torch.equal(objective.velocity(noised, said), base)
    assert not torch.equal(on, base)
    assert torch.equal(objective.velocity(noised, said), on)
    assert all(weight.requires_grad for weight in model.adapter.parameters()["lora"].values())


def test_an_empty_graph_under_a_closed_gate_is_the_prompt(world: World, data: Data) -> None:
    """Residual injection starts at nothing: every graph gives the base's velocity, to the bit."""
    model = world.model(tiny_train(), GraphTokens(injection="residual"))
    noised = batch(data)
    objective = Objective(model, data, Losses())
    others = data.train[5:8]
    kinds = [spoken(name, noised.examples, "neutral", "residual", others) for name in ("graph", "empty", "shuffled")]
    assert kinds[2].graphs[0].objects == noised.examples[0].graph.objects
    assert kinds[2].graphs[0].triples == others[0].graph.triples
    one, *more = (objective.velocity(noised, each) for each in kinds)
    assert all(torch.equal(one, other) for other in more)


def test_controls_do_not_depend_on_the_batch_and_put_graphs_where_they_say(model: ArmModel, data: Data) -> None:
    objective = Objective(model, data, Losses())
    found = [measure(objective, data.held_out, tiny_train(batch_size=size)) for size in (3, 8)]
    assert found[0].losses == pytest.approx(found[1].losses, abs=1e-5)
    known = measure(objective, data.held_out, tiny_train(), base=0.5)
    assert known.losses["base"] == 0.5 and known.losses["graph"] == pytest.approx(found[0].losses["graph"], abs=1e-5)
    first = data.held_out[0]
    graph = first.graph
    given = {
        name: spoken(name, [first], "neutral", "prepend", [data.held_out[4]]).graphs[0]
        for name in ("graph", "swapped", "shuffled", "negative", "empty")
    }
    assert given == {
        "graph": graph, "swapped": graph.reversed(), "shuffled": data.held_out[4].graph, "negative": first.negative,
        "empty": SceneGraph(),
    }  # fmt: skip


def test_in_words_the_prompt_carries_what_the_graph_would(data: Data) -> None:
    first, other = data.held_out[0], data.held_out[4]
    texts = {name: spoken(name, [first], "neutral", "text", [other]) for name in ("graph", "empty", "shuffled", "negative")}
    assert all(each.graphs == [SceneGraph()] for each in texts.values())
    assert texts["graph"].texts == [prompt_of(first, "relational")]
    assert texts["empty"].texts == [prompt_of(first, "neutral")]
    assert texts["shuffled"].texts == [prompt_of(other, "relational")]
    assert texts["negative"].texts == [prompt_of(first, "conflicting")] != texts["graph"].texts
