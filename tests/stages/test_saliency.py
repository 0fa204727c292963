"""The stages that make maps, as commands: the same bytes whole, killed and continued, or from two processes."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sgpipe.attention_maps.files import MapFile
from sgpipe.attention_maps.options import MapOptions, concept_embeddings
from sgpipe.attention_maps.stream import concept_stream
from sgpipe.backbones.config import Backbone
from sgpipe.backbones.denoiser import Denoiser
from sgpipe.backbones.latent_cache import LatentCache
from sgpipe.backbones.prompt_cache import PromptCache
from sgpipe.backbones.rectified_flow import interpolate, noise
from sgpipe.params.load import read_section
from tests.stages.test_caches import COMMANDS, copied, files, killed, run, set_params, small_repository, stage, started

pytestmark = pytest.mark.slow
COMMANDS |= {name: (f"stages.{name}",) for name in ("saliency", "saliency_noised", "saliency_sheets")}
GROUPS = {"early": "0", "late": "1..2", "single": {"single_blocks": "all"}}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The caches made, and knobs for maps of few images."""
    root = small_repository(tmp_path_factory.mktemp("cached"))
    set_params(
        root,
        maps={"groups": GROUPS, "batch_size": 4, "shard_size": 8, "side": None},
        saliency={"steps": 2, "images": 1},
        saliency_noised={"conditions": ["relational", "wrong", "neutral"], "times": [0.25, 0.75]},
    )
    for name in ("prompts", "latents"):
        stage(root, name)
    return root


@pytest.fixture
def cached(made: Path, tmp_path: Path) -> Path:
    """`made` for one test."""
    return copied(made, tmp_path)


@pytest.mark.parametrize("name", ["saliency", "saliency_noised"])
def test_killed_or_dealt_over_processes_the_bytes_are_the_same(cached: Path, name: str) -> None:
    out = cached / "outputs" / name
    started(cached, name)
    whole = files(out)
    assert {f"{group}.parquet" for group in GROUPS} <= set(whole)
    shutil.rmtree(out)
    killed(cached, name)
    assert not out.exists()
    damaged = next((cached / ".dvc/stage-state").glob("*/[a-z]*-0*/late.parquet"))
    damaged.write_bytes(damaged.read_bytes()[:100])
    started(cached, name)
    assert files(out) == whole
    if name == "saliency_noised":  # both are dealt over processes by the same code
        return
    shutil.rmtree(out)
    set_params(cached, compute={"launch": "torchrun --nproc-per-node 2"})
    started(cached, name)
    assert files(out) == whole


def test_a_noised_map_is_that_of_one_forward(cached: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Made again by hand from the caches, for a row in the middle of the file."""
    stage(cached, "saliency_noised")
    monkeypatch.chdir(cached)
    torch.set_num_threads(1)
    backbone = read_section(Path("params.yaml"), "backbone", Backbone)
    file = MapFile(Path("outputs/saliency_noised/late.parquet"))
    assert file.facts["blocks"] == f"[{GROUPS['late']}]" and file.facts["times"] == [0.25, 0.75]
    row = file.items.slice(151, 1).to_pylist()[0]
    assert row["condition"] == "relational" and row["t"] == 0.75
    prompts = PromptCache([Path("outputs/prompts")], backbone)
    triples = {t["triple_id"]: t for t in map_triples(cached)}
    triple = triples[row["triple_id"]]
    clean = LatentCache(Path("outputs/latents"), backbone).latents([row["triple_id"]])
    seed = seed_of(triple)
    t = torch.tensor([row["t"]])
    z_t = interpolate(clean, noise([seed], tuple(clean.shape[1:])), t)
    embeds = concept_embeddings(*prompts.concepts(triple["concepts"]))[None]
    denoiser = Denoiser.load(backbone, torch.device("cpu"))
    options = MapOptions(GROUPS, "concepts", detach=True)
    with torch.no_grad(), concept_stream(denoiser.transformer, embeds, file.shape[1:], options) as stream:
        denoiser.velocity(z_t, t, prompts.get([triple["prompt"]]))
    single = MapFile(Path("outputs/saliency_noised/single.parquet"))
    assert single.facts["blocks"] == "single_blocks all" and "variant" not in single.facts
    for group, made in (("late", file), ("single", single)):
        expected = stream.maps()[group]
        assert np.allclose(made.read("saliency")[151], expected.saliency[0].numpy(), atol=1e-3)
        assert np.allclose(made.read("cross")[151], expected.cross[0].numpy(), atol=2e-3)


def map_triples(root: Path) -> list[dict]:
    import pyarrow.parquet as pq

    return pq.read_table(root / "outputs/curated/map_triples.parquet").to_pylist()


def seed_of(triple: dict) -> int:
    from sgpipe.runs.hashing import hashed

    ids = ([triple["image_id"]], [triple["relationship_id"]])
    return int(hashed(0, "maps", *ids)[0] >> np.uint64(1))


def test_the_sheets_show_every_class_and_the_boxes_are_measured(cached: Path) -> None:
    for name in ("saliency", "saliency_noised", "saliency_sheets"):
        stage(cached, name)
    sheets = sorted(path.name for path in (cached / "plots/saliency").iterdir())
    assert len(sheets) == 24 and "left_of.png" in sheets and "near.png" in sheets
    with Image.open(cached / "plots/saliency/left_of.png") as sheet:
        assert np.asarray(sheet.convert("L")).std() > 10
    found = json.loads((cached / "metrics/saliency.json").read_text())
    assert 0 < found["uniform"]["subject"] < 1
    for group in GROUPS:
        for kind in ("saliency", "cross"):
            assert 0 < found["mass_in_box"][group][kind]["object"] < 1


def test_maps_refuse_blocks_that_the_model_does_not_have(cached: Path) -> None:
    set_params(cached, maps={"groups": {"late": "2..3"}})
    with pytest.raises(AssertionError, match=r"groups\.late"):
        run(cached, sys.executable, "-m", "stages.saliency")
