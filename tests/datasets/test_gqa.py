"""GQA: an independent reading of a hundred real scene graphs, the share of left and right, images under both kinds of names."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sgpipe.datasets.canonicalize import canonicalize
from sgpipe.datasets.config import Canonicalize, Data, Gqa
from sgpipe.datasets.gqa import FOREIGN, FROM_BOXES
from sgpipe.datasets.gqa import Gqa as DataSet
from sgpipe.datasets.images import ImageStore, open_images
from sgpipe.errors import DataError
from sgpipe.relations.aliases import PredicateMap
from tests.datasets.canonical import rows
from tests.datasets.kinds import KINDS

INVERSE = {"left of": "right of", "right of": "left of"}


@pytest.fixture(scope="module")
def real(reference_dir: Path) -> Path:
    folder = reference_dir / "data/vg_real/gqa"
    if not folder.is_dir():
        pytest.skip(f"real annotations are absent: no {folder}")
    return folder


def test_an_independent_reading_of_real_graphs_agrees(real: Path, tmp_path: Path) -> None:
    metrics = canonicalize(DataSet(real), tmp_path, Canonicalize())
    graphs: dict[str, Any] = json.loads((real / "train_sceneGraphs.json").read_text())
    predicates, kept, sources, attributes = PredicateMap.load(), set(), Counter[str](), set()
    for image, graph in graphs.items():
        for subject, item in graph["objects"].items():
            attributes |= {(int(image), int(subject), text) for text in item["attributes"]}
            for said in item["relations"]:
                found = predicates.meaning(said["name"])
                ends = (int(subject), int(said["object"]))
                triple = (int(image), *(ends[::-1] if found.inverse else ends), found.predicate)
                if found.predicate is not None and triple not in kept:
                    kept.add(triple)
                    sources["geometric" if said["name"] in FROM_BOXES else "annotated"] += 1
    table = rows(tmp_path, "relations")
    assert {(r["image_id"], r["subject_id"], r["object_id"], r["predicate"]) for r in table} == kept
    assert Counter(row["source"] for row in table) == sources == {"geometric": 4120, "annotated": len(kept) - 4120}
    assert (metrics["images"]["kept"], metrics["objects"]["kept"], metrics["read"]) == (100, 1546, 4666)
    assert {(r["image_id"], r["object_id"], r["attribute"]) for r in rows(tmp_path, "attributes")} == attributes


def test_a_share_of_left_and_right_keeps_pairs_whole(real: Path, tmp_path: Path) -> None:
    """What says one thing from both ends stays or goes together; annotated relations stay as they are."""
    found = {}
    for share in (1.0, 0.3, 0.0):
        metrics = canonicalize(DataSet(real, Gqa(left_right=share)), tmp_path, Canonicalize())
        found[share] = {
            (r["image_id"], r["subject_id"], r["predicate"], r["object_id"], r["source"]) for r in rows(tmp_path, "relations")
        }
        assert metrics["by_reason"].get("share of left and right", 0) == len(found[1.0]) - len(found[share])
    left_right = {share: {row[:4] for row in rows_ if row[4] == "geometric"} for share, rows_ in found.items()}
    assert all((image, o, INVERSE[p], s) in left_right[0.3] for image, s, p, o in left_right[0.3])
    assert len(left_right[0.3]) / 4120 == pytest.approx(0.3, abs=0.05) and not left_right[0.0]
    assert found[0.0] == {row for row in found[1.0] if row[4] == "annotated"}
    assert canonicalize(DataSet(real, Gqa(left_right=0.0)), tmp_path, Canonicalize())["left_right"] == 0.0


def test_images_are_found_under_both_kinds_of_names(tmp_path: Path) -> None:
    files = KINDS["gqa"].files(2)
    files["val_sceneGraphs.json"] = {"n7": next(iter(files["train_sceneGraphs.json"].values())), "x8": {}, "1": {}}
    root = KINDS["gqa"].write(tmp_path, files)
    (root / "images").mkdir()
    for stem in ("1", "n7"):
        Image.new("RGB", (640, 480), (9, 8, 7)).save(root / f"images/{stem}.png")
    store = ImageStore(open_images(Data("gqa", str(root))))
    assert store.files.files().keys() == {1, FOREIGN + 7}
    assert store.load(1).pixels[0, 0].tolist() == store.load(FOREIGN + 7).pixels[0, 0].tolist() == [9, 8, 7]
    metrics = canonicalize(KINDS["gqa"].open(root), tmp_path / "out", Canonicalize())
    assert metrics["images"]["by_reason"] == {"invalid": 2}
    (root / "images/n7.png").unlink()
    with pytest.raises(DataError, match=r"image \d+ is not there \(looked for images/n7.jpg, .*download page"):
        store.load(FOREIGN + 7)


def test_a_folder_without_graphs_says_where_they_are(tmp_path: Path) -> None:
    for refused in (lambda: DataSet(tmp_path).damage()[0], lambda: canonicalize(DataSet(tmp_path), tmp_path, Canonicalize())):
        try:
            said = refused()
        except DataError as error:
            said = str(error)
        assert "neither train_sceneGraphs.json nor val_sceneGraphs.json" in said
