"""The drawn relation holds by box rules, pictures are functions of their seeds, and the data set says what the pictures show."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from sgpipe.datasets.canonicalize import canonicalize
from sgpipe.datasets.config import Canonicalize
from sgpipe.datasets.images import ImageStore
from sgpipe.datasets.visual_genome.data_set import VisualGenome
from sgpipe.datasets.visual_genome.images import VisualGenomeImages
from sgpipe.errors import DataError
from sgpipe.relations.aliases import PredicateMap
from sgpipe.relations.predicates import DIRECTIONAL, INVERSE, PREDICATES, SYMMETRIC
from sgworld.arrangement import arranged, holds
from sgworld.bank import NEUTRAL, caption, draw_bank, held_out, row_chances, sample_triple, whole_bank
from sgworld.dirt import UNMAPPED, raw_predicate
from sgworld.pictograms import FACINGS, NAMES, PICTOGRAMS, anchor, sprite
from sgworld.rules import admissible
from sgworld.scenes import CELL, Scene, beside, draw_triple, every_scene, every_triple, pair_scene, render
from sgworld.visual_genome import _Ids, annotate, compose, write_visual_genome


def boxes(scene: Scene) -> list[tuple[float, float, float, float]]:
    return [(placed.x, placed.y, placed.w, placed.h) for placed in scene.objects]


@pytest.mark.parametrize("predicate", PREDICATES)
def test_drawn_relations_hold_by_box_rules(predicate: str) -> None:
    """Of every class, and for directional ones the swapped roles do not hold."""
    rng = np.random.default_rng(1)
    for _ in range(60):
        triple = draw_triple(rng, predicate)
        scene = pair_scene(rng, *triple)
        subject, object_ = boxes(scene)
        assert holds(predicate, subject, object_), (triple, subject, object_)
        assert arranged(predicate, object_, subject)
        if predicate in DIRECTIONAL:
            assert holds(INVERSE[predicate], object_, subject)
            assert not holds(predicate, object_, subject)
        for x, y, w, h in (subject, object_):
            assert x >= 0 and y >= 0 and x + w <= CELL and y + h <= CELL


def test_directional_and_symmetric_classes_say_nothing_by_names() -> None:
    for predicate in DIRECTIONAL | SYMMETRIC:
        pairs = set(admissible(predicate))
        assert {(o, s) for s, o in pairs} == pairs
        assert len(pairs) == len(NAMES) * (len(NAMES) - 1)


def test_pictures_are_functions_of_their_seed() -> None:
    first, second = (render(pair_scene(np.random.default_rng(3), "dog", "left of", "cat")) for _ in range(2))
    assert np.array_equal(first, second)
    assert not np.array_equal(first, render(pair_scene(np.random.default_rng(4), "dog", "left of", "cat")))


def test_mirror_images_and_anchors() -> None:
    for name in NAMES:
        right, left = (sprite(name, facing) for facing in FACINGS)
        assert np.array_equal(right[:, ::-1], left)
        assert right.shape[:2] == PICTOGRAMS[name].size[::-1]
        assert (right[..., 3] > 127).mean() > 0.25
        (x, y), (mirrored, same) = (anchor(name, "seat", facing) for facing in FACINGS)
        assert x + mirrored == PICTOGRAMS[name].size[0] and y == same


def test_what_cannot_be_drawn_is_refused() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(DataError, match="cannot be drawn"):
        pair_scene(rng, "dog", "beneath", "cat")
    with pytest.raises(DataError, match="no pictogram"):
        sprite("dragon", "left")


def test_joined_cells_keep_objects_and_relations() -> None:
    rng = np.random.default_rng(5)
    cells = [pair_scene(rng, *draw_triple(rng, p)) for p in ("on", "left of", "riding")]
    joined = beside(cells)
    assert (joined.width, joined.height) == (3 * CELL, CELL)
    for number, (subject, predicate, object_) in enumerate(joined.relations):
        for index, of_cell in ((subject, 0), (object_, 1)):
            assert joined.objects[index].x == cells[number].objects[of_cell].x + number * CELL
            assert joined.objects[index].name == cells[number].objects[of_cell].name
        assert predicate == cells[number].relations[0][1]


def test_captions_leave_the_roles_open() -> None:
    rng = np.random.default_rng(0)
    texts = Counter(caption(rng, ("dog", "left of", "cat"), neutral=rng.random() < NEUTRAL) for _ in range(4000))
    assert len(texts) == 4
    first = sum(count for text, count in texts.items() if text.startswith("a photo of dog"))
    assert abs(first / 4000 - 0.5) < 0.04
    assert abs(sum(count for text, count in texts.items() if " and " in text) / 4000 - 0.4) < 0.04


@pytest.mark.parametrize("predicate", ["in front of", "around/near", "riding", "looking at"])
def test_every_scene_of_a_triple_is_drawn_once_and_by_chance(predicate: str) -> None:
    rng = np.random.default_rng(2)
    triple = draw_triple(rng, predicate)
    every = every_scene(*triple)
    assert len(set(every)) == len(every)
    assert set(every) == {pair_scene(rng, *triple) for _ in range(40 * len(every))}


def test_the_whole_bank_holds_every_training_triple(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sgworld.bank.PREDICATES", ("riding", "wearing"))
    bank = whole_bank(tmp_path / "world")
    known = [triple for predicate in ("riding", "wearing") for triple in every_triple(predicate)]
    assert set(bank.triples) == {triple for triple in known if not held_out(triple)} < set(known)
    assert len({picture.tobytes() for picture in bank.pictures}) == len(bank.pictures)
    assert whole_bank(tmp_path / "world").triples == bank.triples


def test_rare_names_are_drawn_more_often_by_rarity() -> None:
    """Of one class by names, and classes by the root of the number of their pictures."""
    triples = [("dog", "above", "horse")] * 6 + [("chair", "above", "train")] * 2
    assert row_chances(triples, 0.0).tolist() == pytest.approx([1 / 8] * 8)
    chances = row_chances(triples, 1.0)
    assert chances[0] * 3 == pytest.approx(chances[6])
    assert chances[:6].sum() == pytest.approx(chances[6:].sum())
    chances = row_chances([*triples, ("dog", "riding", "horse")], 0.0)
    assert chances[8] / chances[0] == pytest.approx(8**0.5)


def test_training_and_held_out_triples_are_apart(tmp_path: Path) -> None:
    """By unordered pair and class, so that neither a triple nor its swap is in both."""
    bank = draw_bank(tmp_path / "bank", 200, 1)
    assert not any(held_out(triple) for triple in bank.triples)
    rng = np.random.default_rng(0)
    unseen = [sample_triple(rng, unseen=True) for _ in range(50)]
    assert all(held_out(t) and held_out(t[::-1]) for t in unseen)  # type: ignore[arg-type]
    again = draw_bank(tmp_path / "again", 200, 1)
    assert np.array_equal(bank.pictures, again.pictures) and list(bank.triples) == list(again.triples)
    with pytest.raises(DataError, match="'seed': 2"):
        draw_bank(tmp_path / "bank", 200, 2)


def test_dirty_predicates_lead_back_to_their_class() -> None:
    lookup, rng = PredicateMap.load(), np.random.default_rng(0)
    for predicate in PREDICATES:
        for _ in range(60):
            raw, exchanged = raw_predicate(rng, predicate)
            found = lookup.meaning(raw)
            assert (found.predicate, found.inverse) == (predicate, exchanged), raw
    assert all(lookup.meaning(raw).predicate is None for raw in UNMAPPED)


def test_the_data_set_says_what_its_pictures_show(tmp_path: Path) -> None:
    """Through canonicalize: every drawn relation is kept once, and nothing else; each image is the scene's picture."""
    write_visual_genome(tmp_path / "data", 80, 3)
    metrics = canonicalize(VisualGenome(tmp_path / "data"), tmp_path / "out", Canonicalize(), workers=1)
    drawn, scenes = Counter(), {}
    for index in range(80):
        scene = compose(np.random.default_rng((3, 7, index)))
        scenes[index + 1] = scene
        assert 1 <= len(scene.objects) <= 6
        for subject, predicate, object_ in scene.relations:
            names = scene.objects[subject].name, scene.objects[object_].name
            drawn[(index + 1, names[0], predicate, names[1])] += 1
    found = pl.read_parquet(tmp_path / "out/relations.parquet").filter(pl.col("source") == "annotated")
    kept = Counter(found.select("image_id", "subject", "predicate", "object").iter_rows())
    symmetric = {key: key for key in drawn}
    symmetric |= {(i, o, p, s): (i, s, p, o) for i, s, p, o in drawn if p in SYMMETRIC or p in INVERSE}
    symmetric |= {(i, o, INVERSE[p], s): (i, s, p, o) for i, s, p, o in drawn if p in INVERSE}
    assert set(map(symmetric.get, kept)) == set(drawn)
    assert metrics["kept"] == sum(kept.values()) and metrics["rejected"] > 0
    store = ImageStore(VisualGenomeImages(tmp_path / "data"))
    error = np.abs(store.load(7).pixels.astype(int) - render(scenes[7]).astype(int)).mean()
    assert error < 2.0


def test_the_data_set_has_the_dirt_of_the_real_one(tmp_path: Path) -> None:
    write_visual_genome(tmp_path, 300, 0)
    objects = {r["image_id"]: r["objects"] for r in json.loads((tmp_path / "objects.json").read_text())}
    records = json.loads((tmp_path / "relationships.json").read_text())
    ends = [(record["image_id"], r[end]) for record in records for r in record["relationships"] for end in ("subject", "object")]
    known = {image: {o["object_id"] for o in listed} for image, listed in objects.items()}
    full = [(image, end) for image, end in ends if objects[image]]
    dangling = np.mean([end["object_id"] not in known[image] for image, end in full])
    assert 0.15 < dangling < 0.25
    assert 0.05 < np.mean([not listed for listed in objects.values()]) < 0.16
    raw = [r["predicate"] for record in records for r in record["relationships"]]
    assert 0.01 < np.mean([text.isupper() for text in raw]) < 0.12
    assert 0.12 < np.mean([text in UNMAPPED for text in raw]) < 0.3


def test_the_same_numbers_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_visual_genome(tmp_path / name, 12, 5)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name


def test_annotations_carry_the_scenes_boxes() -> None:
    rng = np.random.default_rng(8)
    scene = compose(rng)
    objects, _ = annotate(np.random.default_rng(1), scene, 5, _Ids())
    for record, placed in zip(objects["objects"], scene.objects, strict=False):
        assert (record["x"], record["y"], record["w"], record["h"]) == (placed.x, placed.y, placed.w, placed.h)


def test_both_ends_of_a_self_loop_are_one_object_even_where_it_dangles(monkeypatch: pytest.MonkeyPatch) -> None:
    """With two ids of its own it would read as a relation between two objects."""
    for name, chance in {"SELF_LOOP": 1.0, "DANGLING": 1.0, "REPEATED": 0.0, "UNMAPPED_EXTRA": 0.0}.items():
        monkeypatch.setattr(f"sgworld.visual_genome.{name}", chance)
    scene = pair_scene(np.random.default_rng(0), "dog", "left of", "cat")
    for seed in range(10):
        _, record = annotate(np.random.default_rng(seed), scene, 1, _Ids())
        relation, loop = record["relationships"]
        assert relation["subject"]["object_id"] != relation["object"]["object_id"]
        assert loop["subject"] == loop["object"]
