"""One pass over a JSON file: its spans go to worker processes, the rows come back in the order of the file."""

import gc
import multiprocessing
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sgpipe.datasets.base import Progress
from sgpipe.datasets.rows import PredicateCodes
from sgpipe.datasets.visual_genome.context import Context, Rows, Setup
from sgpipe.datasets.visual_genome.records import Malformed, raw_records
from sgpipe.datasets.visual_genome.span_rows import object_rows, relation_rows
from sgpipe.datasets.visual_genome.spans import Span, exact_spans, guessed_spans, list_start
from sgpipe.errors import DataError, SgpipeError
from sgpipe.runs.state import die_with_parent

Submit = Callable[[Span, int, frozenset[int]], "Future[Rows]"]
"""Starts the work on a span, given its number and the positions of images met before."""


class Worker:
    """The two kinds of span, with the state that a process keeps between spans."""

    def __init__(self, setup: Setup) -> None:
        self._context = Context(setup)
        self._codes = PredicateCodes(self._context.predicates)

    def objects(self, span: Span, number: int, seen: frozenset[int]) -> Rows:
        """A span of objects.json."""
        return object_rows(self._context, span, number, seen)

    def relationships(self, span: Span, number: int, seen: frozenset[int]) -> Rows:
        """A span of relationships.json."""
        return relation_rows(self._context, self._codes, span, seen)


_worker: Worker | None = None


def _start(setup: Setup) -> None:
    global _worker
    die_with_parent()
    gc.disable()  # records hold no cycles, and looking for them takes a tenth of the time
    pa.set_cpu_count(1)
    _worker = Worker(setup)


def _work(kind: str, span: Span, number: int, seen: frozenset[int]) -> Rows:
    assert _worker is not None
    return getattr(_worker, kind)(span, number, seen)


class Processes:
    """Runs spans in `count` processes, or in this one where `count` is 1. Use as a context manager."""

    def __init__(self, setup: Setup, count: int) -> None:
        self.count = count
        self._pool: ProcessPoolExecutor | None = None
        self._here: Worker | None = None
        if count > 1:
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(count, mp_context=context, initializer=_start, initargs=(setup,))
        else:
            self._here = Worker(setup)

    def __enter__(self) -> "Processes":
        return self

    @property
    def ahead(self) -> int:
        """Spans to keep in work so that no process waits."""
        return 2 * self.count if self.count > 1 else 1

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def submit(self, kind: str, span: Span, number: int, seen: frozenset[int]) -> "Future[Rows]":
        """The rows of one span, to be waited for."""
        if self._pool is not None:
            return self._pool.submit(_work, kind, span, number, seen)
        return immediate(getattr(self._here, kind), span, number, seen)


def immediate(work: Callable[..., Rows], *arguments: Any) -> "Future[Rows]":
    """The result of calling `work` at once, as a future."""
    future: Future[Rows] = Future()
    try:
        future.set_result(work(*arguments))
    except Malformed as error:
        future.set_exception(error)
    return future


@dataclass
class _Broken(Exception):
    span: Span
    error: Malformed


def read_pass(path: Path, submit: Submit, ahead: int, owners: NDArray[np.int64], progress: Progress) -> Iterator[Rows]:
    """Rows of every span of `path`, in its order; `ahead` spans are in work at a time.

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
                yield rows.behind(records)
                records += rows.records
                progress(path, span.end)
                if not span.closed:
                    raise DataError(f"{path}: cut short after record {records - 1}: the list is not closed; get the file again")
            return
        except _Broken as broken:
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
                raise _Broken(span, error) from None
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


def _located(broken: _Broken, records: int) -> DataError:
    """The error for a span that was cut exactly and is still no JSON: which record, and what is wrong with it."""
    path, index = broken.span.path, records
    for span in exact_spans(path, broken.span.start, 1):
        try:
            found = raw_records(span.read())
        except (msgspec.DecodeError, RecursionError) as error:
            problem = "the file ends inside it" if not span.closed else str(error)
            return DataError(f"{path}: record {index} (byte {span.start}): {problem}; the file is damaged, get it again")
        index += len(found)
    return DataError(f"{path}: between records {records} and {index}: {broken.error}; the file is damaged, get it again")
