"""From relations to a trained encoder: examples, features of a tower, a head that sees places, a kill that changes nothing."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import polars as pl
import pyarrow as pa
import pytest
import torch
from torch import nn

from sgpipe.backbones.images import crop_pixels
from sgpipe.backbones.strict import write_tensors
from sgpipe.datasets.images import AnnotatedImage
from sgpipe.errors import DataError, ModelError, StateError
from sgpipe.graph_encoder import training
from sgpipe.graph_encoder.batches import Names, batch_graphs
from sgpipe.graph_encoder.cgip import Cgip, CgipConfig
from sgpipe.graph_encoder.config import GraphEncoder
from sgpipe.graph_encoder.evaluate import LAYOUTS, measure, token_cosines
from sgpipe.graph_encoder.examples import Examples
from sgpipe.graph_encoder.features import Features, check_shard, feature_maker
from sgpipe.graph_encoder.open_vocabulary import NameTable, OpenVocabularyConfig, OpenVocabularyEncoder
from sgpipe.graph_encoder.pretraining import ImageHead
from sgpipe.graph_encoder.tower import ImageTower, tower_identity
from sgpipe.graph_encoder.training import Learner, Lessons, learning_rate, pretrain
from sgpipe.graph_encoder.vocabulary import Vocabulary
from sgpipe.graphs.config import Curate, Quality
from sgpipe.graphs.curate import candidates, curate
from sgpipe.relations.predicates import DIRECTIONAL, PREDICATES, phrase
from sgpipe.runs.checkpoints import read_checkpoint
from sgpipe.runs.shards import Shard, cut
from sgworld.contrast import Tower, build_clip, save_local
from tests.graph_encoder.relations import CLASSES, relations

CPU = torch.device("cpu")
CURATE = Curate(
    predicates=CLASSES,
    map_predicates=CLASSES,
    train=80,
    val=24,
    maps_per_class=1,
    val_pairs=0.4,
    allow_short=True,
    quality=Quality(min_side=1, min_area=0),
)


@pytest.fixture(scope="module")
def params(tmp_path_factory: pytest.TempPathFactory) -> GraphEncoder:
    """Knobs for a random tower of 4 × 4 patches, as open_clip reads it from a folder."""
    folder = tmp_path_factory.mktemp("tower")
    size = Tower(width=32, layers=3, patch=16, embed=16)
    save_local(build_clip(size, seed=1), size, folder)
    return GraphEncoder(
        tower=f"local-dir:{folder}",
        files=str(folder),
        embed=24,
        width=32,
        layers=1,
        queries=2,
        steps=6,
        batch_size=16,
        masked_batch=4,
        tower_batch=8,
        shard_size=50,
        development=0.3,
    )


@pytest.fixture(scope="module")
def tower(params: GraphEncoder) -> ImageTower:
    return ImageTower(params, CPU)


@pytest.fixture(scope="module")
def examples(params: GraphEncoder) -> Examples:
    return Examples.of(*tables(), CURATE, params)


def tables() -> tuple[pa.Table, pa.Table, pa.Table]:
    found, images = relations(400)
    return found, images, curate(found, images, CURATE).triples


def load(image_id: int) -> AnnotatedImage:
    """Random pictures."""
    pixels = np.random.default_rng(image_id).integers(0, 256, (96, 128, 3), dtype=np.uint8)
    return AnnotatedImage(pixels, (128, 96))


def damaged(examples: Examples) -> int:
    """The image that cannot be read."""
    return int(examples.crops["image_id"][40])


@pytest.fixture(scope="module")
def features(
    params: GraphEncoder, tower: ImageTower, examples: Examples, tmp_path_factory: pytest.TempPathFactory
) -> Features:
    made = tmp_path_factory.mktemp("features")

    def read(image_id: int) -> AnnotatedImage:
        if image_id == damaged(examples):
            raise DataError("damaged")
        return load(image_id)

    shards = cut("features", len(examples.crops), params.shard_size)
    make = feature_maker(tower, read, examples.crops, params.tower_batch, "it")
    for shard in shards:
        (made / shard.name).mkdir()
        make(shard, made / shard.name, lambda _: None)
    return Features(shards, made, len(examples.crops), "it")


def pairs(frame: pl.DataFrame) -> set[tuple[str, ...]]:
    return {tuple(sorted(two)) for two in frame.select("subject", "object").rows()}


def test_no_name_pair_and_no_image_is_both_learned_from_and_measured_by(
    examples: Examples, params: GraphEncoder
) -> None:
    parts = {part: examples.frame.filter(pl.col("part") == part) for part in ("train", "development", "val")}
    assert all(len(part) > 5 for part in parts.values())
    for held in ("development", "val"):
        assert not pairs(parts["train"]) & pairs(parts[held])
        assert not set(parts["train"]["image_id"]) & set(parts[held]["image_id"])
    found, images, _ = tables()
    ranked, _ = candidates(found, images, CURATE)
    ranked = ranked.filter((pl.col("image_split") == "train") & (pl.col("side") == "train"))
    told = {part: set(frame["relationship_id"]) for part, frame in parts.items()}
    lacking = ranked.filter(~pl.col("relationship_id").is_in(told["train"] | told["development"]))
    assert len(lacking) == examples.shared > 0
    assert set(lacking["image_id"]) <= set(parts["train"]["image_id"])
    triples = pl.DataFrame(tables()[2]).filter(pl.col("split") == "val")
    assert sorted(parts["val"]["relationship_id"]) == sorted(triples["relationship_id"])
    plain = Examples.of(*tables(), CURATE, msgspec.structs.replace(params, geometric=False, graphs=20))
    trained = plain.frame.filter(pl.col("part") == "train")
    assert len(trained) == 2 * 20 and set(trained["source"]) == {"annotated"}
    with pytest.raises(DataError, match="20 training relations for batches of 64"):
        Examples.of(*tables(), CURATE, msgspec.structs.replace(params, graphs=20, batch_size=64))


def test_the_hidden_box_is_that_of_an_end_of_a_relation_of_its_crop(examples: Examples) -> None:
    rows = examples.frame.join(examples.crops.with_row_index("crop"), on="crop", how="left")
    ends = []
    for side in "so":
        x0 = (pl.col(f"{side}x") - pl.col("crop_x")) / pl.col("crop_w")
        y1 = (pl.col(f"{side}y") + pl.col(f"{side}h") - pl.col("crop_y")) / pl.col("crop_h")
        ends.append(
            ((pl.col("x0") - x0.clip(0, 1)).abs() < 1e-5) & ((pl.col("y1") - y1.clip(0, 1)).abs() < 1e-5)
        )
    mirrored = pl.col("mirrored")
    found = rows.filter(~mirrored).group_by("crop").agg((ends[0] | ends[1]).any().alias("is_end"))
    assert found["is_end"].all() and found.height == (~examples.crops["mirrored"]).sum()


def test_a_mirrored_example_exchanges_left_and_right_of_picture_and_graph(
    tower: ImageTower, examples: Examples, features: Features
) -> None:
    trained = examples.frame.filter(pl.col("part") == "train")
    assert not examples.frame.filter(pl.col("part") != "train")["mirrored"].any()
    plain, turned = (trained.filter(pl.col("mirrored") == value) for value in (False, True))
    told = {"left of": "right of", "right of": "left of"}
    both = plain.join(turned, on="relationship_id", suffix="_turned")
    assert len(both) == len(plain) == len(turned)
    for row in both.to_dicts()[:40]:
        assert row["predicate_turned"] == told.get(row["predicate"], row["predicate"])
        assert (row["subject"], row["object"]) == (row["subject_turned"], row["object_turned"])
    row = next(row for row in both.to_dicts() if row["image_id"] != damaged(examples))
    image, *box = (row[name] for name in ("image_id", "crop_x", "crop_y", "crop_w", "crop_h"))
    picture = crop_pixels(load(image), (box[0], box[1], box[2], box[3]), tower.side)
    seen = tower.features(tower.pixels(np.stack([picture[:, ::-1]])))
    assert (features.get("patches", [row["crop_turned"]]) - seen).abs().max() < 5e-3


def test_features_are_those_of_each_crop_alone_and_blanking_reaches_the_tower(
    tower: ImageTower, examples: Examples, features: Features
) -> None:
    assert (tower.patches, tower.width, tower.grid) == (16, 32, 4)
    unread = np.flatnonzero(~features.read)
    assert set(examples.crops["image_id"].to_numpy()[unread]) == {damaged(examples)}
    assert features.counts == {"rescaled": 0, "image unreadable": len(unread)}
    number = int(np.flatnonzero(features.read & ~examples.crops["mirrored"].to_numpy())[30])
    image, *box = examples.crops.select("image_id", "crop_x", "crop_y", "crop_w", "crop_h").row(number)
    pixels = tower.pixels(np.stack([crop_pixels(load(image), (box[0], box[1], box[2], box[3]), tower.side)]))
    alone = tower.features(pixels)
    assert (features.get("patches", [number]) - alone).abs().max() < 5e-3
    assert alone.mean(-1).abs().max() < 1e-5 and (alone.var(-1, correction=0) - 1).abs().max() < 1e-3
    assert features.get("region", [number]).any()
    assert (features.get("rest", [number]) - alone).abs().max() > 0.05


@pytest.mark.parametrize("size", [0, 900])
def test_a_damaged_shard_of_features_is_told_from_a_whole_one(tmp_path: Path, size: int) -> None:
    shard = tmp_path / "features-00000"
    shard.mkdir()
    write_tensors({"patches": torch.zeros(4, 16, 32)}, shard / "features.safetensors", {"encoder": "it"})
    check_shard(shard, "it")
    with pytest.raises(DataError, match="made by encoder it"):
        check_shard(shard, "another")
    (shard / "features.safetensors").write_bytes((shard / "features.safetensors").read_bytes()[:size])
    with pytest.raises(DataError, match=r"features\.safetensors: cannot be read"):
        check_shard(shard, "it")


def test_a_tower_that_cannot_be_read_is_refused(params: GraphEncoder, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"graph_encoder\.block: got 5"):
        ImageTower(msgspec.structs.replace(params, block=5), CPU)
    gone = f"local-dir:{tmp_path}/gone"
    with pytest.raises(ModelError, match="no such folder"):
        tower_identity(msgspec.structs.replace(params, tower=gone, files=f"{tmp_path}/gone"))
    with pytest.raises(ValueError, match="set files to it"):
        GraphEncoder(tower=gone)
    with pytest.raises(ValueError, match="needs open_clip's tag"):
        GraphEncoder(tower="ViT-B-32")
    with pytest.raises(ModelError, match="open_clip cannot load it"):
        ImageTower(GraphEncoder(tower="ViT-of-nobody", pretrained="openai"), CPU)
    first = tower_identity(params)
    assert first != tower_identity(msgspec.structs.replace(params, block=-1))


def test_a_head_tells_which_is_left_where_the_mean_cannot() -> None:
    """Two things at two of nine places: their order is in the places alone."""
    torch.manual_seed(0)
    things = torch.randn(6, 12)

    def pictures(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        draw = np.random.default_rng(seed)
        patches, leftmost = torch.zeros(count, 9, 12), torch.zeros(count, dtype=torch.long)
        for n in range(count):
            (a, b), (left, right) = draw.choice(6, 2, replace=False), np.sort(draw.choice(3, 2, False))
            patches[n, 3 * draw.integers(3) + left], patches[n, 3 * draw.integers(3) + right] = (
                things[a],
                things[b],
            )
            leftmost[n] = int(a)
        return patches, leftmost

    head = ImageHead(12, 9, 6, queries=2, width=32, heads=2)
    optimizer = torch.optim.AdamW(head.parameters(), 5e-3)
    for step in range(150):
        patches, target = pictures(64, step)
        loss = torch.nn.functional.cross_entropy(head(patches), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    patches, target = pictures(300, 999)
    assert (head(patches).argmax(1) == target).float().mean() > 0.9


def lesson(examples: Examples, features: Features, part: str = "train") -> Lessons:
    known = examples.names(1)
    names = Vocabulary.of(known, list(PREDICATES))
    return Lessons(examples, features, examples.rows(part, features.read, frozenset(known)), names)


def learner(lessons: Lessons, features: Features, params: GraphEncoder) -> Learner:
    torch.manual_seed(0)
    assert isinstance(lessons.names, Vocabulary)
    sizes = len(lessons.names.objects), len(lessons.names.predicates)
    encoder = Cgip(CgipConfig(*sizes, params.width, params.embed, params.layers))
    return Learner(encoder, features.shape, params, CPU)


@pytest.mark.parametrize("content", [b"", b"junk", b"PK\x03\x04 half an archive", b"\x80\x02cos\nsystem\n."])
def test_a_damaged_checkpoint_is_passed_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes
) -> None:
    """An unpickling error and an empty file, too; what is whole comes back."""
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(content)
    assert read_checkpoint(path) is None
    said = capsys.readouterr().err
    assert said.startswith(f"warning: {path} cannot be read (") and said.count("\n") == 1
    torch.save({"step": 3, "weight": torch.arange(2)}, path)
    found = read_checkpoint(path)
    assert found is not None and found["step"] == 3 and found["weight"].tolist() == [0, 1]
    assert read_checkpoint(tmp_path / "none.pt") is None and capsys.readouterr().err == ""


def test_killed_and_continued_the_weights_are_the_same(
    examples: Examples,
    features: Features,
    params: GraphEncoder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(training, "SAVE_SECONDS", 0.0)
    lessons = lesson(examples, features)
    whole = learner(lessons, features, params)
    fresh = {name: value.clone() for name, value in whole.state_dict().items()}
    (tmp_path / "whole").mkdir()
    pretrain(whole, lessons, params, tmp_path / "whole", lambda *_: None)
    assert all(
        not torch.equal(value, fresh[name])
        for name, value in whole.state_dict().items()
        if value.ndim >= 2 and "embeddings" not in name
    )

    original = training._losses
    calls = []

    def dying(*arguments: Any) -> Mapping[str, torch.Tensor]:
        calls.append(arguments[3])
        if len(calls) == 4:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(training, "_losses", dying)
    (tmp_path / "killed").mkdir()
    with pytest.raises(KeyboardInterrupt):
        pretrain(learner(lessons, features, params), lessons, params, tmp_path / "killed", lambda *_: None)
    again = learner(lessons, features, params)
    pretrain(again, lessons, params, tmp_path / "killed", lambda *_: None)
    assert calls == [0, 1, 2, 3, 3, 4, 5]
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name

    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "training.pt").write_bytes(b"")
    fresh_start = learner(lessons, features, params)
    pretrain(fresh_start, lessons, params, tmp_path / "damaged", lambda *_: None)
    assert calls[7:] == list(range(6))
    assert all(
        torch.equal(value, fresh_start.state_dict()[name]) for name, value in whole.state_dict().items()
    )


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def other_content(path: Path) -> None:
    torch.save({"step": 1, "learner": {}}, path)


@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(b""), cut_short, other_content])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    examples: Examples,
    features: Features,
    params: GraphEncoder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path], None],
) -> None:
    monkeypatch.setattr(training, "SAVE_SECONDS", 0.0)
    short = msgspec.structs.replace(params, steps=4)
    lessons = lesson(examples, features)
    whole = learner(lessons, features, short)
    pretrain(whole, lessons, short, tmp_path, lambda *_: None)
    kept = sorted(path.name for path in tmp_path.iterdir())
    assert len(kept) == 2
    steps: list[int] = []
    original = training._losses

    def counted(*arguments: Any) -> Mapping[str, torch.Tensor]:
        steps.append(arguments[3])
        return original(*arguments)

    monkeypatch.setattr(training, "_losses", counted)
    for damaged, first in ((kept[1:], 3), (kept, 0)):
        for name in damaged:
            damage(tmp_path / name)
        again = learner(lessons, features, short)
        steps.clear()
        pretrain(again, lessons, short, tmp_path, lambda *_: None)
        assert steps == list(range(first, 4))
        said = capsys.readouterr().err
        assert said.count("cannot be read") == len(damaged) and all(name in said for name in damaged)
        for name, value in whole.state_dict().items():
            assert torch.equal(value, again.state_dict()[name]), name


def test_a_checkpoint_that_cannot_be_written_is_named(
    examples: Examples,
    features: Features,
    params: GraphEncoder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise RuntimeError("")

    monkeypatch.setattr(training, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(training.torch, "save", full)
    lessons = lesson(examples, features)
    with pytest.raises(StateError, match=r"step 1: .*step-00000001\.pt cannot be written \(RuntimeError\)"):
        pretrain(learner(lessons, features, params), lessons, params, tmp_path, lambda *_: None)


def test_a_loss_that_is_not_finite_ends_the_training_with_what_to_do(
    examples: Examples, features: Features, params: GraphEncoder, tmp_path: Path
) -> None:
    lessons = lesson(examples, features)
    broken = learner(lessons, features, params)
    broken.head.queries.data.fill_(torch.nan)
    with pytest.raises(StateError, match=r"loss of step 0 is nan; lower graph_encoder\.rate"):
        pretrain(broken, lessons, params, tmp_path, lambda *_: None)


def test_the_rate_rises_stays_and_falls(params: GraphEncoder) -> None:
    long = msgspec.structs.replace(params, steps=1000)
    rates = [learning_rate(step, long) / long.rate for step in range(1000)]
    assert rates[0] == pytest.approx(1 / 50) and rates[49] == rates[600] == 1
    assert all(a > b > 0 for a, b in pairwise(rates[600:]))


def test_measures_are_taken_without_dropout(
    examples: Examples, features: Features, params: GraphEncoder, texts: NameTable
) -> None:
    """Of a model in train mode, as it is before its first step: the figures are those of eval mode, and again the same."""
    lessons = lesson(examples, features, "val")
    model = learner(lessons, features, params)
    projection = model.encoder.graph_projection
    model.encoder.graph_projection = nn.Sequential(projection, nn.Dropout(0.5))
    model.encoder.graph_conv.net2.append(nn.Dropout(0.5))
    model.head.leave.append(nn.Dropout(0.5))
    model.reconstruction.mlp.append(nn.Dropout(0.5))
    graphs = [examples.graphs[row] for row in lessons.rows]
    expected = (
        measure(model.eval(), lessons),
        token_cosines(model.encoder.eval(), graphs, lessons.names, texts, 0),
    )
    for _ in range(2):
        assert measure(model.train(), lessons) == expected[0]
        assert token_cosines(model.encoder.train(), graphs, lessons.names, texts, 0) == expected[1]


@pytest.mark.parametrize("kind", ["cgip", "open_vocabulary"])
def test_what_is_undefined_is_none(
    examples: Examples, features: Features, params: GraphEncoder, texts: NameTable, kind: str
) -> None:
    """Validation without directional relations, and crops that hide no patch."""
    lessons = lesson(examples, features, "val")
    model = learner(lessons, features, params)
    names: Names = lessons.names
    if kind == "open_vocabulary":
        sizes = OpenVocabularyConfig(texts.width, params.width, params.embed, params.layers)
        names, model = texts, Learner(OpenVocabularyEncoder(sizes), features.shape, params, CPU)
    none: dict[str, None] = {"mean": None, "worst": None}
    assert token_cosines(model.encoder, [], names, texts, 0) == dict.fromkeys(LAYOUTS, none)
    others = [row for row in lessons.rows if examples.graphs[row].triples[0][1] not in DIRECTIONAL]
    blank = BlankFeatures(features)
    found = measure(model, Lessons(examples, blank, np.array(others[:5]), names))  # type: ignore[arg-type]
    assert found["masked"] == {"with_graph": None, "without_graph": None}
    assert found["true_above_swap"]["directional"] is None


class BlankFeatures:
    """Features whose boxes hide no patch."""

    def __init__(self, features: Features) -> None:
        self._features = features

    def get(self, name: str, crops: Any) -> torch.Tensor:
        found = self._features.get(name, crops)
        return torch.zeros_like(found) if name == "region" else found


@pytest.fixture(scope="module")
def texts(examples: Examples) -> NameTable:
    generator = torch.Generator().manual_seed(0)
    words = [*examples.names(1), *map(phrase, PREDICATES)]
    return NameTable({word: torch.randn(20, generator=generator) for word in words})


def test_measures_of_an_encoder(
    examples: Examples, features: Features, params: GraphEncoder, texts: NameTable
) -> None:
    """What is measured for all together is what is measured one by one; identical encodings tell nothing apart."""
    lessons = lesson(examples, features, "val")
    model = learner(lessons, features, params).eval()
    found = measure(model, lessons)
    graphs = [examples.graphs[row] for row in lessons.rows]
    wins = []
    for row, graph in zip(lessons.rows.tolist(), graphs, strict=True):
        if graph.triples[0][1] != "left of":
            continue
        with torch.no_grad():
            image = lessons.images([row], model.head, CPU).pooled
            both = model.encoder(batch_graphs([graph, graph.reversed()], lessons.names)).pooled
        cosine = torch.nn.functional.cosine_similarity(image, both)
        wins.append(bool(cosine[0] > cosine[1]))
    assert found["true_above_swap"]["by_class"]["left of"] == pytest.approx(np.mean(wins))
    assert "around/near" not in found["true_above_swap"]["by_class"]
    assert found["masked"]["with_graph"] > 0
    cosines = token_cosines(model.encoder, graphs, lessons.names, texts, seed=0)
    assert set(cosines) == set(LAYOUTS)
    assert all(each["mean"] <= each["worst"] < 1 for each in cosines.values())
    assert token_cosines(model.encoder, [], lessons.names, texts, seed=0) == {
        name: {"mean": None, "worst": None} for name in LAYOUTS
    }
    for parameter in model.encoder.parameters():
        parameter.data.zero_()
    blind = token_cosines(model.encoder, graphs, lessons.names, texts, seed=0)
    assert blind["triple"]["mean"] == pytest.approx(1)
    assert measure(model, lessons)["true_above_swap"]["directional"] == 0


def test_a_shard_without_readable_images_is_empty(
    tower: ImageTower, examples: Examples, tmp_path: Path
) -> None:
    def refuse(image_id: int) -> np.ndarray:
        raise DataError(f"image {image_id} is damaged")

    shard = Shard("features-00000", 0, 5)
    (tmp_path / shard.name).mkdir()
    feature_maker(tower, refuse, examples.crops, 4, "it")(shard, tmp_path / shard.name, lambda _: None)
    with pytest.raises(DataError, match=r"none of 5 crops could be read \(image unreadable 5\)"):
        Features([shard], tmp_path, 5, "it")


def test_a_step_holds_the_share_of_directional_graphs_that_was_asked_for(
    examples: Examples, features: Features, params: GraphEncoder
) -> None:
    lessons = lesson(examples, features)
    for share, wanted in ((0.75, 12), (0.0, 0), (1.0, 16)):
        drawn = lessons.draw(np.random.default_rng(0), msgspec.structs.replace(params, directional=share))
        stated = examples.frame["predicate"].is_in(list(DIRECTIONAL)).to_numpy()[drawn]
        assert stated.sum() == wanted and len(drawn) == 16 and set(drawn) <= set(lessons.rows.tolist())
    few = replace(lessons, rows=lessons.rows[:0])
    with pytest.raises(DataError, match="set it to null"):
        few.draw(np.random.default_rng(0), msgspec.structs.replace(params, directional=0.5))
