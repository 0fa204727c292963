"""All built-in data sets through the stages to saliency and a trained adapter, with the embedded checkpoints."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

import stages.cache_latents as cache_latents
import stages.cache_prompts as cache_prompts
import stages.canonicalize as canonicalize
import stages.curate as curate
import stages.negatives as negatives
import stages.resolve as resolve
import stages.saliency as saliency
import stages.train_lora as train_lora
from tests.datasets.kinds import KINDS

PLACES = {"visual_genome": "VG_100K/{}.png", "gqa": "images/{}.png", "coco_stuff": "train2017/{:012}.png", "folder": None}


@pytest.mark.slow
@pytest.mark.parametrize("name", PLACES)
def test_a_data_set_becomes_maps_and_an_adapter(
    name: str, repo_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few triples and two epochs: every stage takes what the one before it made."""
    model = repo_root / "models/mini-flux"
    if not model.is_dir():
        pytest.skip(f"{model} is absent: `dvc pull models.dvc` gets it")
    monkeypatch.chdir(tmp_path)
    kind, place = KINDS[name], PLACES[name]
    root = kind.write(tmp_path / "data", kind.files(20))
    for image_id, (width, height) in kind.open(root).sizes().items() if place else ():
        path = root / place.format(image_id)
        path.parent.mkdir(exist_ok=True)
        pixels = np.random.default_rng(image_id).integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    params = yaml.safe_load((repo_root / "params.yaml").read_text())
    classes = {"visual_genome": ["on", "wearing"], "coco_stuff": ["left of", "right of"]}.get(name, ["on", "wearing"])
    params["data"] |= {"kind": name, "root": "data"}
    params["canonicalize"] = {"splits": {"train": 0.6, "val": 0.4}}
    params["curate"] |= {
        "predicates": classes, "map_predicates": classes, "train": 4, "val": 2, "maps_per_class": 1, "allow_short": True,
        "geometric": True, "val_pairs": 0.5, "crop": {"kind": "image"},
        "quality": {"min_area": 0, "min_side": 1, "max_overlap": 1, "max_distance": 1, "max_size_ratio": 1e6},
    }  # fmt: skip
    params["backbone"] |= {"model": str(model), "files": str(model), "max_sequence_length": 32}
    params["train"] |= {"epochs": 2, "batch_size": 2, "keep_epochs": [1, 2], "compile": False}
    params["train"]["validation"] |= {"images": 1}
    params["ablation"] |= {"epochs": [1, 2]}
    params["saliency"] |= {"steps": 1, "images": 1}
    params["compute"], params["tracking"] = {"device": "cpu", "threads": 1}, {"enabled": False}
    Path("params.yaml").write_text(yaml.safe_dump(params))
    for stage in (canonicalize, curate, negatives, cache_prompts):
        stage.main()
    cache_prompts.main(
        negatives=Path("outputs/negatives/negatives.parquet"), out=Path("outputs/negative_prompts"), metrics=Path("metrics/n.json")
    )
    for stage in (cache_latents, saliency, resolve):
        stage.main()
    train_lora.main(arm="graph")
    triples = pq.read_table("outputs/curated/triples.parquet").to_pylist()
    unknown = json.loads(Path("metrics/cache_prompts.json").read_text())["unknown_words"]
    assert unknown == (name == "coco_stuff"), "the miniature's tokenizers have no hyphen, as in sky-other"
    assert {row["predicate"] for row in triples} <= set(classes) and {row["split"] for row in triples} == {"train", "val"}
    assert list(Path("outputs/saliency").glob("*.parquet"))
    assert json.loads(Path("metrics/lora/graph.json").read_text())
    assert (Path("outputs/lora/graph/adapter") / "adapter.json").is_file()
