"""Visual Genome's JSON to `images`, `objects`, `relations` and `rejects` in Parquet, in bounded memory.

image_data.json is read first, then objects.json, then relationships.json. Every record is either kept or stands in
`rejects` with its reason; that is checked before a file is given its name.
"""

import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sgpipe.datasets.config import Canonicalize
from sgpipe.datasets.splits import Splitter
from sgpipe.datasets.tables import IMAGES, OBJECTS, REJECTS, RELATIONS, TableWriter
from sgpipe.datasets.visual_genome.context import Rows, Setup
from sgpipe.datasets.visual_genome.images_table import ImagesReader
from sgpipe.datasets.visual_genome.passes import Processes, Progress, immediate, read_pass
from sgpipe.datasets.visual_genome.records import Release, detect_release
from sgpipe.errors import DataError
from sgpipe.relations.predicates import PREDICATES
from sgpipe.runs.atomic import atomic_path

SCHEMAS = {"images": IMAGES, "objects": OBJECTS, "relations": RELATIONS, "rejects": REJECTS}
_SMALL = 32 << 20


class Tally:
    """What became of the records of one kind. `read` = `kept` + `rejected` must hold when all are counted."""

    def __init__(self) -> None:
        self.read = 0
        self.kept = 0
        self.by_reason: Counter[str] = Counter()
        self.first = ""

    def add(self, rows: Rows) -> None:
        """Count one span."""
        self.read += rows.read
        self.kept += rows.kept.num_rows
        self.by_reason.update(counts(rows.rejects["reason"]))
        if not self.first and rows.rejects.num_rows:
            self.first = rows.rejects["raw"][0].as_py()

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
    root: Path,
    out: Path,
    params: Canonicalize,
    release: Literal["auto"] | Release = "auto",
    workers: int = 1,
    progress: Progress = lambda path, done: None,
) -> dict[str, Any]:
    """Write the four tables of the data folder `root` into `out` and return the metrics.

    `release` other than auto refuses data of another layout. The bytes do not depend on `workers`. Raises `DataError` for
    damage that reaches beyond a record, and where no image or no relation is kept; the tables of an earlier run are then left as
    they were.
    """
    found = detect_release(root)
    if release not in ("auto", found):
        raise DataError(
            f"{root}: data.release is {release}, the files have the layout of {found}; correct one of the two"
        )
    with _folder(out) as folder, ExitStack() as outputs:
        paths = {name: outputs.enter_context(atomic_path(out / f"{name}.parquet")) for name in SCHEMAS}
        with ExitStack() as stack:
            writers = {name: stack.enter_context(TableWriter(paths[name], SCHEMAS[name])) for name in SCHEMAS}
            metrics = _tables(
                Setup(root, folder, found, params.geometric), params, writers, workers, progress
            )
    return metrics


@contextmanager
def _folder(out: Path) -> Iterator[Path]:
    """A folder for what the passes leave for one another, on the disk of the outputs."""
    folder = out / ".work"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _tables(
    setup: Setup, params: Canonicalize, writers: dict[str, TableWriter], workers: int, progress: Progress
) -> dict[str, Any]:
    images = Tally()
    reader = ImagesReader(setup, Splitter(params.splits))
    nobody = np.zeros(0, dtype=np.int64)
    for first, rows in read_pass(
        setup.root / "image_data.json", partial(immediate, reader.rows), 1, nobody, progress
    ):
        _write(rows, first, writers["images"], writers["rejects"])
        images.add(rows)
    if not images.kept:
        raise DataError(
            f"{setup.root / 'image_data.json'}: no record is usable: {images.rejections()}; a record needs an id, a width and a "
            "height in whole pixels"
        )
    objects, relations, classes, derived = Tally(), Tally(), Counter[str](), Counter[str]()
    size = sum((setup.root / name).stat().st_size for name in ("objects.json", "relationships.json"))
    owners = np.full(reader.save(), -1, dtype=np.int64)
    with Processes(setup, workers if size > _SMALL else 1) as processes:
        with TableWriter(setup.folder / "geometric.parquet", RELATIONS) as geometric:
            work = partial(processes.submit, "objects")
            for first, rows in read_pass(
                setup.root / "objects.json", work, processes.ahead, owners, progress
            ):
                _write(rows, first, writers["objects"], writers["rejects"])
                objects.add(rows)
                if rows.geometric is not None:
                    geometric.write(rows.geometric)
        np.save(setup.folder / "owners.npy", owners)
        owners[:] = -1
        work = partial(processes.submit, "relationships")
        for first, rows in read_pass(
            setup.root / "relationships.json", work, processes.ahead, owners, progress
        ):
            _write(rows, first, writers["relations"], writers["rejects"])
            relations.add(rows)
            classes.update(counts(rows.kept["predicate"]))
    for batch in pq.ParquetFile(setup.folder / "geometric.parquet").iter_batches():
        table = pa.Table.from_batches([batch])
        writers["relations"].write(table)
        derived.update(counts(table["predicate"]))
    if not writers["relations"].rows:
        raise DataError(
            f"{setup.root / 'relationships.json'}: no relationship is kept: {relations.rejections()}; objects: "
            f"{objects.rejections()}; correct the files, or set canonicalize.geometric.per_image to derive relations from boxes"
        )
    metrics = {
        **relations.metrics("relationships"),
        "by_class": {name: classes[name] for name in PREDICATES},
        "coverage": _coverage(relations, classes),
        "images": images.metrics("images"),
        "objects": objects.metrics("objects"),
        "geometric": {name: derived[name] for name in PREDICATES if derived[name]},
        "release": setup.release,
    }
    rejected = metrics["rejected"] + metrics["images"]["rejected"] + metrics["objects"]["rejected"]
    if (writers["relations"].rows, writers["rejects"].rows) != (relations.kept + derived.total(), rejected):
        raise DataError(
            "relations or rejects: rows written differ from rows counted; a fault of the program, please report it"
        )
    return metrics


def _write(rows: Rows, first: int, kept: TableWriter, rejects: TableWriter) -> None:
    kept.write(rows.kept)
    at = rows.rejects.schema.get_field_index("record")
    rejects.write(rows.rejects.set_column(at, "record", pc.add(rows.rejects["record"], first)))


def _coverage(relations: Tally, classes: Counter[str]) -> dict[str, Any]:
    """Shares of the relationships read: with a predicate that has a class, and kept, in all and by class."""
    without = sum(count for reason, count in relations.by_reason.items() if reason.startswith("predicate"))
    read = max(relations.read, 1)
    return {
        "mapped": (relations.read - without) / read,
        "kept": relations.kept / read,
        "by_class": {name: classes[name] / read for name in PREDICATES},
    }
