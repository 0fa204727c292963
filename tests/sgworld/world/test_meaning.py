"""What noise means: values of channels, and scenes by them or near to what somebody tells."""

import numpy as np
import torch

from sgpipe.relations.predicates import INVERSE
from sgworld.world.captions import sample_caption
from sgworld.world.compose import compose
from sgworld.world.meaning import CHANNEL, CHANNELS, LEVELS, levels, meant, nearest, uniforms
from sgworld.world.specification import ACROSS, ANCHOR_X, ANCHOR_Y, DISTANCE, SLOTS, Caption, Scene
from sgworld.world.sprites import GRID
from sgworld.world.wishes import Stand
from tests.sgworld.world.small import POOL


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_what_noise_means_is_uniform_and_independent() -> None:
    noise = torch.randn(20_000, 64, 16, generator=_generator())
    said = levels(noise)
    u = uniforms(said)
    assert said.shape == (20_000, CHANNELS) and u.shape == (20_000, SLOTS) and u.min() > 0 and u.max() < 1
    assert np.abs(np.corrcoef(said.T) - np.eye(CHANNELS)).max() < 0.04
    for channel, count in enumerate(LEVELS):
        values, counts = np.unique(said[:, channel], return_counts=True)
        assert len(values) == count and np.abs(counts / len(u) - 1 / count).max() < 0.02
    assert set(CHANNEL) == set(range(SLOTS)) and set(CHANNEL.values()) == set(range(CHANNELS))
    assert all((u[:, slot] == said[:, channel]).all() for slot, channel in CHANNEL.items())


def test_a_noise_that_leans_the_other_way_exchanges_the_roles() -> None:
    noise = torch.randn(1, 64, 16, generator=_generator(3))
    u = uniforms(levels(noise))[0]
    other = u.copy()
    other[ACROSS] = 1 - u[ACROSS]
    first, second = (compose(POOL[0], each).triples[0] for each in (u, other))
    assert first == (second[2], second[1], second[0])


def test_a_neutral_caption_means_a_few_classes() -> None:
    said = levels(torch.randn(400, 64, 16, generator=_generator(11)))
    found = {}
    for pair in (("cat", "dog"), ("horse", "person")):
        scenes = [meant(Caption(pair), u) for u in uniforms(said)]
        by_value = {
            value: {scene.relations[0][1] for scene, each in zip(scenes, said, strict=True) if each[9] == value}
            for value in set(said[:, 9])
        }
        found[pair] = [by_value[value] for value in sorted(by_value)]
    assert found["cat", "dog"][:2] == found["horse", "person"][:2] == [{"left of"}, {"above"}]
    assert found["horse", "person"][2] == {"riding"} and all(len(several) == 1 for each in found.values() for several in each)


def test_what_is_meant_stands_in_corners_in_line_at_two_distances() -> None:
    caption = Caption(("cat", "dog"), (("cat", "left of", "dog"),))
    found = set()
    for u in uniforms(levels(torch.randn(200, 64, 16, generator=_generator(12)))):
        scene = meant(caption, u)
        boxes = [each.box for each in scene.objects]
        first, last = min(boxes), max(boxes)
        upper = u[ANCHOR_Y] < 0.5
        assert first[0] == 1 if u[ANCHOR_X] < 0.5 else last[0] + last[2] == GRID - 1
        assert min(y for _, y, _, _ in boxes) == 1 if upper else max(y + h for _, y, _, h in boxes) == GRID - 1
        assert first[1] + first[3] / 2 == last[1] + last[3] / 2 and (boxes[0][0] < boxes[1][0]) == (u[ACROSS] < 0.5)
        assert last[0] - first[0] - first[2] == (1 if u[DISTANCE] < 0.5 else 3)
        found.add(tuple(boxes))
    assert len(found) == 16, "two corners an axis, two sides, two distances"


def test_what_is_meant_is_what_the_caption_says() -> None:
    rng = np.random.default_rng(4)
    for _ in range(40):
        caption = sample_caption(rng, neutral=0.0)
        said = {(frozenset((a, b)), p) for a, p, b in caption.relations}
        shown = {(frozenset((a, b)), p) for a, p, b in meant(caption, rng.random(SLOTS)).triples}
        assert said <= {*shown, *((pair, INVERSE.get(p, p)) for pair, p in shown)} and len(shown) == len(said)


def _stands(scene: Scene, dx: float = 0.0, dy: float = 0.0) -> dict[str, Stand]:
    return {each.name: Stand(each.x + each.w / 2 + dx, each.y + each.h / 2 + dy) for each in scene.objects}


def test_told_with_an_error_a_scene_stays_what_it_is() -> None:
    rng = np.random.default_rng(8)
    for _ in range(60):
        caption, u = sample_caption(rng), rng.random(SLOTS)
        scene = nearest(caption, u, _stands(meant(caption, u), 0.7, -0.4))
        assert nearest(caption, u, _stands(scene, 0.2, -0.1)) == scene == nearest(caption, u, _stands(scene, -0.3, 0.3))


def test_u_decides_of_two_and_what_is_told_where_a_stranger_stands() -> None:
    caption = Caption(("cat", "dog", "ball"), (("cat", "left of", "dog"),))
    for upper in (0.1, 0.9):
        u = np.full(SLOTS, 0.25)
        u[ANCHOR_Y] = upper
        told = {"cat": Stand(8, 8), "dog": Stand(7, 8), "ball": Stand(12.5, 9.4)}
        cat, dog, ball = nearest(caption, u, told).objects
        assert (cat.x, cat.y) == (1, 1 if upper < 0.5 else GRID - 1 - cat.h) and dog.x == cat.x + cat.w + 1, "whatever is told"
        assert (ball.x, ball.y) == (GRID - 1 - ball.w, GRID - 1 - ball.h), "the free corner that is nearest"
    u[ACROSS] = 0.75
    assert nearest(caption, u, told).triples == (("dog", "left of", "cat"),)


def test_further_relations_of_neutral_captions_are_of_two_classes() -> None:
    said = levels(torch.randn(300, 64, 16, generator=_generator(11)))
    scenes = [meant(Caption(("cat", "dog", "bird")), u) for u in uniforms(said)]
    assert {scene.relations[1][1] for scene in scenes} <= {"left of", "above", "right of", "below"}
    assert len({scene.relations[0][1] for scene in scenes}) >= 4


def test_who_sits_above_looks_where_u_says() -> None:
    caption, u = Caption(("person", "horse"), (("person", "riding", "horse"),)), np.full(SLOTS, 0.25)
    for right in (True, False):
        u[ACROSS] = 0.25 if right else 0.75
        assert {each.facing for each in meant(caption, u).objects} == {"right" if right else "left"}
