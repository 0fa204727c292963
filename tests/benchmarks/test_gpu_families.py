"""The GPU benchmark's steps on narrow transformers on the CPU, and what it says where there is no GPU."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu_families
from benchmarks._families import RELEASES
from benchmarks.gpu_families import Job, main, measure_sampling, measure_training


def test_tiny_takes_the_same_steps(repo_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "found.json"
    main(pairs=1, tiny=True, plan=False, params=repo_root / "params.yaml", out=out)
    told = json.loads(out.read_text())
    assert told["device"] == "CPU" and set(told["families"]) == set(RELEASES)
    said = capsys.readouterr().out
    for name, found in told["families"].items():
        assert found["maps"]["ratio"] > 0 and found["planned_bytes"] is None
        steps = found["training"]
        assert set(steps) == {"eager", "eager, checkpointing"} and all(step["seconds"] > 0 for step in steps.values())
        assert all("peak_bytes" not in step and step["loss"] > 0 for step in steps.values())
        assert found["sampling"]["forwards_per_step"] == (1 if RELEASES[name].guidance else 2)
        assert f"{name}: measured" in said


@pytest.mark.slow
def test_the_plan_is_the_doctors_for_as_many_blocks(repo_root: Path) -> None:
    """Weights of the few blocks, LoRA with its moments, and activations: fewer with checkpointing."""
    job = Job.of(RELEASES["FLUX.1-schnell"], repo_root / "params.yaml", tiny=True)
    plan = gpu_families.planned(job)
    transformer: Any = job.open(torch.device("meta")).denoiser.transformer
    weights = sum(weight.numel() for weight in transformer.parameters())
    lora = 3 * 4 * 16 * (128 + 128)
    assert plan["eager"] > plan["eager, checkpointing"] > weights * 2 + lora * 16


def test_a_step_without_gradients_is_refused(repo_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And so is guidance that changes nothing."""
    job = Job.of(RELEASES["SD3.5-medium"], repo_root / "params.yaml", tiny=True)
    random = job.open(torch.device("cpu"))
    with monkeypatch.context() as patched:
        patched.setattr(type(job.release.family), "guided", lambda self, conditional, unconditional, scale: conditional)
        with pytest.raises(ValueError, match="guidance 4 are not finite, or those of guidance 1"):
            measure_sampling(random, job.sections["backbone"].resolution)
    monkeypatch.setattr(
        type(job.release.family), "velocity", lambda self, model, latents, t, text, scale: latents * text.states.mean()
    )
    with pytest.raises(ValueError, match="24 of 24 weights without a gradient"):
        measure_training(job, torch.device("cpu"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, so it would be measured")
def test_without_a_gpu_nothing_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "found.json"
    main(out=out)
    assert "GPU: not run, none was found" in capsys.readouterr().err and not out.exists()
