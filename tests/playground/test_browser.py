"""The page in a real browser: an edited graph gives another image, at desktop and phone width, by keyboard, for two at once."""

import base64
import io
import json
import os
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from sgpipe.playground.engine import BASE
from tests.training.world import World

pytestmark = pytest.mark.slow
selenium = pytest.importorskip("selenium", reason="selenium drives the browser; it is in requirements.lock")
BROWSER, DRIVER = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
if BROWSER is None or DRIVER is None:
    if os.environ.get("CI"):
        raise RuntimeError("chromium and chromedriver are needed: apt-get install chromium chromium-driver")
    pytest.skip("no chromium and chromedriver here: apt-get install chromium chromium-driver", allow_module_level=True)

SIZES = {"desktop": (1280, 900), "phone": (390, 844)}
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
)  # fmt: skip


@pytest.fixture(scope="module")
def address(world: World, adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    from sgpipe.evaluation.config import Judge as Named
    from sgpipe.playground import engine as playing
    from sgpipe.playground.page import build_page
    from tests.playground.conftest import MAPS, LeftJudge

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(playing, "open_judge", lambda *_: LeftJudge())
        engine = playing.Engine(MAPS, ("left", Named(kind="left")), size=32)
        page, options = build_page(
            engine, [world.backbone.model], [str(adapter)], ["dog", "cat"], tmp_path_factory.mktemp("sessions")
        )
        _, url, _ = page.queue(default_concurrency_limit=2).launch(
            server_name="127.0.0.1", prevent_thread_lock=True, quiet=True, **options
        )
        yield url
        page.close()


@pytest.fixture
def visit(address: str, tmp_path: Path) -> Iterator[Callable[[str], Any]]:
    """Opens browsers of a size on the page; their consoles must be without errors at the end."""
    from selenium import webdriver

    opened: list[Any] = []

    def open_browser(size: str) -> Any:
        options = webdriver.ChromeOptions()
        options.binary_location = BROWSER
        width, height = SIZES[size]
        for flag in (*FLAGS, f"--window-size={width},{height}", f"--user-data-dir={tmp_path / str(len(opened))}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        options.add_experimental_option("prefs", {"download.default_directory": str(tmp_path)})
        browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
        browser.set_window_size(width, height)
        browser.get(address)
        opened.append(browser)
        return browser

    yield open_browser
    errors = [entry["message"] for browser in opened for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    for browser in opened:
        browser.quit()
    assert errors == []


def _images(browser: Any) -> list[tuple[str, str]]:
    """Alternative text and source of the panels."""
    return browser.execute_script("return [...document.querySelectorAll('#panels img')].map(i => [i.alt, i.src])")


def _pixels(source: str) -> NDArray[np.int64]:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2])))).astype(np.int64)


def _wait(browser: Any, condition: Callable[[Any], Any]) -> Any:
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, 60).until(condition)


def _find(browser: Any, label: str) -> Any:
    from selenium.webdriver.common.by import By

    return browser.find_element(By.CSS_SELECTOR, f'[aria-label="{label}"]')


@pytest.mark.parametrize("size", SIZES)
def test_an_edited_graph_gives_another_image(visit: Callable[[str], Any], size: str) -> None:
    browser = visit(size)
    first = _wait(browser, lambda b: len(_images(b)) == 3 and _images(b))
    assert [("no graph" in alt, "dog, left of, cat" in alt, "cat, left of, dog" in alt) for alt, _ in first] == [
        (True, False, False), (False, True, False), (False, False, True),
    ]  # fmt: skip
    _find(browser, "Exchange subject and object of triple 1").click()
    second = _wait(browser, lambda b: "cat, left of, dog" in _images(b)[1][0] and _images(b))
    assert second[1][1] != first[1][1]
    assert "cat left of dog: yes" in browser.find_element("id", "panels").text
    width = browser.execute_script("return [document.documentElement.scrollWidth, window.innerWidth]")
    assert width[0] <= width[1], "nothing lies outside the window"


def test_names_are_dragged_onto_one_another(visit: Callable[[str], Any]) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    browser = visit("desktop")
    _wait(browser, lambda b: len(_images(b)) == 3)
    ActionChains(browser).drag_and_drop(_find(browser, "Subject of triple 1"), _find(browser, "Object of triple 1")).perform()
    _wait(browser, lambda b: "cat, left of, dog" in _images(b)[1][0])
    assert _find(browser, "Subject of triple 1").get_attribute("value") == "cat"


NAMED = """
const e = document.activeElement;
return e.getAttribute('aria-label') || [...(e.labels || [])].map(l => l.innerText).join(' ') || e.innerText || e.id;
"""
"""What a screen reader would say of the element that has the focus."""


def test_all_is_done_by_keyboard(visit: Callable[[str], Any]) -> None:
    from selenium.webdriver.common.keys import Keys

    browser = visit("desktop")
    _wait(browser, lambda b: len(_images(b)) == 3)
    browser.execute_script("document.activeElement.blur(); window.scrollTo(0, 0)")
    wanted = [
        "Subject of triple 1", "Relation of triple 1", "Object of triple 1", "Exchange subject and object of triple 1",
        "Remove triple 1", "Add a triple", "Prompt", "Seed", "Steps", "Backbone", "Adapter", "Draw", "Maps",
    ]  # fmt: skip
    reached: list[str] = []
    for _ in range(60):
        browser.switch_to.active_element.send_keys(Keys.TAB)
        reached.append(browser.execute_script(NAMED))
        if "Exchange" in reached[-1]:
            browser.switch_to.active_element.send_keys(Keys.ENTER)
            _wait(browser, lambda b: "cat, left of, dog" in _images(b)[1][0])
        if wanted[-1] in reached[-1]:
            break
    ways = iter(reached)
    assert [each for each in wanted if not any(each.casefold() in name.casefold() for name in ways)] == [], reached
    browser.switch_to.active_element.send_keys(Keys.TAB)
    assert "Copy" in browser.execute_script(NAMED)
    browser.switch_to.active_element.send_keys(Keys.ENTER)
    _wait(browser, lambda b: b.find_element("id", "command").is_displayed())


def test_without_an_adapter_the_base_is_drawn_alone(visit: Callable[[str], Any]) -> None:
    from selenium.webdriver.common.keys import Keys

    browser = visit("desktop")
    first = _wait(browser, lambda b: len(_images(b)) == 3 and _images(b))
    tops = browser.execute_script("return [...document.querySelectorAll('#panels img')].map(i => i.getBoundingClientRect().top)")
    assert len(set(tops)) == 1, "the three stand side by side"
    field = _find(browser, "Adapter")
    field.click()
    field.send_keys(Keys.CONTROL, "a")
    field.send_keys(BASE, Keys.ENTER)
    browser.find_element("id", "draw").click()
    alone = _wait(browser, lambda b: len(_images(b)) == 1 and _images(b))
    assert alone[0][0] == first[0][0]
    of_one, of_three = (_pixels(each[0][1]) for each in (alone, first))
    assert np.abs(of_one - of_three).max() <= 4, "the same noise; a batch of one rounds otherwise than one of three"


def test_a_fault_is_said_and_what_was_drawn_stays(visit: Callable[[str], Any]) -> None:
    browser = visit("desktop")
    first = _wait(browser, lambda b: len(_images(b)) == 3 and _images(b))
    field = _find(browser, "Object of triple 1")
    field.clear()
    field.send_keys("dog")
    browser.find_element("id", "draw").click()
    _wait(browser, lambda b: "relates 'dog' to itself" in b.find_element("tag name", "body").text)
    assert _images(browser) == first


def test_two_visitors_do_not_mix_and_each_downloads_its_own(visit: Callable[[str], Any], tmp_path: Path) -> None:
    one, other = visit("desktop"), visit("phone")
    for browser in (one, other):
        _wait(browser, lambda b: len(_images(b)) == 3)
    _find(other, "Exchange subject and object of triple 1").click()
    _wait(other, lambda b: "cat, left of, dog" in _images(b)[1][0])
    assert "dog, left of, cat" in _images(one)[1][0]
    one.find_element("xpath", "//button[@role='tab'][contains(., 'History')]").click()
    _wait(one, lambda b: b.find_element("id", "download").is_displayed())
    one.find_element("id", "download").click()
    archive = _wait(one, lambda b: next(iter(tmp_path.glob("*.zip")), None))
    with zipfile.ZipFile(archive) as held:
        lines = [json.loads(line) for line in held.read("drawings.jsonl").splitlines()]
        assert {line["graph"] for line in lines} == {"dog, left of, cat"}
        assert set(lines[-1]["images"]) <= set(held.namelist())
