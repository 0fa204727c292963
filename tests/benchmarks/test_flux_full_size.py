"""The full-size benchmark on a small transformer: real steps, figures that hold, and what it says it did not run."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks.flux_full_size import LORA, PARAMETERS, PEAKS, VARIANTS, main, peak_rate, table
from sgpipe.runs.processes import pick_device


def test_small_takes_the_same_steps(repo_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Backward to LoRA and to the tokens costs about as much as forward, less weight gradients of what is frozen."""
    out = tmp_path / "found.json"
    main(config="small", steps=1, compiled=False, params=repo_root / "params.yaml", out=out)
    found = json.loads(out.read_text())
    flops, timed = found["flops"], found["timed"]
    assert flops["graph_tokens"] == 2 and flops["lora_modules"] == 24
    assert flops["lora_parameters"] == 6 * 4 * 16 * (32 + 32)
    assert 1.9 < flops["step_flops"] / flops["forward_flops"] < 2.5
    assert set(timed) == {"eager", "eager, checkpointing"} and all(row["seconds"] > 0 for row in timed.values())
    said = capsys.readouterr().out
    assert "timed on" in said and "not run" in said
    assert ("peak_bytes" in timed["eager"]) == (pick_device("auto", 0).type == "cuda")


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, so it would be timed")
def test_without_a_gpu_full_size_says_what_was_not_run(repo_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "found.json"
    main(planned=False, params=repo_root / "params.yaml", out=out, check=True)
    found = json.loads(out.read_text())
    assert found["timed"] is None and found["device"] is None
    assert (found["flops"]["parameters"], found["flops"]["lora_parameters"]) == (PARAMETERS, LORA)
    assert "timing: not run, no GPU was found" in capsys.readouterr().out


def test_utilisation_is_stated_for_known_gpus_only() -> None:
    assert peak_rate("NVIDIA A100-SXM4-80GB") == 312e12 and peak_rate("NVIDIA H100 80GB HBM3") == 989.4e12
    assert peak_rate("NVIDIA RTX A6000") == dict(PEAKS)["RTX A6000"] and peak_rate("Some GPU") is None
    timed = {"eager": {"seconds": 0.5, "peak_bytes": 2**30}}
    rows = [
        [list(column.cells) for column in table({"step_flops": 78e12}, {}, timed, rate, True).columns] for rate in (312e12, None)
    ]
    assert [column[0] for column in rows[0]] == ["eager", "0.500", "0.20", "1.0", "–", "50.0%"]
    assert rows[1][5] == ["–"] * len(VARIANTS) and rows[0][1][1:] == ["not run"] * 3
