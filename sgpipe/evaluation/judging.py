"""Let judges see images, in shards: those of the arms, and the ground-truth ones for the calibrations."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sgpipe.backbones.images import CropRejected, read_crop
from sgpipe.datasets.images import ImageStore
from sgpipe.datasets.tables import LATENT_REJECTS, write_table
from sgpipe.errors import DataError, ModelError
from sgpipe.evaluation.calibration import Question
from sgpipe.evaluation.judges import Counter, FeatureJudge, Features, Judge, Scores
from sgpipe.evaluation.samples import CALIBRATION, FEATURES, VERDICTS, ImageFile, Pixels
from sgpipe.evaluation.sampling_plan import EvaluationTriple
from sgpipe.runs.shards import Make, Shard, Tick, cut

_TRUTH = ".truth"
"""Stands for the arm in the kinds of shards of questions about ground truth; no arm's name begins with a dot."""
_ANSWERS = pa.schema([*CALIBRATION, ("image", pa.int64()), ("reason", pa.string()), ("detail", pa.string())])
"""`CALIBRATION` with the number of the triple whose image was shown; where it cannot be read, why."""
Truth = Pixels | tuple[str, str]
"""The ground-truth crop `[side, side, 3]` of a triple, or reason and detail why it cannot be read."""


def ground_truth_images(cases: Sequence[EvaluationTriple], store: ImageStore, side: int) -> list[Truth]:
    """The ground-truth crop of each triple, or why it cannot be read. Raises `DataError` where none can."""

    def read(case: EvaluationTriple) -> Truth:
        try:
            return read_crop(store.load, case.image_id, case.crop, side)[0]
        except CropRejected as rejected:
            return rejected.reason, str(rejected)

    found = [read(case) for case in cases]
    reasons = [each for each in found if isinstance(each, tuple)]
    if len(reasons) == len(found):
        raise DataError(
            f"ground truth of none of {len(found)} val triples can be read, so no judge can be calibrated; the first: "
            f"{reasons[0][1]}"
        )
    return found


@dataclass(frozen=True)
class Work:
    """What is judged: files of images by arm, and questions about ground-truth images."""

    cases: Sequence[EvaluationTriple]
    files: Mapping[str, ImageFile]
    questions: Sequence[Question]
    judges: Sequence[str]

    def shards(self, size: int) -> list[Shard]:
        """One kind per judge and arm, `<judge>.<arm>` or `<judge>..truth`."""
        counts = {_TRUTH: len(self.questions), **{arm: len(file) for arm, file in self.files.items()}}
        return [shard for judge in self.judges for arm, count in counts.items() for shard in cut(f"{judge}.{arm}", count, size)]


def _score_columns(scores: Scores) -> dict[str, pa.Array]:
    return {name: pa.array(scores[:, i], from_pandas=True) for i, name in enumerate(("positive", "negative"))}


def _image_columns(arm: str, items: pa.Table, judge: str) -> dict[str, Any]:
    named = {name: items[name] for name in ("triple_id", "prompt", "graph", "seed")}
    return {"arm": [arm] * len(items), **named, "judge": [judge] * len(items)}


def _answers(name: str, judge: Judge, questions: Sequence[Question], truth: Sequence[Truth]) -> pa.Table:
    """Rows of `_ANSWERS` to a batch of questions."""
    shown = [truth[question.image] for question in questions]
    there = np.array([not isinstance(each, tuple) for each in shown])
    scores = np.full((len(questions), 2), np.nan, np.float32)
    if there.any():
        statements = [(q.positive, q.negative) for q, read in zip(questions, there, strict=True) if read]
        scores[there] = judge.scores(np.stack([each for each in shown if not isinstance(each, tuple)]), statements)
    why = [each if isinstance(each, tuple) else (None, None) for each in shown]
    columns = {
        "judge": [name] * len(questions),
        "triple_id": [question.triple_id for question in questions],
        "predicate": [question.predicate for question in questions],
        "question": [question.kind for question in questions],
        "image": [question.image for question in questions],
        "reason": [reason for reason, _ in why],
        "detail": [detail for _, detail in why],
    }
    return pa.table({**columns, **_score_columns(scores)}, schema=_ANSWERS)


def _feature_column(name: str, features: Features) -> pa.Array:
    lengths = np.linalg.norm(features, axis=-1)
    if not np.allclose(lengths, 1, atol=1e-3):
        raise ModelError(
            f"judge.judges.{name}: image embeddings of lengths {lengths.min():.4g} to {lengths.max():.4g}; expected: 1; have the "
            "judge divide them by their length"
        )
    return pa.array([each.tobytes() for each in features.astype("<f2")], pa.binary())


def judge_maker(work: Work, open_judge: Callable[[str], Judge], load_truth: Callable[[], list[Truth]], batch_size: int) -> Make:
    """What fills a shard with what its judge says. Judges and ground-truth images are loaded when first needed."""
    opened: dict[str, Judge] = {}
    truth = cache(load_truth)
    by_id = {case.triple_id: case for case in work.cases}

    def verdicts(name: str, arm: str, rows: slice) -> dict[str, pa.Table]:
        """`scores` of an arm's images, and `features` if the judge gives them."""
        file, judge = work.files[arm], opened[name]
        items = file.items.slice(rows.start, rows.stop - rows.start)
        shown = [by_id[each] for each in items["triple_id"].to_pylist()]
        images, count = file.read(range(rows.start, rows.stop)), [len(case.statements) for case in shown]
        # every image is asked about equally many statements: those of a small graph are repeated and dropped
        asked = [[s for pair in islice(cycle(case.statements), max(count)) for s in pair] for case in shown]
        made: dict[str, pa.Table] = {}
        if isinstance(judge, FeatureJudge):
            features = judge.features(images)
            scores = judge.compare(features, asked)
            column = {"feature": _feature_column(name, features)}
            made["features"] = pa.table({**_image_columns(arm, items, name), **column}, schema=FEATURES)
        else:
            scores = judge.scores(images, asked)
        twice = [None] * len(shown)
        if isinstance(judge, Counter):
            twice = judge.duplicates(images, [case.graph.objects for case in shown]).tolist()
        image, edge = np.repeat(np.arange(len(shown)), count), np.concatenate([np.arange(each) for each in count])
        columns = {
            **_image_columns(arm, items.take(pa.array(image)), name),
            "edge": edge,
            "duplicate": [twice[each] for each in image],
            **_score_columns(scores.reshape(len(shown), max(count), 2)[image, edge]),
        }
        return {"scores": pa.table(columns, schema=VERDICTS), **made}

    def make(shard: Shard, folder: Path, tick: Tick) -> None:
        name, _, arm = shard.name.rpartition("-")[0].partition(".")
        if name not in opened:
            opened.clear()
            opened[name] = open_judge(name)
        batches = []
        for rows in shard.batches(batch_size):
            if arm == _TRUTH:
                batches.append({"scores": _answers(name, opened[name], work.questions[rows], truth())})
            else:
                batches.append(verdicts(name, arm, rows))
            tick(rows.stop - rows.start)
        for each in batches[0]:
            write_table(pa.concat_tables(batch[each] for batch in batches), folder / f"{each}.parquet")

    return make


@dataclass(frozen=True)
class Judged:
    """Rows of `VERDICTS`, of `CALIBRATION`, of `FEATURES` by the first judge that gives them (none where no judge does), and the
    triples whose ground truth cannot be read, rows of `LATENT_REJECTS`.
    """

    verdicts: pa.Table
    calibration: pa.Table
    rejects: pa.Table
    features: pa.Table


def merge_verdicts(work: Work, shards: Sequence[Shard], made: Path) -> Judged:
    """What the finished shards in `made` say together. Questions about an image that cannot be read are left out."""
    read = {shard.name: pq.read_table(made / shard.name / "scores.parquet") for shard in shards}
    answers = pa.concat_tables(table for name, table in read.items() if f".{_TRUTH}-" in name)
    unread = {row["image"]: row for row in answers.filter(answers["reason"].is_valid()).to_pylist()}
    rejects = [
        {**row, "triple_id": work.cases[image].triple_id, "image_id": work.cases[image].image_id}
        for image, row in sorted(unread.items())
    ]
    featured = [shard.name for shard in shards if (made / shard.name / "features.parquet").is_file()]
    first = [name for name in featured if name.partition(".")[0] == featured[0].partition(".")[0]]
    return Judged(
        pa.concat_tables(table for name, table in read.items() if f".{_TRUTH}-" not in name),
        answers.filter(answers["reason"].is_null()).select(CALIBRATION.names),
        pa.Table.from_pylist(rejects, schema=LATENT_REJECTS),
        pa.concat_tables([FEATURES.empty_table(), *(pq.read_table(made / name / "features.parquet") for name in first)]),
    )
