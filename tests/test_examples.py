"""The notebook runs from its first cell to its last on the embedded checkpoint."""

import json
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch

from sgpipe.arms.adapter import build, save_adapter
from sgpipe.arms.config import Arms
from sgpipe.arms.kinds.base import Sections
from sgpipe.arms.resolve import resolve
from sgpipe.backbones.denoiser import Denoiser
from sgpipe.params.show import load_all


def write_adapter(folder: Path, params: Path, options: dict[str, Any] | None = None, facts: dict[str, Any] | None = None) -> None:
    """Of the experiment's own parameters, or of an arm with `options`, with random updates in the place of a training."""
    sections = load_all(params)
    arms = sections["arms"] if options is None else Arms.decode("arms", {"graph": options}, "tests")
    arm = resolve("graph", arms["graph"], Sections.of(sections))
    model = build(Denoiser.load(sections["backbone"], torch.device("cpu")), sections["backbone"], arm, 0.7)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.trainable().values():
            weight.add_(0.05 * torch.randn(weight.shape, generator=draw))
    save_adapter(folder, model, arm, sections["backbone"], facts or {})


def test_every_cell_of_the_notebook_runs(repo_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(repo_root)
    matplotlib.use("Agg")
    write_adapter(tmp_path / "adapter", repo_root / "params.yaml")
    monkeypatch.setenv("SGPIPE_ADAPTER", str(tmp_path / "adapter"))
    notebook = json.loads((repo_root / "examples" / "graphs_in_diffusers.ipynb").read_text(encoding="utf-8"))
    names: dict[str, Any] = {"__name__": "__main__"}
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for number, cell in enumerate(cells):
        assert not cell["outputs"] and cell["execution_count"] is None, "outputs are not committed"
        exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)
    assert len(cells) == 5 and len(names["told"]) == 4 and len(names["weaker"]) == 3
    images = [np.asarray(image) for image in (*names["told"], names["weaker"][0])]
    assert all(image.shape == (64, 64, 3) for image in images)
    assert len({image.tobytes() for image in images}) == len(images)
    assert set(names["found"]) == {f"{kind}_{group}" for kind in ("saliency", "cross") for group in ("early", "middle", "late")}
