"""How long a visitor of the playground waits: for the first image after opening the page, and after a change of the graph.

Serves the page of the embedded checkpoint in a process of its own and visits it with headless Chromium once the server says its
address. Later visits begin with the same graph, whose answer the server remembers; each change is to another graph. Run
`python -m benchmarks.playground`, with an adapter in outputs/lora; writes metrics/playground.json. `--check` fails above 3 s and
1.5 s.
"""

import json
import re
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

from sgpipe.runs.atomic import DIGITS, write_json

FIRST_SECONDS, CHANGE_SECONDS = 3.0, 1.5
VISITS, CHANGES, PORT = 5, 7, 7867
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync")
SHOWN = "return [...document.querySelectorAll('#panels img')].map(i => i.alt + i.src)"


def open_browser(folder: str) -> Any:
    """A headless Chromium with a profile of its own."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    for flag in (*FLAGS, f"--user-data-dir={folder}"):
        options.add_argument(flag)
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))


def wait_for_images(browser: Any, before: list[str], count: int) -> list[str]:
    """The images shown once they are `count` and others than `before`."""
    while True:
        shown: list[str] = browser.execute_script(SHOWN)
        if len(shown) == count and shown[-1:] != before[-1:]:
            return shown
        time.sleep(0.01)


def main(
    out: Annotated[Path, typer.Option(help="figures")] = Path("metrics/playground.json"),
    check: Annotated[bool, typer.Option("--check", help="fail above the bars")] = False,
) -> None:
    """Measure and write."""
    from selenium.webdriver.support.ui import Select

    server = subprocess.Popen(
        [sys.executable, "-m", "sgpipe.cli", "playground", "--port", str(PORT)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None
        said = next((line for line in server.stdout if "http://" in line or "no adapter" in line), "")
        if "no adapter" in said:
            raise SystemExit("benchmarks.playground: no adapter under outputs/lora; `dvc repro evaluate` trains the default's")
        address = re.findall(r"http://[0-9.:]+", said)[0]
        first, change = [], []
        with TemporaryDirectory() as folder:
            for visit in range(VISITS):
                browser = open_browser(f"{folder}/{visit}")
                start = time.perf_counter()
                browser.get(address)
                shown = wait_for_images(browser, [], 3)
                first.append(time.perf_counter() - start)
                if visit == 0:
                    for index in range(1, CHANGES + 1):  # another relation each time: an answer that was given is remembered
                        relation = Select(browser.find_element("css selector", '[aria-label="Relation of triple 1"]'))
                        start = time.perf_counter()
                        relation.select_by_index(index)
                        shown = wait_for_images(browser, shown, 3)
                        change.append(time.perf_counter() - start)
                browser.quit()
    finally:
        server.terminate()
    figures = {
        "first_image_seconds": first[0],
        "first_image_seconds_later_visits": statistics.median(first[1:]),
        "change_seconds": statistics.median(change),
        "change_seconds_highest": max(change),
    }
    write_json(figures, out, DIGITS)
    print(json.dumps(figures, indent=2))
    if check and (figures["first_image_seconds"] > FIRST_SECONDS or figures["change_seconds"] > CHANGE_SECONDS):
        raise SystemExit(f"above {FIRST_SECONDS} s to the first image or {CHANGE_SECONDS} s after a change")


if __name__ == "__main__":
    typer.run(main)
