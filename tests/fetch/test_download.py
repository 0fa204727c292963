"""One file over a bad connection, into a data folder."""

import errno
import hashlib
import os
from pathlib import Path

import pooch
import pytest
import requests

from sgpipe.errors import DataError
from sgpipe.fetch import download
from sgpipe.fetch.download import RECORD, FetchError, data_folder, get, session
from tests.fetch.conftest import Fault, Site

BODY = hashlib.shake_256(b"body").digest(4_000)
SHA256 = "sha256:" + hashlib.sha256(BODY).hexdigest()
NAME, PATH = "file.bin", "/file.bin"


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(download, "CHUNK", 100)


def fetch(site: Site, root: Path, http: requests.Session, known: str | None = None, check=lambda path: None) -> bool:
    with data_folder(root) as hub:
        if known is not None:
            hub.registry[NAME] = known
        return get(hub, NAME, site.url + PATH, http, check)


def left_over(root: Path) -> set[str]:
    return {path.name for path in root.iterdir()} - {NAME, RECORD, ".fetch.lock"}


@pytest.mark.parametrize("validator", ["etag", "date"])
def test_cut_connections_are_resumed_where_they_broke(site, tmp_path, http, validator):
    site.files[PATH], site.validator = BODY, validator
    site.faults[PATH] = [Fault(cut=1500), Fault(cut=1000), Fault(cut=100)]
    assert fetch(site, tmp_path, http)
    assert (tmp_path / NAME).read_bytes() == BODY and not left_over(tmp_path)
    assert site.ranges(PATH) == [None, "bytes=1500-", "bytes=2500-", "bytes=2600-"]
    assert all("if-range" in headers for _, _, headers in site.requests[1:])
    for _, _, headers in site.requests:
        assert headers["user-agent"].startswith("sgpipe") and headers["accept-encoding"] == "identity"


@pytest.mark.parametrize("validator", ["weak", "none"])
def test_without_a_strong_validator_the_file_starts_again(site, tmp_path, http, validator):
    site.files[PATH], site.validator = BODY, validator
    site.faults[PATH] = [Fault(cut=1500)]
    assert fetch(site, tmp_path, http) and (tmp_path / NAME).read_bytes() == BODY
    assert site.ranges(PATH) == [None, None]


@pytest.mark.parametrize("fault", [Fault(ignore_range=True), Fault(wrong_range=True)])
def test_an_answer_that_is_not_the_rest_restarts_from_zero(site, tmp_path, http, fault):
    site.files[PATH] = BODY
    site.faults[PATH] = [Fault(cut=1500), fault]
    assert fetch(site, tmp_path, http) and (tmp_path / NAME).read_bytes() == BODY


def test_a_later_run_continues_and_bytes_of_two_versions_are_never_joined(site, tmp_path, http):
    for later in (BODY, BODY[::-1]):
        site.files[PATH] = BODY
        site.faults[PATH] = [Fault(cut=1500)] + [Fault(status=503)] * 9
        with pytest.raises(FetchError, match="HTTP 503"):
            fetch(site, tmp_path, http)
        assert (tmp_path / ".file.bin.part").read_bytes() == BODY[:1500] and not (tmp_path / NAME).exists()
        site.files[PATH], site.faults[PATH] = later, []
        site.requests.clear()
        assert fetch(site, tmp_path, http) and (tmp_path / NAME).read_bytes() == later
        assert site.ranges(PATH) == ["bytes=1500-"] and not left_over(tmp_path)
        (tmp_path / NAME).unlink()


def test_a_part_of_another_address_is_not_continued(site, tmp_path, http):
    site.files[PATH] = BODY
    (tmp_path / ".file.bin.part").write_bytes(b"\1" * 1000)
    etag = hashlib.md5(BODY).hexdigest()
    (tmp_path / ".file.bin.part.txt").write_text(f'http://elsewhere/\n"{etag}"')
    assert fetch(site, tmp_path, http) and (tmp_path / NAME).read_bytes() == BODY
    assert site.ranges(PATH) == [None]


def test_a_run_that_is_stopped_while_the_hash_is_computed_loses_no_byte(site, tmp_path, http, monkeypatch):
    def stop(*_: object, **__: object) -> bool:
        raise KeyboardInterrupt

    site.files[PATH] = BODY
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(pooch.core, "hash_matches", stop)
        fetch(site, tmp_path, http, SHA256)
    assert not (tmp_path / NAME).exists()
    assert fetch(site, tmp_path, http, SHA256) and (tmp_path / NAME).read_bytes() == BODY
    assert site.ranges(PATH) == [None, "bytes=4000-"] and not left_over(tmp_path)


def test_a_part_longer_than_the_file_is_thrown_away(site, tmp_path, http):
    site.files[PATH], site.validator = BODY, "date"
    (tmp_path / ".file.bin.part").write_bytes(BODY + b"tail")
    (tmp_path / ".file.bin.part.txt").write_text(f"{site.url + PATH}\nTue, 01 Aug 2017 10:00:00 GMT")
    assert fetch(site, tmp_path, http) and (tmp_path / NAME).read_bytes() == BODY


def test_many_cuts_are_survived_as_long_as_each_brings_something(site, tmp_path, http):
    site.files[PATH] = BODY
    site.faults[PATH] = [Fault(cut=300) for _ in range(13)]
    assert fetch(site, tmp_path, http) and (tmp_path / NAME).read_bytes() == BODY


def test_a_server_that_cannot_resume_and_always_cuts_is_given_up(site, tmp_path, http):
    site.files[PATH] = BODY
    site.faults[PATH] = [Fault(cut=1000, ignore_range=True)] * 50
    with pytest.raises(FetchError, match="run the same command to continue"):
        fetch(site, tmp_path, http)
    assert len(site.requests) == download.TRIES + 1 and not (tmp_path / NAME).exists()


def test_a_server_in_trouble_is_asked_again_as_often_as_allowed(site, tmp_path, http, slept):
    site.files[PATH] = BODY
    site.faults[PATH] = [Fault(status=500)] * 3
    assert fetch(site, tmp_path, http) and slept == [2.0, 4.0]
    (tmp_path / NAME).unlink()
    site.requests.clear()
    site.faults[PATH] = [Fault(status=500)] * 50
    with pytest.raises(FetchError, match="HTTP 500"):
        fetch(site, tmp_path, http)
    assert len(site.requests) == 4


def test_nobody_listens(tmp_path, http):
    with pytest.raises(FetchError, match=r"127.0.0.1.*Connection refused") as caught:
        fetch(Site(url="http://127.0.0.1:9"), tmp_path, http)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_a_final_answer_is_not_asked_for_twice(site, tmp_path, http, status):
    site.files[PATH] = BODY
    site.faults[PATH] = [Fault(status=status)]
    with pytest.raises(FetchError, match=f"{PATH}: HTTP {status}"):
        fetch(site, tmp_path, http)
    assert len(site.requests) == 1


@pytest.mark.parametrize(("asked", "pause"), [("7", 7.0), ("86400", 300.0)])
def test_retry_after_is_obeyed_within_bounds(site, tmp_path, http, slept, asked, pause):
    site.files[PATH] = BODY
    site.faults[PATH] = [Fault(status=429, headers={"Retry-After": asked})]
    assert fetch(site, tmp_path, http) and slept == [pause]


@pytest.mark.parametrize("variable", ["ALL_PROXY", "HTTP_PROXY"])
def test_a_socks_proxy_without_its_package_is_one_line(tmp_path, monkeypatch, variable):
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, "socks5://127.0.0.1:9")
    monkeypatch.setattr("requests.adapters.SOCKSProxyManager", _without_socks)
    with session(1, 0) as http, pytest.raises(FetchError, match=r"SOCKS support.*Install PySocks, or unset ALL_PROXY") as e:
        fetch(Site(url="http://images.example"), tmp_path, http)
    assert "\n" not in str(e.value) and str(e.value).startswith("http://images.example/file.bin: ")


def _without_socks(*_: object, **__: object) -> None:
    raise requests.exceptions.InvalidSchema("Missing dependencies for SOCKS support.")


@pytest.mark.parametrize("proxy", ["http://127.0.0.1:9", "nonsense://x", "http://[", "127.0.0.1:9"])
def test_a_proxy_that_does_not_work_is_one_line(tmp_path, monkeypatch, proxy):
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTP_PROXY", proxy)
    with session(1, 0) as http, pytest.raises(FetchError, match=r"^http://images.example/file.bin: .*"):
        fetch(Site(url="http://images.example"), tmp_path, http)


@pytest.mark.parametrize("url", ["ftp://x", "no-scheme", "http://", "http://[", "http://exa mple"])
def test_an_address_that_is_none_is_one_line(tmp_path, http, url):
    with pytest.raises(FetchError):
        fetch(Site(url=url), tmp_path, http)


def test_wrong_content_is_fetched_again_a_few_times_and_never_in_place(site, tmp_path, http):
    site.files[PATH] = BODY
    site.faults[PATH] = [Fault(corrupt=True)]
    assert fetch(site, tmp_path, http, SHA256) and (tmp_path / NAME).read_bytes() == BODY
    (tmp_path / NAME).unlink()
    site.requests.clear()
    with pytest.raises(FetchError, match=r"does not match the known hash.*Fetched 3 times"):
        fetch(site, tmp_path, http, "sha1:" + "0" * 40)
    assert site.ranges(PATH) == [None] * 3
    assert not (tmp_path / NAME).exists() and not left_over(tmp_path)


def test_a_check_stands_for_a_hash_that_is_not_known(site, tmp_path, http):
    def check(path: Path) -> None:
        if path.read_bytes() != BODY:
            raise ValueError("not the body")

    site.files[PATH] = BODY
    site.faults[PATH] = [Fault(corrupt=True)] * 4
    with pytest.raises(FetchError, match=r"not the body Fetched 3 times"):
        fetch(site, tmp_path, http, check=check)
    assert not (tmp_path / NAME).exists() and not left_over(tmp_path)
    site.faults[PATH] = [Fault(corrupt=True)]
    assert fetch(site, tmp_path, http, check=check) and (tmp_path / NAME).read_bytes() == BODY
    assert (tmp_path / RECORD).read_text() == f"file.bin {SHA256} {site.url}/file.bin\n"


def test_what_is_there_is_verified_by_the_recorded_hash_and_never_overwritten(site, tmp_path, http):
    site.files[PATH] = BODY
    assert fetch(site, tmp_path, http)
    record = (tmp_path / RECORD).read_bytes()
    assert not fetch(site, tmp_path, http) and (tmp_path / RECORD).read_bytes() == record
    assert len(site.requests) == 1
    (tmp_path / NAME).write_bytes(BODY[::-1])
    with pytest.raises(FetchError, match=r"file.bin: its hash is not the published or recorded one; move or delete it"):
        fetch(site, tmp_path, http)
    assert (tmp_path / NAME).read_bytes() == BODY[::-1] and len(site.requests) == 1
    (tmp_path / NAME).unlink()
    assert fetch(site, tmp_path, http) and (tmp_path / NAME).read_bytes() == BODY


def test_a_full_disk_is_one_line_and_keeps_what_came(site, tmp_path, http, monkeypatch):
    site.files[PATH] = BODY
    site.faults[PATH] = [Fault(cut=1500)]
    plain = requests.Response.iter_content

    def full(response: requests.Response, size: int):
        if response.status_code == 206:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return plain(response, size)

    monkeypatch.setattr(requests.Response, "iter_content", full)
    with pytest.raises(FetchError, match="No space left on device; mend this and run the same command"):
        fetch(site, tmp_path, http)
    assert (tmp_path / ".file.bin.part").read_bytes() == BODY[:1500]


def test_a_folder_that_cannot_be_made_or_written_is_one_line(site, tmp_path, http, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(FetchError, match=r"file/data: Not a directory"):
        fetch(site, tmp_path / "file" / "data", http)

    def denied(path: str, env: str | None = None) -> None:
        raise PermissionError(f"Pooch could not write to data cache folder '{path}'.")

    monkeypatch.setattr(pooch.core, "make_local_storage", denied)
    with pytest.raises(FetchError, match=r"could not write to data cache folder"):
        fetch(site, tmp_path, http)


def test_only_one_fetch_writes_to_a_folder(site, tmp_path, http):
    with data_folder(tmp_path), pytest.raises(FetchError, match="another fetch is writing"):
        fetch(site, tmp_path, http)


@pytest.mark.parametrize("text", ["one\n", "a 'b c\n", "\xff"])
def test_a_damaged_record_is_named(site, tmp_path, http, text):
    (tmp_path / RECORD).write_text(text, encoding="latin-1")
    with pytest.raises(DataError, match=f"{RECORD}: .*delete it"):
        fetch(site, tmp_path, http)
