"""Image embeddings by judges that give them: stored once, by the first of them, however the judging was cut."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from sgpipe.datasets.tables import write_table
from sgpipe.errors import DataError, ModelError
from sgpipe.evaluation.calibration import questions
from sgpipe.evaluation.config import Judge as Named
from sgpipe.evaluation.judge_factory import open_judge
from sgpipe.evaluation.judged import read_features
from sgpipe.evaluation.judges import FeatureJudge, Features, Judge, Scores
from sgpipe.evaluation.judging import Judged, Work, judge_maker, merge_verdicts
from sgpipe.evaluation.samples import FEATURES, FILE, SAMPLES, ImageFeatures, ImageFile, Pixels, to_png, write_image_file
from sgpipe.evaluation.sampling_plan import EvaluationTriple, Triple
from tests.evaluation.conftest import Blind, Written

SEEDS = (0, 1)


class Turned:
    """Embeds an image by the angle that its second pixel says; scores are cosines with the first axis and their negatives."""

    def __init__(self, length: float = 1.0) -> None:
        self.length, self.encoded = length, 0

    def features(self, images: Pixels) -> Features:
        self.encoded += len(images)
        angle = images[:, 0, 1, 0] / 255
        return self.length * np.stack([np.cos(angle), np.sin(angle)], axis=-1).astype(np.float32)

    def compare(self, features: Features, statements: Sequence[Sequence[Triple]]) -> Scores:
        return np.stack([features[:, 0], -features[:, 0]], axis=-1)

    def scores(self, images: Pixels, statements: Sequence[Sequence[Triple]]) -> Scores:
        return self.compare(self.features(images), statements)


@pytest.fixture
def files(cases: list[EvaluationTriple], written: Written, tmp_path: Path) -> dict[str, ImageFile]:
    """Two arms, of each case and seed an image."""
    for arm in ("base", "graph"):
        rows = [
            (case.triple_id, "neutral", "none", seed, "", to_png(written.image(case.positive, 2 * case.image_id + seed)))
            for seed in SEEDS
            for case in cases
        ]
        table = pa.table(dict(zip(SAMPLES.names, zip(*rows, strict=True), strict=True)), schema=SAMPLES)
        write_image_file([table], tmp_path / arm / FILE, {"arm": arm})
    return {arm: ImageFile(tmp_path / arm) for arm in ("base", "graph")}


def judged(
    judges: Mapping[str, Judge],
    files: Mapping[str, ImageFile],
    cases: list[EvaluationTriple],
    written: Written,
    made: Path,
    size: int,
) -> Judged:
    work = Work(cases, files, questions(cases), tuple(judges))
    shards = work.shards(size)
    make = judge_maker(work, lambda name: judges[name], lambda: [written.image(case.positive, 0) for case in cases], 7)
    for shard in shards:
        (made / shard.name).mkdir(parents=True)
        make(shard, made / shard.name, lambda count: None)
    return merge_verdicts(work, shards, made)


@pytest.mark.parametrize("size", [9, 1000])
def test_the_first_judge_that_gives_features_is_stored(
    files: dict[str, ImageFile], cases: list[EvaluationTriple], written: Written, tmp_path: Path, size: int
) -> None:
    """Each image is embedded once, and the embedding is that of its own pixels."""
    turned, later = Turned(), Turned()
    said = judged({"blind": Blind(), "turned": turned, "later": later}, files, cases, written, tmp_path / "made", size)
    assert turned.encoded == later.encoded == 2 * len(SEEDS) * len(cases) + len(questions(cases))
    assert said.features.schema.equals(FEATURES) and said.features["judge"].unique().to_pylist() == ["turned"]
    of_turned = said.verdicts.filter([name == "turned" for name in said.verdicts["judge"].to_pylist()])
    keys = ["arm", "triple_id", "prompt", "graph", "seed"]
    assert said.features.select(keys).equals(of_turned.select(keys))
    write_table(said.features, tmp_path / "features.parquet")
    features = read_features(tmp_path)
    assert features is not None and features.judge == "turned"
    ids = [case.triple_id for case in cases]
    found = features.of("graph", "neutral", "none", ids, SEEDS)
    shown = np.stack([[written.image(case.positive, 2 * case.image_id + seed) for seed in SEEDS] for case in cases])
    expected = Turned().features(shown.reshape(-1, *shown.shape[2:])).reshape(len(cases), len(SEEDS), 2)
    assert np.allclose(found, expected, atol=1e-3) and np.allclose(np.linalg.norm(found, axis=-1), 1, atol=1e-12)
    scores = np.array(of_turned.filter([arm == "graph" for arm in of_turned["arm"].to_pylist()])["positive"])
    assert np.allclose(scores.reshape(len(SEEDS), -1).T, expected[..., 0])


def test_judges_without_features_store_none(
    files: dict[str, ImageFile], cases: list[EvaluationTriple], written: Written, tmp_path: Path
) -> None:
    said = judged({"blind": Blind()}, files, cases, written, tmp_path / "made", 1000)
    assert said.features.num_rows == 0 and said.features.schema.equals(FEATURES)
    write_table(said.features, tmp_path / "features.parquet")
    assert read_features(tmp_path) is None


def test_embeddings_of_another_length_are_refused(
    files: dict[str, ImageFile], cases: list[EvaluationTriple], written: Written, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=r"judge\.judges\.long: image embeddings of lengths 3 to 3; expected: 1"):
        judged({"long": Turned(3.0)}, files, cases, written, tmp_path / "made", 1000)


def test_an_open_clip_judge_gives_its_image_embeddings(clip: Path) -> None:
    import open_clip

    judge = open_judge("clip", Named(kind="open_clip", model=f"local-dir:{clip}"), torch.device("cpu"))
    assert isinstance(judge, FeatureJudge)
    images = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3)).astype(np.uint8)
    statements = [[("dog", "riding", "cat"), ("cat", "riding", "dog")]] * 3
    features = judge.features(images)
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{clip}")
    with torch.no_grad():
        expected = model.eval().encode_image(torch.stack([preprocess(Image.fromarray(each)) for each in images]))
    assert np.allclose(features, torch.nn.functional.normalize(expected, dim=-1), atol=1e-5)
    assert np.array_equal(judge.compare(features, statements), judge.scores(images, statements))
    assert not isinstance(open_judge("exact", Named(kind="sgworld"), torch.device("cpu")), FeatureJudge)


def test_features_that_are_missing_are_an_error() -> None:
    key = {"arm": "a", "prompt": "neutral", "graph": "none", "seed": 0, "judge": "clip"}
    rows = [{**key, "triple_id": str(number), "feature": b"\0<" * size} for number, size in enumerate((2, 2, 3))]
    of = ImageFeatures(pa.Table.from_pylist(rows[:2], schema=FEATURES))
    assert of.judge == "clip"
    assert of.of("a", "neutral", "none", ["1", "0"], [0]) == pytest.approx(np.full((2, 1, 2), 0.5**0.5))
    for wanted in (("b", ["0"], [0]), ("a", ["0", "2"], [0]), ("a", ["0"], [0, 1])):
        with pytest.raises(DataError, match="not those of all images asked for"):
            of.of(wanted[0], "neutral", "none", *wanted[1:])
    with pytest.raises(DataError, match="judge clip differ in size"):
        ImageFeatures(pa.Table.from_pylist(rows, schema=FEATURES))
