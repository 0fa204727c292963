"""What the figures of the probes show: each value where it belongs, and undefined ones left out."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image

from sgpipe.probes import plots

GROUPS, FEATURES = ("early", "late"), ("saliency", "cross", "diff")
UNDEFINED = ("cross", "late")


def cell(feature: str, group: str) -> dict[str, Any]:
    """Figures of one cell, all different; in one cell what can be undefined is."""
    at = FEATURES.index(feature) + 3 * GROUPS.index(group)
    undefined = (feature, group) == UNDEFINED
    over = {"shuffled": 0.3 + at / 100, "names": 0.2 + at / 100, "word": None if undefined else 0.1 + at / 100}
    return {
        "accuracy": 0.5 + at / 20,
        "deviation": None if undefined else 0.01 + at / 1000,
        "interval": [0.45 + at / 20, 0.56 + at / 20],
        "controls": {"shuffled": 0.1 + at / 50},
        "over": over,
        "selectivity": over["word"],
    }


ROW = {feature: {group: cell(feature, group) for group in GROUPS} for feature in FEATURES}
PLACES = [(feature, group) for group in GROUPS for feature in FEATURES]
"""In the order of the bars."""


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Figure]:
    """Calls a plot and gives its figure, in place of a file."""

    def draw(plot: Callable[..., None], *values: Any) -> Figure:
        kept: list[Figure] = []
        with monkeypatch.context() as patch:
            patch.setattr(plots, "_save", lambda figure, path: kept.append(figure))
            plot(*values, Path("none.png"))
        return kept[0]

    return draw


def heights(axes: Axes) -> list[float]:
    return [bar.get_height() for container in axes.containers for bar in container]


def centres(axes: Axes) -> list[float]:
    return [bar.get_x() + bar.get_width() / 2 for container in axes.containers for bar in container]


def points(axes: Axes, marker: str) -> list[tuple[float, float]]:
    """Places of single markers of a kind."""
    lines = (line for line in axes.lines if line.get_marker() == marker and len(line.get_xdata()))
    return [(float(line.get_xdata()[0]), float(line.get_ydata()[0])) for line in lines]


def levels(axes: Axes) -> dict[str, float]:
    """Heights of the horizontal lines, by style."""
    return {
        line.get_linestyle(): float(line.get_ydata()[0])
        for line in axes.lines
        if len(line.get_xdata()) == 2 and line.get_ydata()[0] == line.get_ydata()[1]
    }


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def ticks(axes: Axes, of: str = "x") -> list[str]:
    return [label.get_text() for label in getattr(axes, f"get_{of}ticklabels")()]


def test_a_probe_above_its_controls(drawn: Callable[..., Figure]) -> None:
    names = {"early": {"accuracy": 0.2}, "late": {"accuracy": 0.3}}
    figure = drawn(plots.plot_probe, "cnn", ROW, names, 8)
    (axes,) = figure.axes
    assert heights(axes) == [ROW[feature][group]["accuracy"] for feature, group in PLACES]
    assert ticks(axes) == list(FEATURES) and axes.get_ylabel() == "accuracy, held-out names and images"
    for at, (feature, group) in enumerate(PLACES):
        x = FEATURES.index(feature) + (-0.2 if group == "early" else 0.2)
        assert centres(axes)[at] == pytest.approx(x)
    shuffled = [ROW[feature][group]["controls"]["shuffled"] for feature, group in PLACES]
    assert points(axes, "_") == [(pytest.approx(x), y) for x, y in zip(centres(axes), shuffled, strict=True)]
    spans = [segment[:, 1].tolist() for lines in axes.collections for segment in lines.get_segments()]
    assert spans == [ROW[feature][group]["interval"] for feature, group in PLACES]
    assert levels(axes) == {"--": 0.25, ":": 1 / 8}
    assert axes.get_title(loc="left").startswith("TinyCNN") and "8 classes" in axes.get_title(loc="left")
    assert sorted(legend(figure)) == sorted([*GROUPS, "names alone", "chance", "shuffled labels"])
    colours = [to_hex(container[0].get_facecolor()).upper() for container in axes.containers]
    assert tuple(colours) == plots.COLOURS[:2]


def test_selectivity_beside_what_it_is_the_least_of(drawn: Callable[..., Figure]) -> None:
    figure = drawn(plots.plot_selectivity, {"mlp": ROW, "wrn": ROW})
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["SimpleMLP", "WideResNet"]
    for axes in figure.axes:
        for value, wanted in zip(heights(axes), PLACES, strict=True):
            expected = ROW[wanted[0]][wanted[1]]["selectivity"]
            assert np.isnan(value) if wanted == UNDEFINED else value == expected
        marks = {"o": "accuracy", "_": "shuffled", "x": "names", "1": "word"}
        for mark, name in marks.items():
            found = [y for _, y in points(axes, mark)]
            cells = [ROW[feature][group] for feature, group in PLACES]
            expected = [each[name] if name == "accuracy" else each["over"][name] for each in cells]
            assert found == [pytest.approx(float("nan") if y is None else y, nan_ok=True) for y in expected]
    said = ["accuracy", "over shuffled labels", "over names alone", "over the word"]
    assert legend(figure) == [*GROUPS, *said]


def test_the_table_has_a_line_per_probe_and_group(drawn: Callable[..., Figure]) -> None:
    figure = drawn(plots.plot_table, {"mlp": ROW})
    axes = figure.axes[0]
    shown = np.ma.filled(axes.images[0].get_array(), np.nan)
    expected = [[ROW[feature][group]["selectivity"] for feature in FEATURES] for group in GROUPS]
    assert np.array_equal(shown, np.array(expected, float), equal_nan=True)
    assert (ticks(axes), ticks(axes, "y")) == (list(FEATURES), ["SimpleMLP, early", "SimpleMLP, late"])
    texts = {text.get_position(): text.get_text() for text in axes.texts}
    assert texts[0, 0] == "0.500 ± 0.010 (+0.10)" and texts[1, 1] == "0.700 ± – (–)"
    assert len(texts) == 6 and axes.images[0].get_clim() == (-1, 1)


def test_answers_on_noised_images_by_prompt_and_time(drawn: Callable[..., Figure]) -> None:
    answers = ("true", "neutral", "wrong", "wrong_towards_word")
    times = ("0.6", "0.9")

    def fit(base: float) -> dict[str, Any]:
        by_time = {t: {answer: base + i / 10 + j / 100 for j, answer in enumerate(answers)} for i, t in enumerate(times)}
        return {"trace_by_time": by_time, "names": base}

    fits = {name: {group: fit(0.1 + i / 5) for i, group in enumerate(GROUPS)} for name in ("trace", "noise_aware")}
    fits["trace"]["late"]["trace_by_time"]["0.9"]["wrong"] = None
    figure = drawn(plots.plot_noised, fits)
    assert len(figure.axes) == 2
    for axes, groups in zip(figure.axes, fits.values(), strict=True):
        assert ticks(axes) == [f"{group}\nt = {t}" for group in GROUPS for t in times]
        wanted = [groups[g]["trace_by_time"][t][answer] for answer in answers for g in GROUPS for t in times]
        assert heights(axes) == [pytest.approx(np.nan if y is None else y, nan_ok=True) for y in wanted]
        alone = [segment[0, 1] for lines in axes.collections for segment in lines.get_segments()]
        assert alone == [groups[group]["names"] for group in GROUPS for _ in times]
        assert "held-out names and images" in axes.get_title(loc="left")
    assert {"names alone", "image, neutral prompt"} <= set(legend(figure)) and len(legend(figure)) == 5


def test_confusions_are_shares_of_the_true_class(drawn: Callable[..., Figure]) -> None:
    counts = [[6, 2, 0], [0, 0, 0], [1, 0, 9]]
    best = {"probe": "wrn", "feature": "diff"}
    (axes,) = drawn(plots.plot_confusion, "late", ("on", "in", "above"), counts, best).axes
    assert axes.images[0].get_array().tolist() == [[0.75, 0.25, 0], [0, 0, 0], [0.1, 0, 0.9]]
    texts = {text.get_position(): (text.get_text(), text.get_color()) for text in axes.texts}
    assert texts == {(0, 0): ("6", "white"), (1, 0): ("2", "black"), (0, 2): ("1", "black"), (2, 2): ("9", "white")}
    assert ticks(axes) == ticks(axes, "y") == ["on", "in", "above"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted", "true")
    assert "late: WideResNet on diff" in axes.get_title(loc="left")


def test_figures_are_files_with_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        plots.plot_table({"mlp": ROW}, tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    with Image.open(tmp_path / "a.png") as image:
        image.load()
        assert image.format == "PNG"
