"""One pass over a JSON file: its spans go to worker processes, the rows come back in the order of the file."""

import gc
import multiprocessing
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from sgpipe.datasets.base import Batch, Progress
from sgpipe.datasets.visual_genome.records import Malformed, raw_records
from sgpipe.datasets.visual_genome.span_rows import Rows, Setup, SpanReader
from sgpipe.datasets.visual_genome.spans import Span, exact_spans, guessed_spans, list_start
from sgpipe.errors import DataError, SgpipeError
from sgpipe.runs.state import die_with_parent

Submit = Callable[[Span, int, frozenset[int]], "Future[Rows]"]
"""Starts the work on a span, given its number and the positions of images met before."""
_reader: SpanReader
"""A worker process's own."""


def _start(setup: Setup) -> None:
    global _reader
    die_with_parent()
    gc.disable()  # records hold no cycles, and looking for them takes a tenth of the time
    pa.set_cpu_count(1)
    _reader = SpanReader(setup)


def _work(kind: str, *span: object) -> Rows:
    return getattr(_reader, kind)(*span)


def at_once(work: Callable[..., Rows], *span: Any) -> "Future[Rows]":
    """The rows of a span that is read now, in this process, as a future."""
    future: Future[Rows] = Future()
    try:
        future.set_result(work(*span))
    except Malformed as error:
        future.set_exception(error)
    return future


@contextmanager
def span_workers(setup: Setup, count: int) -> Iterator[Callable[[str], Submit]]:
    """What submits spans of a kind, a method of `SpanReader`, to `count` processes, or to this one where `count` is 1."""
    if count == 1:
        reader = SpanReader(setup)
        yield lambda kind: partial(at_once, getattr(reader, kind))
    else:
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(count, spawn, _start, (setup,)) as pool:
            yield lambda kind: partial(pool.submit, _work, kind)


def read_pass(path: Path, submit: Submit, ahead: int, owners: NDArray[np.int64], progress: Progress) -> Iterator[Batch]:
    """What became of the records of every span of `path`, in its order; `ahead` spans are in work at a time.

    `owners` receives the number of the span that has each image; an image met again is worked on with that knowledge.

    Cuts are guessed; from the first that proves wrong, the file is followed exactly. Raises `DataError` with the record's
    index where the file itself is damaged.
    """
    start, exact, records, number = list_start(path), False, 0, 0
    while True:
        spans = exact_spans(path, start) if exact else guessed_spans(path, start)
        try:
            for span, rows in _ordered(spans, submit, number, ahead):
                again = rows.positions[owners[rows.positions] >= 0]
                if len(again):
                    rows = submit(span, number, frozenset(again.tolist())).result()
                owners[rows.positions] = number
                number += 1
                rejects = rows.batch.rejects
                at = rejects.schema.get_field_index("record")
                yield replace(rows.batch, rejects=rejects.set_column(at, "record", pc.add(rejects["record"], records)))
                records += rows.records
                progress(path, span.end)
                if not span.closed:
                    raise DataError(f"{path}: cut short after record {records - 1}: the list is not closed; get the file again")
            return
        except Malformed as broken:
            if exact:
                raise _located(broken, records) from None
            start, exact = broken.span.start, True


def _ordered(spans: Iterator[Span], submit: Submit, number: int, ahead: int) -> Iterator[tuple[Span, Rows]]:
    waiting: deque[tuple[Span, Future[Rows]]] = deque()
    try:
        while True:
            while len(waiting) < ahead and (span := next(spans, None)) is not None:
                waiting.append((span, submit(span, number, frozenset())))
                number += 1
            if not waiting:
                return
            span, future = waiting.popleft()
            try:
                rows = future.result()
            except Malformed as error:
                error.span = span
                raise
            except BrokenExecutor:
                raise SgpipeError(
                    f"{span.path}: a worker process was killed at byte {span.start}, most likely for want of memory; "
                    "give fewer --workers or more memory and run the same command again"
                ) from None
            yield span, rows
    finally:
        for _, future in waiting:
            future.cancel()
        wait([future for _, future in waiting])


def _located(broken: Malformed, records: int) -> DataError:
    """The error for a span that was cut exactly and is still no JSON: which record, and what is wrong with it."""
    path, index = broken.span.path, records
    for span in exact_spans(path, broken.span.start, 1):
        try:
            found = raw_records(span.read())
        except (msgspec.DecodeError, RecursionError) as error:
            problem = "the file ends inside it" if not span.closed else str(error)
            return DataError(f"{path}: record {index} (byte {span.start}): {problem}; the file is damaged, get it again")
        index += len(found)
    return DataError(f"{path}: between records {records} and {index}: {broken}; the file is damaged, get it again")
