"""A layer group from maps to figures, in a world where what maps show is chosen: the controls expose what they are for."""

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import save_file

from sgpipe.errors import DataError, ParamsError
from sgpipe.graphs.config import Negatives
from sgpipe.graphs.negatives import read_confusions
from sgpipe.probes.config import NoiseAware, Probes
from sgpipe.probes.controls import NameSource, shuffled, word_trace
from sgpipe.probes.data import MapSet, MapSource, Pairs
from sgpipe.probes.fit import fit, predict
from sgpipe.probes.group import BEST, NOISE_AWARE, write_group
from sgpipe.probes.jobs import Bench, Result, Unit, units
from sgpipe.probes.noise_aware import load_noise_aware
from sgpipe.probes.plots import plot_noised, plot_probe, plot_selectivity, plot_table
from sgpipe.probes.pool import kept_at, run_units
from sgpipe.probes.probe import load_probe
from sgpipe.probes.table import TABLE, confusions, merged, read_groups
from sgpipe.runs.atomic import write_json
from sgpipe.runs.processes import Processes
from tests.probes.world import SMALL, embeddings, make_bench, triples, write_generated, write_noised

CPU = torch.device("cpu")


class Group:
    """Everything fitted in one world."""

    def __init__(self, folder: Path, follows: str, params: Probes) -> None:
        self.bench = make_bench(folder, follows, params)
        self.results: dict[Unit, Result] = {unit: self.bench.run(unit) for unit in units(params)}
        self.folder = folder / "late"
        self.found: dict[str, Any] = write_group(self.bench, "late", self.results.__getitem__, self.folder)


@pytest.fixture(scope="module", params=["image", "word"])
def group(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Group:
    """Of two probes and two features where maps follow the image, of one where they follow the word."""
    one = msgspec.structs.replace(SMALL, epochs={"mlp": SMALL.epochs["mlp"]}, features=("concat",))
    return Group(tmp_path_factory.mktemp(request.param), request.param, SMALL if request.param == "image" else one)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """Maps that follow the image; for tests that leave them as they are."""
    return make_bench(tmp_path_factory.mktemp("bench"))


def test_controls_tell_a_picture_from_a_word(group: Group) -> None:
    """Both worlds give the same high accuracy on sampled images; only the trace on real images tells them apart."""
    cell, names = group.found["cells"]["mlp"]["concat"], group.found["names"]
    assert cell["accuracy"] > 0.85 and cell["interval"][0] <= cell["accuracy"] <= cell["interval"][1]
    assert cell["controls"]["shuffled"] < 0.6 and cell["controls"]["names"] == names["accuracy"] < 0.6
    follows_picture = "image" in str(group.bench.generated.path)
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
    assert probe.times.tolist() == [0.5, 0.75] and set(group.found["noise_aware"]["calibration"]["by_time"]) == {"0.5", "0.75"}
    assert set(group.found["noise_aware"]["trace_by_time"]) == {"0.5", "0.75"}


def test_the_table_over_groups_and_the_confusions(group: Group, tmp_path: Path) -> None:
    for name in ("early", "late"):
        write_json({**group.found, "group": name}, tmp_path / name / TABLE)
    tables = read_groups(tmp_path, ["early", "late"])
    found = merged(tables, group.bench.params.epochs, group.bench.params.features)
    assert list(found["cells"]["mlp"]["concat"]) == ["early", "late"]
    taken = confusions(tables.values())
    wrong = np.array(group.found["confusion"])
    assert sum(sum(row.values()) for row in taken.values()) == 2 * (wrong.sum() - wrong.trace())
    path = tmp_path / "confusions.json"
    write_json(taken, path)
    assert read_confusions(path) == taken
    assert Negatives(confusions=str(path)).confusions == str(path)
    (tmp_path / "late" / TABLE).write_text(json.dumps({**group.found, "classes": ["on"]}))
    with pytest.raises(DataError, match=r"classes \['on'\], those of early"):
        read_groups(tmp_path, ["early", "late"])
    with pytest.raises(DataError, match=r"probe@middle"):
        read_groups(tmp_path, ["middle"])


def test_undefined_figures_are_null_to_the_last_file(tmp_path: Path) -> None:
    """No real image of the test fold could be read, and one seed has no deviation: the rest is measured all the same."""
    one = msgspec.structs.replace(SMALL, epochs={"mlp": 2}, features=("saliency",), seeds=1)
    whole = make_bench(tmp_path, params=one)
    parts = whole.split(0)
    seen = np.setdiff1d(np.arange(72), parts.rows(np.arange(72), "test"))
    write_noised(triples().take(seen), tmp_path / "part.parquet", "image")
    noised = MapSet(tmp_path / "part.parquet", whole.pairs)
    bench = Bench(whole.generated, noised, whole.pairs, embeddings(), one, CPU)
    results = {unit: bench.run(unit) for unit in units(one)}
    found = write_group(bench, "late", results.__getitem__, tmp_path / "late")
    cell = found["cells"]["mlp"]["saliency"]
    nothing = dict.fromkeys(("true", "wrong", "neutral", "wrong_towards_word"))
    assert cell["noised"] == nothing == found["trace"]["trace"]
    assert (cell["deviation"], cell["over"]["word"], cell["selectivity"]) == (None, None, None)
    assert cell["over"]["names"] == cell["accuracy"] - found["names"]["accuracy"]
    assert found["noise_aware"]["accuracy"] is None and found["noise_aware"]["neutral_over_names"] == {}
    assert found["noise_aware"]["calibration"] == {"ece_before": None, "ece_after": None, "by_time": {}}
    write_json(found, tmp_path / "late" / TABLE)
    table = merged(read_groups(tmp_path, ["late"]), one.epochs, one.features)
    row = {feature: {"late": cell} for feature in ("saliency",)}
    plot_probe("mlp", row, table["names"], 3, tmp_path / "p.png")
    plot_selectivity({"mlp": row}, tmp_path / "s.png")
    plot_table({"mlp": row}, tmp_path / "t.png")
    plot_noised({name: table[name] for name in ("trace", "noise_aware")}, tmp_path / "n.png")
    none = triples().take(np.setdiff1d(seen, parts.rows(np.arange(72), "val")))
    write_noised(none, tmp_path / "none.parquet", "image")
    poor = Bench(whole.generated, MapSet(tmp_path / "none.parquet", whole.pairs), whole.pairs, embeddings(), one, CPU)
    with pytest.raises(DataError, match=r"none\.parquet: no maps of val triples.*cache_latents"):
        poor.run(Unit("noise_aware"))


def test_a_fit_is_a_function_of_its_name(bench: Bench, tmp_path: Path) -> None:
    """Run again, and after others, it gives the same tensors; kept and read, too."""
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


def test_a_damaged_fit_is_fitted_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of 0 bytes, cut off, or another file: all three stopped the stage at its end, each time anew."""
    small = msgspec.structs.replace(SMALL, epochs={"mlp": 1}, features=("cross",), seeds=3, shuffled_seeds=1)
    bench, folder = make_bench(tmp_path, params=small), tmp_path / "state"
    wanted = [unit for unit in units(small) if unit.what in ("cell", "names")]
    ran: list[Unit] = []

    def open_bench() -> Bench:
        def run(unit: Unit) -> Result:
            ran.append(unit)
            return Bench.run(bench, unit)

        bench.run = run  # type: ignore[method-assign]
        return bench

    run_units(wanted, folder, Processes(0, 1, CPU), open_bench, 1)
    before = {unit: {name: value.clone() for name, value in Result.load(kept_at(unit, folder)).tensors.items()} for unit in wanted}
    assert ran == wanted
    ran.clear()
    kept_at(wanted[0], folder).write_bytes(b"")
    kept_at(wanted[2], folder).write_bytes(kept_at(wanted[2], folder).read_bytes()[:-9])
    save_file({"rows": torch.zeros(1)}, kept_at(wanted[3], folder))
    run_units(wanted, folder, Processes(0, 1, CPU), open_bench, 1)
    assert ran == [wanted[0], wanted[2], wanted[3]]
    for unit, tensors in before.items():
        again = Result.load(kept_at(unit, folder)).tensors
        assert all(torch.equal(value, again[name]) for name, value in tensors.items())
    assert capsys.readouterr().out.count("not a whole fit") == 3


def test_shuffled_labels_keep_their_counts(bench: Bench) -> None:
    maps, parts = bench.generated, bench.split(0)
    mixed = shuffled(maps.labels, maps.triples, parts, 0)
    assert (mixed != maps.labels).mean() > 0.4
    for part in ("train", "val", "test"):
        rows = parts.rows(maps.triples, part)
        assert np.array_equal(np.bincount(mixed[rows]), np.bincount(maps.labels[rows]))


def test_no_fit_sees_an_image_or_a_pair_of_its_test_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the cells, the controls and the fits on noised maps; every image is of two triples, pairs are in both orders."""
    table = triples()
    images = pa.array([row // 2 for row in range(table.num_rows)])
    table = table.set_column(table.column_names.index("image_id"), "image_id", images)
    bench = make_bench(tmp_path, params=msgspec.structs.replace(SMALL, folds=3), table=table)
    fitted_on: list[np.ndarray] = []

    def spy(build: Any, source: Any, labels: Any, train: np.ndarray, val: np.ndarray, *others: Any) -> Any:
        fitted_on[:] = [train, val]
        return fit(build, source, labels, train, val, 1, *others[1:])

    monkeypatch.setattr("sgpipe.probes.jobs.fit", spy)
    unordered = [frozenset(two) for two in zip(table["subject"].to_pylist(), table["object"].to_pylist(), strict=True)]
    for unit in units(bench.params):
        result = bench.run(unit)
        timed = unit.what in ("noise_aware", "trace")
        maps = bench.noised if timed else bench.generated
        parts = [*fitted_on, result.indices("noised_rows" if timed else "rows")]
        assert all(len(part) for part in parts)
        for of in (images.to_pylist(), unordered):
            train, val, test = ({of[row] for row in maps.triples[part].tolist()} for part in parts)
            assert not (train & val or train & test or val & test), unit.name


def test_the_trace_of_a_reader_and_of_a_seer(bench: Bench) -> None:
    maps = bench.noised
    rows = np.arange(len(maps))
    reader = np.where(maps.said >= 0, maps.said, 0)
    found = word_trace(maps, rows, reader)
    assert (found["true"], found["wrong"], found["wrong_towards_word"]) == (1, 0, 1)
    found = word_trace(maps, rows, maps.labels)
    assert found == {"true": 1, "wrong": 1, "neutral": 1, "wrong_towards_word": 0}
    neutral = np.flatnonzero(maps.conditions == "neutral")
    found = word_trace(maps, neutral, maps.labels[neutral])
    assert found == {"true": None, "wrong": None, "neutral": 1, "wrong_towards_word": None}


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
    write_noised(table, tmp_path / "b.parquet", "image")
    generated, noised = (MapSet(tmp_path / f"{name}.parquet", pairs) for name in "ab")
    with pytest.raises(DataError, match=r"no maps under wrong, neutral prompts.*saliency_noised\.conditions"):
        Bench(generated, generated, pairs, embeddings(), SMALL, CPU)
    noised.conditions[noised.conditions == "neutral"] = "relational"
    with pytest.raises((DataError, ParamsError), match="neutral"):
        Bench(generated, noised, pairs, embeddings(), SMALL, CPU)
    assert NoiseAware(conditions=("neutral",)).conditions == ("neutral",)
