"""Documented commands of a trained adapter on the embedded checkpoint; one of random weights stands in for it."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import ROOT
from tests.documented import project, ran

GRAPH = "outputs/lora/graph/adapter"
SAMPLED = {
    "sgpipe generate --adapter outputs/lora/graph/adapter --graph 'dog, left of, cat' --out dog.png": "dog.png",
    "sgpipe generate --adapter outputs/lora/graph/adapter --graph 'dog, left of, cat'": "outputs/generated.png",
}
"""The image that each writes."""
MAPPED = {
    "sgpipe maps --prompt 'a photo of dog and cat on a plain background' --concepts dog,cat --size 64 --out maps.png": "maps.png",
    "sgpipe maps --prompt 'a photo of dog left of cat on a plain background' --concepts 'dog,left of,cat' --out outputs/maps.png": (
        "outputs/maps.png"
    ),
}
PUBLISHED = {
    f"sgpipe adapter card {GRAPH} --metrics metrics/evaluation.json --out outputs/published/graph": "outputs/published/graph",
    f"sgpipe adapter convert {GRAPH} --out outputs/graph_kohya.safetensors": "outputs/graph_kohya.safetensors",
}
RUN = (*SAMPLED, *MAPPED, *PUBLISHED)


def embedded(target: Path) -> Path:
    """A repository with parameters, figures and the embedded checkpoints."""
    model = ROOT / "models/mini-flux"
    if not model.is_dir():
        pytest.skip(f"{model} is absent: `dvc pull models.dvc` gets it")
    root = project(target, "params.yaml", "metrics")
    (root / "models").symlink_to(ROOT / "models")
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With an adapter whose training is that of the committed figures."""
    from tests.test_examples import write_adapter

    made = embedded(tmp_path_factory.mktemp("models") / "project")
    write_adapter(made / GRAPH, made / "params.yaml")
    about = json.loads((made / GRAPH / "adapter.json").read_text(encoding="utf-8"))
    about["config"] = json.loads((made / "metrics/lora/graph.json").read_text(encoding="utf-8"))["config"]
    (made / GRAPH / "adapter.json").write_text(json.dumps(about), encoding="utf-8")
    return made


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def test_a_graph_is_drawn_and_is_the_image_of_the_python_block(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/diffusers.md says to the bit; docs/lora.md shows the same generator."""
    from sgpipe.arms.generation import GraphGenerator
    from sgpipe.graphs.scene_graph import SceneGraph
    from tests.documented import PYTHON

    images = []
    for command, out in SAMPLED.items():
        assert out in ran(command, root), command
        images.append(pixels(root / out))
    monkeypatch.chdir(root)
    names: dict[str, object] = {}
    exec(PYTHON["docs/diffusers.md:1"], names)
    images.append(np.asarray(names["image"]))
    given = {
        "prompts": ["a photo of dog and cat on a plain background"] * 2,
        "graphs": [SceneGraph.of("dog", "left of", "cat"), None],
        "seeds": [0, 0],
    }
    block = PYTHON["docs/lora.md:1"].replace("generator.sample(", "images = generator.sample(")
    names = {"GraphGenerator": GraphGenerator, "Path": Path, **given}
    exec(block, names)
    drawn, base = np.asarray(names["images"])
    assert all(np.array_equal(image, images[0]) for image in images), "one seed, one image"
    assert np.abs(drawn.astype(int) - images[0]).max() <= 1 and not np.array_equal(base, drawn)
    assert images[0].shape == (64, 64, 3) and images[0].std() > 5


def test_maps_lie_over_an_image_and_beside_it_as_numbers(root: Path) -> None:
    for command, out in MAPPED.items():
        assert f"{out}\n{out.replace('.png', '.npz')}\n" in ran(command, root), command
        found = np.load((root / out).with_suffix(".npz"))
        assert found["image"].shape == (64, 64, 3) and ",".join(found["concepts"]) in command
        assert np.isfinite(found["saliency_late"]).all()
        assert pixels(root / out).std() > 5


def test_an_adapter_is_published_with_figures_and_converted(root: Path) -> None:
    for command, out in PUBLISHED.items():
        assert out in ran(command, root), command
    card = (root / "outputs/published/graph/README.md").read_text(encoding="utf-8")
    assert "graph, neutral prompt, g⁺" in card and "0.972" in card
    assert (root / "outputs/graph_kohya.safetensors").stat().st_size > 100_000
