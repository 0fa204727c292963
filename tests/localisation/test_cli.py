"""`sgpipe localise`: an image for a person, and what it refuses."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from sgpipe.backbones.config import Backbone
from sgpipe.cli import app
from sgpipe.errors import ParamsError
from tests.tiny import SIDE

DOG = "dog, left of, cat"


def test_the_base_is_shown_in_words(backbone: Backbone, tmp_path: Path) -> None:
    out = tmp_path / "new" / "map.png"
    asked = ["--graph", DOG, "--model", backbone.model, "--size", str(SIDE), "--count", "1", "--steps", "2"]
    done = CliRunner().invoke(app, ["localise", *asked, "--rows", "image, relation", "--out", str(out)], catch_exceptions=False)
    assert done.exit_code == 0 and out.name in done.stdout
    with Image.open(out) as image:
        assert np.asarray(image.convert("L")).std() > 20


def test_a_script_reads_what_was_generated(backbone: Backbone, tmp_path: Path) -> None:
    asked = ["--model", backbone.model, "--prompt", "a photo of dog", "--size", "32", "--steps", "1", "--seed", "3", "--count", "2"]
    ran = CliRunner().invoke(app, ["generate", *asked, "--out", str(tmp_path / "x.png"), "--json"], catch_exceptions=False)
    (said,) = ran.stdout.splitlines()
    told = json.loads(said)
    assert told["files"] == [str(tmp_path / f"x-{seed}.png") for seed in (3, 4)] and told["seeds"] == [3, 4]
    assert all(Path(path).is_file() for path in told["files"])
    assert (told["prompt"], told["size"], told["adapter"], told["graph"]) == ("a photo of dog", 32, None, None)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["--graph", "", "--size", "32"], "--graph: got a graph without a triple"),
        (["--graph", "dog, near, cat", "--size", "32"], "which has no inverse to compare it with; valid: .*left of"),
        (["--graph", DOG], "--size is needed without an adapter"),
        (["--graph", DOG, "--size", "32", "--prompt", "a dog"], "--prompt stands beside a graph that an adapter reads"),
        (["--graph", DOG, "--size", "33"], "--size: got 33; .*multiples of 4 pixels: give 32 or 36"),
        (["--graph", DOG, "--size", "32", "--rows", "words"], r"--rows\.rows.*got 'words'.*valid: image, text"),
    ],
)
def test_what_cannot_be_shown_is_refused(given: list[str], says: str, backbone: Backbone) -> None:
    with pytest.raises(ParamsError, match=says):
        CliRunner().invoke(app, ["localise", "--model", backbone.model, *given], catch_exceptions=False)
