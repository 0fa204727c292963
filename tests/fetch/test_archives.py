"""Whole archives into a data folder."""

import errno
import hashlib
import json
import shutil
from collections import namedtuple
from dataclasses import replace

import pytest

from sgpipe.errors import DataError
from sgpipe.fetch import catalogue, folder, verify
from sgpipe.fetch.archives import Source, fetch_archives
from sgpipe.fetch.catalogue import RemoteFile
from sgpipe.fetch.manifest import NAME, Manifest
from sgpipe.fetch.transfer import FetchError, Refused
from tests.fetch.conftest import Fault, Site, jpeg, records, zipped

OBJECTS = records(2000)
ARCHIVE = zipped({"objects.json": OBJECTS})
ALIASES = b"person,man,woman\n"
IMAGES = zipped({"VG_100K/1.jpg": jpeg(40, 30, 1)})
FILES = (
    RemoteFile(
        "objects.json",
        "objects.json.zip",
        "json_zip",
        len(ARCHIVE),
        "sha1:" + hashlib.sha1(ARCHIVE).hexdigest(),
    ),
    RemoteFile("object_alias.txt", "object_alias.txt", "text", len(ALIASES)),
    RemoteFile(
        "images.zip",
        "VG_100K_2/images.zip",
        "image_zip",
        len(IMAGES),
        "sha256:" + hashlib.sha256(IMAGES).hexdigest(),
    ),
)
ANNOTATIONS, PICTURES = "/annotations/", "/pictures/VG_100K_2/"


@pytest.fixture
def home(site: Site) -> Site:
    site.files = {
        ANNOTATIONS + "objects.json.zip": ARCHIVE,
        ANNOTATIONS + "object_alias.txt": ALIASES,
        PICTURES + "images.zip": IMAGES,
    }
    return site


def source(site: Site, pinned: bool = True) -> Source:
    return Source(site.url + "/annotations", site.url + "/pictures/", pinned)


def test_everything_arrives_unpacked_recorded_and_nothing_is_left_over(home, tmp_path, policy, console):
    summary = fetch_archives(tmp_path, FILES, source(home), policy, console)
    assert (summary.fetched, summary.present) == (3, 0)
    assert summary.size == len(ARCHIVE) + len(ALIASES) + len(IMAGES)
    assert (tmp_path / "objects.json").read_bytes() == OBJECTS
    assert (tmp_path / "images.zip").read_bytes() == IMAGES
    manifest = json.loads((tmp_path / NAME).read_text())["files"]
    assert manifest["objects.json"]["sha256"] == hashlib.sha256(OBJECTS).hexdigest()
    assert manifest["objects.json"]["url"] == home.url + ANNOTATIONS + "objects.json.zip"
    assert {path.name for path in tmp_path.iterdir() if path.name != ".fetch.lock"} == {
        f.name for f in FILES
    } | {NAME}


def test_a_second_run_asks_for_nothing_and_changes_no_byte(home, tmp_path, policy, console):
    fetch_archives(tmp_path, FILES, source(home), policy, console)
    before, asked = (tmp_path / NAME).read_bytes(), len(home.requests)
    summary = fetch_archives(tmp_path, FILES, source(home), policy, console)
    assert (summary.fetched, summary.present, summary.size) == (0, 3, 0)
    assert len(home.requests) == asked and (tmp_path / NAME).read_bytes() == before


def test_a_file_that_was_changed_since_is_fetched_again(home, tmp_path, policy, console):
    fetch_archives(tmp_path, FILES, source(home), policy, console)
    (tmp_path / "objects.json").write_bytes(OBJECTS[:-1] + b" ")
    (tmp_path / "images.zip").unlink()
    summary = fetch_archives(tmp_path, FILES, source(home), policy, console)
    assert (summary.fetched, summary.present) == (2, 1)
    assert (tmp_path / "objects.json").read_bytes() == OBJECTS


def test_corrupt_bytes_are_noticed_and_fetched_again(home, tmp_path, policy, console):
    home.faults = {
        ANNOTATIONS + "objects.json.zip": [Fault(corrupt=True)],
        PICTURES + "images.zip": [Fault(corrupt=True)],
    }
    assert fetch_archives(tmp_path, FILES, source(home), policy, console).fetched == 3
    assert (tmp_path / "objects.json").read_bytes() == OBJECTS


def test_corrupt_bytes_in_the_middle_of_a_resumed_file_are_noticed_without_a_digest(
    home, tmp_path, policy, console
):
    files = [replace(FILES[0], digest=None)]
    home.faults = {ANNOTATIONS + "objects.json.zip": [Fault(cut=500), Fault(corrupt=True)]}
    assert fetch_archives(tmp_path, files, source(home), policy, console).fetched == 1
    assert (tmp_path / "objects.json").read_bytes() == OBJECTS


def test_one_file_that_is_not_there_does_not_lose_the_others(home, tmp_path, policy, console):
    del home.files[ANNOTATIONS + "objects.json.zip"]
    with pytest.raises(FetchError, match=r"1 of 3 files could not be had: .*objects.json.zip: HTTP 404"):
        fetch_archives(tmp_path, FILES, source(home), policy, console)
    assert (tmp_path / "images.zip").read_bytes() == IMAGES
    home.files[ANNOTATIONS + "objects.json.zip"] = ARCHIVE
    assert fetch_archives(tmp_path, FILES, source(home), policy, console).fetched == 1


def test_another_version_is_refused_unless_unpinned(home, tmp_path, policy, console):
    other = records(7)
    home.files[ANNOTATIONS + "objects.json.zip"] = zipped({"objects.json": other})
    with pytest.raises(FetchError, match=r"the published file has .* fetched 3 times"):
        fetch_archives(tmp_path, FILES[:1], source(home), policy, console)
    assert not (tmp_path / "objects.json").exists()
    fetch_archives(tmp_path, FILES[:1], source(home, pinned=False), policy, console)
    assert (tmp_path / "objects.json").read_bytes() == other


def test_a_web_page_in_place_of_an_archive_is_named(home, tmp_path, policy, console):
    home.files[ANNOTATIONS + "objects.json.zip"] = b"<!DOCTYPE html><p>log in first"
    home.files[ANNOTATIONS + "object_alias.txt"] = b"<html>"
    with pytest.raises(
        FetchError, match=r"not a list of aliases .*not a sound ZIP archive .*<!DOCTYPE html>"
    ):
        fetch_archives(tmp_path, FILES[:2], source(home, pinned=False), policy, console)


def test_an_archive_without_one_json_list_is_refused(home, tmp_path, policy, console):
    for content, words in [
        ({"a.json": b"[]", "b.json": b"[]"}, "one .json member is needed"),
        ({"objects.json": b'{"a": 1}'}, "not a JSON list"),
        ({"objects.json": b'[{"a": 1}, {'}, "not a JSON list"),
        ({"objects.json": b""}, "an empty file"),
    ]:
        home.files[ANNOTATIONS + "objects.json.zip"] = zipped(content)
        with pytest.raises(FetchError, match=words):
            fetch_archives(tmp_path, FILES[:1], source(home, pinned=False), policy, console)
        assert not (tmp_path / "objects.json").exists()


def test_files_from_elsewhere_are_neither_taken_nor_overwritten(home, tmp_path, policy, console):
    (tmp_path / "objects.json").write_bytes(b"[]")
    with pytest.raises(DataError, match="was not fetched by this command"):
        fetch_archives(tmp_path, FILES, source(home), policy, console)
    assert (tmp_path / "objects.json").read_bytes() == b"[]" and not home.requests


def test_an_archive_put_there_by_hand_is_taken_if_it_is_the_published_one(home, tmp_path, policy, console):
    (tmp_path / "images.zip").write_bytes(IMAGES)
    summary = fetch_archives(tmp_path, FILES[2:], source(home), policy, console)
    assert (summary.fetched, summary.present) == (0, 1) and not home.requests
    (tmp_path / NAME).unlink()
    (tmp_path / "images.zip").write_bytes(IMAGES[:-1])
    with pytest.raises(DataError, match="the published file has"):
        fetch_archives(tmp_path, FILES[2:], source(home), policy, console)


def test_a_disk_that_is_too_small_is_noticed_before_the_first_byte(
    home, tmp_path, policy, console, monkeypatch
):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**12, 10**12, len(ARCHIVE)))
    for pinned in (True, False):
        with pytest.raises(FetchError, match=r"GiB are needed, .* GiB are free"):
            fetch_archives(tmp_path, FILES, source(home, pinned), policy, console)
    assert all(method == "HEAD" for method, _, _ in home.requests)


def test_only_one_fetch_writes_to_a_folder(home, tmp_path, policy, console):
    with folder.locked(tmp_path), pytest.raises(FetchError, match="another fetch is writing"):
        fetch_archives(tmp_path, FILES, source(home), policy, console)


def test_a_damaged_manifest_is_named(tmp_path):
    (tmp_path / NAME).write_text('{"version": 1')
    with pytest.raises(DataError, match="delete it"):
        Manifest(tmp_path)


def test_unpacking_needs_its_space_too(tmp_path, monkeypatch):
    archive = tmp_path / "objects.json.zip"
    archive.write_bytes(ARCHIVE)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, 100))
    with pytest.raises(FetchError, match=f"needs {len(OBJECTS)} bytes, 100 are free"):
        verify.unpack_json(archive, tmp_path / "objects.json")


def test_a_full_disk_while_unpacking_is_one_line(home, tmp_path, policy, console, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(verify.shutil, "copyfileobj", full)
    with pytest.raises(FetchError, match="No space left on device; what was got is kept"):
        fetch_archives(tmp_path, FILES[:1], source(home), policy, console)


def test_check_json_counts_without_reading_into_memory(tmp_path):
    path = tmp_path / "list.json"
    path.write_bytes(records(5000))
    assert verify.check_json(path) == 5000
    path.write_bytes(b"[1, 2")
    with pytest.raises(Refused):
        verify.check_json(path)


def test_catalogue_covers_what_canonicalize_reads():
    for release, files in catalogue.ANNOTATIONS.items():
        assert {f.name for f in files} >= {"image_data.json", "objects.json", "relationships.json"}, release
    urls = {f.url(catalogue.ANNOTATIONS_URL, catalogue.IMAGES_URL) for f in catalogue.IMAGE_ARCHIVES}
    assert "https://cs.stanford.edu/people/rak248/VG_100K_2/images.zip" in urls
    assert catalogue.MEAN_IMAGE_BYTES == 140_671


def test_published_digests_of_the_alias_files(reference_dir):
    for remote in catalogue.ANNOTATIONS["v1.4"]:
        if remote.kind == "text":
            path = reference_dir / "data" / "vg_real" / "v1_4" / remote.name
            verify.check_size(path, remote.size)
            verify.check_digest(path, remote.digest)
            verify.check_text(path)
