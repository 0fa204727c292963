"""Boxes proposed from a graph say what its triples say, and the layout image shows boxes and nothing else."""

from pathlib import Path

import numpy as np
import pytest

from sgpipe.graphs.layouts import colours, layout_image, proposed
from sgpipe.graphs.scene_graph import Box, SceneGraph
from sgpipe.relations.boxes import RULES, directions
from sgpipe.relations.predicates import INVERSE, PREDICATES, use_relations

LEFT: Box = (0.125, 0.25, 0.25, 0.5)
RIGHT: Box = (0.625, 0.25, 0.25, 0.5)


def boxes(graph: SceneGraph) -> list[Box]:
    """The boxes of the proposal, all of them."""
    found = [box for box in proposed(graph).boxes if box is not None]
    assert len(found) == len(graph.objects)
    return found


OWN = """
jumped over by: {inverse: jumping over}
jumping over: {inverse: jumped over by}
atop: {box_rule: upon}
port of: {inverse: starboard of, box_rule: left of}
starboard of: {inverse: port of, box_rule: right of}
"""


def test_own_classes_have_places_and_rules(tmp_path: Path) -> None:
    """By the rule that their list names; a class without one stands beside, and its inverse says the same from the other end."""
    path = tmp_path / "relations.yaml"
    path.write_text(OWN)
    use_relations(path)
    try:
        assert set(RULES) == {"atop", "port of", "starboard of"}
        for name in RULES:
            subject, object_ = boxes(SceneGraph.of("dog", name, "cat"))
            assert RULES[name](subject, object_)
        (dog, cat), (turned_cat, turned_dog) = (
            boxes(SceneGraph.of(*each)) for each in (("dog", "jumping over", "cat"), ("cat", "jumped over by", "dog"))
        )
        assert np.allclose((dog, cat), (turned_dog, turned_cat)) and dog != cat
    finally:
        use_relations(None)
    assert set(RULES) == set(PREDICATES) & set(RULES) and len(RULES) == 12


@pytest.mark.parametrize("name", ["right of", "below", "in front of"])
def test_an_inverse_is_the_same_seen_from_the_other_end(name: str) -> None:
    subject, object_ = boxes(SceneGraph.of("dog", name, "cat"))
    assert np.allclose([object_, subject], boxes(SceneGraph.of("cat", INVERSE[name], "dog")))


@pytest.mark.parametrize("predicate", sorted(RULES))
@pytest.mark.parametrize("names", [("dog", "cat"), ("cat", "dog")])
def test_the_rule_that_judges_use_holds_on_proposed_boxes(predicate: str, names: tuple[str, str]) -> None:
    subject, object_ = boxes(SceneGraph.of(names[0], predicate, names[1]))
    assert RULES[predicate](subject, object_)
    if predicate in ("left of", "right of", "above", "below"):
        assert directions(subject, object_) == {predicate} and directions(object_, subject) != {predicate}


def test_all_triples_of_a_graph_hold_together_within_the_image() -> None:
    graph = SceneGraph(
        ("dog", "table", "hat", "tree", "cup", "bowl"), ((0, "left of", 1), (2, "on", 0), (1, "left of", 3), (4, "in", 5))
    )
    found = boxes(graph)
    assert all(RULES[predicate](found[s], found[o]) for s, predicate, o in graph.triples)
    assert all(min(x, y) >= 0 and max(x + w, y + h) <= 1 for x, y, w, h in found)
    assert proposed(graph) == proposed(graph)
    rest, apart = max(x + w for x, _, w, _ in found[:4]), min(x for x, _, _, _ in found[4:])
    assert rest < apart, "parts that share no object stand side by side"


def test_given_boxes_stay_and_what_no_triple_names_has_none() -> None:
    graph = SceneGraph(("dog", "cat", "tree"), ((0, "left of", 1),), (None, RIGHT, None))
    dog, cat, tree = proposed(graph).boxes
    assert cat == RIGHT and tree is None and dog is not None and RULES["left of"](dog, RIGHT)
    whole = SceneGraph(("dog", "cat"), ((0, "left of", 1),), (RIGHT, LEFT))
    assert proposed(whole) == whole, "also where they contradict the graph"
    assert proposed(SceneGraph()).boxes == () and proposed(SceneGraph(("dog",))).boxes == (None,)


def test_a_graphs_negative_has_boxes_where_it_holds() -> None:
    graph = SceneGraph(("dog", "cat"), ((0, "left of", 1),), (LEFT, RIGHT))
    for turned in (graph.negated("swap", "left of"), graph.reversed()):
        s, predicate, o = turned.triples[0]
        assert turned.named == (("cat", "left of", "dog"),)
        assert RULES[predicate](turned.boxes[s], turned.boxes[o])  # type: ignore[arg-type]
    assert graph.negated("replace", "above").boxes == (None, None)
    chain = SceneGraph(("dog", "cat", "tree"), ((0, "left of", 1), (1, "left of", 2)), (LEFT, RIGHT, RIGHT))
    assert chain.reversed().boxes == (None, None, None)
    assert chain.negated("replace", "above").boxes == (None, None, RIGHT)


def test_the_image_shows_each_box_in_the_colours_of_its_name() -> None:
    image = layout_image(SceneGraph(("dog", "cat"), ((0, "left of", 1),), (LEFT, RIGHT)), 64)
    assert image.shape == (64, 64, 3) and image.dtype == np.uint8
    (dog, frame), (cat, _) = colours("dog"), colours("cat")
    assert len({dog, frame, cat}) == 3 and min(*dog, *frame, *cat) >= 48
    assert tuple(image[32, 16]) == dog and tuple(image[32, 48]) == cat
    assert tuple(image[16, 8]) == tuple(image[47, 23]) == frame and not image[15, 8].any() and not image[47, 24].any()
    assert image.any(axis=2).sum() == 2 * 16 * 32
    turned = layout_image(SceneGraph(("dog", "cat"), (), (RIGHT, LEFT)), 64)
    assert np.array_equal(turned, np.roll(image, 32, axis=1)), "same sizes, so that the two only change places"
    assert not layout_image(SceneGraph(("dog",), (), (None,)), 64).any()


def test_the_smaller_box_is_in_front_and_arrows_run_from_subject_to_object() -> None:
    for order in ((0, 1), (1, 0)):
        pair = [("dog", (0.0, 0.0, 1.0, 1.0)), ("cat", (0.25, 0.25, 0.5, 0.5))]
        names, places = zip(*(pair[index] for index in order), strict=True)
        assert tuple(layout_image(SceneGraph(names, (), places), 32)[16, 16]) == colours("cat")[0]
    graph = SceneGraph(("dog", "cat"), ((0, "left of", 1),), (LEFT, RIGHT))
    plain, arrow = layout_image(graph, 64), layout_image(graph, 64, arrows=True)
    changed = (plain != arrow).any(axis=2)
    assert {tuple(pixel) for pixel in arrow[changed]} == {colours("left of")[0]}
    assert changed[:, :32].sum() < changed[:, 32:].sum() > 16 and not changed[:, :15].any(), "the head is at the object"
    assert np.array_equal(
        layout_image(SceneGraph(graph.objects, graph.triples, (LEFT, None)), 64, arrows=True)[:, 32:], plain[:, :32] * 0
    )
