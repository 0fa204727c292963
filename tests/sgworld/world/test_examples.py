"""What is taught of scenes, and read off again."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sgpipe.relations.predicates import PREDICATES
from sgworld.language import t5_tokenizer
from sgworld.world.compose import compose
from sgworld.world.examples import caption_pool, cells, lessons, told_stands
from sgworld.world.hearing import named
from sgworld.world.recipe import TOKENS
from sgworld.world.specification import SLOTS, Caption
from sgworld.world.told import agreement
from tests.sgworld.world.small import POOL


def test_places_are_those_of_the_named_objects() -> None:
    scenes = [compose(caption, u) for caption, u in zip(POOL, np.random.default_rng(1).random((2, SLOTS)), strict=True)]
    names = named(t5_tokenizer(TOKENS, ","), POOL)
    known = lessons(names, scenes)
    assert known.features["place"].shape == (5, 18) and known.rows is names.rows
    for index, placed in enumerate(placed for scene in scenes for placed in scene.objects):
        angle = torch.atan2(known.features["place"][index, 8], known.features["place"][index, 0]).item() % (2 * np.pi)
        assert angle == pytest.approx(((placed.y + placed.h / 2) / 2) % (2 * np.pi), abs=1e-5), "radians per token, downwards"


def test_links_and_frames_are_those_of_related_objects() -> None:
    caption = Caption(("cat", "dog", "ball", "cup"), (("dog", "left of", "cat"), ("ball", "above", "cat")))
    scene = compose(caption, np.random.default_rng(4).random(SLOTS))
    known = lessons(named(t5_tokenizer(TOKENS, ","), [caption]), [scene])

    def lengths(step: str, number: int, object_: int) -> float:
        """The number-th length of an object, cells, read off its lowest frequency."""
        half = 8 if step == "link" else 16
        sine, cosine = (known.features[step][object_, start + 4 * number + 3] for start in (half, 0))
        return float(torch.atan2(sine, cosine)) / 0.1 * 2

    cat, dog, ball, cup = scene.objects
    middle = {each.name: (each.y + each.h / 2, each.x + each.w / 2) for each in scene.objects}
    for number, (own, partner) in enumerate([(cat, dog), (dog, cat), (ball, cat)]):
        for axis in (0, 1):
            away = middle[partner.name][axis] - middle[own.name][axis]
            assert lengths("link", axis, number) == pytest.approx(away, abs=1e-3)
    assert (known.features["link"][3] == 0).all(), "nothing relates to the cup"
    subject, predicate, _ = scene.triples[0]
    told = known.features["link"][:, 16:]
    assert told[:2, 0].tolist() == [1.0 if each.name == subject else -1.0 for each in (cat, dog)]
    assert told[:3, 1:].sum(1).tolist() == [1.0] * 3 and told[0, 1 + PREDICATES.index(predicate)] == 1
    top, left = (min(getattr(each, side) for each in (cat, dog, ball)) for side in "yx")
    bottom, right = max(e.y + e.h for e in (cat, dog, ball)), max(e.x + e.w for e in (cat, dog, ball))
    for number, placed in enumerate((cat, dog, ball)):
        y, x = middle[placed.name]
        found = [lengths("frame", each, number) for each in range(4)]
        assert found == pytest.approx([y - top, x - left, bottom - top, right - left], abs=1e-3)
    assert [lengths("frame", each, 3) for each in range(4)] == pytest.approx([cup.h / 2, cup.w / 2, cup.h, cup.w], abs=1e-3)


def test_captions_are_drawn_once(tmp_path: Path) -> None:
    pool = caption_pool(tmp_path, 5, 1)
    assert pool == caption_pool(tmp_path, 5, 1) and len(list(tmp_path.glob("*.json"))) == 1
    assert caption_pool(tmp_path, 3, 1) == pool[:3]


def test_stands_are_read_off_features_of_places() -> None:
    scenes = [compose(caption, u) for caption, u in zip(POOL, np.random.default_rng(2).random((2, SLOTS)), strict=True)]
    names = named(t5_tokenizer(TOKENS, ","), POOL)
    known = lessons(names, scenes)
    told = torch.full((2, TOKENS, 18), 9.0)
    told[known.samples, known.rows] = known.features["place"] + 0.05
    for scene, stands in zip(scenes, told_stands(told, names, POOL), strict=True):
        for each in scene.objects:
            stand = stands[each.name]
            assert abs(stand.x - each.x - each.w / 2) <= 0.25 and abs(stand.y - each.y - each.h / 2) <= 0.25


def test_what_is_told_is_counted_by_captions() -> None:
    scenes = [compose(caption, u) for caption, u in zip(POOL, np.random.default_rng(2).random((2, SLOTS)), strict=True)]
    known = lessons(named(t5_tokenizer(TOKENS, ","), POOL), scenes)
    middles = [(each.y + each.h / 2, each.x + each.w / 2) for scene in scenes for each in scene.objects]
    assert torch.allclose(cells(known.features["place"]), torch.tensor(middles))
    whole = agreement(known.features["place"], known, POOL)
    assert whole == {
        "2 objects, relations said: 1": {"captions": 1, "within_a_cell": 1.0, "within_a_quarter": 1.0, "error": 0.0},
        "3 objects, relations said: 0": {"captions": 1, "within_a_cell": 1.0, "within_a_quarter": 1.0, "error": 0.0},
    }
    ball, *others = scenes[1].objects
    for cells_off, within in ((2, (0, 0)), (0.5, (1, 0)), (0.25, (1, 1))):
        moved = replace(scenes[1], objects=(replace(ball, x=ball.x + cells_off), *others))
        other = lessons(named(t5_tokenizer(TOKENS, ","), POOL), [scenes[0], moved])
        found = agreement(other.features["place"], known, POOL)
        two, three = found["2 objects, relations said: 1"], found["3 objects, relations said: 0"]
        assert two["error"] == 0 < three["error"]
        assert (three["within_a_cell"], three["within_a_quarter"]) == within and two["within_a_quarter"] == 1
