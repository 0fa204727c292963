"""What the world's CLIP judge is taught, and what is measured of the generator."""

from collections import Counter

import numpy as np

from sgpipe.relations.predicates import SYMMETRIC, relational_prompt
from sgworld.world.captions import sample_caption
from sgworld.world.compose import compose
from sgworld.world.measure import arrangements_shown
from sgworld.world.raster import render
from sgworld.world.reader import read
from sgworld.world.reading import same
from sgworld.world.specification import SLOTS, Caption
from sgworld.world.statements import false_of, of_captions, unseen


def test_what_is_false_of_a_scene_is_one_change_away_and_not_shown() -> None:
    rng, changes = np.random.default_rng(0), Counter[int]()
    for _ in range(200):
        scene = compose(sample_caption(rng, neutral=0.0), rng.random(SLOTS))
        for triple in scene.triples:
            made = false_of(rng, scene, triple)
            assert len(made) >= 2
            for each in made:
                assert not any(same(shown, each) for shown in scene.triples)
                swapped = each == triple[::-1]
                changes[sum(a != b for a, b in zip(each, triple, strict=True))] += 1
                assert swapped or sum(a != b for a, b in zip(each, triple, strict=True)) == 1
                assert not (swapped and triple[1] in SYMMETRIC)
    assert changes[1] > 500 and changes[2] > 200


def test_the_reader_agrees_with_what_is_said_of_a_batch() -> None:
    pool = [Caption(("cat", "dog"), (("cat", "left of", "dog"),)), Caption(("ball", "cat", "dog"))]
    shown = of_captions(pool)(np.random.default_rng(1), 12)
    assert shown.pictures.shape == (12, 64, 64, 3) and {i for i, _ in shown.false} == set(range(12))
    for number, reading in enumerate(read(shown.pictures)):
        triples = [(reading.objects[s].name, p, reading.objects[o].name) for s, p, o in reading.relations]
        said = {relational_prompt(*each) for each in triples} | {
            relational_prompt(*each)
            for a, p, b in triples
            for each in ((b, q, a) for q in ("left of", "right of", p))
            if same((a, p, b), each)
        }
        assert shown.true[number] in said
        assert not said & {text for i, text in shown.false if i == number}


def test_unseen_scenes_are_the_same_for_the_same_seed() -> None:
    one, other = unseen(3, 6), unseen(3, 6)
    assert (one.pictures == other.pictures).all() and one.true == other.true and one.false == other.false
    assert [i for i, _ in one.false] == list(range(6))


def test_arrangements_are_counted_to_the_cell() -> None:
    caption, rng = Caption(("cat", "dog"), (("cat", "left of", "dog"),)), np.random.default_rng(3)
    scenes = [compose(caption, rng.random(SLOTS)) for _ in range(3)]
    boxes = {tuple(each.box for each in scene.objects) for scene in scenes}
    assert len(boxes) == 3
    readings = read(np.stack([render(scene) for scene in (*scenes, *scenes[:2])]))
    assert arrangements_shown(readings, caption.names) == 2, "the third is shown once"
    assert arrangements_shown(readings, ("cat", "ball")) == 0
