"""What is measured along a training is the exported model, and measuring leaves no trace in the training."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from msgspec.structs import replace
from PIL import Image
from torch import Tensor

from sgpipe.arms.adapter import load_adapter
from sgpipe.arms.model import ArmModel
from sgpipe.backbones.denoiser import Denoiser
from sgpipe.backbones.loading import load_module
from sgpipe.training.config import Losses, Optimiser, Times, Validation
from sgpipe.training.controls import measure
from sgpipe.training.examples import Data
from sgpipe.training.fit import draw_samples, fit, prepare
from sgpipe.training.loop import Training
from sgpipe.training.objective import Objective
from tests.tiny import SIDE
from tests.training.world import ALONE, LORA, World, tiny_train

TRAIN = tiny_train(
    epochs=1, keep_epochs=(), batch_size=8, optimiser=Optimiser(learning_rate=0.3),
    validation=Validation(every=1, images=2, steps=2),
)  # fmt: skip


@pytest.fixture(scope="module")
def data(world: World) -> Data:
    return world.data()


@pytest.fixture(scope="module")
def trained(world: World, data: Data, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Training]:
    """A training with dropout, and a sheet of images drawn at its last validation."""
    folder = tmp_path_factory.mktemp("dropout")
    vae = load_module(world.backbone, "vae")

    def validated(model: ArmModel, step: int) -> None:
        draw_samples(model, data, TRAIN, vae, SIDE, folder / f"{step}.png")

    arm = world.arm(TRAIN, lora=replace(LORA, dropout=0.5))
    return folder, fit(arm, world.denoiser(), world.backbone, data, folder, ALONE, {}, validated=validated)


@pytest.fixture(scope="module")
def loaded(world: World, trained: tuple[Path, Training]) -> ArmModel:
    """The adapter as a user has it, which is never in training mode."""
    return load_adapter(trained[0] / "adapter", world.denoiser(), world.backbone)


def test_control_losses_under_dropout_are_those_of_the_adapter(
    data: Data, trained: tuple[Path, Training], loaded: ArmModel
) -> None:
    again = measure(Objective(loaded, data, Losses()), data.held_out, TRAIN)
    assert trained[1].history.controls[-1]["losses"] == pytest.approx(again.losses, abs=1e-6)


def test_sample_images_under_dropout_are_those_of_the_adapter(
    world: World, data: Data, trained: tuple[Path, Training], loaded: ArmModel, tmp_path: Path
) -> None:
    draw_samples(loaded, data, TRAIN, load_module(world.backbone, "vae"), SIDE, tmp_path / "again.png")
    one, other = (np.asarray(Image.open(path)).astype(int) for path in (tmp_path / "again.png", trained[0] / "2.png"))
    assert np.abs(one - other).max() <= 1


def test_a_shifted_base_is_trained_and_validated_at_the_times_at_which_it_is_sampled(
    world: World, data: Data, tmp_path: Path
) -> None:
    """Of a scheduler that shifts by resolution, as FLUX.1-dev's: the times of training are those that sampling asks for."""
    recipe = replace(TRAIN, times=Times(density="sampler", low=0.3, high=0.95, steps=5))
    shifted = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0, base_shift=0.7)
    model = world.model(recipe)
    model.denoiser = dataclasses.replace(model.denoiser, scheduler=dict(shifted.config))
    asked: set[float] = set()
    met: set[float] = set()

    def recorded(times: set[float]) -> Any:
        def velocity(latents: Tensor, t: Tensor, *rest: object) -> Tensor:
            times.update(t.tolist())
            return torch.zeros_like(latents)

        return velocity

    said = data.prompts.get([data.train[0].prompts["neutral"]])
    model.denoiser.sample(said, [0], SIDE, 5, velocity=recorded(asked))
    training = Training(Objective(model, data, recipe.losses), recipe, tmp_path, ALONE)
    for step in range(20):
        met.update(training.batch(step)[0].t.tolist())
    within = {t for t in asked if 0.3 <= t <= 0.95}
    assert met == within and len(within) == 4 and not within & {k / 5 for k in range(6)}
    model.velocity = recorded(met)  # type: ignore[method-assign]
    met.clear()
    measure(Objective(model, data, Losses()), data.held_out, recipe)
    assert met == within


def test_measuring_takes_no_random_number_and_restores_training_mode(world: World, data: Data) -> None:
    dropping = replace(LORA, dropout=0.5)
    model = world.model(TRAIN, lora=dropping)
    prepare(model, world.arm(TRAIN, lora=dropping))
    parts = (model.denoiser.transformer, *model.adapter.modules())
    assert len(parts) == 2
    before = [module.training for part in parts for module in part.modules()]
    state = torch.get_rng_state()
    measure(Objective(model, data, Losses()), data.held_out, replace(TRAIN, batch_size=3))
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for part in parts for module in part.modules()] == before and any(before)
    with pytest.raises(ZeroDivisionError), model.evaluating():
        assert not any(module.training for part in parts for module in part.modules())
        raise ZeroDivisionError
    assert [module.training for part in parts for module in part.modules()] == before


def test_a_loaded_adapter_is_never_in_training_mode(loaded: ArmModel) -> None:
    parts = (loaded.denoiser.transformer, *loaded.adapter.modules())
    assert len(parts) == 2
    assert not [module for part in parts for module in part.modules() if module.training]


def test_the_base_is_sampled_for_the_first_sheet_alone(
    world: World, data: Data, loaded: ArmModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the second sheet is the same to the byte as one that samples it again."""
    vae, forwards = load_module(world.backbone, "vae"), [0]
    known: dict[str, Any] = {}
    plain = Denoiser.velocity

    def counting(*given: Any, **named: Any) -> Tensor:
        forwards[0] += 1
        return plain(*given, **named)

    monkeypatch.setattr(Denoiser, "velocity", counting)
    taken = []
    for name, kept in (("first", known), ("second", known), ("alone", None)):
        forwards[0] = 0
        draw_samples(loaded, data, TRAIN, vae, SIDE, tmp_path / f"{name}.png", kept)
        taken.append(forwards[0])
    steps = TRAIN.validation.steps
    assert taken == [4 * steps, 3 * steps, 4 * steps]
    assert len({(tmp_path / f"{name}.png").read_bytes() for name in ("first", "second", "alone")}) == 1
