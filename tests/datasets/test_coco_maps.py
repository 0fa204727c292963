"""Masks of COCO-Stuff from pixels: pixel maps and panoptic PNGs say what run lengths of the same masks say."""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from sgpipe.datasets.canonicalize import canonicalize
from sgpipe.datasets.coco_files import SEGMENT
from sgpipe.datasets.coco_maps import SegmentMaps, segments_of
from sgpipe.datasets.coco_split import read_labels
from sgpipe.datasets.coco_stuff import CocoStuff
from sgpipe.datasets.config import Canonicalize
from sgpipe.datasets.config import CocoStuff as Options
from sgpipe.errors import DataError
from tests.datasets.canonical import rows
from tests.datasets.test_kinds import check_conserved

WIDTH, HEIGHT, IMAGES = 40, 30, 12
THINGS, STUFF = {1: "person", 3: "car"}, {92: "banner", 157: "sky-other", 183: "other"}
LABELS = "0: unlabeled\n1: person\n3: car\n92: banner\n157: sky-other\n"
ALL = Options(min_objects=1, max_objects=99, min_area=0.0)


def classes_of(image: int) -> NDArray[np.uint8]:
    """The class of every pixel: triangles, whose centroids are not the centres of their boxes, and pixels without a class."""
    draw = np.random.default_rng(image)
    found = np.zeros((HEIGHT, WIDTH), np.uint8)
    down, along = np.mgrid[:HEIGHT, :WIDTH]
    for number in (157, 92, 1, 3):
        x, y, w, h = (int(draw.integers(low, high)) for low, high in ((0, 25), (0, 18), (8, 20), (8, 18)))
        dx, dy = (along - x) / w, (down - y) / h
        dx = dx if number % 2 else 1 - dx
        found[(dx >= 0) & (dx <= 1) & (dy >= 0) & (dx + dy < 1)] = number
    return found


def runs(mask: NDArray[np.bool_]) -> list[int]:
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask.T.ravel()]).astype(int)))
    return np.diff(np.concatenate([[0], edges, [mask.size]])).tolist()


def annotation(image: int, number: int, id_: int) -> dict[str, Any]:
    """A class's mask of an image as COCO writes it: box by a look at rows and columns, run lengths."""
    mask = classes_of(image) == number
    columns, lines = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    box = [columns[0], lines[0], columns[-1] + 1 - columns[0], lines[-1] + 1 - lines[0]]
    segmentation = {"size": [HEIGHT, WIDTH], "counts": runs(mask)}
    return {"id": id_, "image_id": image, "category_id": number, "bbox": list(map(int, box)), "segmentation": segmentation}


def write_json(root: Path, kind: str, annotations: list[Any], classes: dict[int, str]) -> None:
    images = [{"id": n, "width": WIDTH, "height": HEIGHT} for n in range(1, IMAGES + 1)]
    listed = [{"id": number, "name": name, "isthing": int(number in THINGS)} for number, name in classes.items()]
    root.mkdir(exist_ok=True)
    value = {"images": images, "annotations": annotations, "categories": listed}
    (root / f"{kind}_train2017.json").write_text(json.dumps(value))


def of_classes(classes: dict[int, str], id_of: Callable[[int, int], int]) -> list[dict[str, Any]]:
    pairs = [(image, number) for image in range(1, IMAGES + 1) for number in classes if (classes_of(image) == number).any()]
    return [annotation(image, number, id_of(image, number)) for image, number in pairs]


def write_instances(root: Path) -> Path:
    write_json(root, "instances", of_classes(THINGS, lambda image, number: 10 * image + number), THINGS)
    return root


def write_maps(folder: Path, shift: int) -> None:
    folder.mkdir(parents=True)
    for image in range(1, IMAGES + 1):
        classes = classes_of(image)
        unlabelled = 255 if shift else 0
        Image.fromarray(np.where(classes == 0, unlabelled, classes - shift).astype(np.uint8)).save(folder / f"{image:012}.png")


def tables(root: Path, out: Path, options: Options = ALL) -> tuple[dict[str, Any], list[dict], list[dict]]:
    metrics = canonicalize(CocoStuff(root, options), out, Canonicalize(), workers=2)
    check_conserved(out, metrics)
    return metrics, rows(out, "objects"), rows(out, "relations")


@pytest.fixture(scope="module")
def by_runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict], list[dict]]:
    """What instances beside stuff in JSON give; stuff has the ids that it gets from pixels."""
    root = write_instances(tmp_path_factory.mktemp("runs"))
    write_json(root, "stuff", of_classes(STUFF, lambda image, number: SEGMENT + number), STUFF)
    return tables(root, root / "out")[1:]


@pytest.mark.parametrize(
    ("folder", "shift"), [("stuffthingmaps/train2017", 1), ("annotations/train2017", 1), ("stuff_train2017_pixelmaps", 0)]
)
def test_pixel_maps_say_what_run_lengths_say(folder: str, shift: int, by_runs: tuple, tmp_path: Path) -> None:
    """Objects, boxes, directions by centroids, from loose files and from the published archive."""
    root = write_instances(tmp_path / "data")
    (root / "labels.txt").write_text(LABELS)
    write_maps(root / folder, shift)
    metrics, objects, relations = tables(root, tmp_path / "out")
    assert (objects, relations) == by_runs and metrics["files"] == ["instances_train2017.json", folder]
    assert {row["name"] for row in objects} == {"person", "car", "banner", "sky-other"}
    archive = "stuffthingmaps_trainval2017.zip" if shift else "stuff_train2017_pixelmaps.zip"
    with zipfile.ZipFile(root / archive, "w") as packed:
        for path in sorted((root / folder).iterdir()):
            packed.write(path, f"train2017/{path.name}")
            path.unlink()
    (root / folder).rmdir()
    assert tables(root, tmp_path / "out")[1:] == by_runs


def colour(image: int, number: int) -> int:
    """A colour of three bytes, which is a segment's id."""
    return (image * 70_001 + number * 257) % (1 << 24)


def write_panoptic(root: Path) -> Path:
    found = []
    (root / "panoptic_train2017").mkdir(parents=True)
    for image in range(1, IMAGES + 1):
        classes, segments = classes_of(image), []
        ids = np.zeros(classes.shape, np.uint32)
        for number in (each for each in (*THINGS, *STUFF) if (classes == each).any()):
            ids[classes == number] = colour(image, number)
            segments.append({**annotation(image, number, colour(image, number)), "segmentation": None})
        pixels = np.stack([ids & 255, ids >> 8 & 255, ids >> 16], axis=2).astype(np.uint8)
        Image.fromarray(pixels).save(root / "panoptic_train2017" / f"{image:012}.png")
        found.append({"image_id": image, "file_name": f"{image:012}.png", "segments_info": segments})
    write_json(root, "panoptic", found, THINGS | STUFF)
    return root


def test_panoptic_masks_say_what_run_lengths_say(tmp_path: Path) -> None:
    """Alone and beside instances; without the masks directions come from boxes, which differ."""
    expected = tmp_path / "runs"
    write_json(expected, "instances", of_classes(THINGS, lambda *each: SEGMENT + colour(*each)), THINGS)
    write_json(expected, "stuff", of_classes(STUFF, lambda *each: SEGMENT + colour(*each)), STUFF)
    _, objects, relations = tables(expected, tmp_path / "a")
    root = write_panoptic(tmp_path / "data")
    metrics, alone, said = tables(root, tmp_path / "b")
    assert metrics["files"] == ["panoptic_train2017.json", "panoptic_train2017"]
    assert sorted(map(str, alone)) == sorted(map(str, objects)) and sorted(map(str, said)) == sorted(map(str, relations))
    by_boxes = tables(root, tmp_path / "c", Options(min_objects=1, max_objects=99, min_area=0.0, masks=False))[2]
    assert sorted(map(str, by_boxes)) != sorted(map(str, relations)), "no mask of this test has its centroid elsewhere"
    (root / "instances_train2017.json").write_bytes((expected / "instances_train2017.json").read_bytes())
    assert tables(root, tmp_path / "d")[1:] == (objects, relations)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda path: path.unlink(), "no 000000000002.png; get it again"),
        (lambda path: path.write_bytes(path.read_bytes()[:60]), "cannot be read"),
        (lambda path: Image.new("L", (3, 4)).save(path), "3 x 4 pixels, the image has 40 x 30"),
        (lambda path: Image.new("F", (WIDTH, HEIGHT)).save(path, "TIFF"), "mode F; L, P or RGB"),
    ],
    ids=["missing", "cut", "size", "mode"],
)
@pytest.mark.parametrize("panoptic", [False, True], ids=["pixel maps", "panoptic"])
def test_a_damaged_map_costs_the_objects_of_its_image(
    panoptic: bool, damage: Callable[[Path], Any], says: str, tmp_path: Path
) -> None:
    if panoptic:
        root, folder = write_panoptic(tmp_path / "data"), "panoptic_train2017"
    else:
        root, folder = write_instances(tmp_path / "data"), "stuffthingmaps/train2017"
        (root / "labels.txt").write_text(LABELS)
        write_maps(root / folder, 1)
    _, before, _ = tables(root, tmp_path / "out")
    damage(root / folder / f"{2:012}.png")
    _, after, _ = tables(root, tmp_path / "out")
    lost = [row for row in before if row["image_id"] == 2 and (panoptic or row["object_id"] >= SEGMENT)]
    assert lost and after == [row for row in before if row not in lost]
    rejects = [row for row in rows(tmp_path / "out", "rejects") if row["reason"] == "invalid"]
    assert len(rejects) == (len(lost) if panoptic else 1)
    assert {row["image_id"] for row in rejects} == {2} and all(says in row["raw"] for row in rejects)


def test_a_segment_without_pixels_and_a_class_without_a_name(tmp_path: Path) -> None:
    root = write_panoptic(tmp_path / "panoptic")
    value = json.loads((root / "panoptic_train2017.json").read_text())
    value["annotations"][0]["segments_info"][0]["id"] = 1
    (root / "panoptic_train2017.json").write_text(json.dumps(value))
    metrics, _, _ = tables(root, tmp_path / "out")
    assert metrics["objects"]["by_reason"]["invalid"] == 1
    assert "no pixel of 000000000001.png has its colour" in rows(tmp_path / "out", "rejects")[0]["raw"]
    root = write_instances(tmp_path / "maps")
    (root / "labels.txt").write_text(LABELS.replace("92: banner\n", ""))
    write_maps(root / "stuffthingmaps/train2017", 1)
    metrics, objects, _ = tables(root, tmp_path / "out")
    assert metrics["objects"]["by_reason"]["invalid"] == IMAGES and "banner" not in {row["name"] for row in objects}
    (root / "labels.txt").write_text("92 banner")
    with pytest.raises(DataError, match=r"labels.txt: lines of a number, a colon and a name"):
        tables(root, tmp_path / "out")


def test_real_panoptic_pixels_have_the_annotated_boxes(reference_dir: Path) -> None:
    folder = reference_dir / "data/vg_real/coco/panoptic_sample"
    if not folder.is_dir():
        pytest.skip(f"real annotations are absent: no {folder}")
    annotated = json.loads((folder / "panoptic_examples.json").read_text())["annotations"][0]
    found = SegmentMaps(folder, ["panoptic_examples"], []).segments(annotated["image_id"], 640, 427)
    assert not isinstance(found, str)
    boxes = dict(zip(found.labels.tolist(), found.boxes.tolist(), strict=True))
    assert len(annotated["segments_info"]) == 18
    assert all(boxes[each["id"]] == each["bbox"] for each in annotated["segments_info"])


def test_real_labels_name_all_classes(reference_dir: Path) -> None:
    path = reference_dir / "data/vg_real/coco/cocostuff_labels.txt"
    if not path.is_file():
        pytest.skip(f"real labels are absent: no {path}")
    names = read_labels(path)
    assert (len(names), names[92], names[182], names[183]) == (184, "banner", "wood", "other")


def test_segments_are_those_of_a_look_at_every_pixel() -> None:
    labels = np.random.default_rng(0).integers(0, 4, (9, 13)).astype(np.uint8) * 80
    found = segments_of(labels)
    for n, label in enumerate(found.labels):
        y, x = np.nonzero(labels == label)
        assert found.boxes[n].tolist() == [x.min(), y.min(), np.ptp(x) + 1, np.ptp(y) + 1]
        assert np.allclose(found.centres[n], [x.mean() + 0.5, y.mean() + 0.5])
    assert found.labels.tolist() == [0, 80, 160, 240]
