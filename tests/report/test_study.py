"""The study's numbers: identities on images made by hand, and the command from prompts to figures on a tiny model."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from sgpipe.arms.generation import read_backbone
from sgpipe.arms.groups import GROUPS
from sgpipe.cli import app
from sgpipe.errors import DataError, ParamsError
from sgpipe.evaluation.statistics import Bootstrap, exact_share
from sgpipe.evaluation.study import (
    CHANGED,
    OBJECTS,
    changed_claims,
    complexity,
    count_claim,
    direction,
    distances,
    identified,
    image_claims,
    one_sample_claims,
    presence_claims,
    rerun_and_others,
    share,
    study_items,
    turned,
)
from sgpipe.graphs.scene_graph import SceneGraph
from sgpipe.report import study_run
from sgpipe.report.study import claims_figure, one_sample_requests, requests, sample, shown_objects, split_known
from sgpipe.report.study_run import plan_study, run_study
from sgpipe.runs.processes import Processes
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


def test_a_changed_graph_counts_where_its_image_shows_it() -> None:
    """Three pairs of images: turned, both as the graph, and one of which is not decided."""
    kept = np.array([[[1, 0], [1, 0], [1, 0]]] * 2, float)
    changed = np.array([[[0, 1], [1, 0], [np.nan, 1]]] * 2, float)
    found = turned(kept, changed, BOOTSTRAP)
    assert (found["value"], found["count"], found["chance"]) == (0.5, 4, 0.25)
    assert direction({"graph": changed, CHANGED: changed}, BOOTSTRAP)[CHANGED]["value"] == 0.5
    always = {name: direction({name: kept}, BOOTSTRAP)[name]["value"] for name in ("graph", CHANGED)}
    assert always == {"graph": 1.0, CHANGED: 0.0}


def test_objects_present_are_counted_by_how_many_are_named() -> None:
    counts = [1, 2, 3, 4] * 5
    found = presence_claims(counts, np.array([[n, n] for n in counts], float), BOOTSTRAP)
    assert found["number"]["value"] == pytest.approx(1) and {found[f"of {n}"]["value"] for n in (1, 2, 3, 4)} == {1.0}
    two = presence_claims(counts, np.array([[min(n, 2)] * 2 for n in counts], float), BOOTSTRAP)
    assert two["of 4"]["value"] == 0.5 and two["of 4"]["high"] < 1 and two["number"]["value"] > 0
    none = presence_claims(counts, np.zeros((20, 2)), BOOTSTRAP)
    assert np.isnan(none["number"]["value"]) and none["of 3"]["value"] == 0 and none["of 3"]["high"] > 0


@pytest.mark.parametrize("prompts, bounds", [(5, (0.319, 0.841)), (20, (0.554, 0.723))])
def test_a_share_that_all_prompts_have_is_no_surer_than_they_are_many(prompts: int, bounds: tuple[float, float]) -> None:
    """Of 3 named objects 2 in every image; more seeds of the same prompts make it no surer."""
    for seeds in (1, 6):
        found = presence_claims([3] * prompts, np.full((prompts, seeds), 2.0), BOOTSTRAP)["of 3"]
        assert found["value"] == pytest.approx(2 / 3) and (found["low"], found["high"]) == pytest.approx(bounds, abs=2e-3)
    for value in (0.0, 1.0):
        values = np.full((prompts, 3), value)
        assert share(values, BOOTSTRAP) == exact_share(values, BOOTSTRAP.confidence)
    mixed = np.array([[2.0, 1.0]] * prompts) / 3
    assert share(mixed, BOOTSTRAP) == BOOTSTRAP.mean(mixed)
    assert np.isnan(share(np.full((2, 2), np.nan), BOOTSTRAP).value)


def test_its_interval_holds_the_mean_as_often_as_it_says() -> None:
    """Prompts of which nine in ten show two of three objects, the others none: the interval of those that all agree."""
    draw = np.random.default_rng(0)
    values = np.where(draw.random((4000, 5)) < 0.9, 2 / 3, 0.0)
    held = [found.low <= 0.6 <= found.high for found in (share(row[:, None], BOOTSTRAP) for row in values if np.ptp(row) == 0)]
    assert len(held) > 2000 and np.mean(held) > 0.95


def test_what_no_resample_changes_has_no_interval(tmp_path: Path) -> None:
    """ρ of 1 on twenty prompts and a ratio of 0 where no image moved are no certainties."""
    counts = [1, 2, 3, 4] * 5
    found = presence_claims(counts, np.array([[n, n] for n in counts], float), BOOTSTRAP)["number"]
    kept = flat([[0, 51], [102, 153]])
    still = changed_claims(kept, kept, BOOTSTRAP)["changed_ratio"]
    for row, value in ((found, 1), (still, 0)):
        assert row["value"] == pytest.approx(value) and np.isnan([row["low"], row["high"]]).all()
    claims_figure({"number": found, "still": still}, tmp_path / "claims.png")
    assert Image.open(tmp_path / "claims.png").size[0] > 800


def test_one_sample_is_measured_on_other_graphs_by_group() -> None:
    """Images of the second group move by as much as two seeds of the base differ; those of the first do not."""
    without = flat([[0, 51], [0, 51], [0, 51], [0, 51]])
    given = without.copy()
    given[2:] += 51
    scores = {"one sample": np.array([[[1, 0]] * 2, [[0, 1]] * 2, [[np.nan] * 2] * 2, [[1, 0]] * 2], float)}
    found = one_sample_claims(without, given, ["same", "same", "other", "other"], scores, BOOTSTRAP)
    assert found["same"]["moved_ratio"]["value"] == 0 and found["other"]["moved_ratio"]["value"] == pytest.approx(1)
    assert found["same"]["one_sample"]["value"] == 0.5 and found["other"]["one_sample"]["value"] == 1.0


class Seeing:
    """A judge that sees a name where the image's first pixel is above its place in the alphabet."""

    def present(self, images: np.ndarray, names: list[list[str]]) -> list[frozenset[str]]:
        return [
            frozenset(name for place, name in enumerate(each) if place < image[0, 0, 0])
            for image, each in zip(images, names, strict=True)
        ]

    def scores(self, images: np.ndarray, statements: list) -> np.ndarray:
        return np.array([[1.0, 0.0] if image[0, 0, 0] % 2 else [0.0, 1.0] for image in images], np.float32)


class Grey:
    """Images of one grey each: the seed, and 8 more under a graph. Stops at call `stops`."""

    def __init__(self, stops: int | None = None) -> None:
        self.calls, self.stops = 0, stops

    def sample(self, prompts: tuple, graphs: tuple, seeds: tuple, *, steps: int, size: int) -> np.ndarray:
        if self.calls == self.stops:
            raise KeyboardInterrupt
        self.calls += 1
        values = [seed + 8 * (graph is not None) for graph, seed in zip(graphs, seeds, strict=True)]
        return np.broadcast_to(np.array(values, np.uint8)[:, None, None, None], (len(values), size, size, 3)).copy()


ALONE = Processes(0, 1, torch.device("cpu"))


def test_a_stopped_study_goes_on_with_the_images_it_has(tmp_path: Path) -> None:
    asked = requests(study_items(), {"predicates": ["left of", "above"]})
    whole = sample(Grey, asked, (3, 5), 1, 4, _made(tmp_path / "whole"), ALONE)
    first, state = Grey(stops=4), _made(tmp_path / "state")
    with pytest.raises(KeyboardInterrupt):
        sample(lambda: first, asked, (3, 5), 1, 4, state, ALONE)
    second = Grey()
    found = sample(lambda: second, asked, (3, 5), 1, 4, state, ALONE)
    total = -(-sum(len(rows) for rows in asked.values()) * 2 // 32)
    assert first.calls == 4 and second.calls == total - 4 > 0
    assert list(found.images) == ["base", "graph", CHANGED] and found.items == whole.items
    for given, images in found.images.items():
        assert np.array_equal(images, whole.images[given])
        assert images[:, :, 0, 0, 0].tolist() == [[3 + 8 * (given != "base"), 5 + 8 * (given != "base")]] * len(asked[given])
    seen = shown_objects(Seeing(), found)
    named = [len(item.graph.objects) for item in found.items["base"] if item.category == OBJECTS]
    assert seen.tolist() == [[min(n, 3), min(n, 5)] for n in named]


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_every_claim_of_an_adapter_and_of_one_sample_has_a_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = write_pipeline(tmp_path / "tiny")
    names = sorted({name for item in study_items() for name in item.graph.objects})
    about = {"names": names, "predicates": ["left of", "right of", "above", "below"]}
    trained = {"graph": about, "one": {**about, "predicates": ["left of"]}}
    monkeypatch.setattr(study_run, "trained_on", lambda adapter: trained[adapter.name])
    monkeypatch.setattr(study_run.GraphGenerator, "load", lambda *_, **__: Grey())
    plan = plan_study(read_backbone(model), Path("graph"), Path("one"), None, seeds=(1, 2), steps=1, size=8, guidance=None)
    state = _made(tmp_path / "state")
    out = tmp_path / "study"
    found = run_study(plan, ("see", Seeing(), about["predicates"]), BOOTSTRAP, state, ALONE, out)["claims"]
    assert set(found) == {"consistency", "compositions", "complexity", "objects_present", "changed", "direction", "one_sample"}
    assert set(found["changed"]) == {"changed_ratio", "turned"}
    assert {"same_relation", "other_relations"} <= set(found["one_sample"]) <= {*GROUPS}
    moved = found["one_sample"]["same_relation"]
    assert moved["moved_ratio"]["value"] == pytest.approx(8) and set(moved) == {"moved_ratio", "without_one_sample", "one_sample"}
    assert moved["one_sample"]["value"] == 0.5 and moved["one_sample"]["low"] < 0.5 < moved["one_sample"]["high"]
    asked = one_sample_requests([item for item, _, _ in plan.asked["base"]])["one sample"]
    assert json.loads((out / "study.json").read_text())["prompts"]["one sample"] == len(asked)
    assert {path.name for path in out.glob("*.png")} >= {"claims.png", "spatial.png", "objects.png"}


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
    ran = CliRunner().invoke(app, [*given, "--out", str(out), "--json"], catch_exceptions=False)
    assert ran.exit_code == 0, ran.output
    found = json.loads((out / "study.json").read_text())
    said = json.loads(ran.stdout.splitlines()[-1])
    assert said["not_sampled"] + said["sampled"]["base"] == 100 and found["names_checked"] and found["judge"] == "exact"
    assert {"consistency", "complexity"} <= set(found["claims"])
    assert Image.open(out / "claims.png").size[0] > 800 and (out / "objects.png").is_file()
    with pytest.raises(DataError, match=r"--known no\.parquet: no such file"):
        CliRunner().invoke(app, [*given, "--known", "no.parquet"], catch_exceptions=False)
    monkeypatch.setattr(study_run.GraphGenerator, "load", lambda *_, **__: pytest.fail("a pipeline is loaded"))
    with pytest.raises(ParamsError, match=r"--size: got 63; .* takes multiples of 4 pixels: give 60 or 64"):
        CliRunner().invoke(app, [*given, "--size", "63"], catch_exceptions=False)
    pq.write_table(pa.table({"objects": [["xylophone"]]}), tmp_path / "known.parquet")
    with pytest.raises(ParamsError, match="no prompt has all its names among the 1 known"):
        CliRunner().invoke(app, given, catch_exceptions=False)
