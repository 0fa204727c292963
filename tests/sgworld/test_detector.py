"""The detector finds what is drawn, where it is drawn, and nothing where nothing is."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from sgpipe.relations.predicates import PREDICATES
from sgworld.detector import Detection, detect, detect_batch
from sgworld.measure import overlap
from sgworld.scenes import BACKGROUNDS, Scene, draw_triple, lone_scene, pair_scene, render

PER_CLASS = 6


def scenes() -> list[Scene]:
    rng = np.random.default_rng(11)
    return [pair_scene(rng, *draw_triple(rng, p)) for p in PREDICATES for _ in range(PER_CLASS)]


def right(scene: Scene, found: list[Detection]) -> bool:
    """Exactly the scene's objects, each with IoU ≥ 0.6."""
    by_name = {each.name: each for each in found}
    return len(found) == len(scene.objects) and all(
        o.name in by_name
        and overlap((by_name[o.name].x, by_name[o.name].y, by_name[o.name].w, by_name[o.name].h), (o.x, o.y, o.w, o.h)) >= 0.6
        for o in scene.objects
    )


def accuracy(drawn: list[Scene], pictures: NDArray[np.uint8]) -> float:
    return float(np.mean([right(s, found) for s, found in zip(drawn, detect_batch(pictures), strict=True)]))


def test_ground_truth_and_disturbed_pictures() -> None:
    drawn = scenes()
    pictures = np.stack([render(scene) for scene in drawn])
    assert accuracy(drawn, pictures) >= 0.98
    noise = np.random.default_rng(0).normal(0, 8, pictures.shape)
    disturbed = (pictures + noise + np.array([6, -6, 4])).clip(0, 255).astype(np.uint8)
    assert accuracy(drawn, disturbed) >= 0.95


def test_abstains_where_nothing_is_drawn() -> None:
    for colour in BACKGROUNDS:
        assert detect(np.full((64, 64, 3), colour, np.uint8)) == []
    noise = np.random.default_rng(0).integers(0, 256, (6, 64, 64, 3)).astype(np.uint8)
    assert detect_batch(noise) == [[]] * 6


def test_lone_objects_and_wide_pictures() -> None:
    rng = np.random.default_rng(2)
    for name in ("dog", "bus", "apple", "sheep"):
        scene = lone_scene(rng, name)
        assert right(scene, detect(render(scene)))
    wide = np.concatenate([render(lone_scene(np.random.default_rng(3), n)) for n in ("horse", "table")], axis=1)
    assert {each.name for each in detect(wide)} == {"horse", "table"}


def test_a_place_is_exact_to_the_pixel() -> None:
    """Also between the even places of the coarse pass, and at the edges."""
    for name in ("dog", "bus", "apple", "sheep"):
        scene = lone_scene(np.random.default_rng(5), name)
        (alone,) = scene.objects
        right_most, lowest = scene.width - alone.w, scene.height - alone.h
        for x, y in [(x, y) for x in (0, 7, 10, right_most) for y in (0, 8, 11, lowest)]:
            (found,) = detect(render(replace(scene, objects=(replace(alone, x=x, y=y),))))
            assert (found.name, found.x, found.y, found.w, found.h) == (name, x, y, alone.w, alone.h)


def test_a_batch_is_its_pictures_one_by_one() -> None:
    pictures = np.stack([render(scene) for scene in scenes()[:6]])
    assert detect_batch(pictures) == [detect(picture) for picture in pictures]
