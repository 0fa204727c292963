"""Let judges see images, in shards: those of the arms, and the ground-truth ones for the calibrations."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sgpipe.backbones.images import CropRejected, read_crop
from sgpipe.datasets.images import ImageStore
from sgpipe.datasets.tables import LATENT_REJECTS, write_table
from sgpipe.errors import DataError
from sgpipe.evaluation.calibration import Question
from sgpipe.evaluation.judges import Judge, Scores
from sgpipe.evaluation.samples import CALIBRATION, VERDICTS, ImageFile, Pixels
from sgpipe.evaluation.sampling_plan import EvaluationTriple
from sgpipe.runs.shards import Make, Shard, Tick, cut

_SCORES = ("positive", "negative")
_WHY = ("reason", "detail")
Open = Callable[[str], Judge]
Truth = Pixels | tuple[str, str]
"""The ground-truth crop `[side, side, 3]` of a triple, or reason and detail why it cannot be read."""


def _nullable(values: np.ndarray) -> pa.Array:
    return pa.array(values, pa.float32(), mask=np.isnan(values))


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
        """One kind per judge and arm, `<judge>.<arm>` or `<judge>.truth`."""
        made: list[Shard] = []
        for judge in self.judges:
            made += cut(f"{judge}..truth", len(self.questions), size)
            for arm, file in self.files.items():
                made += cut(f"{judge}.{arm}", len(file), size)
        return made


def _true_scores(judge: Judge, questions: Sequence[Question], truth: Sequence[Truth]) -> pa.Table:
    """Scores of questions about ground truth; those whose image cannot be read have `reason` and `detail`
    in place of scores."""
    shown = [truth[question.image] for question in questions]
    there = np.array([not isinstance(each, tuple) for each in shown])
    scores = np.full((len(questions), len(_SCORES)), np.nan, np.float32)
    if there.any():
        statements = [(q.positive, q.negative) for q, read in zip(questions, there, strict=True) if read]
        images = np.stack([each for each in shown if not isinstance(each, tuple)])
        scores[there] = judge.scores(images, statements)
    why = [each if isinstance(each, tuple) else (None, None) for each in shown]
    columns = {name: pa.array([each[i] for each in why], pa.string()) for i, name in enumerate(_WHY)}
    return pa.table({**_score_columns(scores), **columns})


def _score_columns(scores: Scores) -> dict[str, pa.Array]:
    return {name: _nullable(scores[:, i]) for i, name in enumerate(_SCORES)}


def judge_maker(work: Work, open_judge: Open, load_truth: Callable[[], list[Truth]], batch_size: int) -> Make:
    """What fills a shard with the scores of its rows. Judges and ground-truth images are loaded when first needed."""
    opened: dict[str, Judge] = {}
    truth: list[Truth] = []
    by_id = {case.triple_id: case for case in work.cases}

    def make(shard: Shard, folder: Path, tick: Tick) -> None:
        judge_name, _, arm = shard.name.rpartition("-")[0].partition(".")
        if judge_name not in opened:
            opened.clear()
            opened[judge_name] = open_judge(judge_name)
        judge, parts = opened[judge_name], []
        for batch in shard.batches(batch_size):
            rows = range(batch.start, batch.stop)
            if arm == ".truth":
                if not truth:
                    truth.extend(load_truth())
                parts.append(_true_scores(judge, work.questions[batch], truth))
            else:
                file = work.files[arm]
                ids = file.items["triple_id"].slice(batch.start, len(rows)).to_pylist()
                shown = [by_id[name] for name in ids]
                scores = judge.scores(file.read(rows), [(c.positive, c.negative) for c in shown])
                parts.append(pa.table(_score_columns(scores)))
            tick(len(rows))
        write_table(pa.concat_tables(parts).combine_chunks(), folder / "scores.parquet")

    return make


@dataclass(frozen=True)
class Judged:
    """Rows of `VERDICTS`, rows of `CALIBRATION`, and the triples whose ground truth cannot be read, rows of
    `LATENT_REJECTS`."""

    verdicts: pa.Table
    calibration: pa.Table
    rejects: pa.Table


def merge_verdicts(work: Work, shards: Sequence[Shard], made: Path) -> Judged:
    """What the finished shards in `made` say together. Questions about an image that cannot be read are left
    out."""
    scores: dict[str, list[pa.Table]] = {}
    for shard in shards:
        kind = shard.name.rpartition("-")[0]
        scores.setdefault(kind, []).append(pq.read_table(made / shard.name / "scores.parquet"))
    verdicts, answers = [VERDICTS.empty_table()], [CALIBRATION.empty_table()]
    rejects: dict[int, dict[str, Any]] = {}
    for kind, parts in scores.items():
        judge, _, arm = kind.partition(".")
        table = pa.concat_tables(parts)
        columns: dict[str, Any] = {"judge": [judge] * table.num_rows, **{n: table[n] for n in _SCORES}}
        if arm == ".truth":
            for name, attribute in (("triple_id", "triple_id"), ("predicate", "predicate"), ("question", "kind")):
                columns[name] = [getattr(question, attribute) for question in work.questions]
            said = pa.table({name: columns[name] for name in CALIBRATION.names}, schema=CALIBRATION)
            answers.append(said.filter(table["reason"].is_null()))
            for question, why in zip(work.questions, table.select(_WHY).to_pylist(), strict=True):
                if why["reason"] is not None:
                    case = work.cases[question.image]
                    rejects[question.image] = {"triple_id": case.triple_id, "image_id": case.image_id, **why}
        else:
            columns["arm"] = [arm] * table.num_rows
            columns |= {n: work.files[arm].items[n] for n in ("triple_id", "prompt", "graph", "seed")}
            verdicts.append(pa.table({name: columns[name] for name in VERDICTS.names}, schema=VERDICTS))
    return Judged(
        pa.concat_tables(verdicts),
        pa.concat_tables(answers),
        pa.Table.from_pylist([rejects[index] for index in sorted(rejects)], schema=LATENT_REJECTS),
    )
