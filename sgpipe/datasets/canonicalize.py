"""Any data set to `images`, `objects`, `relations` and `rejects` in Parquet, in bounded memory.

Every record is either kept or stands in `rejects` with its reason; that is checked before a file is given its name.
"""

import shutil
from collections import Counter
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sgpipe.datasets.base import VISUAL_GENOME, Batch, DataSet, Progress, Work
from sgpipe.datasets.built_in import open_other
from sgpipe.datasets.config import Canonicalize, Data
from sgpipe.datasets.splits import Splitter
from sgpipe.datasets.tables import ATTRIBUTES, IMAGES, OBJECTS, REJECTS, RELATIONS, TableWriter, plain_arrow
from sgpipe.errors import DataError
from sgpipe.relations.predicates import PREDICATES
from sgpipe.runs.atomic import atomic_path

SCHEMAS = {"images": IMAGES, "objects": OBJECTS, "relations": RELATIONS, "rejects": REJECTS}
ATTRIBUTES_FILE = "attributes.parquet"


def open_data_set(data: Data) -> DataSet:
    """The data set that params.yaml names. Raises `ParamsError` for an unknown kind."""
    if data.kind != VISUAL_GENOME:
        return open_other(data)
    from sgpipe.datasets.visual_genome.data_set import VisualGenome

    return VisualGenome(Path(data.root), data.release)


class Tally:
    """What became of the records of one kind. `read` = `kept` + `rejected` must hold when all are counted."""

    def __init__(self, source: Path) -> None:
        self.source = source
        self.read = 0
        self.kept = 0
        self.by_reason: Counter[str] = Counter()
        self.first = ""

    def add(self, batch: Batch) -> None:
        """Count one batch."""
        self.source = batch.file
        self.read += batch.read
        self.kept += batch.kept.num_rows
        self.by_reason.update(counts(batch.rejects["reason"]))
        if not self.first and batch.rejects.num_rows:
            self.first = batch.rejects["raw"][0].as_py()

    def rejections(self) -> str:
        """What was rejected for which reasons, most frequent first, and the first of all, in one line."""
        reasons = ", ".join(f"{reason} {count}" for reason, count in self.by_reason.most_common())
        return f"{self.read} read, {sum(self.by_reason.values())} rejected" + (
            f" ({reasons}); the first: {' '.join(self.first.split())}" if reasons else ""
        )

    def metrics(self, kind: str) -> dict[str, Any]:
        """`read`, `kept`, `rejected`, `by_reason`. Raises `DataError` if records were lost or made."""
        rejected = sum(self.by_reason.values())
        if self.read != self.kept + rejected:
            raise DataError(
                f"{kind}: read {self.read} records but kept {self.kept} and rejected {rejected}; "
                "this is a fault of the program, please report it with the input"
            )
        return {"read": self.read, "kept": self.kept, "rejected": rejected, "by_reason": dict(self.by_reason)}


def counts(column: pa.ChunkedArray) -> dict[str, int]:
    """Number of rows for each value of a string column."""
    found = pc.value_counts(column)
    return dict(zip(found.field("values").to_pylist(), found.field("counts").to_pylist(), strict=True))


def canonicalize(
    data_set: DataSet, out: Path, params: Canonicalize, workers: int = 1, progress: Progress = lambda path, done: None
) -> dict[str, Any]:
    """Write the tables of a data set into `out`, `attributes` where it says any, and return the metrics.

    The bytes do not depend on `workers`.

    Raises `DataError` for damage that reaches beyond a record, and where no image or no relation is kept; the tables of an
    earlier run are then left as they were.
    """
    about, folder = data_set.about(), out / ".work"
    with ExitStack() as stack:
        stack.enter_context(plain_arrow())
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        paths = {name: stack.enter_context(atomic_path(out / f"{name}.parquet")) for name in SCHEMAS}
        with ExitStack() as writing:
            writers = {name: writing.enter_context(TableWriter(paths[name], SCHEMAS[name])) for name in SCHEMAS}
            writers["attributes"] = writing.enter_context(TableWriter(folder / ATTRIBUTES_FILE, ATTRIBUTES))
            work = Work(folder, params.geometric, workers, progress)
            metrics = _tables(data_set, work, Splitter(params.splits), writers)
        (out / ATTRIBUTES_FILE).unlink(missing_ok=True)
        if metrics.get("attributes"):
            (folder / ATTRIBUTES_FILE).rename(out / ATTRIBUTES_FILE)
    return {**metrics, **about}


def _tables(data_set: DataSet, work: Work, splitter: Splitter, writers: dict[str, TableWriter]) -> dict[str, Any]:
    tallies = {name: Tally(data_set.root) for name in ("images", "objects", "relations")}
    images, objects, relations = tallies.values()
    classes, derived, endpoints = Counter[str](), Counter[str](), Counter[str]()
    with closing(data_set.relations(work)) as batches, TableWriter(work.folder / "geometric.parquet", RELATIONS) as geometric:
        for batch in batches:
            kept = batch.kept
            if batch.kind == "images":
                split = splitter(kept["image_id"].to_numpy()).astype(object)
                kept = kept.append_column("split", pa.array(split, pa.string()))
            writers[batch.kind].write(kept)
            writers["rejects"].write(batch.rejects)
            tallies[batch.kind].add(batch)
            if batch.geometric is not None:
                geometric.write(batch.geometric)
            if batch.attributes is not None:
                writers["attributes"].write(batch.attributes)
            if batch.kind == "relations":
                classes.update(counts(kept["predicate"]))
                endpoints.update(batch.endpoints or {})
    if not images.kept:
        raise DataError(
            f"{images.source}: no record is usable: {images.rejections()}; a record needs an id, a width and a height in whole "
            "pixels"
        )
    for part in pq.ParquetFile(work.folder / "geometric.parquet").iter_batches():
        table = pa.Table.from_batches([part])
        writers["relations"].write(table)
        derived.update(counts(table["predicate"]))
    if not writers["relations"].rows:
        raise DataError(
            f"{relations.source}: no relationship is kept: {relations.rejections()}; objects: "
            f"{objects.rejections()}; correct the files, or set canonicalize.geometric.per_image to derive relations from boxes"
        )
    without = sum(count for reason, count in relations.by_reason.items() if reason.startswith("predicate"))
    read = max(relations.read, 1)
    metrics = {
        **relations.metrics("relationships"),
        "by_class": {name: classes[name] for name in PREDICATES},
        "coverage": {
            "mapped": (relations.read - without) / read,
            "kept": relations.kept / read,
            "by_class": {name: classes[name] / read for name in PREDICATES},
        },
        "images": images.metrics("images"),
        "objects": objects.metrics("objects"),
        "geometric": {name: derived[name] for name in PREDICATES if derived[name]},
    }
    if writers["attributes"].rows:
        metrics["attributes"] = writers["attributes"].rows
    if endpoints:
        metrics["endpoints"] = dict(endpoints)
    rejected = metrics["rejected"] + metrics["images"]["rejected"] + metrics["objects"]["rejected"]
    if (writers["relations"].rows, writers["rejects"].rows) != (relations.kept + derived.total(), rejected):
        raise DataError("relations or rejects: rows written differ from rows counted; a fault of the program, please report it")
    return metrics
