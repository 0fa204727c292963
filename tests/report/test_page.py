"""The page is one whole file that reads aloud, and browsers show it without a complaint at any width."""

import re
import shutil
import subprocess
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest

from sgpipe.errors import DataError
from sgpipe.report.figures import COLOURS, curves, intervals, scene_graph
from sgpipe.report.page import control_figure
from sgpipe.report.tables import by_predicate
from tests.report.pages import BY_CLASS, CALIBRATION, page

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
VOID = {"meta", "link", "img", "br", "path", "rect", "use", "input", "hr"}


class Reader(HTMLParser):
    """Elements with their attributes, in order; unclosed or crossed ones are an error."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self._open: list[str] = []
        self.feed(text)
        assert not self._open, f"not closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self._open.pop() == tag

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    return page(tmp_path_factory.mktemp("page"))


def test_the_page_needs_nothing_else(text: str) -> None:
    found = Reader(text)
    assert not found.all("script")
    for tag, attributes in found.elements:
        for name in ("src", "href", "xlink:href", "srcset", "data", "action"):
            if name in attributes:
                assert attributes[name].startswith(("data:", "#")), (tag, attributes[name])
    assert "@import" not in text and not re.search(r"url\((?!#|data:)", text)


def test_the_page_reads_aloud(text: str) -> None:
    found = Reader(text)
    assert found.all("html")[0]["lang"] == "en" and len(found.all("h1")) == len(found.all("main")) == 1
    assert all(image["alt"] for image in found.all("img"))
    assert all(svg.get("aria-label") for svg in found.all("svg") if svg.get("role") == "img")
    labelled = [each for each in found.all("div") if each.get("role") == "img"]
    assert len(labelled) == 4 and all(
        "0.70 [0.60, 0.80]" in each["aria-label"] or "loss" in each["aria-label"] for each in labelled
    )
    assert len(found.all("caption")) == len(found.all("table")) >= 8
    assert all(head["scope"] in ("col", "row") for head in found.all("th"))
    scrolled = [each for each in found.all("div") if each.get("class") == "scroll"]
    assert all(each["tabindex"] == "0" and each["aria-label"] for each in scrolled)
    headings = [int(tag[1]) for tag, _ in found.elements if re.fullmatch(r"h[1-6]", tag)]
    assert all(later - earlier <= 1 for earlier, later in pairwise(headings))
    ids = [attributes["id"] for _, attributes in found.elements if "id" in attributes]
    named = {a["href"][1:] for a in found.all("a")}
    assert named <= set(ids)
    outside_twins = [each for each in ids if not each.startswith("f")]
    assert len(outside_twins) == len(set(outside_twins))


def test_a_class_filters_rows_images_and_sheets_without_a_script(text: str) -> None:
    """Radio buttons, which keyboards reach; the style sheet hides what is not of the chosen class."""
    found = Reader(text)
    choices = [each for each in found.all("input") if each.get("type") == "radio"]
    assert [each["id"] for each in choices] == ["class-all", "class-0", "class-1"] and "checked" in choices[0]
    assert "left of (2)" in text and "on (1)" in text
    marked = [(tag, each["data-classes"]) for tag, each in found.elements if "data-classes" in each]
    assert sorted(marked) == [("article", "c0"), ("article", "c0"), ("article", "c1"), ("figure", "c0"), ("tr", "c1")]
    for number in (0, 1):
        assert f'body:has(#class-{number}:checked) [data-classes]:not([data-classes~="c{number}"]) {{ display: none; }}' in text


def test_worst_cases_say_how_they_were_chosen_and_how_often_they_are_right(text: str) -> None:
    assert "Worst triples" in text and "the fewest show it, over all seeds" in text
    assert "graph shows g⁺ in 1 of 3 seeds" in text


def test_learning_curves_state_their_figures(text: str) -> None:
    assert "10 epochs: direction accuracy of g⁺ 0.70 [0.60, 0.80], swap-follow rate 0.66 [0.60, 0.70]" in text
    assert "at the end loss 1.5000, flow 0.4000, negative 0.7000" in text and "margin 0.2" not in text


def luminance(colour: str) -> float:
    """Of WCAG 2.2."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_text_and_lines_have_contrast(text: str) -> None:
    """4.5 : 1 on white for every colour of text in the style sheet and for every line."""
    style = text[text.index("<style>") : text.index("</style>")]
    said = re.findall(r"[;{ ]color: (#[0-9a-f]{6})", style)
    assert len(said) >= 3
    for colour in (*said, *COLOURS):
        assert 1.05 / (luminance(colour) + 0.05) >= 4.5, colour


def test_what_comes_from_data_is_escaped(text: str) -> None:
    assert "cat left of dog &lt;b&gt;" in text and "Words &amp; signs." in text
    assert "&lt;i&gt;" in scene_graph("<i>", "on", "b") and "<i>" not in scene_graph("<i>", "on", "b")


def test_the_same_numbers_give_the_same_page(tmp_path: Path, text: str) -> None:
    assert page(tmp_path) == text
    row = {"x": 0.5, "x_low": 0.4, "x_high": 0.6}
    assert intervals([("a", row), ("b", {"x": None})], "x", 0.5, "t") == intervals([("a", row)], "x", 0.5, "t")
    assert curves({"a": [1.0, 2.0]}, [0, 1], "loss") != curves({"a": [1.0, 3.0]}, [0, 1], "loss")


def test_a_table_of_another_form_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "controls.csv"
    path.write_text("epoch,loss\n1,2\n")
    with pytest.raises(DataError, match="not a table of control losses"):
        control_figure(path, "graph")


def test_a_class_that_is_lost_is_told_from_one_that_is_won() -> None:
    arms = {"base": "none", "graph": "graphs", "other": "graphs"}
    shown = by_predicate(BY_CLASS, {"on": CALIBRATION}, arms)
    assert shown.head[-2:] == ("graph − base", "other − base")
    assert shown.rows[0][-2:] == ("-0.30, p 0.004", "–")


@pytest.mark.slow
@pytest.mark.parametrize(("width", "height"), [(1280, 900), (390, 844)])
def test_a_browser_shows_it_without_a_complaint(text: str, tmp_path: Path, width: int, height: int) -> None:
    """No console message; nothing but tables is wider than the window (a script in a copy measures it)."""
    browser = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if browser is None:
        pytest.skip(f"no browser found (looked for {', '.join(BROWSERS)})")

    def run(file: Path, *wanted: str) -> subprocess.CompletedProcess[str]:
        command = [
            browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--enable-logging=stderr",
            f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},{height}", *wanted, file.as_uri(),
        ]  # fmt: skip
        return subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)

    shown = tmp_path / "page.html"
    shown.write_text(text)
    shot = tmp_path / "shot.png"
    done = run(shown, f"--screenshot={shot}")
    assert not [line for line in done.stderr.splitlines() if "CONSOLE" in line], done.stderr
    assert shot.stat().st_size > 10_000
    inside = tmp_path / "inside.html"
    inside.write_text(
        re.sub(r"<meta http-equiv[^>]*>", "", text).replace(
            "</body>",
            "<script>document.title = document.documentElement.scrollWidth + ' ' + innerWidth + ' ' + "
            "[...document.images].filter(i => !i.naturalWidth).length; const seen = () => [...document.querySelectorAll("
            "'[data-classes]')].filter(e => e.getClientRects().length).length; document.title += ' ' + seen(); "
            "document.getElementById('class-1').click(); document.title += ' ' + seen()</script></body>",
        )
    )
    title = re.search(r"<title>(\d+) (\d+) (\d+) (\d+) (\d+)</title>", run(inside, "--dump-dom").stdout)
    assert title, "the copy's script did not run"
    wide, window, broken, marked, chosen = map(int, title.groups())
    assert wide <= window and broken == 0
    assert (marked, chosen) == (5, 2), "of class `on` a row and a panel are left"
