"""`sgpipe report localisation`: one table and one figure of whatever was measured."""

import json
from pathlib import Path

import polars as pl
import pytest
from typer.testing import CliRunner

from sgpipe.cli import app
from sgpipe.errors import SgpipeError
from tests.localisation.test_block_figure import LOCALISATION, PLACEMENT
from tests.localisation.test_table import bounded


def effects() -> pl.DataFrame:
    """Image rows take over what text rows give up, block by block, on every triple."""
    cells = [(kind, triple, block) for kind in ("image", "text") for triple in "abcd" for block in range(5)]
    return pl.DataFrame({
        "contrast": ["denoising"] * len(cells), "rows": [kind for kind, _, _ in cells], "block": [block for _, _, block in cells],
        "triple_id": [triple for _, triple, _ in cells], "squared": [4.0] * len(cells),
        "projected": [float(block if kind == "image" else 4 - block) for kind, _, block in cells],
    })  # fmt: skip


def test_what_was_measured_is_joined(tmp_path: Path, repo_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(repo_root)
    metrics, folder, figure = tmp_path / "metrics", tmp_path / "outputs/localisation", tmp_path / "blocks.png"
    metrics.mkdir()
    folder.mkdir(parents=True)
    command = ["report", "localisation", *(f"--{n}={p}" for n, p in (("metrics", metrics), ("outputs", tmp_path / "outputs")))]
    with pytest.raises(SgpipeError, match=r"none of probes\.json, word_probes\.json, localisation\.json, placement\.json is there"):
        CliRunner().invoke(app, [*command, f"--figure={figure}"], catch_exceptions=False)
    groups = [
        {"group": group, "word": "object", **bounded("selectivity", value)}
        for group, value in (("early", 0.3), ("middle", 0.6), ("late", 0.5))
    ]
    entered = {str(block): bounded("direction_accuracy", value) for block, value in ((0, 0.9), (7, 0.6), (13, 0.8))}
    given = {
        "word_probes": {"groups": groups, "rows": []},
        "localisation": LOCALISATION,
        "placement": {"lora": PLACEMENT["lora"], "enter": entered},
    }
    for name, found in given.items():
        (metrics / f"{name}.json").write_text(json.dumps(found))
    effects().write_parquet(folder / "effects.parquet")
    pl.DataFrame({
        "method": ["ablation"] * 8, "kind": ["text"] * 8, "triple_id": list("aabbccdd"), "block": [0, 1] * 4,
        "positive": [1.0] * 8, "negative": [0.0] * 8,
    }).write_parquet(folder / "samples.parquet")  # fmt: skip
    shown = CliRunner().invoke(app, [*command, f"--figure={figure}"], catch_exceptions=False).output
    assert "| middle blocks 7–12 | 0.60 [0.55, 0.65] |" in shown and "| 0.80 [0.75, 0.85] | 0.60 [0.55, 0.65] |" in shown
    said = "That middle blocks carry too little is contradicted by object-token probe, LoRA there; supported by tokens enter there"
    assert said in shown
    found = json.loads((metrics / "localisation_table.json").read_text())
    assert found["verdict"] == {"object_probe": "contradicted", "placement": "contradicted", "entry": "supported"}
    (ranks,) = found["correlations"]
    assert (ranks["methods"], ranks["rho"], ranks["rho_high"]) == (["patching_text", "patching_image"], -1, -1)
    assert figure.stat().st_size > 10_000
