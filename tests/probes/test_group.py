"""A layer group from maps to figures, in a world where what maps show is chosen: the controls expose what they are for."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sgpipe.errors import DataError, ParamsError
from sgpipe.params.negatives import Negatives
from sgpipe.params.probes import NoiseAware
from sgpipe.probes.controls import NameSource, shuffled, word_trace
from sgpipe.probes.data import MapSet, MapSource, Pairs
from sgpipe.probes.fit import predict
from sgpipe.probes.group import BEST, NOISE_AWARE, write_group
from sgpipe.probes.measures import calibration_error
from sgpipe.probes.noise_aware import load_noise_aware
from sgpipe.probes.plots import plot_confusion, plot_noised, plot_probe, plot_selectivity, plot_table
from sgpipe.probes.store import load_probe
from sgpipe.probes.table import TABLE, confusions, merged, read_groups
from sgpipe.probes.work import Bench, Result, Unit, units
from sgpipe.report.tables import probes
from sgpipe.runs.atomic import write_json
from sgpipe.scene_graphs.negatives import read_confusions
from tests.probes.world import CLASSES, SMALL, embeddings, make_bench, triples, write_generated, write_noised

CPU = torch.device("cpu")


class Group:
    """Everything fitted in one world."""

    def __init__(self, folder: Path, follows: str) -> None:
        self.bench = make_bench(folder, follows)
        self.results: dict[Unit, Result] = {unit: self.bench.run(unit) for unit in units(SMALL)}
        self.folder = folder / "late"
        self.found: dict[str, Any] = write_group(self.bench, "late", self.results.__getitem__, self.folder)


@pytest.fixture(scope="module", params=["picture", "word"])
def group(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Group:
    return Group(tmp_path_factory.mktemp(request.param), request.param)


def test_controls_tell_a_picture_from_a_word(group: Group) -> None:
    """Both worlds give the same high accuracy on sampled pictures; only the trace on real pictures tells them apart."""
    cell, names = group.found["cells"]["mlp"]["concat"], group.found["names"]
    assert cell["accuracy"] > 0.85 and cell["interval"][0] <= cell["accuracy"] <= cell["interval"][1]
    assert cell["controls"]["shuffled"] < 0.6 and cell["controls"]["names"] == names["accuracy"] < 0.6
    follows_picture = "picture" in str(group.bench.generated.path)
    if follows_picture:
        assert cell["noised"]["wrong"] > 0.8 > 0.2 > cell["controls"]["word"] and cell["selectivity"] > 0.2
    else:
        assert cell["controls"]["word"] > 0.8 > 0.2 > cell["noised"]["wrong"] and cell["selectivity"] < 0.1
    assert cell["selectivity"] == min(cell["over"].values())
    sizes = cell["sizes"]
    assert [sum(part) for part in zip(*sizes.values(), strict=True)] == [72, 72]
    trace = group.found["trace"]["trace"]
    assert (trace["wrong_towards_word"] > 0.7) != follows_picture


def test_the_best_probe_is_saved_and_predicts_the_same(group: Group) -> None:
    best = group.found["best"]
    probe, facts = load_probe(group.folder / BEST)
    assert (facts["group"], facts["blocks"], facts["probe"]) == ("late", "[0..1]", best["probe"])
    result = group.results[Unit("cell", best["repeat"], best["probe"], best["feature"])]
    source = MapSource(group.bench.generated, probe.config.feature)
    logits = predict(probe, source, result.indices("rows"), CPU)
    assert np.array_equal(logits.argmax(axis=1), result.indices("predicted"))
    accuracy = (result.indices("predicted") == result.indices("labels")).mean()
    assert facts["accuracy"] == pytest.approx(accuracy)


def test_the_noise_aware_probe_is_saved_calibrated(group: Group) -> None:
    probe = load_noise_aware(group.folder / NOISE_AWARE)
    result = group.results[Unit("noise_aware")]
    rows = result.indices("noised_rows")
    maps, t = group.bench.noised.gather(rows, probe.kinds), torch.from_numpy(group.bench.noised.t[rows])
    expected = result.tensors["logits"] / probe.temperatures(t)[:, None]
    assert torch.allclose(probe.logits(maps, t), expected, atol=1e-4)
    assert probe.times.tolist() == [0.5, 0.75] and set(
        group.found["noise_aware"]["calibration"]["by_time"]
    ) == {"0.5", "0.75"}
    assert set(group.found["noise_aware"]["trace_by_time"]) == {"0.5", "0.75"}


def test_the_table_over_groups_and_the_confusions(group: Group, tmp_path: Path) -> None:
    for name in ("early", "late"):
        write_json({**group.found, "group": name}, tmp_path / name / TABLE)
    tables = read_groups(tmp_path, ["early", "late"])
    found = merged(tables, SMALL.epochs, SMALL.features)
    assert list(found["cells"]["mlp"]["concat"]) == ["early", "late"]
    taken = confusions(tables.values())
    wrong = np.array(group.found["confusion"])
    assert sum(sum(row.values()) for row in taken.values()) == 2 * (wrong.sum() - wrong.trace())
    path = tmp_path / "confusions.json"
    write_json(taken, path)
    assert read_confusions(path) == taken
    assert Negatives(confusions=str(path)).confusions == str(path)
    for draw in (lambda p: plot_table(found["cells"], p), lambda p: plot_selectivity(found["cells"], p)):
        draw(tmp_path / "a.png")
        assert (tmp_path / "a.png").stat().st_size > 5000
    plot_noised({name: found[name] for name in ("trace", "noise_aware")}, tmp_path / "d.png")
    plot_probe("mlp", found["cells"]["mlp"], found["names"], 3, tmp_path / "b.png")
    plot_confusion("late", CLASSES, group.found["confusion"], group.found["best"], tmp_path / "c.png")
    (tmp_path / "late" / TABLE).write_text(json.dumps({**group.found, "classes": ["on"]}))
    with pytest.raises(DataError, match=r"classes \['on'\], those of early"):
        read_groups(tmp_path, ["early", "late"])
    with pytest.raises(DataError, match=r"probe@middle"):
        read_groups(tmp_path, ["middle"])


def test_a_fit_is_a_function_of_its_name(tmp_path: Path) -> None:
    """Run again, and after others, it gives the same tensors; kept and read, too."""
    bench = make_bench(tmp_path)
    unit = Unit("cell", 1, "cnn", "concat")
    first = bench.run(unit)
    bench.run(Unit("shuffled", 0, "mlp", "saliency"))
    again = bench.run(unit)
    again.save(tmp_path / "kept.safetensors")
    kept = Result.load(tmp_path / "kept.safetensors")
    assert set(first.tensors) == set(kept.tensors)
    for name, value in first.tensors.items():
        assert torch.equal(value, kept.tensors[name])
    assert len({unit.name for unit in units(SMALL)}) == len(units(SMALL))


def test_shuffled_labels_keep_their_counts(tmp_path: Path) -> None:
    bench = make_bench(tmp_path)
    maps, parts = bench.generated, bench.split(0)
    mixed = shuffled(maps.labels, maps.pairs, parts, 0)
    assert (mixed != maps.labels).mean() > 0.4
    for part in ("train", "val", "test"):
        rows = parts.rows(maps.pairs, part)
        assert np.array_equal(np.bincount(mixed[rows]), np.bincount(maps.labels[rows]))


def test_the_trace_of_a_reader_and_of_a_seer(tmp_path: Path) -> None:
    maps = make_bench(tmp_path).noised
    rows = np.arange(len(maps))
    reader = np.where(maps.said >= 0, maps.said, 0)
    found = word_trace(maps, rows, reader)
    assert (found["true"], found["wrong"], found["wrong_towards_word"]) == (1, 0, 1)
    found = word_trace(maps, rows, maps.labels)
    assert found == {"true": 1, "wrong": 1, "neutral": 1, "wrong_towards_word": 0}


def test_a_trace_of_no_row_is_undefined(tmp_path: Path) -> None:
    """Not a share of 0, which would count for the probe: nobody was asked."""
    maps = make_bench(tmp_path).noised
    true = np.flatnonzero(maps.conditions == "relational")
    found = word_trace(maps, true, maps.labels[true])
    assert (
        found["true"] == 1
        and np.isnan([found[name] for name in ("wrong", "neutral", "wrong_towards_word")]).all()
    )
    assert np.isnan(calibration_error(np.zeros((0, 3)), np.zeros(0, np.int64)))


def test_a_selectivity_over_an_undefined_control_is_undefined(
    group: Group, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No row under a wrong prompt names a relation: null in the group's table, nothing in the figures."""
    monkeypatch.setattr(group.bench.noised, "said", np.full_like(group.bench.noised.said, -1))
    found = write_group(group.bench, "late", group.results.__getitem__, tmp_path / "late")
    cell = found["cells"]["mlp"]["concat"]
    assert (cell["selectivity"], cell["over"]["word"], cell["noised"]["wrong_towards_word"]) == (
        None,
        None,
        None,
    )
    assert cell["accuracy"] == group.found["cells"]["mlp"]["concat"]["accuracy"]
    write_json(found, tmp_path / "late" / TABLE)
    merged_of = merged(read_groups(tmp_path, ["late"]), SMALL.epochs, SMALL.features)
    assert probes(merged_of, "selectivity", "").rows[0][-1] == "–"
    plot_table(merged_of["cells"], tmp_path / "table.png")
    plot_selectivity(merged_of["cells"], tmp_path / "selectivity.png")
    plot_noised({name: merged_of[name] for name in ("trace", "noise_aware")}, tmp_path / "noised.png")
    plot_probe("mlp", merged_of["cells"]["mlp"], merged_of["names"], 3, tmp_path / "mlp.png")


def test_names_are_those_of_the_pair(tmp_path: Path) -> None:
    pairs = Pairs(triples(24))
    source = NameSource(pairs, embeddings(), pairs.of_row)
    rows = np.array([0, 5])
    for row, value in zip(rows.tolist(), source.batch(rows), strict=True):
        subject, object_ = pairs.names[pairs.of_row[row]]
        assert torch.equal(value, torch.cat([embeddings()[subject], embeddings()[object_]]))


def test_maps_without_the_controls_are_refused(tmp_path: Path) -> None:
    table = triples(24)
    pairs = Pairs(table)
    write_generated(table, tmp_path / "a.parquet")
    write_noised(table, tmp_path / "b.parquet", "picture")
    generated, noised = (MapSet(tmp_path / f"{name}.parquet", pairs) for name in "ab")
    with pytest.raises(DataError, match=r"no maps under wrong, neutral prompts.*saliency_noised\.conditions"):
        Bench(generated, generated, pairs, embeddings(), SMALL, CPU)
    noised.conditions[noised.conditions == "neutral"] = "relational"
    with pytest.raises((DataError, ParamsError), match="neutral"):
        Bench(generated, noised, pairs, embeddings(), SMALL, CPU)
    assert NoiseAware(conditions=("neutral",)).conditions == ("neutral",)
