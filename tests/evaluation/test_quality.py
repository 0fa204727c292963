"""Quality of images: formulas against closed forms, features as each network gives them, however the work was cut."""

from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pyarrow as pa
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.linalg import sqrtm
from torch.nn.functional import cosine_similarity

import sgpipe.evaluation.extractors as extractors
from sgpipe.backbones.open_clip_models import load_open_clip
from sgpipe.datasets.config import Data
from sgpipe.datasets.images import ImageStore, open_images
from sgpipe.datasets.tables import NEGATIVES, TRIPLES, read_table
from sgpipe.errors import ModelError, ParamsError
from sgpipe.evaluation.config import Quality
from sgpipe.evaluation.extractors import Features, Inception, Tower, feature_maker, merge_features, quality_identity
from sgpipe.evaluation.published import PUBLISHED
from sgpipe.evaluation.quality import SPLITS, frechet_distance, inception_score, kernel_distance, quality_figures
from sgpipe.evaluation.samples import FILE, REAL, REFERENCE, SAMPLES, ImageFile, to_png, write_image_file
from sgpipe.evaluation.sampling_plan import BASE, read_evaluation_triples
from sgpipe.params.load import decode
from tests.evaluation.drawn import write_triples

CPU = torch.device("cpu")
CURATED = Path("outputs/curated/triples.parquet")


def normal(count: int, seed: int, width: int = 6) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)


def test_the_frechet_distance_is_that_of_two_gaussians() -> None:
    first, second = normal(400, 0), (normal(300, 1) @ np.diag([1, 2, 0.5, 1, 1, 3]) + 0.3).astype(np.float32)
    (a, b), (s, t) = (
        [f(each.astype(np.float64)) for each in (first, second)] for f in (lambda x: x.mean(0), lambda x: np.cov(x.T))
    )
    wanted = np.sum((a - b) ** 2) + np.trace(s + t - 2 * sqrtm(s @ t).real)
    assert frechet_distance(first, second) == pytest.approx(wanted, rel=1e-6)
    assert frechet_distance(first, first) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(first, first + np.float32(0.5)) == pytest.approx(6 * 0.25, rel=1e-4), "a shift costs its square"
    assert np.isnan(frechet_distance(first, first[:1]))


def test_the_kernel_distance_knows_no_bias_and_is_the_same_again() -> None:
    first, same, other = normal(300, 0), normal(200, 1), normal(200, 2) + 1
    near, far = kernel_distance(first, same, 0), kernel_distance(first, other, 0)
    assert abs(near[0]) < far[0] / 20 and far[0] > 2 * far[1] > 0
    assert kernel_distance(first, same, 0) == near != kernel_distance(first, same, 1)
    assert np.isnan(kernel_distance(first, first[:3], 0)).all()


def test_the_inception_score_counts_classes_that_are_told_apart() -> None:
    logits = (1e3 * np.eye(4, dtype=np.float32)).repeat(1000, axis=0)
    mean, deviation = inception_score(logits, 0)
    assert mean == pytest.approx(4, abs=0.05) and deviation < 0.05
    assert inception_score(np.zeros((50, 4), np.float32), 0)[0] == pytest.approx(1)
    assert np.isnan(inception_score(logits[: 2 * SPLITS - 1], 0)).all()


class _Network(torch.nn.Module):
    """Has the signature of the published network: features are mean colours, classes by red alone."""

    def forward(self, img: torch.Tensor, return_features: bool = False, no_output_bias: bool = False) -> torch.Tensor:
        mean = img.float().mean(dim=[2, 3])
        if return_features:
            return mean
        return torch.stack([mean[:, 0] / 255, 1 - mean[:, 0] / 255], dim=1)


@pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning")
def test_inception_is_the_published_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "inception-2015-12-05.pt"
    torch.jit.script(_Network()).save(str(path))
    params = Quality(inception=str(path))
    for act in (lambda: quality_identity(params), lambda: Inception(params, CPU)):
        with pytest.raises(ModelError, match=r"^quality\.inception: \S+: another file than the published one, by SHA-256"):
            act()
    with pytest.raises(ModelError, match=r"cannot be read \(No such file.*inception-2015-12-05\.pt of StyleGAN2-ADA"):
        quality_identity(Quality(inception="none.pt"))
    monkeypatch.setattr(extractors, "INCEPTION_SHA256", extractors.hashlib.sha256(path.read_bytes()).hexdigest())
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3)).astype(np.uint8)
    seen = Inception(params, CPU)(images, ["a"] * 3)
    np.testing.assert_allclose(seen.features, images.mean(axis=(1, 2)), rtol=1e-5)
    np.testing.assert_allclose(np.exp(seen.logits).sum(axis=1), 1, rtol=1e-5)
    assert seen.clip_score is None and set(quality_identity(params)) == {"inception"}


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, ImageFile]:
    """Triples of the drawn world with their images, and an arm under two prompts, in the working directory."""
    monkeypatch.chdir(tmp_path)
    write_triples(tmp_path, train=[("dog", "cup"), ("cat", "ball")])
    (tmp_path / "data/VG_100K/2.png").unlink()
    ids = [row["triple_id"] for row in read_table(CURATED, TRIPLES).to_pylist() if row["split"] == "val"]
    random = np.random.default_rng(0)
    rows = [
        (name, prompt, "none", seed, "", to_png(random.integers(0, 256, (16, 16, 3)).astype(np.uint8)))
        for prompt in ("neutral", "relational")
        for seed in (0, 1)
        for name in ids
    ]
    table = pa.table(dict(zip(SAMPLES.names, zip(*rows, strict=True), strict=True)), schema=SAMPLES)
    write_image_file([table], tmp_path / "images" / FILE, {"arm": BASE})
    return {BASE: ImageFile(tmp_path / "images")}


def extracted(world: dict[str, ImageFile], clip: Path, size: int, made: Path) -> Any:
    triples = read_table(CURATED, TRIPLES)
    cases = read_evaluation_triples(triples, read_table(Path("outputs/negatives/negatives.parquet"), NEGATIVES))
    params = Quality(tower=f"local-dir:{clip}", reference=6)
    features, store = Features.of(params, world, cases, triples), ImageStore(open_images(Data(root="data")))
    shards = features.shards(size)
    make = feature_maker(features, lambda name: Tower(params, features.classes, CPU), store, 16, 5)
    for shard in shards:
        (made / shard.name).mkdir(parents=True)
        make(shard, made / shard.name, lambda count: None)
    return merge_features(shards, made)


def test_of_each_arm_the_images_that_count_for_it_are_seen_however_the_work_is_cut(
    world: dict[str, ImageFile], clip: Path, tmp_path: Path
) -> None:
    table = extracted(world, clip, 1000, tmp_path / "a")
    assert table.equals(extracted(world, clip, 10, tmp_path / "b"))
    sources = table["source"].to_pylist()
    assert {name: sources.count(name) for name in set(sources)} == {BASE: 24, REAL: 11, REFERENCE: 6}, "one crop cannot be read"
    assert {prompt for prompt, source in zip(table["prompt"].to_pylist(), sources, strict=True) if source == BASE} == {"relational"}

    row = table.slice(3, 1).to_pylist()[0]
    at = world[BASE].rows("relational", "none", [row["triple_id"]], [row["seed"]])[0]
    model, preprocess = load_open_clip(f"local-dir:{clip}", None, CPU)
    with torch.no_grad():
        image = model.encode_image(preprocess(Image.fromarray(world[BASE].read(at)[0]))[None])
        said = next(r for r in read_table(CURATED, TRIPLES).to_pylist() if r["triple_id"] == row["triple_id"])
        text = model.encode_text(open_clip.get_tokenizer(f"local-dir:{clip}")([said["prompt"]]))
    np.testing.assert_allclose(np.frombuffer(row["feature"], "<f4"), image[0], atol=1e-5)
    assert row["clip_score"] == pytest.approx(100 * max(0.0, float(cosine_similarity(image, text))), abs=1e-3)


def test_the_table_joins_what_is_known_of_an_arm_and_marks_few_images(
    world: dict[str, ImageFile], clip: Path, tmp_path: Path
) -> None:
    table = extracted(world, clip, 1000, tmp_path / "a")
    arms = {BASE: {"relational": {"none": {"duplicates": 0.25}}, "neutral": {"none": {}}}}
    apart = {BASE: {"relational": {"none": {"pixels_ratio": 1.0, "features_ratio": None}}}}
    found = quality_figures(table, arms, apart, 0)
    base = found["arms"][BASE]
    assert (base["prompt"], base["images"], base["duplicates"], base["pixels_ratio"]) == ("relational", 24, 0.25, 1.0)
    assert found["reference_images"] == 6 and found["real"]["images"] == 11 and base["few_images"] and found["real"]["few_images"]
    assert base["tower_frechet"] > found["real"]["tower_frechet"] > 0, "noise is further from drawings than drawings are"
    assert found["real"]["tower_score"] is None and base["tower_score"] >= 1 and not {"fid", "kid"} & base.keys()
    without = quality_figures(table.slice(0, 0), arms, apart, 0)
    assert without["arms"][BASE]["images"] == 0 and "tower_frechet" not in without["arms"][BASE]


def test_published_rows_are_those_of_their_sources(reference_dir: Path) -> None:
    text = (reference_dir / "reference/seed_document.txt").read_text(encoding="utf-8")
    rows = {(row.system, row.data, row.pixels): row for row in PUBLISHED}
    assert rows["SATURN", "Visual Genome", None].fid == 21.62 and len(rows) == len(PUBLISHED)
    for row in PUBLISHED[:-1]:
        line = next(
            line for line in text.partition(f"({row.pixels}×{row.pixels})")[2].splitlines()
            if line.startswith({"real images": "\t", "SGDiff": "SGDiff (with z_t)"}.get(row.system, row.system + " ["))
        )  # fmt: skip
        place = 0 if row.data == "COCO-Stuff" else 1
        scores, fids = line.split("\t")[1:3], line.split("\t")[3:5]
        assert scores[place] == row.inception_score and fids[place] == ("-" if row.fid is None else str(row.fid)), row


def test_knobs_that_contradict_one_another_are_refused() -> None:
    for given, says in (
        ({"tower": "ViT-B-32"}, r"^p: quality\.pretrained: missing; architecture 'ViT-B-32' needs a tag"),
        ({"pretrained": "openai"}, r"^p: quality\.pretrained: got 'openai' without a tower"),
    ):
        with pytest.raises(ParamsError, match=says):
            decode("quality", given, Quality, "p")
    with pytest.raises(ModelError, match=r"^quality\.tower: local-dir:none: no such folder"):
        quality_identity(Quality(tower="local-dir:none"))
