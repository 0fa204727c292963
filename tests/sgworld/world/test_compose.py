"""A scene is a function of a caption and u, whose slots are inverse distribution functions; every class can be drawn."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from sgpipe.errors import DataError
from sgpipe.graphs.prompts import words
from sgpipe.graphs.scene_graph import SceneGraph
from sgpipe.relations.predicates import PREDICATES
from sgworld.world.captions import class_shares, known_by_names, sample_caption, sample_of_class
from sgworld.world.classes import MARKED, UNMARKED, open_triples, plausible, straight
from sgworld.world.compose import compose
from sgworld.world.held_out import held_out, held_out_combination, held_out_triple
from sgworld.world.raster import render
from sgworld.world.reading import expected_marks, same, unmarked_triple
from sgworld.world.specification import ANCHOR_X, BACKGROUND, CLASS, SLOTS, SUBJECT, Caption, Scene
from sgworld.world.sprites import GRID, NAMES

HALF = np.full(SLOTS, 0.5)


def at(slot: int, value: float) -> np.ndarray:
    u = HALF.copy()
    u[slot] = value
    return u


def shown(scene: Scene) -> bool:
    """Whether boxes and marks alone say every triple of a scene, by the table."""
    for s, p, o in scene.relations:
        subject, object_ = scene.objects[s], scene.objects[o]
        if straight(subject.name, p, object_.name)[1] in UNMARKED:
            read = unmarked_triple((subject.name, subject.box), (object_.name, object_.box))
            if read is None:
                return False
            names = (subject.name, object_.name) if read[0] else (object_.name, subject.name)
            if not same((names[0], read[1], names[1]), (subject.name, p, object_.name)):
                return False
        else:
            offset = object_.x - subject.x, object_.y - subject.y
            wanted = [
                replace(m, x=m.x + subject.x, y=m.y + subject.y) for _, m in expected_marks(subject.name, p, object_.name, *offset)
            ]
            if not set(wanted) & set(scene.marks):
                return False
    return True


def test_every_triple_of_the_table_is_drawn_as_the_table_reads_it() -> None:
    rng = np.random.default_rng(0)
    triples = [(s, p, o) for p in PREDICATES for s in NAMES for o in NAMES if plausible(s, p, o)]
    assert len({p for _, p, _ in triples}) == 24
    for index in rng.choice(len(triples), 900, replace=False):
        s, p, o = triples[index]
        scene = compose(Caption((s, o), ((s, p, o),)), rng.random(SLOTS))
        assert same(scene.triples[0], (s, p, o)) or same(scene.triples[0], (o, p, s))
        assert shown(scene), (s, p, o)
        rects = [*(each.box for each in scene.objects), *((m.x, m.y, m.w, m.h) for m in scene.marks)]
        assert all(x >= 0 and y >= 0 and x + w <= GRID and y + h <= GRID for x, y, w, h in rects)


def test_scenes_of_several_objects_show_all_that_their_captions_say() -> None:
    rng, counts = np.random.default_rng(1), Counter()
    for _ in range(120):
        caption = sample_caption(rng)
        scene = compose(caption, rng.random(SLOTS))
        assert tuple(each.name for each in scene.objects) == caption.names and shown(scene)
        for a, p, b in caption.relations:
            assert any(same(each, (a, p, b)) or same(each, (b, p, a)) for each in scene.triples)
        assert len(scene.relations) == len(caption.relations) or not caption.relations
        counts[len(scene.objects), min(3, len(scene.relations))] += 1
    assert {(2, 1), (3, 2), (4, 3)} <= set(counts)


def test_a_scene_is_a_function_and_near_u_mean_near_scenes() -> None:
    rng, equal = np.random.default_rng(2), []
    for _ in range(60):
        caption, u = sample_caption(rng), rng.random(SLOTS)
        scene = compose(caption, u)
        assert scene == compose(caption, u)
        equal.append(scene == compose(caption, np.clip(u + 1e-4, 0, 1)))
    assert np.mean(equal) >= 0.95


def test_places_grow_with_their_slot_and_are_equally_frequent() -> None:
    caption = Caption(("cat", "clock"), (("cat", "around/near", "clock"),))
    lefts = [min(each.x for each in compose(caption, at(ANCHOR_X, value)).objects) for value in np.linspace(0.001, 0.999, 180)]
    assert lefts == sorted(lefts)
    counts = Counter(lefts).values()
    assert len(counts) == GRID - (4 + 1 + 3) + 1 and max(counts) - min(counts) <= 1


def test_choices_have_equal_shares() -> None:
    values = (np.arange(240) + 0.5) / 240
    backgrounds = Counter(compose(Caption(("cat", "dog")), at(BACKGROUND, value)).background for value in values)
    assert set(backgrounds.values()) == {60}
    caption = Caption(("cat", "dog"), (("cat", "looking at", "dog"),))
    assert Counter(compose(caption, at(SUBJECT, value)).triples[0][0] for value in values) == {"cat": 120, "dog": 120}
    classes = {p for p, s in open_triples("cat", "dog") if not held_out_triple((s, p, "dog" if s == "cat" else "cat"))}
    drawn = Counter(compose(Caption(("cat", "dog")), at(CLASS, value)).triples[0][1] for value in values)
    assert set(drawn) == classes and max(drawn.values()) <= 2.1 * 240 / len(classes)


def test_held_out_is_never_meant_by_neutral_captions_and_found_on_request() -> None:
    rng = np.random.default_rng(3)
    for _ in range(60):
        caption = sample_caption(rng, neutral=1.0)
        assert held_out(compose(caption, rng.random(SLOTS)).triples) is None
        assert held_out(sample_caption(rng, neutral=0.0).relations) is None
    assert held_out(sample_caption(rng, held="triple", neutral=0.0).relations) == "triple"
    for _ in range(12):
        found = sample_caption(rng, held="combination", neutral=0.0, objects=3).relations
        assert held_out(found) == "combination" and not any(map(held_out_triple, found))
    with pytest.raises(DataError, match="3 to 4"):
        sample_caption(rng, held="combination", objects=2)
    assert held_out_combination(found[0], found[1]) == held_out_combination(found[1][::-1], found[0])


def test_names_give_little_away() -> None:
    _, share, shares = class_shares()
    assert known_by_names() <= 0.18
    frequencies = share @ shares
    assert frequencies.max() <= 0.06 and frequencies.min() >= 0.02
    assert min(len({p for p, _ in open_triples(a, b)}) for a in NAMES for b in NAMES if a != b) >= 8


def test_words_leave_roles_open_and_are_those_of_the_pipeline() -> None:
    caption = Caption(("tree", "dog", "cat"), (("dog", "around/near", "cat"),))
    rng = np.random.default_rng(0)
    texts = Counter(caption.reordered(rng).text() for _ in range(400))
    graph = SceneGraph(("cat", "dog", "tree"), ((0, "around/near", 1),))
    turned = SceneGraph(("cat", "dog", "tree"), ((1, "around/near", 0),))
    assert set(texts) == {words(graph), words(turned)} and min(texts.values()) >= 150
    neutral = Counter(Caption(("tree", "dog")).reordered(rng).text() for _ in range(100))
    assert set(neutral) == {"a photo of dog and tree on a plain background", "a photo of tree and dog on a plain background"}


@pytest.mark.parametrize(
    "names, relations, said",
    [
        (("cat",), (), "2 to 4"),
        (("cat", "cat"), (), "2 to 4"),
        (("cat", "unicorn"), (), "not of this world"),
        (("cat", "dog"), (("cat", "beside", "dog"),), "known class"),
        (("clock", "tree"), (("clock", "eating", "tree"),), "not drawn"),
        (("cat", "dog"), (("cat", "left of", "dog"), ("dog", "above", "cat")), "one pair"),
    ],
)
def test_what_no_scene_can_show_is_said(names: tuple[str, ...], relations: tuple[tuple[str, str, str], ...], said: str) -> None:
    with pytest.raises(DataError, match=said):
        Caption(names, relations)


def test_a_vector_of_another_length_and_relations_that_do_not_fit_are_errors() -> None:
    with pytest.raises(DataError, match="31"):
        compose(Caption(("cat", "dog")), HALF[:5])
    pile = tuple(
        ("elephant", "above", name) if name > "elephant" else (name, "above", "elephant") for name in ("cow", "horse", "tree")
    )
    with pytest.raises(DataError, match="do not fit"):
        compose(Caption(("elephant", "cow", "horse", "tree"), pile), HALF)


def test_every_class_with_a_mark_has_two_layouts_or_places_and_shows_its_mark() -> None:
    rng = np.random.default_rng(4)
    for predicate in MARKED:
        scenes = [compose(sample_of_class(rng, predicate, 2), rng.random(SLOTS)) for _ in range(3)]
        for scene in scenes:
            bare = replace(scene, marks=())
            assert scene.marks[0].kind == predicate and np.abs(render(scene).astype(int) - render(bare)).max() > 60
