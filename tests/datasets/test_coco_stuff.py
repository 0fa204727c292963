"""COCO-Stuff: masks against pixels, the published filters and relations by an independent reading, a real panoptic image."""

import json
import shutil
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from sgpipe.datasets.canonicalize import canonicalize
from sgpipe.datasets.coco_masks import Mask, Runs, _counts, centroids
from sgpipe.datasets.coco_stuff import CocoStuff, vocabulary
from sgpipe.datasets.config import Canonicalize
from sgpipe.datasets.config import CocoStuff as Options
from sgpipe.errors import DataError
from sgpipe.graph_encoder.vocabulary import GAP, Vocabulary
from tests.datasets.canonical import rows
from tests.datasets.kinds import KINDS, compressed

KIND = KINDS["coco_stuff"]


@pytest.fixture(scope="module")
def real(reference_dir: Path) -> Path:
    folder = reference_dir / "data/vg_real/coco"
    if not folder.is_dir():
        pytest.skip(f"real annotations are absent: no {folder}")
    return folder


def test_centroids_are_those_of_the_pixels() -> None:
    """Any mask as a list of runs and as COCO's text, and a polygon of two parts; runs that do not fill the size are faulty."""
    draw = np.random.default_rng(0)
    masks: list[Any] = []
    expected = []
    for n in range(40):
        pixels = draw.random((9 + n, 7)) < draw.choice([0.1, 0.5, 0.95])
        pixels[0, 0] = pixels.any() and pixels[0, 0]
        edges = np.flatnonzero(np.diff(np.concatenate([[False], pixels.T.ravel()]).astype(int)))
        counts = np.diff(np.concatenate([[0], edges, [pixels.size]])).tolist()
        masks.append(Runs(pixels.shape, compressed(counts) if n % 2 else counts))
        y, x = np.nonzero(pixels)
        expected.append((x.mean() + 0.5, y.mean() + 0.5))
    masks += [
        [[0, 0, 4, 0, 4, 2, 0, 2], [10, 10, 10, 14, 12, 14, 12, 10]],
        None,
        Runs((3, 3), compressed([2, 3])),
        Runs((3, 3), "~~"),
    ]
    found, faulty = centroids(masks)
    assert np.allclose(found[:40], expected) and np.allclose(found[40], [6.5, 6.5]) and np.isnan(found[41]).all()
    assert faulty.tolist() == [False] * 42 + [True, True]
    crossed, _ = centroids([[[0, 0, 10, 10, 10, 0, 0, 10.1]]])
    assert (crossed >= 0).all() and (crossed <= 10.1).all()


def test_real_masks_lie_as_annotated(real: Path) -> None:
    """COCO states the area and the box of each: run lengths give the first exactly; a cut polygon is no polygon any more."""
    for name in ("stuff_train2017.first100.json", "instances_train2017.first100.json"):
        entries = [each for each in json.loads((real / name).read_text())["annotations"] if not _cut(each["segmentation"])]
        masks = [msgspec.convert(each["segmentation"], Mask) for each in entries]
        found, faulty = centroids(masks)
        box = np.array([each["bbox"] for each in entries])
        assert not faulty.any() and len(entries) > 50
        assert ((found >= box[:, :2] - 0.5) & (found <= box[:, :2] + box[:, 2:] + 0.5)).all()
        if isinstance(masks[0], Runs):
            counts, lengths = _counts(masks)
            shown = [part[1::2].sum() for part in np.split(counts, np.cumsum(lengths)[:-1])]
            assert shown == [each["area"] for each in entries]


def _cut(mask: Any) -> bool:
    """The sample keeps the first hundred numbers of a list."""
    return isinstance(mask, list) and any(len(part) >= 100 for part in mask)


def test_filters_and_relations_are_the_published_ones(tmp_path: Path) -> None:
    """A reading with dictionaries: which images and objects stay, one relation per object, its class by boxes and centres."""
    files = KIND.files(40)
    root = KIND.write(tmp_path / "data", files)
    metrics = canonicalize(CocoStuff(root), tmp_path / "out", Canonicalize())
    names = {each["id"]: each["name"] for value in files.values() for each in value["categories"]}
    chosen: dict[int, list[Any]] = defaultdict(list)
    for value in files.values():
        for each in value["annotations"]:
            if each["bbox"][2] * each["bbox"][3] / (64 * 48) > 0.02 and names[each["category_id"]] != "other":
                chosen[each["image_id"]].append(each)
    chosen = {image: mine for image, mine in chosen.items() if 3 <= len(mine) <= 8}
    assert {row["image_id"] for row in rows(tmp_path / "out", "images")} == chosen.keys() and 0 < len(chosen) < 40
    kept = {row["object_id"]: row for row in rows(tmp_path / "out", "objects")}
    assert kept.keys() == {each["id"] for mine in chosen.values() for each in mine}
    table = rows(tmp_path / "out", "relations")
    assert metrics["read"] == len(kept) and {row["source"] for row in table} == {"geometric"}
    partners = Counter(row["subject_id"] for row in table) + Counter(row["object_id"] for row in table)
    assert partners.keys() == kept.keys(), "each object has a relation of its own"
    for row in table:
        s, o = (np.array([row[f"{side}{k}"] for k in "xywh"]) for side in "so")
        if (s[:2] > o[:2]).all() and (s[:2] + s[2:] < o[:2] + o[2:]).all():
            assert row["predicate"] == "in"
            continue
        dx, dy = s[:2] + s[2:] / 2 - o[:2] - o[2:] / 2
        angle = np.degrees(np.arctan2(dy, dx))
        around = [(angle >= 135 or angle < -135, "left of"), (angle < -45, "above"), (angle < 45, "right of"), (True, "below")]
        assert row["predicate"] == next(name for holds, name in around if holds)
    reasons = metrics["images"]["by_reason"]
    assert reasons.keys() == {"too few objects"} and metrics["objects"]["by_reason"].keys() >= {"too few objects"}


def test_options_change_what_is_kept(tmp_path: Path) -> None:
    root = KIND.write(tmp_path / "data", KIND.files(20))
    everything = Options(min_objects=1, max_objects=99, min_area=0.0, other=True)
    metrics = canonicalize(CocoStuff(root, everything), tmp_path / "a", Canonicalize())
    assert metrics["objects"]["rejected"] == metrics["images"]["rejected"] == 0
    assert "other" in {row["name"] for row in rows(tmp_path / "a", "objects")}
    again = canonicalize(CocoStuff(root, Options(min_objects=1, max_objects=3)), tmp_path / "b", Canonicalize())
    assert again["images"]["by_reason"]["too many objects"] > 0
    assert again["objects"]["by_reason"].keys() >= {"too many objects", "object too small", "class left out"}


def test_directions_follow_the_masks(tmp_path: Path) -> None:
    """An L whose box has its centre to the left of the other's, and its pixels to the right."""
    files = KIND.files(1)
    for value in files.values():
        value["annotations"] = []
    corners = [0, 0, 60, 0, 60, 48, 50, 48, 50, 1, 0, 1]
    dot = {"id": 2, "image_id": 1, "category_id": 2, "bbox": [32, 20, 4, 4], "segmentation": [[32, 20, 36, 20, 36, 24, 32, 24]]}
    files["annotations/instances_train2017.json"]["annotations"] = [
        {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 18, 60, 30], "segmentation": [corners]},
        {**dot, "bbox": [32, 0, 4, 48]},
    ]
    root = KIND.write(tmp_path / "data", files)
    said = {}
    for masks in (True, False):
        options = Options(min_objects=1, min_area=0.0, masks=masks)
        canonicalize(CocoStuff(root, options), tmp_path / "out", Canonicalize())
        row = rows(tmp_path / "out", "relations")[0]
        said[masks] = (
            row["predicate"] if row["subject"] == "cat" else {"left of": "right of"}.get(row["predicate"], row["predicate"])
        )
    assert said[True] == "right of" and said[False] != "right of"


def test_a_real_panoptic_image(real: Path, tmp_path: Path) -> None:
    """Segments alone, and beside instances: then things come from the instances."""
    found = json.loads((real / "panoptic_sample/panoptic_examples.json").read_text())
    (tmp_path / "panoptic_val2017.json").write_text(json.dumps(found))
    options = Options(min_objects=1, max_objects=99, min_area=0.0)
    alone = canonicalize(CocoStuff(tmp_path, options), tmp_path / "a", Canonicalize())
    segments = found["annotations"][0]["segments_info"]
    assert (alone["images"]["kept"], alone["objects"]["kept"]) == (1, len(segments))
    assert {row["url"] for row in rows(tmp_path / "a", "images")} == {found["images"][0]["coco_url"]}
    things = {each["id"] for each in found["categories"] if each["isthing"]}
    instances = {
        "images": found["images"],
        "categories": [{"id": n, "name": f"thing {n}"} for n in sorted(things)],
        "annotations": [{**each, "image_id": 142238} for each in segments if each["category_id"] in things],
    }
    (tmp_path / "instances_val2017.json").write_text(json.dumps(instances))
    beside = canonicalize(CocoStuff(tmp_path, options), tmp_path / "b", Canonicalize())
    assert beside["objects"]["kept"] == len(segments)
    assert sum(row["name"].startswith("thing") for row in rows(tmp_path / "b", "objects")) == len(instances["annotations"])


def test_the_vocabulary_of_sgdiffs_encoder(real: Path, tmp_path: Path) -> None:
    for kind in ("instances", "stuff"):
        shutil.copyfile(real / f"{kind}_train2017.first100.json", tmp_path / f"{kind}_train2017.json")
    found = vocabulary(tmp_path)
    read = Vocabulary(tuple(found["object_idx_to_name"]), tuple(found["pred_idx_to_name"]))
    assert (len(read.objects), len(read.predicates), read.objects.count(GAP)) == (184, 7, 184 - 1 - 80 - 92)
    assert (read.objects[1], read.objects[90], read.objects[92], read.objects[183]) == ("person", "toothbrush", "banner", "other")
    with pytest.raises(DataError, match=r"no instances_train2017.json or instances_val2017.json"):
        vocabulary(tmp_path / "nothing")


def test_an_image_id_that_is_no_number_costs_its_object(tmp_path: Path) -> None:
    files = KIND.files(4)
    before = canonicalize(CocoStuff(KIND.write(tmp_path / "data", files)), tmp_path / "out", Canonicalize())["objects"]
    for wrong in (True, "1", -1, 2.5, None):
        files["annotations/instances_train2017.json"]["annotations"][0]["image_id"] = wrong
        found = canonicalize(CocoStuff(KIND.write(tmp_path / "data", files)), tmp_path / "out", Canonicalize())["objects"]
        assert (found["read"], found["by_reason"]["invalid"]) == (before["read"], 1)


def test_objects_of_images_that_are_not_listed(real: Path, tmp_path: Path) -> None:
    """The real sample lists other images than its annotations are of: each object is counted, none is lost."""
    for kind in ("instances", "stuff"):
        shutil.copyfile(real / f"{kind}_train2017.first100.json", tmp_path / f"{kind}_train2017.json")
    with pytest.raises(DataError, match=r"objects: 200 read, 199 rejected \(image unknown 199\)"):
        canonicalize(CocoStuff(tmp_path, Options(min_objects=1)), tmp_path / "out", Canonicalize())
