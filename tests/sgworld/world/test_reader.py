"""The reader reads what is drawn, softened or not, abstains where a mark is missing, counts duplicates; data and judge."""

import json
import tomllib
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest
import torch

from sgpipe.errors import DataError
from sgpipe.evaluation.judge_factory import PLUGINS
from sgpipe.evaluation.judges import Counter as CountingJudge
from sgworld.world.certificate import drawn, figures, psnr, softened
from sgworld.world.classes import MARKED
from sgworld.world.compose import compose
from sgworld.world.data import annotated, write_data
from sgworld.world.judge import build_judge
from sgworld.world.raster import render
from sgworld.world.reader import read
from sgworld.world.specification import SLOTS, Caption
from sgworld.world.sprites import BACKGROUNDS

SCENES = drawn(11, 2)


def test_ground_truth_clean_and_softened() -> None:
    images = np.stack([render(scene) for scene in SCENES])
    soft = softened(images, np.random.default_rng(0))
    assert 30 <= psnr(images, soft) <= 33
    for shown in (images, soft):
        found = figures(SCENES, read(shown))
        assert found["triples_right"] >= 0.96 and found["objects_exact"] >= 0.95 and found["duplicates_false"] <= 0.03


def test_without_its_mark_a_class_is_not_read() -> None:
    marked = [scene for scene in SCENES if len(scene.marks) == 1 and len(scene.objects) == 2]
    assert len(marked) >= 8
    bare = read(np.stack([render(replace(scene, marks=())) for scene in marked]))
    assert all(p not in MARKED for reading in bare for _, p, _ in reading.relations)


def test_an_object_drawn_twice_is_counted_and_an_empty_image_has_none() -> None:
    u = np.full(SLOTS, 0.5)
    u[1:3] = 0.0
    scene = compose(Caption(("ball", "dog"), (("ball", "left of", "dog"),)), u)
    ball = scene.objects[0]
    twice = replace(scene, objects=(*scene.objects, replace(ball, x=12, y=12)), order=(*scene.order, 2))
    empty = np.empty((64, 64, 3), np.uint8)
    empty[...] = BACKGROUNDS[0]
    once, doubled, nothing = read(np.stack([render(scene), render(twice), empty]))
    assert once.duplicates == () and doubled.duplicates == ("ball",) and nothing.objects == ()


def test_judge() -> None:
    caption = Caption(("cat", "cup", "tree"), (("cat", "drinking", "cup"), ("cat", "left of", "tree")))
    scene = compose(caption, np.full(SLOTS, 0.4))
    (_, predicate, _) = scene.triples[1]
    judge, image = build_judge(torch.device("cpu")), render(scene)[None]
    first, _, second = scene.triples[1]
    inverse = {"left of": "right of", "right of": "left of"}[predicate]
    said = [("cat", "drinking", "cup"), ("cat", "eating", "cup"), (first, predicate, second), (second, inverse, first),
            (second, predicate, first), ("cat", "left of", "dog")]  # fmt: skip
    scores = judge.scores(image, [said])[0]
    assert scores[:5].tolist() == [1, 0, 1, 1, 0] and np.isnan(scores[5])
    assert isinstance(judge, CountingJudge) and judge.duplicates(image, [["cat", "cup"]]).tolist() == [False]


def test_the_judge_joins_by_an_entry_point(repo_root: Path) -> None:
    named = tomllib.loads((repo_root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["entry-points"][PLUGINS]
    for name, value in named.items():
        judge = EntryPoint(name, value, PLUGINS).load()(torch.device("cpu"))
        assert isinstance(judge, CountingJudge) == (name == "sgworld_several")


def test_the_certificate_is_reached(repo_root: Path) -> None:
    kept = json.loads((repo_root / "metrics" / "world.json").read_text())
    for kind in ("clean", "softened"):
        assert kept[kind]["classes_reliable"] >= 22 and kept[kind]["duplicates_false"] <= 0.01
    assert kept["class_known_by_names"] <= 0.18 and kept["neutral_largest_class"] <= 0.4
    assert 0.45 <= kept["open_roles_first_is_subject"] <= 0.55


def test_images_of_another_size_are_refused() -> None:
    with pytest.raises(DataError, match="64"):
        read(np.zeros((1, 32, 32, 3), np.uint8))


def test_data_set_is_reproducible_and_has_one_to_four_triples(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_data(tmp_path / name, 6, 5)
    for file in ("images.zip", "objects.json", "relationships.json", "image_data.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    rng = np.random.default_rng(0)
    counts = [len(annotated(rng)[0].relations) for _ in range(40)]
    assert min(counts) == 1 and 3 <= max(counts) <= 4
