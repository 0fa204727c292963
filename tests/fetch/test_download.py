"""One file over a bad connection."""

import email.utils
import errno
import hashlib
import json
import os
import time
from pathlib import Path

import pytest

from sgpipe.fetch import transfer
from sgpipe.fetch.transfer import (
    FetchError,
    Halted,
    Pacer,
    Part,
    Policy,
    Refused,
    client,
    fetch_part,
    retry_after,
)
from tests.fetch.conftest import Fault, Site

BODY = hashlib.shake_256(b"body").digest(400_000)
PATH = "/file.bin"


def get(
    site: Site, folder: Path, policy: Policy, trusted: bool = False, seen: list[int] | None = None
) -> Part:
    part = Part(folder / "file.bin.part", site.url + PATH, trusted)
    with client(policy) as http:
        fetch_part(http, part, policy, Pacer(policy.rate), (lambda at: None) if seen is None else seen.append)
    return part


@pytest.mark.parametrize("validator", ["etag", "date"])
def test_cut_connections_are_resumed_where_they_broke(site, tmp_path, policy, validator):
    site.files[PATH], site.validator = BODY, validator
    site.faults[PATH] = [Fault(cut=150_000), Fault(cut=100_000), Fault(cut=1)]
    part = get(site, tmp_path, policy)
    assert part.path.read_bytes() == BODY
    assert site.ranges(PATH) == [None, "bytes=150000-", "bytes=250000-", "bytes=250001-"]
    assert all("if-range" in headers for _, _, headers in site.requests[1:])
    assert all(headers["user-agent"].startswith("sgpipe") for _, _, headers in site.requests)


@pytest.mark.parametrize("validator", ["weak", "none"])
def test_without_a_strong_validator_the_file_starts_again_unless_its_digest_is_known(
    site, tmp_path, policy, validator
):
    site.files[PATH], site.validator = BODY, validator
    site.faults[PATH] = [Fault(cut=150_000)]
    assert get(site, tmp_path, policy).path.read_bytes() == BODY
    assert site.ranges(PATH) == [None, None]

    site.faults[PATH] = [Fault(cut=150_000)]
    (tmp_path / "trusted").mkdir()
    assert get(site, tmp_path / "trusted", policy, trusted=True).path.read_bytes() == BODY
    assert site.ranges(PATH)[2:] == [None, "bytes=150000-"]


def test_a_server_that_ignores_range_restarts_from_zero(site, tmp_path, policy):
    site.files[PATH] = BODY
    site.faults[PATH] = [Fault(cut=150_000), Fault(ignore_range=True)]
    assert get(site, tmp_path, policy).path.read_bytes() == BODY


def test_an_answer_with_the_wrong_range_is_thrown_away(site, tmp_path, policy):
    site.files[PATH] = BODY
    site.faults[PATH] = [Fault(cut=150_000), Fault(wrong_range=True)]
    assert get(site, tmp_path, policy).path.read_bytes() == BODY


def test_bytes_of_two_versions_are_never_joined(site, tmp_path, policy):
    site.files[PATH] = b"\0" * 400_000
    site.faults[PATH] = [Fault(cut=150_000)] + [Fault(status=503)] * 9
    with pytest.raises(FetchError, match="gave up"):
        get(site, tmp_path, policy)
    assert (tmp_path / "file.bin.part").stat().st_size == 150_000
    site.files[PATH], site.faults[PATH] = BODY, []
    assert get(site, tmp_path, policy).path.read_bytes() == BODY


def test_a_part_of_another_address_is_not_continued(site, tmp_path, policy):
    site.files[PATH] = BODY
    (tmp_path / "file.bin.part").write_bytes(b"\1" * 1000)
    (tmp_path / "file.bin.part.json").write_text(json.dumps({"url": "http://elsewhere/", "validator": '"x"'}))
    assert get(site, tmp_path, policy).path.read_bytes() == BODY
    assert site.ranges(PATH) == [None]


def test_a_complete_part_needs_no_new_byte(site, tmp_path, policy):
    site.files[PATH] = BODY
    get(site, tmp_path, policy)
    assert get(site, tmp_path, policy).path.read_bytes() == BODY
    assert site.ranges(PATH)[-1] == "bytes=400000-"


def test_a_part_longer_than_the_file_is_thrown_away(site, tmp_path, policy):
    site.files[PATH], site.validator = BODY, "date"
    part = get(site, tmp_path, policy)
    part.path.write_bytes(BODY + b"tail")
    assert get(site, tmp_path, policy).path.read_bytes() == BODY


def test_many_cuts_are_survived_as_long_as_each_brings_something(site, tmp_path):
    site.files[PATH] = BODY[:4000]
    site.faults[PATH] = [Fault(cut=300) for _ in range(13)]
    policy = Policy(rate=0.0, retries=1, backoff=0.0)
    seen: list[int] = []
    assert get(site, tmp_path, policy, seen=seen).path.read_bytes() == BODY[:4000]
    assert seen == sorted(seen) and seen[-1] == 4000


def test_no_progress_ends_after_the_allowed_attempts(site, tmp_path, policy):
    site.files[PATH] = BODY
    site.faults[PATH] = [Fault(status=500)] * 50
    with pytest.raises(FetchError, match=r"gave up after 4 attempts.*HTTP 500"):
        get(site, tmp_path, policy)
    assert len(site.requests) == policy.retries + 1


def test_a_server_that_cannot_resume_and_always_cuts_is_given_up(site, tmp_path, policy):
    site.files[PATH] = BODY
    site.faults[PATH] = [Fault(cut=1000, ignore_range=True)] * 50
    with pytest.raises(FetchError, match="gave up"):
        get(site, tmp_path, policy)
    assert len(site.requests) == policy.retries + 1


def test_nobody_listens(tmp_path, policy):
    with pytest.raises(FetchError, match="gave up after 4 attempts"):
        get(Site(url="http://127.0.0.1:9"), tmp_path, policy)


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_a_final_answer_is_not_asked_for_twice(site, tmp_path, policy, status):
    site.files[PATH] = BODY
    site.faults[PATH] = [Fault(status=status)]
    with pytest.raises(Refused, match=f"HTTP {status}"):
        get(site, tmp_path, policy)
    assert len(site.requests) == 1


@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_is_obeyed(site, tmp_path, policy, status):
    site.files[PATH] = BODY
    site.faults[PATH] = [Fault(status=status, headers={"Retry-After": "1"})]
    start = time.monotonic()
    assert get(site, tmp_path, policy).path.read_bytes() == BODY
    assert 1.0 <= time.monotonic() - start < 3.0


def test_a_long_retry_after_ends_with_what_the_server_asked(site, tmp_path, policy):
    site.faults[PATH] = [Fault(status=429, headers={"Retry-After": "86400"})]
    with pytest.raises(Halted, match="86400 s"):
        get(site, tmp_path, policy)


def test_retry_after_as_number_as_date_and_as_nonsense():
    assert retry_after("7") == 7.0
    assert retry_after(email.utils.formatdate(time.time() + 60, usegmt=True)) == pytest.approx(60, abs=2)
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0
    assert retry_after("soon") is None and retry_after(None) is None


def test_a_full_disk_says_how_far_it_came(site, tmp_path, policy, monkeypatch):
    site.files[PATH] = BODY

    class Full:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

        def write(self, _):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    plain = Path.open
    monkeypatch.setattr(
        Path, "open", lambda p, mode="r", *a, **k: Full() if mode == "ab" else plain(p, mode, *a, **k)
    )
    with pytest.raises(Halted, match="disk is full after 0 bytes"):
        get(site, tmp_path, policy)


def test_requests_keep_their_distance():
    pacer = Pacer(rate=50.0)
    start = time.monotonic()
    for _ in range(6):
        pacer.wait()
    assert time.monotonic() - start >= 5 / 50.0


def test_a_stopped_pacer_lets_nobody_through():
    pacer = Pacer(rate=0.0)
    pacer.hold(3600)
    pacer.stop.set()
    with pytest.raises(Halted, match="stopped"):
        pacer.wait()


def test_compressed_transfer_is_not_asked_for(site, tmp_path, policy):
    site.files[PATH] = BODY
    get(site, tmp_path, policy)
    assert site.requests[0][2]["accept-encoding"] == "identity"
    assert transfer.user_agent().startswith("sgpipe")


def test_a_transfer_that_is_stopped_keeps_its_bytes(site, tmp_path, policy):
    site.files[PATH] = BODY
    part, pacer = Part(tmp_path / "file.bin.part", site.url + PATH, False), Pacer(0.0)
    with client(policy) as http, pytest.raises(Halted, match="run the same command again"):
        fetch_part(http, part, policy, pacer, lambda at: pacer.stop.set())
    kept = part.path.stat().st_size
    assert 0 < kept < len(BODY) and BODY.startswith(part.path.read_bytes())
    assert get(site, tmp_path, policy).path.read_bytes() == BODY
    assert site.ranges(PATH) == [None, f"bytes={kept}-"]
