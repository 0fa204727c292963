"""The benchmark at a two-thousandth of the size: the generated data is sound and as dirty as it says; one command writes it all."""

import json
from pathlib import Path

from benchmarks.canonicalize import BOUNDS, generate, main, measure, missed


def test_a_small_run(tmp_path: Path) -> None:
    generate(tmp_path / "data", 54)
    found = measure(tmp_path / "data", tmp_path / "out", workers=1)
    metrics = found["metrics"]
    assert metrics["images"]["read"] == 54
    assert metrics["release"] == "v1.4"
    assert metrics["objects"]["rejected"] == 0
    assert 0.4 < metrics["coverage"]["kept"] < 0.9
    assert found["peak_bytes"] > 0 and found["seconds"] > 0


def test_one_command_writes_the_figures_of_all_data_sets(tmp_path: Path) -> None:
    out = tmp_path / "cost.json"
    out.write_text('{"visual_genome": {"seconds": 9}, "other": 1}')
    main(scale=0.0005, workers=1, folder=None, against="", pairs=1, only=[], out=out, check=False)
    found = json.loads(out.read_text())
    assert found.pop("other") == 1 and found.keys() == BOUNDS.keys() == {"visual_genome", "coco_stuff", "gqa"}
    for figures in found.values():
        assert 0 < figures["seconds"] != 9 and figures["peak_bytes"] > 1 << 20 and figures["scale"] == 0.0005


def test_a_figure_above_its_bound_is_named() -> None:
    assert missed({"visual_genome": {"time_ratio": 0.6, "memory_ratio": 0.6}, "gqa": {"seconds": 61.0}}) == [
        "visual_genome.time_ratio is 0.6, the bound 0.55",
        "gqa.seconds is 61, the bound 60",
    ]
