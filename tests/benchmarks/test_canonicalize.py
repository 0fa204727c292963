"""The benchmark at a two-thousandth of the size: the generated data is sound and as dirty as it says."""

from pathlib import Path

from benchmarks.canonicalize import generate, measure


def test_a_small_run(tmp_path: Path) -> None:
    generate(tmp_path / "data", 54)
    found = measure(tmp_path / "data", tmp_path / "out", workers=1)
    metrics = found["metrics"]
    assert metrics["images"]["read"] == 54
    assert metrics["release"] == "v1.4"
    assert metrics["objects"]["rejected"] == 0
    assert 0.4 < metrics["coverage"]["kept"] < 0.9
    assert found["peak_bytes"] > 0 and found["seconds"] > 0
