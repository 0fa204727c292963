"""FLUX.1-schnell's real configuration without weights: the preset's training step by our own code, its adapter in diffusers."""

from pathlib import Path

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline
from msgspec.structs import replace
from torch import nn

from benchmarks._random_flux import Dataless, Work, open_training, random_transformer, work_of
from sgpipe.arms.adapter import counts, save_adapter
from sgpipe.arms.kinds.base import Sections
from sgpipe.arms.kinds.text_lora import TextLora, TextLoraSettings
from sgpipe.arms.lora import LORA_FILE, LoraLayers, target_modules
from sgpipe.arms.model import ArmModel
from sgpipe.arms.resolve import resolve
from sgpipe.training.loop import Training

META = torch.device("meta")
TEXT = 512
MODULES = [f"transformer_blocks.{i}.attn.{part}" for i in range(7, 13) for part in ("to_k", "to_out.0", "to_q", "to_v")]


@pytest.fixture(scope="module")
def work(repo_root: Path) -> Work:
    """The preset's training with as many text tokens as FLUX takes."""
    found = work_of(repo_root / "params.yaml", "flux-schnell-vg", "full")
    sections = {**found.sections, "backbone": replace(found.sections["backbone"], max_sequence_length=TEXT)}
    return Work(sections, found.transformer, found.vae)


@pytest.fixture(scope="module")
def training(work: Work, tmp_path_factory: pytest.TempPathFactory) -> Training:
    return open_training(work, META, tmp_path_factory.mktemp("full"))


def test_parameters_and_modules_of_the_preset(training: Training) -> None:
    """11.891 B frozen; LoRA 2,359,296 on blocks 7–12; with the projector within the predecessor's 10–12 M."""
    model = training.objective.model
    numbers = counts(model)
    assert numbers["lora_parameters"] == 2_359_296 and numbers["lora_modules"] == len(MODULES) == 24
    assert 10e6 < numbers["lora_parameters"] + numbers["token_parameters"] < 12e6
    assert {name.partition(".lora_")[0] for name in model.adapter.parameters()["lora"]} == set(MODULES)
    named = dict(model.denoiser.transformer.named_parameters())
    assert sum(value.numel() for name, value in named.items() if name not in model.adapter.parameters()["lora"]) == 11_891_178_560
    assert {name for name, value in named.items() if value.requires_grad} == set(model.adapter.parameters()["lora"])
    assert all(value.device == META for value in named.values())
    assert {value.dtype for name, value in named.items() if name not in model.adapter.parameters()["lora"]} == {torch.bfloat16}


def test_shapes_through_one_training_step(training: Training) -> None:
    """256 px, batch 2, a relation's and the whole graph's token before 512 of text; forward, backward, AdamW."""
    model = training.objective.model
    assert isinstance(model, Dataless)
    transformer, seen = model.denoiser.transformer, {}
    handles = [
        transformer.get_submodule(name).register_forward_hook(
            lambda _, given, kept, made, name=name: seen.update({name: (kept, made)}), with_kwargs=True
        )
        for name in ("transformer_blocks.12", "single_transformer_blocks.37")
    ]
    noised, positive, negative = training.batch(0)
    assert noised.latents.shape == noised.noise.shape == (2, 16, 32, 32) and noised.t.shape == (2,)
    loss, parts = training.objective(noised, positive, negative)
    for handle in handles:
        handle.remove()
    (kept, (text, image)) = seen["transformer_blocks.12"]
    assert kept["hidden_states"].shape == image.shape == (2, 256, 3072)
    assert kept["encoder_hidden_states"].shape == text.shape == (2, 2 + TEXT, 3072)
    assert all(made.dtype == torch.bfloat16 for made in (text, image))
    assert seen["single_transformer_blocks.37"][1][1].shape == (2, 256, 3072)
    assert loss.shape == () and loss.dtype == torch.float32 and {*parts} == {"flow"} and parts["flow"].shape == (2,)

    loss.backward()
    assert all(
        weight.grad is not None and weight.grad.shape == weight.shape for weight in model.adapter.parameters()["lora"].values()
    )
    assert model.given.grad is not None and model.given.grad.shape == (2, 2 + TEXT, 4096)
    others = [value for name, value in transformer.named_parameters() if name not in model.adapter.parameters()["lora"]]
    assert all(value.grad is None for value in others)
    (optimiser,) = training.engine.optimisers
    optimiser.step()
    state = optimiser.state
    assert all(state[weight]["exp_avg"].shape == weight.shape for weight in model.adapter.parameters()["lora"].values())


def test_the_adapter_goes_into_flux_as_it_is(
    work: Work, training: Training, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """`FluxPipeline.load_lora_weights` on the real layout finds a place for every tensor of the file and has no other left."""
    backbone, own = work.sections["backbone"], training.objective.model
    lora = own.adapter.parameters()["lora"]
    weights = {name: nn.Parameter(torch.zeros(weight.shape)) for name, weight in lora.items()}
    arm = resolve("text_only", work.sections["arms"]["text_only"], Sections.of(work.sections))
    assert isinstance(arm.settings, TextLoraSettings)
    names = tuple(target_modules(own.denoiser.layout, arm.settings.lora))
    adapter = TextLora(LoraLayers(own.denoiser.transformer, arm.settings.lora, names, weights))
    save_adapter(tmp_path, ArmModel(own.denoiser, adapter), arm, backbone, {})
    assert (tmp_path / LORA_FILE).stat().st_size == pytest.approx(2_359_296 * 4, rel=1e-2)

    pipeline = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(), vae=None, text_encoder=None, tokenizer=None, text_encoder_2=None,
        tokenizer_2=None, transformer=random_transformer(work, META),
    )  # fmt: skip
    pipeline.load_lora_weights(tmp_path, adapter_name="default")
    loaded = {name: value for name, value in pipeline.transformer.named_parameters() if ".lora_" in name}
    assert {name: value.shape for name, value in loaded.items()} == {name: value.shape for name, value in weights.items()}
    assert not [each for each in caplog.messages if "led to" in each]
    scales = {pipeline.transformer.get_submodule(name).scaling["default"] for name in MODULES}
    assert scales == {1.0}
