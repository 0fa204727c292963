"""One pass over a JSON file: its spans go to worker processes, their tables come back in the order of the file."""

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from sgpipe.datasets.visual_genome.records import Malformed, raw_records
from sgpipe.datasets.visual_genome.spans import Span, exact_spans, guessed_spans, list_start
from sgpipe.errors import DataError, SgpipeError
from sgpipe.runs.parent import die_with_parent

if TYPE_CHECKING:
    from sgpipe.datasets.base import Batch, Progress


Spans = Sequence[Span]
RUN = 32
"""Spans that are read and judged in one go: each is small for the processor's cache, the run large for vector arithmetic."""
Submit = Callable[..., "Future[Any]"]
"""Starts a function, whose first argument is a span, in another process."""


def at_once(work: Callable[..., Any], *arguments: Any) -> "Future[Any]":
    """What a function returns, called now in this process, as a future."""
    future: Future[Any] = Future()
    try:
        future.set_result(work(*arguments))
    except Malformed as error:
        future.set_exception(error)
    return future


@contextmanager
def processes(count: int) -> Iterator[Submit]:
    """What starts functions in `count` processes, which get ready at once, or in this one where `count` is 1."""
    if count == 1:
        yield at_once
    else:
        with ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), die_with_parent) as pool:
            for _ in range(count):
                pool.submit(int)
            yield pool.submit


def read_pass(
    path: Path, submit: Callable[[Spans], "Future[Any]"], ahead: int, tables: Callable[[Spans, Any], "Batch"], progress: "Progress"
) -> "Iterator[Batch]":
    """What became of the records of every span of `path`, in its order; `ahead` runs of spans are read at a time.

    `submit` starts the reading of a run, `tables` makes a batch of what was read, whose rejects count records from the run's first.
    Cuts are guessed; from the first that proves wrong, the file is followed exactly. Raises `DataError` with the record's
    index where the file itself is damaged.
    """
    import pyarrow.compute as pc

    start, exact, records = list_start(path), False, 0
    while True:
        spans = exact_spans(path, start) if exact else guessed_spans(path, start)
        try:
            for run, found in _ordered(spans, submit, ahead):
                batch, last = tables(run, found), run[-1]
                rejects = batch.rejects
                at = rejects.schema.get_field_index("record")
                yield replace(batch, rejects=rejects.set_column(at, "record", pc.add(rejects["record"], records)))
                records += found.count
                progress(path, last.end)
                if not last.closed:
                    raise DataError(f"{path}: cut short after record {records - 1}: the list is not closed; get the file again")
            return
        except Malformed as broken:
            if exact:
                raise _located(broken, records) from None
            start, exact = broken.span.start, True


def _ordered(spans: Iterator[Span], submit: Callable[[Spans], "Future[Any]"], ahead: int) -> Iterator[tuple[Spans, Any]]:
    waiting: deque[tuple[Spans, Future[Any]]] = deque()
    try:
        while True:
            while len(waiting) < ahead and (following := tuple(islice(spans, RUN))):
                waiting.append((following, submit(following)))
            if not waiting:
                return
            run, future = waiting.popleft()
            try:
                found = future.result()
            except Malformed as error:
                error.span = run[0]
                raise
            except BrokenExecutor:
                raise SgpipeError(
                    f"{run[0].path}: a worker process was killed at byte {run[0].start}, most likely for want of memory; "
                    "give fewer --workers or more memory and run the same command again"
                ) from None
            yield run, found
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
