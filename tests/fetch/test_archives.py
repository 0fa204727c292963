"""Whole archives into a data folder."""

import errno
import hashlib
import shutil
from collections import namedtuple

import pytest
from typer.testing import CliRunner

from sgpipe.fetch import catalogue, visual_genome
from sgpipe.fetch.cli import app
from sgpipe.fetch.download import RECORD, FetchError
from sgpipe.fetch.visual_genome import check_text, check_zip, fetch_archives
from tests.fetch.conftest import Fault, Site, jpeg, records, zipped

OBJECTS = records(2000)
ARCHIVE = zipped({"__MACOSX/._objects.json": b"", "objects.json": OBJECTS})
ALIASES = b"person,man,woman\n"
IMAGES = zipped({"VG_100K/1.jpg": jpeg(40, 30, 1)})
PATHS = {"objects.json": "/a/objects.json.zip", "object_alias.txt": "/a/object_alias.txt", "images.zip": "/i/images.zip"}
DIGESTS = {
    "objects.json.zip": "sha1:" + hashlib.sha1(ARCHIVE).hexdigest(),
    "object_alias.txt": "sha256:" + hashlib.sha256(ALIASES).hexdigest(),
    "images.zip": "sha256:" + hashlib.sha256(IMAGES).hexdigest(),
}


@pytest.fixture
def home(site: Site, monkeypatch) -> Site:
    monkeypatch.setattr(visual_genome, "DIGESTS", DIGESTS)
    site.files = dict(zip(PATHS.values(), (ARCHIVE, ALIASES, IMAGES), strict=True))
    return site


def urls(site: Site, *names: str) -> dict[str, str]:
    return {name: site.url + PATHS[name] for name in names or PATHS}


def test_everything_arrives_unpacked_recorded_and_nothing_else_is_left(home, tmp_path, http):
    summary = fetch_archives(tmp_path, urls(home), http)
    assert (summary.fetched, summary.present) == (3, 0)
    assert (tmp_path / "objects.json").read_bytes() == OBJECTS
    assert (tmp_path / "images.zip").read_bytes() == IMAGES
    assert (tmp_path / RECORD).read_text().splitlines() == [
        f"{name} {DIGESTS[name]} {home.url}{folder}/{name}"
        for name, folder in [("images.zip", "/i"), ("object_alias.txt", "/a"), ("objects.json.zip", "/a")]
    ]
    assert {path.name for path in tmp_path.iterdir()} == {*PATHS, "objects.json.zip", RECORD, ".fetch.lock"}


def test_a_second_run_asks_for_nothing_and_changes_no_byte(home, tmp_path, http):
    fetch_archives(tmp_path, urls(home), http)
    before, asked = (tmp_path / RECORD).read_bytes(), len(home.requests)
    summary = fetch_archives(tmp_path, urls(home), http)
    assert (summary.fetched, summary.present) == (0, 3)
    assert len(home.requests) == asked and (tmp_path / RECORD).read_bytes() == before


def test_a_file_that_was_deleted_is_restored_and_one_that_was_changed_is_named(home, tmp_path, http):
    fetch_archives(tmp_path, urls(home), http)
    (tmp_path / "images.zip").unlink()
    (tmp_path / "objects.json").unlink()
    summary = fetch_archives(tmp_path, urls(home), http)
    assert (summary.fetched, summary.present) == (1, 2)
    assert (tmp_path / "objects.json").read_bytes() == OBJECTS
    for changed in (OBJECTS[:-1] + b" ", OBJECTS + b" ", b""):
        (tmp_path / "objects.json").write_bytes(changed)
        with pytest.raises(FetchError, match=r"objects.json: not what objects.json.zip holds; move or delete it"):
            fetch_archives(tmp_path, urls(home), http)
        assert (tmp_path / "objects.json").read_bytes() == changed


def test_corrupt_bytes_are_noticed_and_fetched_again(home, tmp_path, http):
    home.faults = {PATHS[name]: [Fault(corrupt=True)] for name in ("objects.json", "images.zip")}
    assert fetch_archives(tmp_path, urls(home), http).fetched == 3
    assert (tmp_path / "objects.json").read_bytes() == OBJECTS


def test_corrupt_bytes_are_noticed_without_a_digest_and_the_first_hash_is_recorded(home, tmp_path, http):
    home.faults = {PATHS["objects.json"]: [Fault(cut=500), Fault(corrupt=True)]}
    assert fetch_archives(tmp_path, urls(home, "objects.json"), http, pinned=False).fetched == 1
    assert (tmp_path / "objects.json").read_bytes() == OBJECTS
    assert "sha256:" + hashlib.sha256(ARCHIVE).hexdigest() in (tmp_path / RECORD).read_text()


def test_one_file_that_is_not_there_does_not_lose_the_others(home, tmp_path, http):
    del home.files[PATHS["objects.json"]]
    with pytest.raises(FetchError, match=r"1 of 3 files could not be had: .*objects.json.zip: HTTP 404"):
        fetch_archives(tmp_path, urls(home), http)
    assert (tmp_path / "images.zip").read_bytes() == IMAGES
    home.files[PATHS["objects.json"]] = ARCHIVE
    assert fetch_archives(tmp_path, urls(home), http).fetched == 1


def test_another_version_is_refused_unless_unpinned(home, tmp_path, http):
    other = records(7)
    home.files[PATHS["objects.json"]] = zipped({"objects.json": other})
    with pytest.raises(FetchError, match=r"does not match the known hash.*--unpinned"):
        fetch_archives(tmp_path, urls(home, "objects.json"), http)
    assert not (tmp_path / "objects.json").exists() and not (tmp_path / "objects.json.zip").exists()
    fetch_archives(tmp_path, urls(home, "objects.json"), http, pinned=False)
    assert (tmp_path / "objects.json").read_bytes() == other


def test_another_release_does_not_pass_for_this_one(home, tmp_path, http):
    fetch_archives(tmp_path, urls(home, "objects.json"), http)
    home.files["/a/objects_v1.json.zip"] = zipped({"objects.json": records(9)})
    with pytest.raises(FetchError, match=r"objects.json: not what objects_v1.json.zip holds"):
        fetch_archives(tmp_path, {"objects.json": f"{home.url}/a/objects_v1.json.zip"}, http)
    assert (tmp_path / "objects.json").read_bytes() == OBJECTS


def test_a_web_page_in_place_of_an_archive_is_named(home, tmp_path, http):
    home.files[PATHS["objects.json"]] = b"<!DOCTYPE html><p>log in first"
    home.files[PATHS["object_alias.txt"]] = b"<html>"
    for pinned in (True, False):
        with pytest.raises(FetchError, match=r"not a sound ZIP archive .*<!DOCTYPE html>.*not a list of aliases .*<html>"):
            fetch_archives(tmp_path, urls(home, "objects.json", "object_alias.txt"), http, pinned)


@pytest.mark.parametrize(
    "content",
    [
        {"a.json": b"[]", "b.json": b"[]"},
        {"readme.txt": b""},
        {"../objects.json": b"[]"},
        {"a/../../objects.json": b"[]"},
        {"/objects.json": b"[]"},
    ],
)
def test_an_archive_without_one_json_file_of_its_own_is_refused(home, tmp_path, http, content):
    home.files[PATHS["objects.json"]] = zipped(content)
    with pytest.raises(FetchError, match=r"it must hold one .json file"):
        fetch_archives(tmp_path / "root", urls(home, "objects.json"), http, pinned=False)
    assert not list(tmp_path.rglob("objects.json"))


def test_no_damage_to_an_archive_ends_in_a_traceback(tmp_path):
    path = tmp_path / "damaged.zip"
    sound, refused = zipped({"a.json": records(4), "b.jpg": jpeg(8, 8, 3)}), 0
    for at in range(0, len(sound), 3):
        path.write_bytes(sound[:at] + bytes([sound[at] ^ 0x5A]) + sound[at + 1 :])
        try:
            check_zip(path)
        except ValueError as error:
            assert "not a sound ZIP archive" in str(error)
            refused += 1
    assert refused > len(sound) / 3 / 2
    path.write_bytes(sound)
    check_zip(path)


def test_files_from_elsewhere_are_neither_taken_nor_overwritten(home, tmp_path, http):
    (tmp_path / "objects.json").write_bytes(b"[]")
    (tmp_path / "object_alias.txt").write_bytes(b"mine")
    with pytest.raises(FetchError, match=r"2 of 3 files .*objects.json: not what.*object_alias.txt: its hash is not"):
        fetch_archives(tmp_path, urls(home), http)
    assert (tmp_path / "objects.json").read_bytes() == b"[]"
    assert (tmp_path / "object_alias.txt").read_bytes() == b"mine"


def test_an_archive_put_there_by_hand_is_taken_if_it_is_the_published_one(home, tmp_path, http):
    (tmp_path / "images.zip").write_bytes(IMAGES)
    (tmp_path / "objects.json.zip").write_bytes(ARCHIVE)
    summary = fetch_archives(tmp_path, urls(home, "images.zip", "objects.json"), http)
    assert (summary.fetched, summary.present) == (0, 2) and not home.requests
    assert (tmp_path / "objects.json").read_bytes() == OBJECTS
    (tmp_path / RECORD).unlink()
    (tmp_path / "images.zip").write_bytes(IMAGES[:-1])
    with pytest.raises(FetchError, match=r"images.zip: its hash is not the published"):
        fetch_archives(tmp_path, urls(home, "images.zip"), http)


def test_a_disk_that_is_too_small_is_noticed_before_the_first_byte(home, tmp_path, http, monkeypatch):
    usage = namedtuple("usage", "total used free")
    needed = 9_731_705_982 + 55_323_929 + 414_000_000
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, int(needed * 1.05) - 1))
    with pytest.raises(FetchError, match=r"9.98 GiB are needed, 9.98 GiB are free"):
        fetch_archives(tmp_path, urls(home), http)
    assert not home.requests
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, int(needed * 1.05) + 1))
    assert fetch_archives(tmp_path, urls(home), http).fetched == 3
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, 0))
    assert fetch_archives(tmp_path, urls(home), http).present == 3


def test_a_full_disk_while_unpacking_is_one_line_and_leaves_no_half_file(home, tmp_path, http, monkeypatch):
    def full(source, out, length) -> None:
        out.write(source.read(100))
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched, pytest.raises(FetchError, match="No space left on device; mend this"):
        patched.setattr(shutil, "copyfileobj", full)
        fetch_archives(tmp_path, urls(home, "objects.json"), http)
    assert {path.name for path in tmp_path.iterdir()} == {"objects.json.zip", RECORD, ".fetch.lock"}
    assert fetch_archives(tmp_path, urls(home, "objects.json"), http).present == 1
    assert (tmp_path / "objects.json").read_bytes() == OBJECTS and len(home.requests) == 1


def test_catalogue_covers_what_canonicalize_reads():
    for release, files in catalogue.ANNOTATIONS.items():
        assert {"image_data.json", "objects.json", "relationships.json"} <= files.keys(), release
        assert {name for name in files if name.endswith(".json")} <= catalogue.ROOM.keys()
    unpublished = {path.rsplit("/")[-1] for path in catalogue.ANNOTATIONS["v1.4"].values()} - catalogue.DIGESTS.keys()
    assert unpublished == {"objects_v1_2.json.zip"}
    assert catalogue.IMAGE_ARCHIVES.keys() <= catalogue.DIGESTS.keys() & catalogue.ROOM.keys()
    assert catalogue.MEAN_IMAGE_BYTES == 140_671


@pytest.mark.parametrize(("words", "images"), [([], 2), (["--annotations-only", "--release", "v1.2"], 0)])
def test_command_asks_the_official_homes(tmp_path, monkeypatch, words, images):
    asked: dict[str, str] = {}
    monkeypatch.setattr(
        visual_genome, "fetch_archives", lambda root, files, http, pinned: asked.update(files) or visual_genome.Summary(7)
    )
    result = CliRunner().invoke(app, ["visual-genome", "--root", str(tmp_path), *words])
    assert result.exit_code == 0 and "7 fetched" in result.output
    suffix = "_v1_2" if words else ""
    assert asked["objects.json"] == f"{catalogue.ANNOTATIONS_URL}/objects{suffix}.json.zip"
    assert asked.get("images.zip", "") == (f"{catalogue.IMAGES_URL}/VG_100K_2/images.zip" if images else "")
    assert len(asked) == (5 if words else 6) + images


def test_published_digests_of_the_alias_files(reference_dir):
    for name in ("object_alias.txt", "relationship_alias.txt"):
        path = reference_dir / "data" / "vg_real" / "v1_4" / name
        assert "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest() == catalogue.DIGESTS[name]
        check_text(path)
