"""Any graph of the vocabulary's names is sampled; what is cut is said, what is not SGDiff's is refused."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sgpipe.cli import app
from sgpipe.errors import DataError, ModelError, ParamsError
from sgpipe.graphs.scene_graph import SceneGraph
from sgpipe.sgdiff.model import SgDiff
from tests.sgdiff.small import OBJECTS, small
from tests.sgdiff.test_published import lightning, official_state, write


@pytest.fixture(scope="module")
def model() -> SgDiff:
    return small(resolution=32)


def chain(objects: int, triples: int) -> SceneGraph:
    ends = [(n % objects, (n + 1 + n // objects) % objects) for n in range(triples)]
    return SceneGraph(OBJECTS[:objects], tuple((s, "on", o) for s, o in ends))


def test_an_image_depends_on_its_graph_and_seed_alone(model: SgDiff) -> None:
    graphs = [chain(3, 2), chain(5, 4), SceneGraph(), chain(2, 1)]
    together = model.latents(graphs, [1, 2, 3, 4], 2, 1.0)
    alone = model.latents(graphs[1:2], [2], 2, 1.0)
    assert abs(together[1] - alone[0]).max() < 1e-3
    other = model.latents(graphs[1:2], [9], 2, 1.0)
    assert abs(other - alone).max() > 0.1


def test_the_first_fifteen_triples_have_a_token_and_the_others_are_said(model: SgDiff) -> None:
    whole, head = chain(10, 18), chain(10, 15)
    encoded = model.encode([whole, head])
    assert encoded.dropped.tolist() == [3, 0] and encoded.local.shape[1] == 15
    assert model.cut([head]) == []
    (said,) = model.cut([whole, whole])
    assert "18 triples; the first 15 have a local token each, the others reach the U-Net by the graph's one vector" in said
    model.encode([chain(30, 29)])
    with pytest.raises(DataError, match="31 objects; SGDiff takes 30 at most"):
        model.encode([chain(31, 2)])


def test_names_and_steps_of_others_are_refused(model: SgDiff) -> None:
    with pytest.raises(DataError, match="object 'zebra' is not in the encoder's vocabulary"):
        model.encode([SceneGraph.of("dog", "on", "zebra")])
    with pytest.raises(ParamsError, match="steps: got 7; DDIM takes a divisor of 1000: 1, 2, 4, 5"):
        model.sample([chain(2, 1)], [0], steps=7)
    with pytest.raises(ParamsError, match="got 1 graphs and 2 seeds"):
        model.sample([chain(2, 1)], [0, 1], steps=1)


def test_commands_import_and_sample(model: SgDiff, tmp_path: Path) -> None:
    checkpoint, vocabulary = write(tmp_path, lightning(official_state(model)))
    out, image = tmp_path / "model", tmp_path / "image.png"
    runner = CliRunner()
    done = runner.invoke(app, ["sgdiff", "import", str(checkpoint), "--vocabulary", str(vocabulary), "--out", str(out)])
    assert done.exit_code == 0 and "SGDiff of 43 object names and 3 predicates" in done.output, done.output
    (out / "sgdiff.json").write_text(json.dumps({**json.loads((out / "sgdiff.json").read_text()), "resolution": 32}))
    (tmp_path / "graph.json").write_text(
        json.dumps({"objects": OBJECTS[:10], "triples": [list(each) for each in chain(10, 16).triples]})
    )
    common = ["sgdiff", "sample", "--model", str(out), "--out", str(image), "--steps", "2", "--device", "cpu"]
    done = runner.invoke(app, [*common, "--graph", str(tmp_path / "graph.json"), "--count", "2", "--seed", "5"])
    assert done.exit_code == 0, done.output
    assert "16 triples; the first 15" in done.stderr
    assert done.stdout.splitlines() == [str(tmp_path / f"image-{seed}.png") for seed in (5, 6)]
    done = runner.invoke(app, [*common, "--graph", "dog, near, cat"])
    assert done.exit_code == 0 and image.is_file(), done.output
    done = runner.invoke(app, [*common, "--graph", "dog, riding, cat"])
    assert isinstance(done.exception, DataError) and "'riding' is not in the predicate table" in str(done.exception)


def test_damaged_folders_are_refused(model: SgDiff, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"sgdiff\.json: no such file; `sgpipe sgdiff import`"):
        SgDiff.load(tmp_path)
    model.save(tmp_path / "m")
    config = tmp_path / "m/unet/config.json"
    config.write_text(config.read_text().replace('"norm_eps": 1e-05', '"norm_eps": 0.5'))
    with pytest.raises(ModelError, match=r"norm_eps: not SGDiff's U-Net of the sizes in sgdiff\.json"):
        SgDiff.load(tmp_path / "m")
    model.save(tmp_path / "m")
    (tmp_path / "m/local.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match=r"local\.safetensors: not a readable safetensors file"):
        SgDiff.load(tmp_path / "m")
