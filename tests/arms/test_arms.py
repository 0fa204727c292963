"""Equal meanings are equal once resolved; arms differ in what they are meant to."""

import json
from typing import Any

import pytest
from msgspec.structs import replace

from sgpipe.arms.config import Arms, Lora
from sgpipe.arms.kinds.base import Sections
from sgpipe.arms.lora import random_blocks
from sgpipe.arms.resolve import Arm, resolve
from sgpipe.attention_maps.config import Maps
from sgpipe.backbones.config import Backbone
from sgpipe.errors import ParamsError
from sgpipe.graph_encoder.config import GraphTokens
from sgpipe.params.blocks import Blocks, LayerGroup
from sgpipe.params.load import decode
from sgpipe.training.config import Conditions, Losses, Margin, Preference, Ranking, Times, Train, Weighted

BACKBONE = Backbone("m", 19, 38, 256, 128)
LORA, TRAIN = Lora(Blocks.parse("7..12")), Train()
MAPS = Maps({"early": LayerGroup.parse("0..6"), "middle": LayerGroup.parse({"single_blocks": "7..12"})}, batch_size=3)


def resolved(lora: Lora = LORA, train: Train = TRAIN, maps: Maps = MAPS, **options: Any) -> Arm:
    """An arm of kind `graph_lora`, unless the options say otherwise."""
    own = Arms.decode("arms", {"own": {"kind": "graph_lora", **options}}, "tests")["own"]
    return resolve("own", own, Sections(lora, train, GraphTokens(), BACKBONE, maps))


def plain(lora: Lora = LORA, train: Train = TRAIN, maps: Maps = MAPS, **options: Any) -> str:
    return json.dumps(resolved(lora, train, maps, **options).plain(), sort_keys=True)


@pytest.mark.parametrize(
    "same",
    [
        {"lora": replace(LORA, blocks=Blocks.parse(["7..12"]))},
        {"lora": replace(LORA, blocks=Blocks.parse([7, 8, "9..12"]))},
        {"lora": replace(LORA, targets=("to_out.0", "to_v", "to_k", "to_q"))},
        {"train": replace(TRAIN, losses=Losses(preference=Preference(beta=7.0), ranking=Ranking(margin=3.0)))},
        {"train": replace(TRAIN, times=Times(mean=3.0))},
        {"lora": replace(LORA, blocks=Blocks.parse("0..6"), rank=4), "blocks": "7..12", "rank": 16},
        {"train": replace(TRAIN, seed=4), "seed": 0},
        {"targets": ["to_v", "to_out.0", "to_k", "to_q"]},
    ],
)
def test_another_spelling_of_a_meaning_is_the_same(same: dict[str, Any]) -> None:
    assert plain(**same) == plain()


@pytest.mark.parametrize(
    "other",
    [
        {"lora": replace(LORA, blocks=Blocks.parse("7..11"))},
        {"train": replace(TRAIN, losses=Losses(margin=Margin(margin=0.2)))},
        {"train": replace(TRAIN, seed=1)},
        {"blocks": "0..6"},
        {"single_blocks": [3]},
        {"seed": 1},
        {"alpha": 8},
        {"dropout": 0.1},
        {"kind": "text_lora"},
        {"kind": "graph_tokens"},
    ],
)
def test_another_meaning_is_another(other: dict[str, Any]) -> None:
    assert plain(**other) != plain()


def test_all_blocks_by_name_or_by_number() -> None:
    assert plain(blocks="all") == plain(blocks="0..18") != plain()


def test_rank_means_nothing_without_blocks() -> None:
    none = replace(LORA, blocks=Blocks(()))
    assert plain(none) == plain(replace(none, rank=4, targets=("to_q",))) == plain(blocks="none", rank=4)
    assert plain(LORA, kind="graph_tokens") == plain(replace(LORA, rank=4), kind="graph_tokens")


def test_only_losses_on_maps_read_maps() -> None:
    other, official = replace(MAPS, normalisation="none"), replace(MAPS, variant="official_sd3")
    assert plain(maps=other) == plain()
    reading = replace(TRAIN, losses=Losses(saliency=Weighted(weight=0.1)))
    assert len({plain(train=reading, maps=maps) for maps in (MAPS, other, official)}) == 3
    assert plain(train=reading, maps=replace(MAPS, batch_size=9)) == plain(train=reading)
    with pytest.raises(ParamsError, match=r"group .late. is not in maps\.groups; valid: early, middle"):
        plain(train=replace(TRAIN, losses=Losses(saliency=Weighted(weight=0.1, group="late"))))


def test_random_blocks_are_as_many_and_others() -> None:
    for seed in range(20):
        drawn = random_blocks(tuple(range(18)), 19, seed, "lora.blocks", "arms.a.blocks")
        assert len(set(drawn)) == 18 and drawn != tuple(range(18)) and max(drawn) < 19
    assert random_blocks((), 38, 0, "lora.single_blocks", "arms.a.single_blocks") == ()
    with pytest.raises(ParamsError, match=r"arms\.own\.blocks: got random; lora\.blocks names all 19 blocks"):
        resolved(replace(LORA, blocks=Blocks.parse("all")), blocks="random")


def test_an_arm_may_have_blocks_and_a_training_seed_of_its_own() -> None:
    """The same meaning but for these; random blocks depend on the seed."""
    other, drawn, again = (resolved(**each) for each in ({"seed": 3}, {"blocks": "random"}, {"blocks": "random", "seed": 3}))
    assert other.train == replace(resolved().train, seed=3) and other.settings == resolved().settings
    sets = [arm.settings.lora.blocks.indices for arm in (drawn, again)]  # type: ignore[attr-defined]
    assert len(sets[0]) == len(sets[1]) == 6 and sets[0] != sets[1]
    assert all(arm.settings.lora.single_blocks == Blocks(()) for arm in (drawn, again))  # type: ignore[attr-defined]
    with pytest.raises(ParamsError, match=r"^arms\.own\.blocks: block 19, 20 is out of range"):
        resolved(blocks="18..20")
    with pytest.raises(ParamsError, match=r"^lora\.blocks: block 19 is out of range"):
        resolved(replace(LORA, blocks=Blocks.parse("19")))


def test_words_alone_need_blocks() -> None:
    recipe = replace(TRAIN, conditions=Conditions(neutral=0.5, wrong=0.5))
    arm = resolved(train=recipe, kind="text_lora")
    assert arm.train.conditions.shares() == {"relational": 1.0}
    with pytest.raises(ParamsError, match=r"^arms\.own: .*lora\.blocks is none"):
        resolved(replace(LORA, blocks=Blocks(())), kind="text_lora")


@pytest.mark.parametrize("kind", ["graph_lora", "text_lora", "graph_tokens"])
def test_an_arm_comes_back_from_json(kind: str) -> None:
    reading = replace(TRAIN, losses=Losses(saliency=Weighted(weight=0.1)))
    arm = resolved(train=reading, kind=kind)
    assert Arm.read(json.loads(json.dumps(arm.plain())), "x") == arm


@pytest.mark.parametrize(
    "raw, message",
    [
        ({}, r"params.yaml: arms: got \{\}; name at least one arm"),
        ([], r"arms: got \[\]; name at least one arm"),
        ({"a b": {"kind": "graph_lora"}}, r"arms: got the name 'a b'; valid are letters, digits, _ and -"),
        ({"base": {"kind": "graph_lora"}}, r"arms: got the name 'base'.*the model without an adapter"),
        ({1: {"kind": "graph_lora"}}, r"arms: got the name 1"),
        ({"a": "graph_lora"}, r"arms\.a: got 'graph_lora'; write \{kind: graph_lora\}"),
        ({"a": {"blocks": 1}}, r"arms\.a\.kind: got None; valid: graph_lora, text_lora, graph_tokens"),
        ({"a": {"kind": "lora"}}, r"arms\.a\.kind: got 'lora'; valid: graph_lora"),
        ({"a": {"kind": "graph_lora", "blokcs": 1}}, r"arms\.a\.blokcs: unknown key; did you mean 'blocks'"),
        ({"a": {"kind": "graph_tokens", "rank": 4}}, r"arms\.a\.rank: unknown key; valid: kind, learning_rate, seed, triples"),
        ({"a": {"kind": "graph_lora", "rank": 0}}, r"arms\.a\.rank: got 0"),
        ({"a": {"kind": "graph_lora", "blocks": "9..3"}}, r"arms\.a\.blocks: got '9..3': .*write 3..9"),
        ({"a": {"kind": "graph_lora", "blocks": "rnd"}}, r"arms\.a\.blocks: got 'rnd': .*`none`, or `random`"),
        ({"a": {"kind": "graph_lora", "targets": ["to_q", "to_q"]}}, r"arms\.a\.targets: got .*; name each once"),
    ],
)  # fmt: skip
def test_an_arm_that_makes_no_sense_is_refused_by_name(raw: Any, message: str) -> None:
    with pytest.raises(ParamsError, match=message) as caught:
        decode("arms", raw, Arms, "params.yaml")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "raw, message",
    [
        ({"keep_epochs": [21]}, r"train\.keep_epochs: got 21; valid: 1\.\.20"),
        ({"keep_epochs": [2, 2]}, r"train\.keep_epochs: got .*; name each once"),
        ({"times": {"low": 0.9, "high": 0.8}}, r"train\.times\.low: got low 0\.9, high 0\.8"),
        ({"losses": {"ranking": {"weight": 1}}}, r"train\.losses\.ranking\.probe: got null; name the folder"),
        ({"compile": True, "losses": {"saliency": {"weight": 1}}}, r"train\.compile: got true; saliency maps"),
        ({"losses": {"flow": 0, "margin": {"weight": 0}}}, r"every weight is 0"),
    ],
)
def test_a_knob_that_makes_no_sense_is_refused_by_name(raw: dict, message: str) -> None:
    with pytest.raises(ParamsError, match=message):
        decode("train", raw, Train, "params.yaml")


def test_lora_names_its_targets() -> None:
    for targets, message in ((["to_x"], r"lora\.targets.*valid: to_q"), (["to_q", "to_q"], r"name each once")):
        with pytest.raises(ParamsError, match=message):
            decode("lora", {"blocks": "7..12", "targets": targets}, Lora, "params.yaml")


@pytest.mark.parametrize("found", ["float32", "bfloat16"])
def test_precision_auto_is_what_this_machine_is_faster_in(monkeypatch: pytest.MonkeyPatch, found: str) -> None:
    """Named or measured, one meaning has one spelling; a choice stands in the resolved file, which a resumed training reads."""
    monkeypatch.setattr("sgpipe.optim.precision.choose", lambda device: found)
    measured = plain(train=replace(TRAIN, precision="auto"))
    assert measured == plain(train=replace(TRAIN, precision=found)) and json.loads(measured)["train"]["precision"] == found
