"""A folder of own images: every form of its graphs says the same, what is wrong is said per file, own relation classes."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from typer.testing import CliRunner

from sgpipe.cli import app
from sgpipe.datasets.canonicalize import canonicalize
from sgpipe.datasets.config import Canonicalize, Data
from sgpipe.datasets.config import Folder as Options
from sgpipe.datasets.folder import Folder, image_id_of
from sgpipe.datasets.images import ImageStore, open_images
from sgpipe.errors import DataError
from sgpipe.graphs.prompts import wrong_predicates
from sgpipe.relations.predicates import DIRECTIONAL, INVERSE, PREDICATE_INDEX, PREDICATES, SYMMETRIC, phrase, use_relations
from tests.datasets.canonical import rows

JSON = [
    {
        "image": "a.png",
        "objects": [{"name": "dog", "box": [1, 2, 10, 12]}, {"name": "cat", "box": [30, 2, 10, 12], "attributes": ["black"]}],
        "relations": [[0, "left of", 1], [1, "near", 0]],
    },
    {"image": "b.png", "triples": [["man", "riding", "horse"]]},
]
CSV = """image,subject,predicate,object,sx,sy,sw,sh,ox,oy,ow,oh
a.png,dog,left of,cat,1,2,10,12,30,2,10,12
b.png,man,riding,horse,,,,,,,,
a.png,cat,near,dog,,,,,,,,
"""
FACTUAL = "a.png\t( cat , is , black ) , ( cat , near , dog ) , ( dog , left of , cat )\nb.png\t( man, v:riding, horse )\n"
DETECTED = {
    "0": {
        "bbox": [[1, 2, 11, 14], [30, 2, 40, 14], [5, 5, 6, 6]], "bbox_labels": [1, 2, 2], "bbox_scores": [0.9, 0.8, 0.7],
        "rel_pairs": [[0, 1], [1, 0], [2, 0]], "rel_labels": [1, 2, 1], "rel_scores": [0.9, 0.5, 0.01],
        "rel_all_scores": [[], [], []],
    },
    "1": {
        "bbox": [[0, 0, 64, 48], [0, 0, 64, 48]], "bbox_labels": [3, 4], "bbox_scores": [1, 1], "rel_pairs": [[0, 1]],
        "rel_labels": [3], "rel_scores": [0.4], "rel_all_scores": [[]],
    },
}  # fmt: skip
INFO = {
    "idx_to_files": ["/there/a.png", "/there/b.png"],
    "ind_to_classes": ["__background__", "dog", "cat", "man", "horse"],
    "ind_to_predicates": ["__background__", "left of", "near", "riding"],
}
FORMS = {
    "graphs.json": json.dumps(JSON), "graphs.csv": CSV, "graphs.txt": FACTUAL, "custom_prediction.json": json.dumps(DETECTED),
}  # fmt: skip


@pytest.fixture(autouse=True)
def built_in_classes() -> Iterator[None]:
    yield
    use_relations(None)


def write(root: Path, name: str, text: str) -> Path:
    root.mkdir(exist_ok=True)
    (root / name).write_text(text)
    if name == "custom_prediction.json":
        (root / "custom_data_info.json").write_text(json.dumps(INFO))
    for image in ("a.png", "b.png"):
        Image.new("RGB", (64, 48), (9, 8, 7)).save(root / image)
    return root


@pytest.mark.parametrize("name", FORMS)
def test_every_form_says_the_same(name: str, tmp_path: Path) -> None:
    root, out = write(tmp_path / "data", name, FORMS[name]), tmp_path / "out"
    metrics = canonicalize(Folder(root), out, Canonicalize())
    images = {row["image_id"]: row["url"] for row in rows(out, "images")}
    table = rows(out, "relations")
    said = {(images[row["image_id"]], row["subject"], row["predicate"], row["object"]) for row in table}
    assert said == {
        ("a.png", "dog", "left of", "cat"), ("a.png", "cat", "around/near", "dog"), ("b.png", "man", "riding", "horse"),
    }  # fmt: skip
    boxed = [row for row in table if row["predicate"] == "left of"]
    whole = name == "graphs.txt"
    assert [[row[f"s{k}"] for k in "xywh"] for row in boxed] == [[0, 0, 64, 48] if whole else [1, 2, 10, 12]]
    assert [row["sw"] for row in table if row["predicate"] == "riding"] == [64]
    assert (metrics["rejected"], metrics["file"]) == (0, name)
    assert metrics.get("attributes", 0) == (name in ("graphs.json", "graphs.txt"))
    store = ImageStore(open_images(Data("folder", str(root))))
    assert store.load(image_id_of("b.png")).pixels[0, 0].tolist() == [9, 8, 7]


def test_detections_below_a_score_are_left_out(tmp_path: Path) -> None:
    root = write(tmp_path / "data", "custom_prediction.json", FORMS["custom_prediction.json"])
    kept = {
        score: canonicalize(Folder(root, Options(score)), tmp_path / "out", Canonicalize())["kept"] for score in (0.0, 0.1, 0.6)
    }
    assert kept == {0.0: 4, 0.1: 3, 0.6: 1}


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("graphs.csv", "picture,subject\n", r"no column 'image' in the first line \(picture, subject\)"),
        ("graphs.csv", "", r"no column 'image'"),
        ("graphs.json", '{"image": "a.png"}', r"a JSON list is needed"),
        ("graphs.json", '[{"image": "a.png", ', r"the file ends inside a value"),
        ("custom_prediction.json", "[]", r"a JSON object is needed"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_line(name: str, text: str, says: str, tmp_path: Path) -> None:
    root = write(tmp_path / "data", name, text)
    with pytest.raises(DataError, match=says) as caught:
        canonicalize(Folder(root), tmp_path / "out", Canonicalize())
    assert "\n" not in str(caught.value) and str(root / name) in str(caught.value)


def test_one_file_of_graphs(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no file of graphs; valid: graphs.json, graphs.csv, .*; put the images"):
        canonicalize(Folder(tmp_path), tmp_path / "out", Canonicalize())
    for name in ("graphs.json", "graphs.csv"):
        root = write(tmp_path / "data", name, FORMS[name])
    with pytest.raises(DataError, match=r"graphs.json, graphs.csv; keep one"):
        canonicalize(Folder(root), tmp_path / "out", Canonicalize())


def test_data_check_says_per_file_what_is_wrong(tmp_path: Path) -> None:
    records: list[Any] = [*JSON, {"image": "c.png", "triples": [["dog", "on", "mat"]]}, {"picture": "d.png"}]
    records.append({"image": "e.jpg", "triples": [["dog", "on", "mat"]]})
    records[0] = {**JSON[0], "relations": [[0, "hops over", 1], [0, "left of", 5], [0, "left of"], [0, "left of", 1]]}
    root = write(tmp_path / "data", "graphs.json", json.dumps(records))
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    for name in ("b.png", "e.jpg"):
        Image.fromarray(noise).save(root / name)
        (root / name).write_bytes((root / name).read_bytes()[:2000])
    Image.new("RGB", (5, 5)).save(root / "stray.png")
    found = CliRunner().invoke(app, ["data", "check", str(root)])
    assert found.exit_code == 1
    for said in (
        "graphs.json: image a.png: predicate unknown: dog | hops over | cat",
        "graphs.json: image a.png: object unknown: dog | left of | ?",
        "graphs.json: record 0: invalid: Expected `array` of length 3, got 2",
        "graphs.json: image c.png: invalid: c.png: no such image in",
        "record 3: invalid: Object contains unknown field `picture`",
        "graphs.json: image b.png: invalid: b.png: the image cannot be read",
        "e.jpg: the image cannot be decoded",
        "stray.png: an image without a graph",
        "2 images, 4 objects, 2 relations are sound; 8 problems",
    ):
        assert said in found.output, said
    as_json = CliRunner().invoke(app, ["data", "check", str(root), "--json"])
    told = json.loads(as_json.stdout)
    assert as_json.exit_code == 1 and len(told["problems"]) == 8
    assert told["counts"] == {"images": 2, "objects": 4, "relations": 2} and sum(told["by_class"].values()) == 2
    sound = write(tmp_path / "sound", "graphs.json", FORMS["graphs.json"])
    assert CliRunner().invoke(app, ["data", "check", str(sound)]).exit_code == 0


OWN = """
hops over: {aliases: [jumps over], inverse: hopped by}
hopped by: {inverse: hops over}
kisses: {symmetric: true, phrase: kissing}
left of: {inverse: right of}
right of: {inverse: left of}
"""


def test_own_classes_are_in_force_everywhere(tmp_path: Path) -> None:
    """Names, numbers, phrases, opposites and wrong prompts are those of the file; texts of built-in classes find none."""
    path = tmp_path / "relations.yaml"
    path.write_text(OWN)
    root = write(tmp_path / "data", "graphs.csv", CSV.replace("near", "Jumps  over").replace("riding", "kissing"))
    before = tuple(PREDICATES)
    use_relations(path)
    assert tuple(PREDICATES) == ("hops over", "hopped by", "kisses", "left of", "right of")
    assert (PREDICATE_INDEX["kisses"], INVERSE["hops over"], phrase("kisses")) == (2, "hopped by", "kissing")
    assert {"left of", "kisses"} & DIRECTIONAL == {"left of"} and {"kisses", "on"} & SYMMETRIC == {"kisses"}
    metrics = canonicalize(Folder(root), tmp_path / "out", Canonicalize())
    assert metrics["by_class"] == {"hops over": 1, "hopped by": 0, "kisses": 1, "left of": 1, "right of": 0}
    table = pa.table({"triple_id": ["1"], "image_id": [1], "relationship_id": [1], "predicate": ["kisses"]})
    assert wrong_predicates(table, 0)[0] in {"hops over", "hopped by", "left of", "right of"}
    found = CliRunner().invoke(app, ["data", "check", str(root), "--relations", str(path)])
    assert (found.exit_code, "kisses 1" in found.output) == (0, True)
    use_relations(None)
    assert tuple(PREDICATES) == before and len(before) == 24
    with pytest.raises(DataError, match=r"gone.yaml: own relation classes cannot be read .* data.relations"):
        use_relations(tmp_path / "gone.yaml")
    path.write_text("__image__: {}")
    with pytest.raises(DataError, match="can name no class"):
        use_relations(path)
