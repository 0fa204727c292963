"""Caches give back what the encoders made, and refuse what other encoders made."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from sgpipe.backbones.cache_files import MANIFEST
from sgpipe.backbones.families import family_of_backbone, open_text_encoders
from sgpipe.backbones.families.flux import Flux
from sgpipe.backbones.images import crop_pixels, encode
from sgpipe.backbones.latent_cache import Crops, LatentCache, latent_identity, latent_maker, merge_latents
from sgpipe.backbones.loading import load_module
from sgpipe.backbones.prompt_cache import PromptCache, merge_prompts, prompt_identity, prompt_maker, prompt_shards
from sgpipe.datasets.images import ImageStore
from sgpipe.datasets.visual_genome.images import VisualGenomeImages
from sgpipe.errors import DataError
from sgpipe.runs.processes import Processes
from sgpipe.runs.shards import cut, run_shards
from sgpipe.runs.state import config_hash
from tests.tiny import SIDE, backbone_of, curated_triples, edit_json, write_images

CPU = torch.device("cpu")
ALONE = Processes(0, 1, CPU)
PROMPTS = ["", "a photo of ball", "a photo of dog above cat", "a photo of tree and cat", "a photo of tree on cat"]
CONCEPTS = ["above", "dog", "in front of"]


def make_prompts(backbone, state: Path, out: Path, prompts=PROMPTS, concepts=CONCEPTS) -> Path:
    who, shards = prompt_identity(backbone), prompt_shards(prompts, concepts, 2)
    for folder in (state, out):
        folder.mkdir(parents=True)
    run_shards(
        shards,
        state,
        ALONE,
        lambda: prompt_maker(open_text_encoders(backbone, CPU), prompts, concepts, 2, config_hash(who)),
        "text",
    )
    merge_prompts(shards, state, out, prompts, concepts, who)
    return out


@pytest.fixture(scope="module")
def prompts(schnell: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prompts")
    return make_prompts(backbone_of(schnell), folder / "state", folder / "cache")


def test_prompts_come_back_by_text_in_any_order(schnell, prompts):
    cache, encoders = (PromptCache([prompts], backbone_of(schnell)), open_text_encoders(backbone_of(schnell), CPU))
    asked = [PROMPTS[3], PROMPTS[0], PROMPTS[3], PROMPTS[4]]
    found, fresh = cache.get(asked), encoders.prompts(asked)
    torch.testing.assert_close(found.states, fresh.states, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(found.pooled, fresh.pooled, atol=1e-6, rtol=1e-5)
    assert PROMPTS[1] in cache and "a photo" not in cache
    with pytest.raises(DataError, match="prompt 'a photo' is not cached"):
        cache.get(["a photo"])


def test_concepts_come_back_padded_with_their_mask(schnell, prompts):
    cache, encoders = (PromptCache([prompts], backbone_of(schnell)), open_text_encoders(backbone_of(schnell), CPU))
    asked = ["dog", "in front of", "above"]
    states, mask = cache.concepts(asked)
    assert mask.sum(dim=1).tolist() == [1, 3, 1]
    assert states[~mask].abs().sum() == 0
    for row, own, fresh in zip(states, mask, encoders.concepts(asked), strict=True):
        torch.testing.assert_close(row[own], fresh, atol=1e-6, rtol=1e-5)
    with pytest.raises(DataError, match="concept 'behind' is not cached"):
        cache.concepts(["behind"])


def test_concepts_of_one_text_come_back_one_by_one(schnell, tmp_path):
    backbone, told = backbone_of(schnell), ["dog", "in front of", "cat"]
    whole = "dog in front of cat"
    cache = PromptCache([make_prompts(backbone, tmp_path / "state", tmp_path / "cache", [""], [*told, "above", whole])], backbone)
    states, mask = cache.concepts(told, joined=True)
    (fresh,) = open_text_encoders(backbone, CPU).concepts([whole])
    assert mask.sum(dim=1).tolist() == [1, 3, 1]
    torch.testing.assert_close(states[mask], fresh, atol=1e-6, rtol=1e-5)
    assert (states[0, 0] - cache.concepts(told)[0][0, 0]).abs().max() > 1e-3
    with pytest.raises(DataError, match=r"concept 'dog above cat' is not cached.*cache_prompts\.joined_concepts"):
        cache.concepts(["dog", "above", "cat"], joined=True)


def test_a_text_that_was_cut_is_not_taken_apart(schnell, tmp_path):
    backbone, told = backbone_of(schnell, max_sequence_length=4), ["dog", "in front of", "cat"]
    texts = [*told, "dog in front of cat"]
    cache = PromptCache([make_prompts(backbone, tmp_path / "state", tmp_path / "cache", [""], texts)], backbone)
    with pytest.raises(DataError, match=r"'dog in front of cat': 3 tokens as one text, 1 \+ 3 \+ 1 one by one; raise"):
        cache.concepts(told, joined=True)


def test_several_prompt_caches_are_one(schnell, prompts, tmp_path):
    backbone = backbone_of(schnell)
    other = make_prompts(backbone, tmp_path / "state", tmp_path / "cache", ["", "a photo of table"], [])
    cache = PromptCache([prompts, other], backbone)
    both = cache.get(["a photo of table", PROMPTS[2]]).pooled
    assert torch.equal(both[1:], PromptCache([prompts], backbone).get([PROMPTS[2]]).pooled)
    assert torch.equal(both[:1], PromptCache([other], backbone).get(["a photo of table"]).pooled)


def test_stale_and_foreign_prompt_caches_are_refused(schnell, prompts, tmp_path):
    with pytest.raises(DataError, match=r"dtype float32 there, bfloat16 here.*dvc repro cache_prompts"):
        PromptCache([prompts], backbone_of(schnell, dtype="bfloat16"))
    with pytest.raises(DataError, match="max_sequence_length 12 there, 10 here"):
        PromptCache([prompts], backbone_of(schnell, max_sequence_length=10))
    retrained = shutil.copytree(schnell, tmp_path / "retrained")
    edit_json(retrained / "transformer" / "config.json", note="another transformer leaves texts alone")
    PromptCache([prompts], backbone_of(retrained))
    edit_json(retrained / "text_encoder_2" / "config.json", note="another encoder")
    with pytest.raises(DataError, match="made by another encoder"):
        PromptCache([prompts], backbone_of(retrained))
    with pytest.raises(DataError, match="no cache"):
        PromptCache([tmp_path], backbone_of(schnell))
    copy = shutil.copytree(prompts, tmp_path / "copy")
    foreign = make_prompts(backbone_of(retrained), tmp_path / "state", tmp_path / "cache")
    shutil.copy(foreign / "prompts-00001.safetensors", copy / "prompts-00001.safetensors")
    cache = PromptCache([copy], backbone_of(schnell))
    cache.get([PROMPTS[0]])
    with pytest.raises(DataError, match=r"prompts-00001\.safetensors: made by encoder"):
        cache.get([PROMPTS[2]])
    edit_json(copy / MANIFEST, kind="latents")
    with pytest.raises(DataError, match="holds latents in version 1, not prompts"):
        PromptCache([copy], backbone_of(schnell))


def make_latents(backbone, triples: pa.Table, data: Path, state: Path, out: Path) -> dict:
    who, crops = latent_identity(backbone), Crops.of(triples)
    shards = cut("latents", len(crops), 3)
    for folder in (state, out):
        folder.mkdir(parents=True)
    vae, store = load_module(backbone, "vae"), ImageStore(VisualGenomeImages(data))
    family = family_of_backbone(backbone)
    run_shards(
        shards, state, ALONE, lambda: latent_maker(family, vae, store.load, crops, backbone.resolution, 2, config_hash(who)), "crop"
    )
    return merge_latents(shards, state, out, crops, who, family.statistics(vae))


TRIPLES = curated_triples(8, "maps")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of the triples; the third is damaged, the fifth is missing, the sixth has another aspect ratio.

    The seventh has half the annotated size, and the eighth is annotated as smaller than its crop.
    """
    root = tmp_path_factory.mktemp("data")
    write_images(root, TRIPLES)
    (root / "VG_100K" / "3.png").write_bytes(b"not an image")
    (root / "VG_100K" / "5.png").unlink()
    Image.new("RGB", (20, 20)).save(root / "VG_100K" / "6.png")
    with Image.open(root / "VG_100K" / "7.png") as image:
        image.resize((30, 25)).save(root / "VG_100K" / "7.png")
    records = json.loads((root / "image_data.json").read_text())
    records[7] |= {"width": 36, "height": 30}
    (root / "image_data.json").write_text(json.dumps(records))
    return root


@pytest.fixture(scope="module")
def latents(schnell: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("latents")
    twice = pa.concat_tables([TRIPLES, TRIPLES.slice(0, 2)])
    counts = make_latents(backbone_of(schnell), twice, data, folder / "state", folder / "cache")
    return folder / "cache", counts


def test_every_triple_is_kept_or_rejected_with_its_reason(schnell, latents):
    folder, counts = latents
    assert counts["triples"] == {"kept": 4, "rejected": 4}
    assert counts["rejected_by_reason"] == {"aspect ratio differs": 1, "crop outside image": 1, "image unreadable": 2}
    assert counts["crops"] == {"read": 4, "all": 8, "rescaled": 1}
    kept = LatentCache(folder, backbone_of(schnell)).available(TRIPLES)
    assert kept["image_id"].to_pylist() == [1, 2, 4, 7]


def test_latents_come_back_to_float16_and_scaled(schnell, latents, data):
    backbone = backbone_of(schnell)
    cache, vae, store = (LatentCache(latents[0], backbone), load_module(backbone, "vae"), ImageStore(VisualGenomeImages(data)))
    kept = cache.available(TRIPLES)
    names = kept["triple_id"].to_pylist()[::-1]
    boxes = zip(*(kept[f"crop_{side}"].to_pylist()[::-1] for side in "xywh"), strict=True)
    images = kept["image_id"].to_pylist()[::-1]
    pixels = [crop_pixels(store.load(i), box, SIDE) for i, box in zip(images, boxes, strict=True)]
    mean, std = encode(Flux(), vae, pixels)
    found_mean, found_std = cache.get(names)
    torch.testing.assert_close(found_mean.float(), mean, rtol=2**-11, atol=1e-6)
    torch.testing.assert_close(found_std.float(), std, rtol=2**-11, atol=1e-6)
    scaled = (found_mean.float() - vae.config.shift_factor) * vae.config.scaling_factor
    assert torch.equal(cache.latents(names), scaled)


def test_the_crop_of_a_smaller_copy_is_that_of_its_region(schnell, latents, data):
    """The seventh image has half the annotated size: its latents are those of the halved box, resized to the same square."""
    row = TRIPLES.to_pylist()[6]
    region = [row[f"crop_{side}"] / 2 for side in "xywh"]
    with Image.open(data / "VG_100K" / "7.png") as image:
        edges = (region[0], region[1], region[0] + region[2], region[1] + region[3])
        pixels = np.asarray(image.resize((SIDE, SIDE), Image.Resampling.LANCZOS, box=edges))
    mean, _ = encode(Flux(), load_module(backbone_of(schnell), "vae"), [pixels])
    found, _ = LatentCache(latents[0], backbone_of(schnell)).get([row["triple_id"]])
    torch.testing.assert_close(found.float(), mean, rtol=2**-11, atol=1e-6)


def test_a_draw_is_a_function_of_seed_and_triple_with_the_posteriors_moments(schnell, latents):
    cache = LatentCache(latents[0], backbone_of(schnell))
    names = cache.available(TRIPLES)["triple_id"].to_pylist()
    drawn = cache.latents(names, seed=4)
    assert torch.equal(cache.latents(names[2:3], seed=4), drawn[2:3])
    assert not torch.equal(cache.latents(names, seed=5), drawn)
    _, std = cache.get(names)
    unit = (drawn - cache.latents(names)) / (std.float() * load_module(backbone_of(schnell), "vae").config.scaling_factor)
    assert abs(unit.mean()) < 0.05 and abs(unit.std() - 1) < 0.05


def test_stale_latents_are_refused(schnell, latents, tmp_path):
    folder = latents[0]
    with pytest.raises(DataError, match=r"resolution 32 there, 64 here.*dvc repro cache_latents"):
        LatentCache(folder, backbone_of(schnell, resolution=64))
    retrained = shutil.copytree(schnell, tmp_path / "retrained")
    edit_json(retrained / "vae" / "config.json", scaling_factor=1.5)
    with pytest.raises(DataError, match="weights"):
        LatentCache(folder, backbone_of(retrained))
    cache = LatentCache(folder, backbone_of(schnell))
    moved = TRIPLES.drop(["crop_x"]).append_column("crop_x", pa.array(np.full(8, 5.0, dtype=np.float32)))
    with pytest.raises(DataError, match="triple 1-900 has another crop now"):
        cache.available(moved)
    with pytest.raises(DataError, match="is not cached"):
        cache.available(curated_triples(9, "maps"))
    with pytest.raises(DataError, match=r"3-902 was rejected \(image unreadable\)"):
        cache.get(["3-902"])


def test_one_id_with_two_crops_is_refused():
    moved = TRIPLES.drop(["crop_x"]).append_column("crop_x", pa.array(np.full(8, 5.0, dtype=np.float32)))
    with pytest.raises(DataError, match="has two different crops"):
        Crops.of(pa.concat_tables([TRIPLES, moved.select(TRIPLES.column_names)]))


def test_no_readable_image_at_all_is_an_error(schnell, tmp_path):
    with pytest.raises(DataError, match=r"none of 8 crops .*sgpipe fetch"):
        make_latents(backbone_of(schnell), TRIPLES, tmp_path, tmp_path / "state", tmp_path / "out")
