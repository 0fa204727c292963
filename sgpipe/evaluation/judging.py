"""Let judges see pictures, in shards: those of the arms, and the ground-truth ones for the certificates."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sgpipe.backbones.images import crop_pixels
from sgpipe.evaluation.certificates import Question
from sgpipe.evaluation.draws import Case
from sgpipe.evaluation.judges import Judge, Scores
from sgpipe.evaluation.pictures import PictureFile, Pixels
from sgpipe.evaluation.tables import ASKED, VERDICTS
from sgpipe.runs.shards import Make, Shard, Tick, cut
from sgpipe.scene_graphs.images import ImageStore
from sgpipe.scene_graphs.tables import write_table

_SCORES = ("positive", "negative")
Open = Callable[[str], Judge]


def _nullable(values: np.ndarray) -> pa.Array:
    return pa.array(values, pa.float32(), mask=np.isnan(values))


def true_pictures(cases: Sequence[Case], store: ImageStore, side: int) -> Pixels:
    """The crop `[N, side, side, 3]` that stands for each triple. Raises `DataError` for an image that cannot be read."""
    return np.stack([crop_pixels(store.load(case.image_id), case.crop, side) for case in cases])


@dataclass(frozen=True)
class Work:
    """What is judged: files of pictures by arm, and questions about ground-truth pictures."""

    cases: Sequence[Case]
    files: Mapping[str, PictureFile]
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


def judge_maker(work: Work, open_judge: Open, load_truth: Callable[[], Pixels], batch_size: int) -> Make:
    """What fills a shard with the scores of its rows. Judges and ground-truth pictures are loaded when first needed."""
    opened: dict[str, Judge] = {}
    truth: list[Pixels] = []
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
                    truth.append(load_truth())
                asked = work.questions[batch]
                pictures = truth[0][[question.picture for question in asked]]
                scores = judge.scores(pictures, [(q.positive, q.negative) for q in asked])
            else:
                file = work.files[arm]
                ids = file.items["triple_id"].slice(batch.start, len(rows)).to_pylist()
                shown = [by_id[name] for name in ids]
                scores = judge.scores(file.read(rows), [(c.positive, c.negative) for c in shown])
            parts.append(scores)
            tick(len(rows))
        found: Scores = np.concatenate(parts)
        columns = {name: _nullable(found[:, i]) for i, name in enumerate(_SCORES)}
        write_table(pa.table(columns), folder / "scores.parquet")

    return make


def merge_verdicts(work: Work, shards: Sequence[Shard], made: Path) -> tuple[pa.Table, pa.Table]:
    """Rows of `VERDICTS` and of `ASKED` of the finished shards in `made`."""
    scores: dict[str, list[pa.Table]] = {}
    for shard in shards:
        kind = shard.name.rpartition("-")[0]
        scores.setdefault(kind, []).append(pq.read_table(made / shard.name / "scores.parquet"))
    verdicts, asked = [VERDICTS.empty_table()], [ASKED.empty_table()]
    for kind, parts in scores.items():
        judge, _, arm = kind.partition(".")
        table = pa.concat_tables(parts)
        columns: dict[str, Any] = {"judge": [judge] * table.num_rows, **{n: table[n] for n in _SCORES}}
        if arm == ".truth":
            for name, attribute in (
                ("triple_id", "triple_id"),
                ("predicate", "predicate"),
                ("question", "kind"),
            ):
                columns[name] = [getattr(question, attribute) for question in work.questions]
            asked.append(pa.table({name: columns[name] for name in ASKED.names}, schema=ASKED))
        else:
            columns["arm"] = [arm] * table.num_rows
            columns |= {n: work.files[arm].items[n] for n in ("triple_id", "prompt", "graph", "seed")}
            verdicts.append(pa.table({name: columns[name] for name in VERDICTS.names}, schema=VERDICTS))
    return pa.concat_tables(verdicts), pa.concat_tables(asked)
