"""The world as a data set in Visual Genome's v1.4 layout, its label noise included."""

from itertools import combinations
from pathlib import Path

import numpy as np

from sgpipe.relations.predicates import INVERSE
from sgworld import scenes
from sgworld.visual_genome import write_visual_genome
from sgworld.world.captions import sample_caption
from sgworld.world.meaning import CHANNELS, cut, meant, uniforms
from sgworld.world.raster import render
from sgworld.world.reading import unmarked_triple
from sgworld.world.specification import MOST_TRIPLES, Scene
from sgworld.world.sprites import CELL, SIDE, Pixels

HELD_OUT = {None: 0.84, "triple": 0.10, "combination": 0.06}
"""Shares of images by what of them the generator's training never says."""
SEEN = 0.2
"""Chance that an annotator notes that two objects which nothing relates are beside or above one another."""


def draw(rng: np.random.Generator) -> Scene:
    """A scene of the data set, one of those that the generator is to draw; captions are only the way to it, so none is neutral."""
    held = list(HELD_OUT)[int(rng.choice(len(HELD_OUT), p=list(HELD_OUT.values())))]
    return meant(sample_caption(rng, held=held, neutral=0.0), uniforms(cut(rng.random((1, CHANNELS))))[0])


def incidental(scene: Scene) -> list[tuple[int, str, int]]:
    """Triples that hold between objects which the scene's own do not join: beside or above one another."""
    joined = {frozenset((s, o)) for s, _, o in scene.relations}
    found = []
    for a, b in combinations(range(len(scene.objects)), 2):
        if frozenset((a, b)) not in joined:
            first, second = scene.objects[a], scene.objects[b]
            read = unmarked_triple((first.name, first.box), (second.name, second.box))
            if read is not None and read[1] in ("left of", "above"):
                found.append((a, read[1], b) if read[0] else (b, read[1], a))
    return found


def annotated(rng: np.random.Generator) -> tuple[scenes.Scene, Pixels]:
    """A scene with boxes in pixels and what an annotator notes, 1 to 4 triples; and its pixels."""
    scene = draw(rng)
    noted = [each for each in incidental(scene) if rng.random() < SEEN][: MOST_TRIPLES - len(scene.relations)]
    noted = [each if rng.random() < 0.5 else (each[2], INVERSE[each[1]], each[0]) for each in noted]
    placed = tuple(
        scenes.Placed(each.name, CELL * each.x, CELL * each.y, CELL * each.w, CELL * each.h, each.facing) for each in scene.objects
    )
    return scenes.Scene(SIDE, SIDE, scene.background, placed, (*scene.relations, *noted), scene.order), render(scene)


def write_data(folder: Path, count: int, seed: int) -> None:
    """Write `count` images and their annotations; see `write_visual_genome`."""
    write_visual_genome(folder, count, seed, annotated)
