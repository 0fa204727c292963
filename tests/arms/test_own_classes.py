"""An adapter knows the relation classes that it was trained with, in whatever process it is opened, and refuses others."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sgpipe.arms.adapter import load_adapter, read_about, save_adapter, use_classes_of
from sgpipe.arms.model import ArmModel
from sgpipe.backbones.base import TextCondition
from sgpipe.errors import DataError, ModelError
from sgpipe.graph_encoder.open_vocabulary import NameTable
from sgpipe.graphs.scene_graph import SceneGraph, parse_graph
from sgpipe.relations.predicates import INVERSE, PREDICATES, use_relations
from tests.training.world import World, tiny_train

OWN = """
jumping over: {inverse: jumped over by}
jumped over by: {inverse: jumping over}
near: {symmetric: true}
above: {inverse: below}
below: {inverse: above}
"""
OTHER_ORDER = "near: {symmetric: true}\njumping over: {}\nfar from: {}\n"


@pytest.fixture(autouse=True)
def built_in_classes() -> Iterator[None]:
    yield
    use_relations(None)


def classes(folder: Path, text: str) -> None:
    (folder / "relations.yaml").write_text(text)
    use_relations(folder / "relations.yaml")


def saved(world: World, folder: Path, text: str | None, name: str = "projector_only") -> ArmModel:
    """An adapter of the classes of `text`, in `folder`; built-in ones are in force afterwards."""
    folder.mkdir()
    if text is not None:
        classes(folder, text)
    model = world.model(tiny_train(), name=name)
    save_adapter(folder, model, world.arm(tiny_train(), name=name), world.backbone, {})
    use_relations(None)
    return model


def told(world: World, model: ArmModel, graph: SceneGraph) -> Tensor:
    """What the transformer reads of a graph beside a prompt of zeros."""
    width = model.denoiser.layout.text_width
    draw = torch.Generator().manual_seed(0)
    names = NameTable({name: torch.randn(width, generator=draw) for name in ("cat", "dog")})
    text = TextCondition(torch.zeros(1, 4, width))
    with torch.no_grad():
        return model.condition([graph], ["dog and cat"], text, names).states


def test_rows_belong_to_the_classes_of_training(world: World, tmp_path: Path) -> None:
    """Opened beside the built-in classes, beside its own, and beside others in another order: the same rows."""
    model, folder = saved(world, tmp_path / "own", OWN), tmp_path / "own"
    assert len(model.trainable()["tokens.tokenizer.table"]) == 5
    graph = SceneGraph.of("dog", "jumping over", "cat")
    wanted = told(world, model, graph)
    for beside in (None, OWN, OTHER_ORDER):
        use_relations(None) if beside is None else classes(tmp_path, beside)
        loaded = load_adapter(folder, world.denoiser(), world.backbone)
        assert tuple(loaded.classes) == ("jumping over", "jumped over by", "near", "above", "below")
        assert torch.equal(told(world, loaded, graph), wanted)
        assert not torch.equal(told(world, loaded, SceneGraph.of("dog", "near", "cat")), wanted)


@pytest.mark.parametrize("name", ["projector_only", "text_only"])
def test_a_class_that_an_adapter_does_not_know_is_refused(world: World, tmp_path: Path, name: str) -> None:
    saved(world, tmp_path / "own", OWN, name)
    loaded = load_adapter(tmp_path / "own", world.denoiser(), world.backbone)
    with pytest.raises(
        DataError, match=r"^predicate 'riding' is not in the relation classes of the adapter; valid: above, "
    ) as caught:
        told(world, loaded, SceneGraph.of("dog", "riding", "cat"))
    assert "\n" not in str(caught.value)
    told(world, loaded, SceneGraph())


def test_commands_take_the_classes_from_the_adapter(world: World, tmp_path: Path) -> None:
    """Without parameters the adapter's own list is in force: graphs are read and turned by it; own classes of parameters stay."""
    saved(world, tmp_path / "own", OWN)
    with pytest.raises(DataError, match="predicate 'jumping over' is not in the predicate table"):
        parse_graph("dog, jumping over, cat")
    about = read_about(tmp_path / "own")
    use_classes_of(about, tmp_path / "own")
    assert tuple(PREDICATES) == ("jumping over", "jumped over by", "near", "above", "below") and INVERSE["above"] == "below"
    assert parse_graph("dog, jumping over, cat").named == (("dog", "jumping over", "cat"),)
    classes(tmp_path, OTHER_ORDER)
    use_classes_of(about, tmp_path / "own")
    assert tuple(PREDICATES) == ("near", "jumping over", "far from")
    use_relations(None)
    saved(world, tmp_path / "built_in", None)
    use_classes_of(read_about(tmp_path / "built_in"), tmp_path / "built_in")
    assert len(PREDICATES) == 24
    about["relations"] = [{"name": "near", "inverse": "far from"}]
    with pytest.raises(DataError, match=r"adapter.json: near: 'far from' is no class"):
        use_classes_of(about, tmp_path / "own")
    about["relations"] = [{"phrase": 3}]
    with pytest.raises(DataError, match=r"adapter.json: `relations` is no list of relation classes"):
        use_classes_of(about, tmp_path / "own")


def test_other_words_for_a_class_are_refused(world: World, tmp_path: Path) -> None:
    saved(world, tmp_path / "own", OWN.replace("near: {", "near: {phrase: close to, "))
    with pytest.raises(ModelError, match=r"words 'close to' for the relation 'near', which are 'near' here; set data.relations"):
        load_adapter(tmp_path / "own", world.denoiser(), world.backbone)


def test_an_adapter_that_states_no_classes_has_those_in_force(world: World, tmp_path: Path) -> None:
    saved(world, tmp_path / "old", None)
    about = json.loads((tmp_path / "old/adapter.json").read_text())
    assert [each["name"] for each in about.pop("relations")] == list(PREDICATES)
    (tmp_path / "old/adapter.json").write_text(json.dumps(about))
    assert tuple(load_adapter(tmp_path / "old", world.denoiser(), world.backbone).classes) == tuple(PREDICATES)
