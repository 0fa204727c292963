"""From relations to what is trained on: examples, features of their crops, a tower."""

from pathlib import Path

import msgspec
import numpy as np
import polars as pl
import pytest
import torch

from sgpipe.backbones.images import crop_pixels
from sgpipe.backbones.strict import write_tensors
from sgpipe.errors import DataError, ModelError
from sgpipe.graph_encoder.config import GraphEncoder
from sgpipe.graph_encoder.examples import Examples
from sgpipe.graph_encoder.features import Features, check_shard, feature_maker
from sgpipe.graph_encoder.tower import ImageTower, tower_identity
from sgpipe.graphs.candidates import candidates
from sgpipe.runs.shards import Shard
from tests.graph_encoder.world import CPU, CURATE, damaged, load, tables


def pairs(frame: pl.DataFrame) -> set[tuple[str, ...]]:
    return {tuple(sorted(two)) for two in frame.select("subject", "object").rows()}


def test_no_name_pair_and_no_image_is_both_learned_from_and_measured_by(examples: Examples, params: GraphEncoder) -> None:
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
        ends.append(((pl.col("x0") - x0.clip(0, 1)).abs() < 1e-5) & ((pl.col("y1") - y1.clip(0, 1)).abs() < 1e-5))
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


def test_a_shard_without_readable_images_is_empty(tower: ImageTower, examples: Examples, tmp_path: Path) -> None:
    def refuse(image_id: int) -> np.ndarray:
        raise DataError(f"image {image_id} is damaged")

    shard = Shard("features-00000", 0, 5)
    (tmp_path / shard.name).mkdir()
    feature_maker(tower, refuse, examples.crops, 4, "it")(shard, tmp_path / shard.name, lambda _: None)
    with pytest.raises(DataError, match=r"none of 5 crops could be read \(image unreadable 5\)"):
        Features([shard], tmp_path, 5, "it")
