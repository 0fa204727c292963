"""The study's numbers: identities on images made by hand, and the command from prompts to figures on a tiny model."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from sgpipe.cli import app
from sgpipe.errors import DataError, ParamsError
from sgpipe.evaluation.statistics import Bootstrap
from sgpipe.evaluation.study import (
    OBJECTS,
    changed_claims,
    complexity,
    count_claim,
    direction,
    distances,
    identified,
    image_claims,
    rerun_and_others,
    study_items,
)
from sgpipe.graphs.scene_graph import SceneGraph
from sgpipe.report.study import requests, split_known
from tests.tiny import NAMES, SIDE, write_pipeline

BOOTSTRAP = Bootstrap(200, 0.95, 0)


def flat(values: list[list[float]]) -> np.ndarray:
    """Images `[P, S, 4, 4, 3]` of one grey each."""
    return np.broadcast_to(np.array(values, np.uint8)[..., None, None, None], (*np.shape(values), 4, 4, 3)).copy()


def test_twenty_prompts_a_category_each_a_graph_of_known_classes() -> None:
    items = study_items()
    counts = {category: sum(item.category == category for item in items) for category in dict.fromkeys(i.category for i in items)}
    assert counts == dict.fromkeys(("spatial", "natural objects", "contact and support", "gaze and direction", OBJECTS), 20)
    assert len({item.prompt for item in items}) == 100
    for item in items:
        assert all(name.split()[-1] in item.prompt for name in item.graph.objects)
    assert [len(item.graph.objects) for item in items[-4:]] == [1, 2, 3, 4]
    assert items[-3].prompt == "a photo of bus and bike on a plain background"
    assert items[0].graph == SceneGraph.of("red cube", "above", "blue cube")


def test_distances_are_root_mean_squares_as_shares() -> None:
    images = flat([[0, 51], [255, 102]])
    d = distances(images)
    assert d[0, 0, 0, 1] == pytest.approx(0.2) and d[0, 0, 1, 0] == pytest.approx(1) and d[1, 1, 1, 1] == 0
    rerun, others = rerun_and_others(d)
    np.testing.assert_allclose(rerun, [[0.2, 0.2], [0.6, 0.6]])
    np.testing.assert_allclose(others, [[0.4, 0.8], [0.8, 0.4]])


def test_prompts_that_differ_are_identified_and_those_that_do_not_are_not() -> None:
    far = flat([[0, 4, 2], [100, 103, 101], [200, 203, 206]])
    found = image_claims(far, BOOTSTRAP)
    assert identified(distances(far)).all() and found["identified"]["value"] == 1 and found["identified"]["chance"] == 1 / 3
    assert found["rerun_ratio"]["high"] < 0.1 and found["identical"] == 0
    draw = np.random.default_rng(0).integers(0, 256, (30, 3, 4, 4, 3), dtype=np.uint8)
    noise = image_claims(draw, BOOTSTRAP)
    assert noise["rerun_ratio"]["low"] < 1 < noise["rerun_ratio"]["high"] and noise["identified"]["value"] < 0.2
    draw[1] = draw[0]
    assert image_claims(draw, BOOTSTRAP)["identical"] == 3


def test_more_objects_need_more_bytes() -> None:
    """Images of n random squares on white, against the same images in another order."""
    draw, counts = np.random.default_rng(0), [1, 2, 3, 4] * 5
    images = np.full((20, 2, 32, 32, 3), 255, np.uint8)
    for row, count in enumerate(counts):
        for seed in range(2):
            for n in range(count):
                images[row, seed, 8 * n : 8 * n + 8, :8] = draw.integers(0, 256, (8, 8, 3))
    found = count_claim(counts, images, BOOTSTRAP)
    assert found["value"] > 0.9 and found["low"] > 0.8 and (complexity(images) > 60).all()
    assert count_claim(draw.permutation(counts).tolist(), images, BOOTSTRAP)["low"] < 0.3


def test_a_changed_graph_is_measured_by_the_rerun_distance() -> None:
    kept = flat([[0, 51], [102, 153]])
    assert changed_claims(kept, kept, BOOTSTRAP)["changed_ratio"]["value"] == 0
    assert changed_claims(kept, kept + 51, BOOTSTRAP)["changed_ratio"]["value"] == pytest.approx(1)


def test_direction_leaves_out_what_is_not_decided() -> None:
    scores = np.array([[[1, 0], [0, 1]], [[np.nan, np.nan], [1, 1]]])
    found = direction({"base": scores}, BOOTSTRAP)["base"]
    assert (found["value"], found["count"], found["chance"]) == (0.5, 2, 0.5)


def test_names_outside_are_said_and_predicates_outside_are_not_asked() -> None:
    known, left = split_known(study_items(), NAMES)
    assert {name for item in known for name in item.graph.objects} <= set(NAMES)
    assert left["spatial"]["a vase near a window"] == ["vase", "window"]
    assert len(known) + sum(map(len, left.values())) == 100
    assert split_known(known, None) == (known, {})
    asked = requests(study_items(), {"predicates": ["left of"]})
    assert {item.graph.triples[0][1] for item, _, _ in asked["graph"]} == {"left of"}
    (item, prompt, graph), (_, same, changed) = asked["graph"][0], asked["changed graph"][0]
    assert graph == item.graph and changed == graph.reversed() and prompt == same and "left" not in prompt
    assert set(requests(known, None)) == {"base"}


def test_the_command_writes_numbers_figures_and_what_it_left_out(
    tmp_path: Path, repo_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"objects": [list(NAMES)]}), tmp_path / "known.parquet")
    model, out = write_pipeline(tmp_path / "tiny"), tmp_path / "study"
    monkeypatch.chdir(repo_root)
    given = ["study", "--model", str(model), "--known", str(tmp_path / "known.parquet"), "--size", str(SIDE), "--seeds", "2"]
    ran = CliRunner().invoke(app, [*given, "--out", str(out)], catch_exceptions=False)
    assert ran.exit_code == 0, ran.output
    found = json.loads((out / "study.json").read_text())
    said = json.loads(ran.stdout.splitlines()[-1])
    assert said["not_sampled"] + said["sampled"]["base"] == 100 and found["names_checked"] and found["judge"] == "exact"
    assert {"consistency", "complexity"} <= set(found["claims"])
    assert Image.open(out / "claims.png").size[0] > 800 and (out / "objects.png").is_file()
    with pytest.raises(DataError, match=r"--known no\.parquet: no such file"):
        CliRunner().invoke(app, ["study", "--known", "no.parquet"], catch_exceptions=False)
    pq.write_table(pa.table({"objects": [["xylophone"]]}), tmp_path / "known.parquet")
    with pytest.raises(ParamsError, match="no prompt has all its names among the 1 known"):
        CliRunner().invoke(app, given, catch_exceptions=False)
