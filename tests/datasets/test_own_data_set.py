"""A second data set, brought by this file alone: from its own JSON through the stages to tables, triples, latents and findings."""

import json
from collections.abc import Generator, Mapping
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

import stages.cache_latents as cache_latents
import stages.canonicalize as canonicalize_stage
import stages.curate as curate
from sgpipe.backbones.latent_cache import LatentCache
from sgpipe.datasets.base import PLUGINS, Batch, Invalid, Work
from sgpipe.datasets.canonicalize import canonicalize, open_data_set
from sgpipe.datasets.config import Canonicalize, Data, Geometric
from sgpipe.datasets.images import ImageStore, open_images
from sgpipe.datasets.records import ObjectRecord, Record, RelationRecord, batches
from sgpipe.doctor.findings import Level
from sgpipe.doctor.inputs import check_data
from sgpipe.errors import DataError, ParamsError
from tests.tiny import backbone_of, write_pipeline

COUNT, SIZE = 40, (60, 50)
NAMES = ("dog", "cat", "ball", "A tree")
SAID = ("on", "left of", "under", "has")


class Scene(msgspec.Struct):
    """One entry of scenes.json; an image is known by its place in the list."""

    file: str
    size: tuple[int, int]
    boxes: list[tuple[str, float, float, float, float]]
    triples: list[tuple[int, str, int]]


class Scenes:
    """scenes.json and the files that it names."""

    def __init__(self, data: Data) -> None:
        self.root = Path(data.root)
        self.sizes_file = self.root / "scenes.json"

    def _scenes(self) -> list[Scene | Invalid]:
        try:
            raws = msgspec.json.decode(self.sizes_file.read_bytes(), type=list[msgspec.Raw])
        except (OSError, msgspec.DecodeError) as error:
            raise DataError(f"{self.sizes_file}: cannot be read: {error}; get it again") from None
        return [self._scene(number, raw) for number, raw in enumerate(raws)]

    def _scene(self, number: int, raw: msgspec.Raw) -> Scene | Invalid:
        try:
            return msgspec.json.decode(raw, type=Scene)
        except msgspec.ValidationError as error:
            return Invalid(number, number, None, str(error))

    def _sound(self) -> dict[int, Scene]:
        return {number: each for number, each in enumerate(self._scenes()) if isinstance(each, Scene)}

    def sizes(self) -> Mapping[int, tuple[int, int]]:
        return {number: scene.size for number, scene in self._sound().items()}

    def files(self) -> Mapping[int, str]:
        there = {number: self.root / scene.file for number, scene in self._sound().items()}
        return {n: f"{path.name} {path.stat().st_size}" for n, path in there.items() if path.is_file()}

    def read(self, image_id: int) -> tuple[bytes, str]:
        path = self.root / self._sound()[image_id].file
        if not path.is_file():
            raise DataError(f"{path}: no such image; {self.remedy()}")
        return path.read_bytes(), str(path)

    def remedy(self, triples: Path | None = None) -> str:
        return f"copy scenes.json and its images to {self.root}"

    def annotations(self) -> list[Path]:
        return [self.sizes_file]

    def damage(self) -> list[str]:
        return [] if self.sizes_file.is_file() else [f"{self.sizes_file}: no such file"]

    def about(self) -> dict[str, Any]:
        return {"scenes": len(self._scenes())}

    def relations(self, work: Work) -> Generator[Batch, None, None]:
        return batches(self.sizes_file, map(_record, range(1 << 30), self._scenes()), work)


def _record(number: int, scene: Scene | Invalid) -> Record | Invalid:
    if isinstance(scene, Invalid):
        return scene
    objects = tuple(ObjectRecord(n, name, tuple(box)) for n, (name, *box) in enumerate(scene.boxes))
    said = tuple(RelationRecord(n, s, predicate, o) for n, (s, predicate, o) in enumerate(scene.triples))
    return Record(number, *scene.size, objects, said)


def scenes() -> list[dict[str, Any]]:
    """Two objects side by side per scene, and one triple."""
    return [
        {
            "file": f"{number:03}.png",
            "size": SIZE,
            "boxes": [[NAMES[number % 4], 5, 10, 20, 25], [NAMES[(number // 4 + 1) % 4], 32, 12, 22, 30]],
            "triples": [[0, SAID[number % 4], 1]],
        }
        for number in range(COUNT)
    ]


@pytest.fixture
def brought(monkeypatch: pytest.MonkeyPatch) -> None:
    """The data set as an installed package's entry point."""
    entry = EntryPoint("scenes", "tests.datasets.test_own_data_set:Scenes", PLUGINS)
    monkeypatch.setattr("sgpipe.datasets.base.entry_points", lambda group: EntryPoints((entry,)).select(group=group))


def write(root: Path, entries: list[Any]) -> Data:
    root.mkdir(exist_ok=True)
    (root / "scenes.json").write_text(json.dumps(entries))
    return Data("scenes", str(root))


def rows(path: Path) -> list[dict[str, Any]]:
    return pq.read_table(path).to_pylist()


def test_its_records_go_through_the_same_stages_to_latents(brought: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "data", scenes())
    for number in range(COUNT):
        pixels = np.random.default_rng(number).integers(0, 256, (SIZE[1], SIZE[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"data/{number:03}.png")
    backbone = backbone_of(write_pipeline(tmp_path / "tiny"))
    params = {
        "data": {"kind": "scenes", "root": "data"},
        "canonicalize": {"splits": {"train": 0.6, "val": 0.4}, "geometric": {"per_image": 1}},
        "curate": {
            "predicates": ["on", "left of"], "train": 6, "val": 4, "maps_per_class": 0, "val_pairs": 0.5, "allow_short": True,
            "crop": {"min_side": 16}, "quality": {"min_side": 6},
        },
        "backbone": msgspec.to_builtins(backbone),
        "cache_latents": {},
        "compute": {"device": "cpu", "threads": 1},
        "tracking": {"enabled": False},
    }  # fmt: skip
    Path("params.yaml").write_text(json.dumps(params))
    for stage in (canonicalize_stage, curate, cache_latents):
        stage.main()

    metrics = json.loads(Path("metrics/canonicalize.json").read_text())
    assert (metrics["images"]["kept"], metrics["objects"]["kept"], metrics["scenes"]) == (40, 80, 40)
    assert metrics["by_reason"] == {"predicate: has": 10} and metrics["kept"] == 30
    assert set(metrics["geometric"]) == {"left of", "right of"}
    assert sum(metrics["geometric"].values()) == 30, "one per image whose two names differ"
    assert {row["split"] for row in rows(Path("outputs/canonical/images.parquet"))} == {"train", "val"}
    under = next(r for r in rows(Path("outputs/canonical/relations.parquet")) if r["raw_predicate"] == "under")
    assert (under["image_id"], under["predicate"], under["subject"]) == (2, "below", "ball")
    triples = {row["triple_id"]: row for row in rows(Path("outputs/curated/triples.parquet"))}
    cache = LatentCache(Path("outputs/latents"), backbone)
    assert {row["split"] for row in triples.values()} == {"train", "val"}
    assert json.loads(Path("metrics/cache_latents.json").read_text())["crops"]["read"] == len(triples)
    mean, std = cache.get(list(triples))
    assert len(mean) == len(triples) and bool((std > 0).all())


def test_every_record_is_kept_or_rejected_for_the_reasons_of_all_data_sets(brought: None, tmp_path: Path) -> None:
    entries = scenes()[:6]
    entries[0]["boxes"] += [["  ", 1, 1, 5, 5], ["dog", 90, 1, 5, 5], ["dog", 1, 1, 0, 5]]
    entries[0]["triples"] += [[0, "on", 0], [0, "on", 1], [1, "supports", 0], [0, "on", 2], [0, "on", 9], [0, "zz", 1]]
    entries[1] = {"file": "1.png", "size": [0.5, 3], "boxes": [], "triples": []}
    entries[3]["boxes"][0] = ["dog", "wide", 0, 1, 1]
    data = write(tmp_path / "data", entries)
    metrics = canonicalize(open_data_set(data), tmp_path / "out", Canonicalize())
    assert metrics["images"]["by_reason"] == {"invalid": 2}
    assert metrics["objects"]["by_reason"] == {"name empty": 1, "box outside image": 1, "box empty": 1}
    assert metrics["by_reason"] == {
        "self-loop": 1,
        "relation repeated": 2,
        "name empty": 1,
        "object unknown": 1,
        "predicate unknown": 1,
    }, "`1 supports 0` says `0 on 1` again"
    assert metrics["read"] == 6 + 4 and metrics["kept"] == 4
    rejected = rows(tmp_path / "out/rejects.parquet")
    assert {(row["file"], row["record"]) for row in rejected if row["reason"] == "invalid"} == {
        ("scenes.json", 1),
        ("scenes.json", 3),
    }
    assert {row["relationship_id"] for row in rejected if row["reason"] == "object unknown"} == {5}


def test_the_tables_do_not_depend_on_how_many_records_are_held(
    brought: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An image id that comes again is rejected across batches, with all that hangs on it."""

    class Twice(Scenes):
        def relations(self, work: Work) -> Generator[Batch, None, None]:
            records = [_record(number, scene) for number, scene in enumerate(self._scenes())]
            return batches(self.sizes_file, [*records, records[4]], work)

    data = write(tmp_path / "data", scenes())
    params = Canonicalize(geometric=Geometric(per_image=1))
    metrics = canonicalize(Twice(data), tmp_path / "a", params)
    assert metrics["images"]["by_reason"] == {"image repeated": 1}
    assert metrics["objects"]["by_reason"] == {"image repeated": 2}
    monkeypatch.setattr("sgpipe.datasets.records.AT_ONCE", 3)
    assert canonicalize(Twice(data), tmp_path / "b", params) == metrics
    for name in ("images", "objects", "relations"):
        assert rows(tmp_path / f"a/{name}.parquet") == rows(tmp_path / f"b/{name}.parquet")


def test_nothing_usable_is_said_by_its_own_file(brought: None, tmp_path: Path) -> None:
    data = write(tmp_path / "data", [{"file": "a"}])
    with pytest.raises(DataError, match=r"scenes.json: no record is usable: 1 read, 1 rejected \(invalid 1\)"):
        canonicalize(open_data_set(data), tmp_path / "out", Canonicalize())
    mute = [{**entry, "triples": []} for entry in scenes()]
    data = write(tmp_path / "data", mute)
    with pytest.raises(DataError, match=r"scenes.json: no relationship is kept: 0 read, 0 rejected"):
        canonicalize(open_data_set(data), tmp_path / "out", Canonicalize())


def test_images_are_opened_and_missed_in_its_own_words(brought: None, tmp_path: Path) -> None:
    data = write(tmp_path / "data", scenes())
    Image.new("RGB", SIZE, (9, 8, 7)).save(tmp_path / "data/003.png")
    Image.new("RGB", (50, 50)).save(tmp_path / "data/004.png")
    store = ImageStore(open_images(data))
    assert store.load(3).pixels[0, 0].tolist() == [9, 8, 7]
    with pytest.raises(DataError, match=r"005.png: no such image; copy scenes.json"):
        store.load(5)
    with pytest.raises(DataError, match=r"004.png: the image is 50 × 50; scenes.json states 60 × 50"):
        store.load(4)
    with pytest.raises(DataError, match=r"scenes.json: image 99 is not named"):
        store.load(99)
    before = store.signature()
    (tmp_path / "data/004.png").unlink()
    assert ImageStore(open_images(data)).signature() != before


def test_the_doctor_asks_it_what_is_missing(brought: None, tmp_path: Path) -> None:
    data = write(tmp_path / "data", scenes())
    found = {finding.what: finding for finding in check_data(data, [], False) if finding.level is Level.FAIL}
    assert list(found) == [f"{tmp_path / 'data'}: no image, neither loose nor zipped"]
    assert next(iter(found.values())).remedy == f"copy scenes.json and its images to {tmp_path / 'data'}"


def test_an_unknown_kind_lists_the_valid_ones(brought: None, tmp_path: Path) -> None:
    for opened in (open_data_set, open_images):
        with pytest.raises(
            ParamsError, match=r"got 'vrd'; valid: visual_genome, coco_stuff, gqa, folder, scenes; .*sgpipe.datasets"
        ):
            opened(Data("vrd", str(tmp_path)))
