"""Equal meanings are equal once resolved; arms differ in what they are meant to."""

import json

import pytest
from msgspec.structs import replace

from sgpipe.arms.resolve import Arm, random_blocks, resolve
from sgpipe.attention_maps.config import Maps
from sgpipe.backbones.config import Backbone
from sgpipe.errors import ParamsError
from sgpipe.graph_encoder.config import GraphTokens
from sgpipe.params.blocks import Blocks
from sgpipe.params.load import decode
from sgpipe.training.config import Lora, Losses, Margin, Preference, Ranking, Times, Weighted

BACKBONE = Backbone("m", 19, 38, 256, 128)
LORA = Lora(Blocks.parse("7..12"))
MAPS = Maps({"early": Blocks.parse("0..6"), "middle": Blocks.parse("7..12")}, batch_size=3)


def plain(lora: Lora, name: str = "graph", maps: Maps = MAPS) -> str:
    return json.dumps(resolve(name, lora, GraphTokens(), BACKBONE, maps).plain(), sort_keys=True)


@pytest.mark.parametrize(
    "same",
    [
        replace(LORA, blocks=Blocks.parse(["7..12"])),
        replace(LORA, blocks=Blocks.parse([7, 8, "9..12"])),
        replace(LORA, targets=("to_out.0", "to_v", "to_k", "to_q")),
        replace(LORA, losses=Losses(preference=Preference(beta=7.0), ranking=Ranking(margin=3.0))),
        replace(LORA, times=Times(mean=3.0)),
        replace(LORA, arms=("graph", "random_blocks")),
    ],
)
def test_another_spelling_of_a_meaning_is_the_same(same: Lora) -> None:
    assert plain(same) == plain(LORA)


@pytest.mark.parametrize(
    "other",
    [
        replace(LORA, blocks=Blocks.parse("7..11")),
        replace(LORA, losses=Losses(margin=Margin(margin=0.2))),
        replace(LORA, seed=1),
    ],
)
def test_another_meaning_is_another(other: Lora) -> None:
    assert plain(other) != plain(LORA)


def test_all_blocks_by_name_or_by_number() -> None:
    named, counted = (replace(LORA, blocks=Blocks.parse(blocks)) for blocks in ("all", "0..18"))
    assert plain(named) == plain(counted)


def test_rank_means_nothing_without_blocks() -> None:
    none = replace(LORA, blocks=Blocks(()))
    assert plain(none) == plain(replace(none, rank=4, targets=("to_q",)))
    assert plain(LORA, "projector_only").replace("projector_only", "graph") == plain(none)


def test_only_losses_on_maps_read_maps() -> None:
    other = replace(MAPS, normalisation="none")
    assert plain(LORA, maps=other) == plain(LORA)
    reading = replace(LORA, losses=Losses(saliency=Weighted(weight=0.1)))
    assert plain(reading, maps=other) != plain(reading)
    assert plain(reading, maps=replace(MAPS, batch_size=9)) == plain(reading)
    with pytest.raises(ParamsError, match=r"group .late. is not in maps\.groups; valid: early, middle"):
        plain(replace(LORA, losses=Losses(saliency=Weighted(weight=0.1, group="late"))))


def test_random_blocks_are_as_many_and_others() -> None:
    for seed in range(20):
        drawn = random_blocks(tuple(range(18)), 19, seed, "lora.blocks")
        assert len(set(drawn)) == 18 and drawn != tuple(range(18)) and max(drawn) < 19
    assert random_blocks((), 38, 0, "lora.single_blocks") == ()
    with pytest.raises(ParamsError, match="all 19 blocks"):
        random_blocks(tuple(range(19)), 19, 0, "lora.blocks")


def test_an_arm_may_name_a_training_seed_of_its_own() -> None:
    """The same meaning but for the seed, and, of random blocks, the draw."""
    lora = replace(LORA, arms=("graph", "graph-seed3", "random_blocks", "random_blocks-seed3"))
    own, other, drawn, again = (resolve(name, lora, GraphTokens(), BACKBONE) for name in lora.arms)
    assert (own.lora.seed, other.lora.seed) == (LORA.seed, 3) and other.name == "graph-seed3"
    assert replace(own.lora, arms=(), seed=3) == replace(other.lora, arms=())
    assert again.lora.seed == 3 and len(again.lora.blocks.indices) == len(drawn.lora.blocks.indices)


def test_words_alone_need_blocks() -> None:
    arm = resolve("text_only", LORA, GraphTokens(), BACKBONE)
    assert arm.graph_tokens is None and arm.lora.conditions.shares() == {"relational": 1.0}
    with pytest.raises(ParamsError, match=r"lora\.blocks is none"):
        resolve("text_only", replace(LORA, blocks=Blocks(())), GraphTokens(), BACKBONE)


def test_an_arm_comes_back_from_json() -> None:
    reading = replace(LORA, losses=Losses(saliency=Weighted(weight=0.1)))
    for name, lora in (("graph", reading), ("text_only", LORA)):
        arm = resolve(name, lora, GraphTokens(), BACKBONE, MAPS)
        again = Arm.read(json.loads(json.dumps(arm.plain())), "x")
        assert (
            again.plain() == arm.plain() and resolve(name, again.lora, GraphTokens(), BACKBONE, MAPS) == arm
        )


@pytest.mark.parametrize(
    "raw, message",
    [
        ({"arms": ["graph", "graph"]}, r"lora\.arms: got .*; name each once"),
        ({"arms": ["graph-2"]}, r"lora.*arms: got 'graph-2'; valid: graph, .* as graph-seed1"),
        ({"keep_epochs": [21]}, r"lora\.keep_epochs: got 21; valid: 1\.\.20"),
        ({"times": {"low": 0.9, "high": 0.8}}, r"lora\.times\.low: got low 0\.9, high 0\.8"),
        ({"losses": {"ranking": {"weight": 1}}}, r"lora\.losses\.ranking\.probe: got null; name the folder"),
        ({"compile": True, "losses": {"saliency": {"weight": 1}}}, r"lora\.compile: got true; saliency maps"),
        ({"losses": {"flow": 0, "margin": {"weight": 0}}}, r"every weight is 0"),
        ({"targets": ["to_x"]}, r"lora\.targets.*valid: to_q"),
    ],
)
def test_a_knob_that_makes_no_sense_is_refused_by_name(raw: dict, message: str) -> None:
    with pytest.raises(ParamsError, match=message):
        decode("lora", {"blocks": "7..12", **raw}, Lora, "params.yaml")
