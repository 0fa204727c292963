"""The probe for training losses: calibrated at every t, differentiable in the maps, frozen, and the same after loading."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from sgpipe.errors import ModelError
from sgpipe.probes.noise_aware import NoiseAwareProbe, calibrate, calibration, load_noise_aware, log_temperature, save_noise_aware
from sgpipe.probes.probe import Probe, ProbeConfig, load_probe, save_weights

CONFIG = ProbeConfig("cnn", "concat", ("above", "behind", "on"), (3, 4, 4), timed=True)


def make(times: tuple[float, ...] = (0.5, 0.75, 1.0)) -> NoiseAwareProbe:
    torch.manual_seed(0)
    probe = Probe(CONFIG)
    probe.set_scale(torch.arange(6.0), torch.arange(1.0, 7.0))
    return NoiseAwareProbe(probe, torch.tensor(times), torch.linspace(0.1, 1.0, len(times)))


def test_logits_are_differentiable_in_the_maps_alone() -> None:
    probe = make()
    maps = torch.randn(4, 6, 4, 4, requires_grad=True)
    probe.logits(maps, torch.full((4,), 0.6))[:, 1].sum().backward()
    assert maps.grad is not None and (maps.grad.abs().sum(dim=(1, 2, 3)) > 0).all()
    assert all(not value.requires_grad for value in probe.parameters())


def test_it_is_told_t() -> None:
    probe, maps = make(), torch.randn(1, 6, 4, 4)
    cold = [probe.logits(maps, torch.tensor([t])) * probe.temperatures(torch.tensor([t])) for t in (0.5, 0.9)]
    assert not torch.allclose(*cold, atol=1e-4)


def test_temperatures_are_linear_in_the_logarithm_between_times() -> None:
    probe = make()
    t = torch.tensor([0.5, 0.625, 0.75, 1.0, 0.2, 1.3])
    expected = torch.tensor([0.1, 0.325, 0.55, 1.0, 0.1, 1.0]).exp()
    assert torch.allclose(probe.temperatures(t), expected)
    one = make((0.75,))
    assert torch.allclose(one.temperatures(t), torch.full((6,), 0.1).exp())


def test_a_batch_norm_of_a_frozen_probe_never_moves() -> None:
    probe = make()
    nn.ModuleList([probe]).train()
    before = {name: value.clone() for name, value in probe.state_dict().items()}
    probe.logits(torch.randn(8, 6, 4, 4), torch.rand(8))
    assert all(torch.equal(before[name], value) for name, value in probe.state_dict().items())


def test_the_temperature_is_the_factor_of_overconfidence() -> None:
    draw = np.random.default_rng(0)
    logits = draw.normal(size=(4000, 3))
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = (draw.random((4000, 1)) > shares.cumsum(axis=1)).sum(axis=1)
    assert log_temperature(logits, labels) == pytest.approx(0, abs=0.1)
    assert np.exp(log_temperature(5 * logits, labels)) == pytest.approx(5 * np.exp(log_temperature(logits, labels)), rel=1e-3)
    t = np.where(np.arange(4000) % 2, 0.5, 1.0).astype(np.float32)
    sharp = logits * np.where(t == 0.5, 2.0, 6.0)[:, None]
    times, log_t = calibrate(sharp, labels, t)
    assert times.tolist() == [0.5, 1.0] and log_t.exp().tolist() == pytest.approx([2, 6], rel=0.12)
    found = calibration(sharp, labels, t, np.where(t == 0.5, *log_t.exp().tolist()))
    assert found["ece_after"] < 0.04 < 0.1 < found["ece_before"]
    assert found["by_time"]["1"]["temperature"] == pytest.approx(6, rel=0.12)


def test_a_saved_probe_is_the_same_after_loading(tmp_path: Path) -> None:
    probe = make()
    save_noise_aware(probe, {"group": "late"}, tmp_path / "a")
    loaded = load_noise_aware(tmp_path / "a")
    maps, t = torch.randn(5, 6, 4, 4), torch.rand(5)
    assert torch.equal(probe.logits(maps, t), loaded.logits(maps, t))
    assert loaded.classes == CONFIG.classes and loaded.kinds == ("saliency", "cross")
    half = loaded.logits(maps.bfloat16(), t)
    assert half.dtype == torch.float32


def test_maps_and_times_of_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"takes \[B, 6, 4, 4\]: the maps of saliency and cross, 3 concepts each"):
        make().logits(torch.zeros(2, 3, 4, 4), torch.zeros(2))
    with pytest.raises(ValueError, match=r"t is \[1\]; valid: \[2\]"):
        make().logits(torch.zeros(2, 6, 4, 4), torch.zeros(1))
    with pytest.raises(ValueError, match="told t"):
        NoiseAwareProbe(Probe(ProbeConfig("mlp", "cross", ("on", "in"), (3, 4, 4))), torch.ones(1), torch.ones(1))


def test_damaged_and_foreign_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no probe.*dvc repro probe"):
        load_probe(tmp_path)
    save_noise_aware(make(), {}, tmp_path / "a")
    weights = load_file(tmp_path / "a" / "probe.safetensors")
    save_file({**weights, "probe.mean": weights["probe.mean"] * float("nan")}, tmp_path / "a" / "probe.safetensors")
    with pytest.raises(ModelError, match=r"probe\.mean holds values that are not finite"):
        load_noise_aware(tmp_path / "a")
    (tmp_path / "a" / "probe.safetensors").write_bytes(b"cut")
    with pytest.raises(ModelError, match=r"probe\.safetensors"):
        load_noise_aware(tmp_path / "a")
    other = ProbeConfig("mlp", "cross", ("on", "in"), (3, 4, 4))
    save_weights(Probe(other).state_dict(), CONFIG, {}, tmp_path / "b")
    with pytest.raises(ModelError, match="describes other weights"):
        load_probe(tmp_path / "b")
    (tmp_path / "b" / "probe.json").write_text("{}")
    with pytest.raises(ModelError, match="not a probe's description"):
        load_probe(tmp_path / "b")
