"""Pre-training of the graph encoder as a command: the same bytes whole or killed and continued, for both kinds of encoder."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from sgpipe.datasets.tables import IMAGES, OBJECTS, RELATIONS, TRIPLES, read_table, write_table
from sgpipe.graph_encoder.cgip import Cgip
from sgpipe.graph_encoder.checkpoints import load_encoder
from sgpipe.graph_encoder.config import GraphEncoder
from sgpipe.graph_encoder.examples import Examples
from sgpipe.graph_encoder.open_vocabulary import OpenVocabularyEncoder
from sgpipe.graphs.config import Curate
from sgpipe.params.load import read_section
from sgworld.contrast import Tower, build_clip, save_local
from tests.graph_encoder.relations import CLASSES, relations
from tests.stages.test_caches import COMMANDS, files, killed, root, run, set_params, stage  # noqa: F401

pytestmark = pytest.mark.slow
COMMANDS |= {"graph_encoder": ("stages.graph_encoder",), "curate": ("stages.curate",)}


@pytest.fixture
def prepared(root: Path, tmp_path: Path) -> Path:  # noqa: F811
    """Relations, their images, curated triples, their names' encodings, and a random tower."""
    found, images = relations(400)
    write_table(found, root / "outputs/canonical/relations.parquet")
    write_table(images, root / "outputs/canonical/images.parquet")
    write_table(OBJECTS.empty_table(), root / "outputs/canonical/objects.parquet")
    for image_id in pa.compute.unique(found["image_id"]).to_pylist():
        pixels = np.random.default_rng(image_id).integers(0, 256, (96, 128, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "data" / "VG_100K" / f"{image_id}.png")
    sizes = images.select(["image_id", "width", "height"]).to_pylist()
    (tmp_path / "data" / "image_data.json").write_text(json.dumps(sizes))
    (tmp_path / "data" / "VG_100K" / "25.png").write_bytes(b"cut off")
    size = Tower(width=32, layers=2, patch=16, embed=16)
    save_local(build_clip(size, seed=1), size, root / "models" / "tower")
    set_params(
        root,
        curate={
            "predicates": list(CLASSES),
            "map_predicates": list(CLASSES),
            "train": 80,
            "val": 24,
            "maps_per_class": 4,
            "quality": {"min_side": 1, "min_area": 0},
        },
        graph_encoder={
            "tower": "local-dir:models/tower",
            "files": "models/tower",
            "embed": 24,
            "width": 32,
            "layers": 1,
            "steps": 5,
            "batch_size": 16,
            "masked_batch": 8,
            "shard_size": 30,
        },
    )
    for name in ("curate", "prompts"):
        stage(root, name)
    return root


@pytest.mark.parametrize(("kind", "encoder"), [("cgip", Cgip), ("open_vocabulary", OpenVocabularyEncoder)])
def test_killed_and_continued_the_bytes_are_the_same(
    prepared: Path, kind: str, encoder: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_params(prepared, graph_encoder={"kind": kind})
    out, metrics = prepared / "outputs/graph_encoder", prepared / "metrics/graph_encoder.json"
    stage(prepared, "graph_encoder")
    whole, measured = files(out), metrics.read_bytes()
    shutil.rmtree(out)
    killed(prepared, "graph_encoder")
    assert not out.exists()
    next((prepared / ".dvc/stage-state").glob("*/features-0*/features.safetensors")).write_bytes(b"")
    stage(prepared, "graph_encoder")
    assert files(out) == whole and metrics.read_bytes() == measured
    log = prepared / "outputs/timings/graph_encoder.jsonl"
    assert [set(json.loads(line)) >= {"loss", "contrastive", "masked"} for line in log.open()] == [True]
    loaded, vocabulary = load_encoder(out)
    assert isinstance(loaded, encoder) and (vocabulary is None) == (kind == "open_vocabulary")
    found = json.loads(measured)
    assert found["true_above_swap"] == found["val"]["true_above_swap"]["directional"]
    assert found["crops"]["read"] == found["crops"]["all"] - crops_of(prepared, 25)
    assert found["rejected_by_reason"] == {"image unreadable": crops_of(prepared, 25)}
    assert found["direction_cosine"]["before"] != found["direction_cosine"]["after"]
    assert {"reconstruction.safetensors", "image_head.safetensors"} <= set(whole)


def crops_of(root: Path, image_id: int) -> int:  # noqa: F811
    """How many crops of an image the stage reads features of."""
    examples = Examples.of(
        read_table(root / "outputs/canonical/relations.parquet", RELATIONS),
        read_table(root / "outputs/canonical/images.parquet", IMAGES),
        read_table(root / "outputs/curated/triples.parquet", TRIPLES),
        read_section(root / "params.yaml", "curate", Curate),
        read_section(root / "params.yaml", "graph_encoder", GraphEncoder),
    )
    return int((examples.crops["image_id"] == image_id).sum())
