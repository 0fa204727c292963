"""What noise means: values of channels, and scenes by them or near to what somebody tells."""

import numpy as np
import torch
from numpy.typing import NDArray

from sgworld.world.captions import sample_caption
from sgworld.world.compose import compose
from sgworld.world.meaning import CHANNEL, CHANNELS, LEVELS, levels, meant, nearest, uniforms
from sgworld.world.specification import ACROSS, ANCHOR_Y, PLACE_X, PLACE_Y, SLOTS, Caption, Placed, Scene
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


def test_what_a_caption_says_is_meant_as_composed_and_strangers_stand_where_pointed() -> None:
    u = uniforms(levels(torch.randn(40, 64, 16, generator=_generator(12))))
    assert [meant(POOL[0], each) for each in u] == [compose(POOL[0], each) for each in u]
    caption = Caption(("cat", "dog", "ball"), (("cat", "left of", "dog"),))

    def away(ball: Placed, each: NDArray[np.float64]) -> int:
        wanted = int(each[PLACE_X] * (GRID - ball.w + 1)), int(each[PLACE_Y] * (GRID - ball.h + 1))
        return abs(ball.x - wanted[0]) + abs(ball.y - wanted[1])

    pointed, composed = (np.array([away(scene(caption, each).objects[2], each) for each in u]) for scene in (meant, compose))
    assert pointed.mean() < 0.6 * composed.mean() and (pointed == 0).sum() > 1.5 * (composed == 0).sum()


def _stands(scene: Scene, dx: float = 0.0, dy: float = 0.0) -> dict[str, Stand]:
    return {each.name: Stand(each.x + each.w / 2 + dx, each.y + each.h / 2 + dy, each.facing == "right") for each in scene.objects}


def test_a_scene_is_the_nearest_to_what_it_shows() -> None:
    rng, equal = np.random.default_rng(8), 0
    for _ in range(60):
        caption, u = sample_caption(rng), rng.random(SLOTS)
        scene = meant(caption, u)
        found = nearest(caption, u, _stands(scene, 0.2, -0.1))
        boxes = [[each.box for each in one.objects] for one in (found, scene)]
        equal += boxes[0] == boxes[1] and found.triples == scene.triples
    assert equal >= 54, "greedy: a few captions have a scene that is passed by"


def test_what_is_told_decides_places_and_u_the_roles() -> None:
    caption, u = POOL[0], np.full(SLOTS, 0.25)
    first = nearest(caption, u, {"cat": Stand(4, 4, True), "dog": Stand(11, 4.4, True)})
    assert [each.box[:2] for each in first.objects] == [(2, 3), (9, 3)] and first.triples == (("cat", "left of", "dog"),)
    over = nearest(caption, u, {"cat": Stand(8, 4, True), "dog": Stand(8, 12, True)})
    cat, dog = over.objects
    assert over.triples == (("cat", "left of", "dog"),) and cat.x + cat.w < dog.x, "a caption's class holds, whatever is told"
    u[ACROSS] = 0.75
    middle = {"cat": Stand(7.5, 8, True), "dog": Stand(8.5, 8, True)}
    assert nearest(caption, u, middle).triples == (("dog", "left of", "cat"),), "where neither is nearer, u decides"


def test_places_stay_where_u_points_but_for_strangers() -> None:
    caption = Caption(("cat", "dog", "ball"), (("cat", "left of", "dog"),))
    told = {"cat": Stand(4, 8, True), "dog": Stand(11, 8, True), "ball": Stand(11.5, 8.5, True)}
    corners = []
    for upper in (0.1, 0.9):
        u = np.full(SLOTS, 0.25)
        u[ANCHOR_Y] = upper
        cat, dog, ball = nearest(caption, u, told).objects
        corners.append(cat.y)
        assert dog.x + dog.w / 2 - cat.x - cat.w / 2 == 7, "what is told of two is kept"
        assert (ball.x, ball.y) == (10, 7), "what is told of a stranger, too"
    free = GRID - 3 + 1
    assert [abs(corner - int(upper * free)) for corner, upper in zip(corners, (0.1, 0.9), strict=True)] == [1, 1]


def test_further_relations_of_neutral_captions_are_of_two_classes() -> None:
    said = levels(torch.randn(300, 64, 16, generator=_generator(11)))
    scenes = [meant(Caption(("cat", "dog", "bird")), u) for u in uniforms(said)]
    assert {scene.relations[1][1] for scene in scenes} <= {"left of", "above", "right of", "below"}
    assert len({scene.relations[0][1] for scene in scenes}) >= 4


def test_who_faces_where_counts() -> None:
    caption, u = Caption(("person", "horse"), (("person", "riding", "horse"),)), np.full(SLOTS, 0.25)
    told = _stands(meant(caption, u))
    for right in (True, False):
        stands = {name: Stand(each.x, each.y, right) for name, each in told.items()}
        facings = {each.facing for each in nearest(caption, u, stands).objects}
        assert facings == {"right" if right else "left"}
