"""An arm that is trained on a few triples alone, and what it does to the graphs of others."""

import json
from pathlib import Path
from typing import Any

import pytest

from sgpipe.arms.config import Arms
from sgpipe.arms.groups import GROUPS, relation_group
from sgpipe.arms.kinds.base import Sections
from sgpipe.arms.resolve import Arm, resolve
from sgpipe.errors import DataError, ParamsError
from sgpipe.params.load import decode
from sgpipe.relations.predicates import INVERSE
from sgpipe.runs.checkpoints import checkpoints
from sgpipe.training.fit import fit
from sgpipe.training.groups import group_figures
from tests.training.world import ALONE, LORA, TOKENS, World, tiny_train


def arm_of(world: World, **options: Any) -> Arm:
    arms = decode("arms", {"mine": {"kind": "graph_lora", **options}}, Arms, "params.yaml")
    return resolve("mine", arms["mine"], Sections(LORA, tiny_train(epochs=1, keep_epochs=()), TOKENS, world.backbone))


def test_it_is_one_option_that_leaves_other_arms_as_they_were(world: World) -> None:
    arm = arm_of(world, triples=["b", "a", "b"])
    assert arm.triples == ("a", "b") and arm == arm_of(world, triples=["a", "b"])
    assert Arm.read(json.loads(json.dumps(arm.plain())), "x") == arm
    assert "triples" not in arm_of(world).plain()
    with pytest.raises(ParamsError, match=r"arms\.mine\.triples"):
        arm_of(world, triples=[])


def test_it_sees_its_triple_alone_for_as_many_steps_as_the_others(world: World, tmp_path: Path) -> None:
    data = world.data()
    own = data.train[3]
    with pytest.raises(DataError, match=rf"^arms: triples: {data.held_out[0].triple_id}: no train triple with latents"):
        fit(arm_of(world, triples=[data.held_out[0].triple_id]), world.denoiser(), world.backbone, data, tmp_path, ALONE, {})
    assert checkpoints(tmp_path) == []
    training = fit(arm_of(world, triples=[own.triple_id]), world.denoiser(), world.backbone, data, tmp_path, ALONE, {})
    assert training.steps == 5 and training.objective.data.train == (own,) * len(data.train)
    assert {each.triple_id for each in training.batch(2)[0].examples} == {own.triple_id}
    about = json.loads((tmp_path / "adapter/adapter.json").read_text())
    assert about["triples"] == [own.triple_id] and about["trained_on"]["predicates"] == [own.predicate]

    found = group_figures(training)
    groups = found["groups"]
    assert found["trained_predicates"] == [own.predicate] and groups["trained"]["triples"] == 1
    assert sum(groups[name]["triples"] for name in GROUPS if name in groups) == len(data.held_out)
    same = [each for each in data.held_out if each.predicate == own.predicate]
    assert same and groups["same_relation"]["triples"] == len(same)
    assert groups["trained"]["graph"] != groups["trained"]["base"] and 0 <= groups["same_relation"]["preferred"] <= 1


def test_a_class_is_the_same_the_inverse_or_another() -> None:
    assert relation_group("left of", ["left of", "right of"]) == relation_group("right of", ["left of", "right of"]) == GROUPS[0]
    assert relation_group("right of", ["left of"]) == GROUPS[1] and relation_group("above", ["left of"]) == GROUPS[2]
    assert {relation_group(name, [other]) for name, other in INVERSE.items()} == {GROUPS[1]}
    assert relation_group("riding", ["above"]) == GROUPS[2], "a class without an inverse"
