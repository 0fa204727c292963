"""The vocabulary and split of SGDiff's data: each filter on made annotations, and a plain count of the real sample."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from sgpipe.cli import app
from sgpipe.datasets.visual_genome import passes
from sgpipe.datasets.visual_genome import sgdiff_vocabulary as module
from sgpipe.datasets.visual_genome.sgdiff_vocabulary import Found, Rule, sgdiff_vocabulary
from sgpipe.errors import DataError
from sgpipe.graph_encoder.vocabulary import Vocabulary

FILES = ("image_data", "objects", "relationships")
SPLITS = {"train": [1, 2, 3], "val": [4], "test": [5]}
RULE = Rule(object_count=3, predicate_count=3, objects=(3, 4), relations=(1, 2))
Data = dict[str, list[Any]]


def plain_count(root: Path, splits: dict[str, list[int]], rule: Rule) -> tuple[list[str], list[str], dict[str, list[int]]]:
    """The rule one record after another: names, predicates and images."""
    sizes, objects, relations = (
        {record["image_id"]: record for record in json.loads((root / f"{name}.json").read_text())} for name in FILES
    )
    heads = []
    for name in ("object_alias", "relationship_alias"):
        found: dict[str, str] = {}
        for line in (root / f"{name}.txt").read_text().splitlines():
            found.update(dict.fromkeys(map(str.strip, line.split(",")), line.split(",")[0].strip()))
        heads.append(found)
    there = {i for i in sizes if i in objects and i in relations and min(sizes[i]["width"], sizes[i]["height"]) >= rule.image_side}
    split_of = {i: name for name, ids in splits.items() for i in ids if i in there}
    names: Counter[str] = Counter()
    for i in filter(lambda i: split_of.get(i) == "train", objects):
        for each in objects[i]["objects"]:
            for name in sorted({heads[0].get(n, n) for n in each["names"]}, key=[heads[0].get(n, n) for n in each["names"]].index):
                names[name] += 1
    words = [name for name, number in names.most_common() if number >= rule.object_count]
    kept = {
        each["object_id"]
        for i in split_of
        for each in objects[i]["objects"]
        if min(each["w"], each["h"]) >= rule.object_side and any(heads[0].get(n, n) in words for n in each["names"])
    }
    predicates: Counter[str] = Counter()
    meant: dict[int, list[str]] = {}
    for i in filter(split_of.__contains__, relations):
        meant[i] = [each["predicate"] for each in relations[i]["relationships"]]
        for n, each in enumerate(relations[i]["relationships"]):
            if split_of[i] == "train" and {each["subject"]["object_id"], each["object"]["object_id"]} <= kept:
                lower = each["predicate"].lower().strip()
                meant[i][n] = heads[1].get(lower, lower)
                predicates[meant[i][n]] += 1
    verbs = [name for name, number in predicates.items() if number >= rule.predicate_count]
    result: dict[str, list[int]] = {name: [] for name in splits}
    for i, name in split_of.items():
        here = [each["object_id"] for each in objects[i]["objects"] if each["object_id"] in kept]
        pairs = [(each["subject"]["object_id"], each["object"]["object_id"]) for each in relations[i]["relationships"]]
        joined = sum(word in verbs and set(pair) <= set(here) for word, pair in zip(meant[i], pairs, strict=True))
        if rule.objects[0] <= len(here) <= rule.objects[1] and rule.relations[0] <= joined <= rule.relations[1]:
            result[name].append(i)
    return words, verbs, result


def thing(number: int, *names: str, side: float = 50) -> dict[str, Any]:
    return {
        "object_id": number,
        "names": list(names),
        "x": 0,
        "y": 0,
        "w": side,
        "h": side + 1,
        "merged_object_ids": [number + 900],
    }


def said(number: int, subject: int, predicate: str, object_: int) -> dict[str, Any]:
    ends = {
        name: {"object_id": end, "name": "x", "x": 0, "y": 0, "w": 1, "h": 1}
        for name, end in (("subject", subject), ("object", object_))
    }
    return {"relationship_id": number, "predicate": predicate, **ends}


def made() -> Data:
    """Five images of cat, dog and mat, with `cat on dog`: all pass."""
    return {
        "image_data": [{"image_id": i, "width": 200, "height": 300, "url": None} for i in range(1, 6)],
        "objects": [
            {"image_id": i, "objects": [thing(10 * i, "cat"), thing(10 * i + 1, "dog"), thing(10 * i + 2, "mat", side=32)]}
            for i in range(1, 6)
        ],
        "relationships": [{"image_id": i, "relationships": [said(i, 10 * i, "on", 10 * i + 1)]} for i in range(1, 6)],
    }


def write(root: Path, data: Data, objects: str = "mat,rug\nrug,carpet\n", predicates: str = "on,upon\n") -> Path:
    root.mkdir(exist_ok=True)
    for name, records in data.items():
        (root / f"{name}.json").write_text(json.dumps(records))
    (root / "object_alias.txt").write_text(objects)
    (root / "relationship_alias.txt").write_text(predicates)
    return root


def items(data: Data, image: int, kind: str = "objects") -> list[Any]:
    return data[kind][image - 1][kind]


def number_of(found: Found) -> tuple[list[str], list[str], list[int]]:
    return found.objects, found.predicates, [image for ids in found.splits.values() for image in ids]


def with_at_first(data: Data) -> None:
    """`at` before the first `on`; image 2 gets three relations."""
    items(data, 1, "relationships").insert(0, said(91, 10, "at", 12))
    items(data, 2, "relationships").extend([said(92, 20, "at", 22), said(93, 20, "on", 22)])
    items(data, 3, "relationships").append(said(94, 30, "at", 32))


ALL = (["cat", "dog", "mat"], ["on"], [1, 2, 3, 4, 5])
CASES: dict[str, tuple[Callable[[Data], Any], tuple[list[str], list[str], list[int]]]] = {
    "nothing": (lambda data: None, ALL),
    "an image's side": (lambda data: data["image_data"][3].update(width=199), (*ALL[:2], [1, 2, 3, 5])),
    "a small training image counts for no name": (lambda data: data["image_data"][0].update(height=199), ([], [], [])),
    "an object's side": (lambda data: items(data, 2)[2].update(w=31.9), (*ALL[:2], [1, 3, 4, 5])),
    "a small object's name counts": (lambda data: [items(data, i)[2].update(h=1) for i in (1, 2, 3)], (*ALL[:2], [4, 5])),
    "a rare name": (lambda data: items(data, 1)[2].update(names=["hat"]), (["cat", "dog"], ["on"], [])),
    "names of validation images count for nothing": (
        lambda data: [items(data, i)[2].update(names=["hat"]) for i in (1, 4, 5)],
        (["cat", "dog"], ["on"], []),
    ),
    "a second name": (lambda data: items(data, 1)[2].update(names=["hat", "mat"]), ALL),
    "one count an object and name": (lambda data: items(data, 1)[0].update(names=["cat", "cat"]), ALL),
    "an alias": (lambda data: items(data, 1)[2].update(names=["carpet"]), (["cat", "dog"], ["on"], [])),
    "the last line of an alias counts": (
        lambda data: [items(data, i)[2].update(names=["rug"]) for i in range(1, 6)],
        (["cat", "dog", "rug"], ["on"], [1, 2, 3, 4, 5]),
    ),
    "names keep their capitals": (lambda data: items(data, 1)[2].update(names=["Mat"]), (["cat", "dog"], ["on"], [])),
    "names by falling count": (lambda data: items(data, 1).append(thing(99, "mat")), (["mat", "cat", "dog"], *ALL[1:])),
    "too many objects": (lambda data: items(data, 5).extend([thing(98, "cat"), thing(99, "dog")]), (*ALL[:2], [1, 2, 3, 4])),
    "too few objects": (lambda data: items(data, 5).pop(), (*ALL[:2], [1, 2, 3, 4])),
    "a rare predicate": (lambda data: items(data, 1, "relationships")[0].update(predicate="at"), (ALL[0], [], [])),
    "training predicates are put right": (lambda data: items(data, 1, "relationships")[0].update(predicate=" UPON"), ALL),
    "predicates of other images are not": (
        lambda data: [items(data, i, "relationships")[0].update(predicate=text) for i, text in ((4, "ON"), (5, "upon"))],
        (*ALL[:2], [1, 2, 3]),
    ),
    "no relations": (lambda data: items(data, 4, "relationships").clear(), (*ALL[:2], [1, 2, 3, 5])),
    "too many relations": (
        lambda data: items(data, 4, "relationships").extend([said(90 + n, 40, "on", 42) for n in (0, 1)]),
        (*ALL[:2], [1, 2, 3, 5]),
    ),
    "a merged id is no end": (lambda data: items(data, 1, "relationships")[0]["subject"].update(object_id=910), (ALL[0], [], [])),
    "an object of another image counts for the predicate alone": (
        lambda data: items(data, 1, "relationships")[0]["subject"].update(object_id=20),
        (*ALL[:2], [2, 3, 4, 5]),
    ),
    "predicates by first appearance": (with_at_first, (ALL[0], ["at", "on"], [1, 3, 4, 5])),
    "an image without a record": (lambda data: data["relationships"].pop(), (*ALL[:2], [1, 2, 3, 4])),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_every_filter(case: str, tmp_path: Path) -> None:
    change, expected = CASES[case]
    data = made()
    change(data)
    found = sgdiff_vocabulary(write(tmp_path, data), SPLITS, RULE)
    assert number_of(found) == expected
    assert (found.objects, found.predicates, found.splits) == plain_count(tmp_path, SPLITS, RULE)


def test_any_annotations(tmp_path: Path) -> None:
    """Random ones, with ids that several images share, against the plain count."""
    sizes = set()
    for seed in range(40):
        draw = np.random.default_rng(seed)
        names, verbs, images = (
            ["cat", "Cat", "dog", "rug", "mat", "carpet", "hat"],
            ["on", "ON", "upon", " at", "at", "by"],
            range(1, 31),
        )

        def some(values: list[Any], count: int, draw: np.random.Generator = draw) -> list[Any]:
            return [values[n] for n in draw.integers(0, len(values), count)]

        data: Data = {"image_data": [{"image_id": i, "width": int(draw.integers(190, 400)), "height": 300} for i in images]}
        data["objects"] = [
            {
                "image_id": i,
                "objects": [thing(int(n), *some(names, int(n) % 3), side=int(n) % 90 + 5) for n in draw.integers(0, 150, 7)],
            }
            for i in draw.permutation(images).tolist()
        ]
        data["relationships"] = [
            {
                "image_id": each["image_id"],
                "relationships": [
                    said(n, a["object_id"], some(verbs, 1)[0], b["object_id"] if n % 4 else int(draw.integers(0, 150)))
                    for n, (a, b) in enumerate(zip(some(each["objects"], 6), some(each["objects"], 6), strict=True))
                ],
            }
            for each in data["objects"][:-1]
        ]
        splits = {"train": [*range(20, 0, -1), 77], "val": [21, 22, 23, 24, 25], "test": [26, 27, 28, 29]}
        rule = Rule(object_count=9, predicate_count=8, objects=(3, 5), relations=(1, 4))
        found = sgdiff_vocabulary(write(tmp_path, data), splits, rule)
        assert (found.objects, found.predicates, found.splits) == plain_count(tmp_path, splits, rule)
        sizes.add((len(found.objects), len(found.predicates), *map(len, found.splits.values())))
    assert len(sizes) > 20
    assert all(max(each) > 0 for each in zip(*sizes, strict=True))


@pytest.fixture(scope="module")
def real(reference_dir: Path) -> tuple[Path, Path]:
    """The real sample of v1.4, and the published split."""
    found = reference_dir / "data/vg_real/v1_4", reference_dir / "data/splits/vg_splits.json"
    if not all(path.exists() for path in found):
        pytest.skip(f"real annotations are absent: no {found[0]} or {found[1]}")
    return found


@pytest.mark.parametrize(
    ("rule", "counts"),
    [
        (Rule(object_count=5, predicate_count=2), (53, 15, 36, 3, 2)),
        (Rule(object_count=8, predicate_count=4, objects=(3, 12), relations=(2, 8)), (32, 7, 13, 1, 1)),
        (Rule(300, 60, 4, 3, (2, 9), (1, 30)), (67, 8, 16, 1, 0)),
    ],
)
def test_the_real_sample(real: tuple[Path, Path], rule: Rule, counts: tuple[int, ...]) -> None:
    """As the plain count, and as sg2im's own program counted it."""
    splits = json.loads(real[1].read_text())
    found = sgdiff_vocabulary(real[0], splits, rule)
    assert {name: found.splits[name] for name in splits} == plain_count(real[0], splits, rule)[2]
    assert (found.objects, found.predicates) == plain_count(real[0], splits, rule)[:2]
    assert found.images == {"train": 49, "val": 6, "test": 5}
    assert tuple(found.counts().values()) == counts


def run(root: Path, splits: Any, out: Path) -> Any:
    out.parent.mkdir(exist_ok=True)
    (path := out.parent / "splits.json").write_text(json.dumps(splits))
    return CliRunner().invoke(app, ["data", "sgdiff-vocabulary", str(root), "--splits", str(path), "--out", str(out)])


def test_the_check_against_published_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, out = write(tmp_path / "data", made()), tmp_path / "out" / "vg.json"
    monkeypatch.setattr(sgdiff_vocabulary, "__defaults__", (RULE,))
    done = run(root, SPLITS, out)
    assert done.exit_code == 0
    assert "cannot be compared" in done.stdout
    assert "train 3 of 86,463, val 1 of 10,807, test 1 of 10,807" in done.stdout
    monkeypatch.setattr(module, "WHOLE", {"train": 3, "val": 1, "test": 1})
    monkeypatch.setattr(module, "PUBLISHED", {"objects": 3, "predicates": 1, "train": 3, "val": 1, "test": 1})
    done = run(root, SPLITS, out)
    assert done.exit_code == 0
    assert "as published: objects 3, predicates 1, train 3, val 1, test 1\n" in done.stdout
    assert Vocabulary.read(out) == Vocabulary.of(["cat", "dog", "mat"], ["on"])
    assert json.loads((out.parent / "vg_splits.json").read_text()) == SPLITS
    data = made()
    items(data, 4, "relationships")[0]["predicate"] = "ON"
    items(data, 1)[2]["names"] = ["hat"]
    done = run(write(root, data), SPLITS, out)
    assert done.exit_code == 1
    named = "objects 2 (published: 3), train 0 (published: 3), val 0 (published: 1), test 0 (published: 1); "
    assert f"not as published: {named}" in done.stdout


def test_published_numbers() -> None:
    """Those of the checkpoints' tables, and of the published split: all images of Visual Genome."""
    assert Rule() == Rule(200, 32, 2000, 500, (3, 30), (1, 30))
    assert module.PUBLISHED == {"objects": 179 - 1, "predicates": 46 - 1, "train": 62565, "val": 5062, "test": 5096}
    assert sum(module.WHOLE.values()) == 108_077


def test_unread_records_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By their place in the file, of which each record is a span here."""
    real = passes.guessed_spans
    monkeypatch.setattr(passes, "guessed_spans", lambda path, start: real(path, start, 20))
    data = made()
    items(data, 4, "relationships").append({"predicate": 3})
    done = run(write(tmp_path / "data", data), SPLITS, tmp_path / "out" / "vocab.json")
    assert "records that could not be read and count for nothing: 1; the first: relationships.json record 3: " in done.stdout


def test_errors_name_what_is_wrong(tmp_path: Path) -> None:
    def error(root: Path, splits: Any = SPLITS) -> str:
        caught = run(root, splits, tmp_path / "out" / "vocab.json").exception
        assert isinstance(caught, DataError)
        assert "\n" not in str(caught)
        return str(caught)

    root, data = tmp_path / "data", made()
    data["objects"].append(data["objects"][0])
    assert "objects.json: image 1 has two records" in error(write(root, data))
    assert "lists no test" in error(write(root, made()), {"train": [1], "val": [2]})
    (root / "relationship_alias.txt").write_bytes(b"on,\xff\n")
    assert "relationship_alias.txt: not UTF-8" in error(root)
    (root / "object_alias.txt").unlink()
    assert "object_alias.txt: no such file" in error(root)
    write(root, made())
    (root / "relationships.json").write_text(json.dumps(made()["relationships"])[:-9])
    assert "the file ends inside it" in error(root)
    older = made()
    for each in [each for record in older["objects"] for each in record["objects"]]:
        del each["merged_object_ids"]
    write(root, older)
    assert "files of v1.2; SGDiff's vocabulary is v1.4's" in error(root)
    missing = CliRunner().invoke(app, ["data", "sgdiff-vocabulary", str(root), "--splits", str(tmp_path / "none.json")])
    assert "--splits takes sg2im's vg_splits.json" in str(missing.exception)
