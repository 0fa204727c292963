"""What all downloads into a folder share."""

import time

import pytest

from sgpipe.fetch.folder import locked, run_all
from sgpipe.fetch.transfer import Halted, Pacer


def test_results_of_all_jobs_are_collected():
    seen: list[int] = []
    run_all([lambda n=n: n * n for n in range(20)], 4, Pacer(0.0), seen.append)
    assert sorted(seen) == [n * n for n in range(20)]


def test_an_interrupt_stops_what_waits_and_starts_nothing_more():
    pacer, started = Pacer(0.0), list[int]()

    def job(number: int) -> None:
        started.append(number)
        if number:
            pacer.sleep(60)

    def collect(_: None) -> None:
        raise KeyboardInterrupt

    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_all([lambda n=n: job(n) for n in range(50)], 4, pacer, collect)
    assert time.monotonic() - start < 10 and len(started) < 10


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(Halted, match=r"file/data: Not a directory"), locked(tmp_path / "file" / "data"):
        pass
