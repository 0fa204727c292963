"""What is read to count verdicts."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from sgpipe.datasets.tables import LATENT_REJECTS, NEGATIVES, TRIPLES, read_table
from sgpipe.errors import DataError
from sgpipe.evaluation.calibration import ground_truth_figures
from sgpipe.evaluation.config import Evaluate, JudgeParams, Statistics
from sgpipe.evaluation.samples import CALIBRATION, FEATURES, FILE, VERDICTS, ImageFeatures, ImageFile
from sgpipe.evaluation.sampling_plan import read_evaluation_triples
from sgpipe.evaluation.summary import QualifiedJudges
from sgpipe.evaluation.verdicts import Verdicts


def read_judged(
    curated: Path, negatives: Path, judged: Path, evaluate: Evaluate, judges: JudgeParams, statistics: Statistics,
    arms: list[str], with_seen: bool = False,
) -> tuple[Verdicts, QualifiedJudges]:  # fmt: skip
    """What judges said of these arms' images, of train graphs (`evaluate.seen`) where asked for, and what the judges are worth.

    Raises `DataError` where a judge of params.yaml has not seen an arm, or has not been calibrated on ground truth.
    """
    triples, against = read_table(curated / "triples.parquet", TRIPLES), read_table(negatives, NEGATIVES)
    cases = read_evaluation_triples(triples, against, evaluate.per_class, evaluate.seen)
    table = read_table(judged / "verdicts.parquet", VERDICTS)
    if evaluate.seen and not with_seen:
        again = pa.array([case.triple_id for case in cases[-evaluate.seen :]])
        cases, table = cases[: -evaluate.seen], table.filter(pc.invert(pc.is_in(table["triple_id"], again)))
    answers = read_table(judged / "calibration.parquet", CALIBRATION)
    table = table.filter(pc.is_in(table["arm"], pa.array(arms)))
    seen = set(zip(table["judge"].to_pylist(), table["arm"].to_pylist(), strict=True))
    calibrated = set(answers["judge"].to_pylist())
    for judge in judges.judges:
        for arm in arms:
            if (judge, arm) not in seen:
                raise DataError(f"{judged}: judge {judge} has not seen {arm}; run `dvc repro judge judge_epochs`")
        if judge not in calibrated:
            raise DataError(f"{judged}: judge {judge} has not been calibrated on ground truth; run `dvc repro judge judge_epochs`")
    return Verdicts(table, cases, evaluate.seeds), QualifiedJudges.of(judges, answers, statistics)


def read_features(judged: Path) -> ImageFeatures | None:
    """Image embeddings of the first judge that gives them; None where none of the judges does."""
    table = read_table(judged / "features.parquet", FEATURES)
    return ImageFeatures(table) if table.num_rows else None


def read_ground_truth(curated: Path, judged: Path) -> dict[str, Any]:
    """How many val triples have a ground truth that judges could be asked about (`ground_truth_figures`)."""
    triples = read_table(curated / "triples.parquet", TRIPLES, ["split"])
    rejects = read_table(judged / "rejects.parquet", LATENT_REJECTS)
    return ground_truth_figures(triples["split"].to_pylist().count("val"), rejects)


def image_files(images: Path) -> dict[str, ImageFile]:
    """Files of images by arm."""
    files = [ImageFile(path.parent) for path in sorted(images.glob(f"*/{FILE}"))]
    return {file.arm: file for file in files}
