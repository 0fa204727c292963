"""docs/own_images.md as a newcomer runs it: its commands, word by word, from thirty files to an adapter and an image."""

import json
import shlex
import shutil
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
import yaml
from PIL import Image, ImageDraw

from tests.documented import shown
from tests.stages.test_pipeline import ROOT, clone, environment

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
PAGE = ROOT / "docs/own_images.md"
QUICK = (
    "train.epochs=2", "train.keep_epochs=[1,2]", "ablation.epochs=[1,2]", "train.batch_size=4", "train.validation.images=1",
    "train.compile=false", "compute.device=cpu",
)  # fmt: skip
"""What makes the page's training short: steps, not what is trained."""


def thirty_images(folder: Path) -> None:
    """Pairs of boxes in two colours, the forms of graph that the page shows mixed, and a list of own relations."""
    folder.mkdir()
    pairs = list(product(("dog", "person", "cat", "cup", "book"), ("chair", "table", "box", "bench", "bed", "bag")))
    records = []
    for n, (subject, object_) in enumerate(pairs):
        image = Image.new("RGB", (96, 80), (230, 230, 230))
        draw = ImageDraw.Draw(image)
        boxes = [[10 + n, 8, 24, 26], [6 + n, 32, 40, 30]]
        for (x, y, w, h), colour in zip(boxes, ("peru", "teal"), strict=True):
            draw.rectangle((x, y, x + w, y + h), colour)
        image.save(folder / f"{n:02}.png")
        said = ("on", "holding", "hops over", "left of")[n % 4]
        if n % 3:
            objects = [{"name": name, "box": box} for name, box in zip((subject, object_), boxes, strict=True)]
            records.append({"image": f"{n:02}.png", "objects": objects, "relations": [[0, said, 1], [0, "on", 1]][: 1 + n % 2]})
        else:
            records.append({"image": f"{n:02}.png", "triples": [[subject, ("on", "holding")[n % 2], object_]]})
    (folder / "graphs.json").write_text(json.dumps(records))
    text = PAGE.read_text().partition("# mine/relations.yaml\n")[2].partition("```")[0]
    (folder / "relations.yaml").write_text(text)


def test_the_commands_of_the_page_lead_to_an_adapter(tmp_path: Path) -> None:
    model = ROOT / "models/mini-flux"
    if not model.is_dir():
        pytest.skip(f"{model} is absent: `dvc pull models.dvc` gets it")
    root = clone(tmp_path / "project", Path("data"))
    params = yaml.safe_load((root / "params.yaml").read_text())
    params["curate"]["quality"] = yaml.safe_load((ROOT / "params.yaml").read_text())["curate"]["quality"]
    (root / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    for name in ("mini-flux", "mini-tower", "mini-clip"):
        shutil.copytree(ROOT / "models" / name, root / "models" / name)
    thirty_images(root / "mine")
    commands = [shlex.split(each) for each in shown(PAGE.read_text(encoding="utf-8"))]
    assert [words[:3] for words in commands] == [
        ["sgpipe", "data", "check"], ["dvc", "exp", "run"], ["sgpipe", "generate", "--adapter"],
        ["sgpipe", "data", "check"], ["dvc", "exp", "run"],
    ]  # fmt: skip
    found = []
    for words in commands:
        options = [part for each in QUICK for part in ("-S", each)] if words[0] == "dvc" else []
        module = [sys.executable, "-m", {"sgpipe": "sgpipe.cli"}.get(words[0], words[0])]
        own = {**environment(), "PYTHONPATH": str(root)}
        done = subprocess.run(
            [*module, *words[1:-1], *options, words[-1]], cwd=root, capture_output=True, text=True, env=own, check=False
        )
        checked = words[1] == "data"
        assert done.returncode == 0 or (checked and done.returncode == 1), f"{shlex.join(words)}\n{done.stdout}\n{done.stderr}"
        found.append(done.stdout)
    assert "predicate unknown" in found[0] and "hops over" in found[0], "what the built-in classes lack is said"
    assert "predicate unknown: person | holding" in found[3] and "jumping over 5" in found[3]
    about = json.loads((root / "outputs/lora/graph/adapter/adapter.json").read_text())
    assert set(about["trained_on"]["predicates"]) == {"on", "holding"} and about["token_parameters"] > 0
    with Image.open(root / "dog.png") as image:
        assert image.size == (64, 64)
    counted = json.loads((root / "metrics/canonicalize.json").read_text())
    assert set(counted["by_class"]) == {"jumping over", "jumped over by", "kissing", "left of", "right of"}
    assert counted["by_class"]["jumping over"] > 0
    assert (root / "outputs/negatives/negatives.parquet").is_file()
