"""Only the images that curated triples show."""

import hashlib

import pyarrow as pa
import pytest
from typer.testing import CliRunner

from sgpipe.datasets.tables import IMAGES, TRIPLES, write_table
from sgpipe.errors import DataError, ParamsError
from sgpipe.fetch import visual_genome
from sgpipe.fetch.cli import app
from sgpipe.fetch.download import RECORD, FetchError
from sgpipe.fetch.visual_genome import REJECTS, fetch_images, read_rejects, wanted_images
from tests.fetch.conftest import Fault, jpeg, zipped

SIZE = (48, 32)


def write_tables(folder, url: str, image_ids: list[int], shown: list[int]):
    rows = [
        {
            "image_id": i,
            "width": SIZE[0],
            "height": SIZE[1],
            "url": f"{url}/VG_100K{'_2' if i % 2 else ''}/{i}.jpg",
            "split": "train",
        }
        for i in image_ids
    ]
    write_table(pa.Table.from_pylist(rows, schema=IMAGES), folder / "images.parquet")
    for name, ids in (("triples", shown), ("map_triples", shown[:1])):
        triples = [{"triple_id": f"t{n}", "image_id": i} for n, i in enumerate(ids + ids[:1])]
        write_table(pa.Table.from_pylist(triples, schema=TRIPLES), folder / f"{name}.parquet")
    return [folder / "triples.parquet", folder / "map_triples.parquet"], folder / "images.parquet"


@pytest.fixture
def pictures(site, tmp_path):
    """A site with images 1..12, tables in which the triples show 3..10."""
    site.files = {f"/VG_100K{'_2' if i % 2 else ''}/{i}.jpg": jpeg(*SIZE, i) for i in range(1, 13)}
    triples, table = write_tables(tmp_path, site.url, list(range(1, 13)), list(range(3, 11)))
    return site, wanted_images(triples, table, None), tmp_path / "root"


def test_only_the_images_of_the_triples_are_asked_for_once_each(pictures, http):
    site, wanted, root = pictures
    summary = fetch_images(root, wanted, http)
    assert (summary.fetched, summary.present, summary.rejects) == (8, 0, [])
    assert sorted(path for _, path, _ in site.requests) == sorted(
        path for path in site.files if int(path[:-4].rsplit("/")[-1]) in range(3, 11)
    )
    assert (root / "VG_100K" / "4.jpg").read_bytes() == site.files["/VG_100K/4.jpg"]
    assert (root / "VG_100K_2" / "3.jpg").read_bytes() == site.files["/VG_100K_2/3.jpg"]
    hashes = {line.split()[0]: line.split()[1] for line in (root / RECORD).read_text().splitlines()}
    assert hashes == {image.name: "sha256:" + hashlib.sha256((root / image.name).read_bytes()).hexdigest() for image in wanted}
    assert {path.name for path in root.rglob("*") if path.is_file()} == {RECORD, ".fetch.lock", *(f"{i}.jpg" for i in range(3, 11))}


def test_failures_are_recorded_and_the_rest_goes_on(pictures, http):
    site, wanted, root = pictures
    del site.files["/VG_100K_2/3.jpg"]
    site.files["/VG_100K/4.jpg"] = jpeg(20, 20, 4)
    site.files["/VG_100K_2/5.jpg"] = site.files["/VG_100K_2/5.jpg"][:-200]
    site.files["/VG_100K/6.jpg"] = b"<html>moved"
    site.faults["/VG_100K_2/7.jpg"] = [
        Fault(cut=100),
        Fault(status=429, headers={"Retry-After": "0"}),
        Fault(corrupt=False, cut=50),
    ]
    site.faults["/VG_100K/8.jpg"] = [Fault(status=500)] * 20
    summary = fetch_images(root, wanted, http)
    assert (summary.fetched, len(summary.rejects)) == (3, 5)
    rejects = {reject["image_id"]: reject["reason"] for reject in read_rejects(root / REJECTS)}
    assert "HTTP 404" in rejects[3]
    assert "the image is 20×20, its annotations are for 48×32" in rejects[4]
    assert "not a sound image" in rejects[5] and "not a sound image" in rejects[6]
    assert "HTTP 500" in rejects[8]
    assert not (root / "VG_100K" / "4.jpg").exists()

    site.files |= {f"/VG_100K{'_2' if i % 2 else ''}/{i}.jpg": jpeg(*SIZE, i) for i in range(3, 7)}
    site.faults.clear()
    summary = fetch_images(root, wanted, http)
    assert (summary.fetched, summary.present, summary.rejects) == (5, 3, [])
    assert not (root / REJECTS).exists()


def test_a_second_run_asks_for_nothing_and_names_what_was_damaged(pictures, http):
    site, wanted, root = pictures
    fetch_images(root, wanted, http)
    site.requests.clear()
    before = (root / RECORD).read_bytes()
    summary = fetch_images(root, wanted, http)
    assert (summary.fetched, summary.present) == (0, 8) and (root / RECORD).read_bytes() == before
    (root / "VG_100K" / "4.jpg").write_bytes(jpeg(*SIZE, 200))
    summary = fetch_images(root, wanted, http)
    assert (summary.fetched, summary.present) == (0, 7) and not site.requests
    assert [reject["image_id"] for reject in summary.rejects] == [4]
    assert "its hash is not the published or recorded one; move or delete it" in summary.rejects[0]["reason"]
    (root / "VG_100K" / "4.jpg").unlink()
    summary = fetch_images(root, wanted, http)
    assert (summary.fetched, summary.present) == (1, 7)
    assert [path for _, path, _ in site.requests] == ["/VG_100K/4.jpg"]
    assert (root / "VG_100K" / "4.jpg").read_bytes() == site.files["/VG_100K/4.jpg"]
    assert (root / RECORD).read_bytes() == before


def test_images_put_there_by_hand_and_in_archives_are_not_fetched(pictures, http):
    _, wanted, root = pictures
    (root / "VG_100K").mkdir(parents=True)
    (root / "VG_100K" / "4.jpg").write_bytes(jpeg(*SIZE, 99))
    (root / "VG_100K" / "6.jpg").write_bytes(b"half an image")
    (root / "images2.zip").write_bytes(zipped({"VG_100K_2/3.jpg": jpeg(*SIZE, 3)}))
    summary = fetch_images(root, wanted, http)
    assert (summary.fetched, summary.present) == (5, 2)
    assert (root / "VG_100K" / "4.jpg").read_bytes() == jpeg(*SIZE, 99)
    assert (root / "VG_100K" / "6.jpg").read_bytes() == b"half an image"
    assert not (root / "VG_100K_2" / "3.jpg").exists()
    assert [reject["image_id"] for reject in summary.rejects] == [6]
    assert "6.jpg: not a sound image" in summary.rejects[0]["reason"]
    assert "move or delete it" in summary.rejects[0]["reason"]


def test_images_got_before_a_kill_are_not_fetched_again(pictures, http):
    site, wanted, root = pictures
    fetch_images(root, wanted, http)
    before = (root / RECORD).read_bytes()
    (root / RECORD).unlink()
    site.requests.clear()
    summary = fetch_images(root, wanted, http)
    assert (summary.fetched, summary.present) == (0, 8) and not site.requests
    assert (root / RECORD).read_bytes() == before


def test_an_interrupt_keeps_what_was_got_and_starts_nothing_more(pictures, http, monkeypatch):
    _, wanted, root = pictures
    plain, asked = visual_genome.get, list[str]()

    def stop_at_third(hub, name, *rest):
        asked.append(name)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return plain(hub, name, *rest)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(visual_genome, "get", stop_at_third)
        fetch_images(root, wanted, http, connections=1)
    assert len(asked) <= 4
    recorded = [line.split()[0] for line in (root / RECORD).read_text().splitlines()]
    assert recorded == sorted(set(asked) - {asked[2]})
    summary = fetch_images(root, wanted, http)
    assert summary.fetched + summary.present == 8 and summary.present >= 2


def test_a_dead_server_ends_the_run_early(pictures, http, monkeypatch):
    site, wanted, root = pictures
    monkeypatch.setattr(visual_genome, "FAILURES_IN_A_ROW", 3)
    site.files.clear()
    with pytest.raises(FetchError, match=r"3 images in a row could not be had .*HTTP 404"):
        fetch_images(root, wanted, http)
    assert len(read_rejects(root / REJECTS)) == 3


def test_addresses_can_be_moved_to_a_mirror_and_bad_ones_are_named(site, tmp_path):
    triples, table = write_tables(tmp_path, "https://cs.stanford.edu/people/rak248", [1, 2], [1, 2])
    assert [w.url for w in wanted_images(triples, table, "http://mirror/vg/")] == [
        "http://mirror/vg/VG_100K_2/1.jpg",
        "http://mirror/vg/VG_100K/2.jpg",
    ]
    triples, table = write_tables(tmp_path, "file:///etc", [1], [1])
    with pytest.raises(DataError, match="image 1 has the address 'file:///etc"):
        wanted_images(triples, table, None)
    triples, table = write_tables(tmp_path, "http://x", [1], [2])
    with pytest.raises(DataError, match="1 images of the triples are not in it"):
        wanted_images(triples, table, None)


def test_command_reports_rejects_by_exit_code_and_continues(site, tmp_path):
    site.files = {f"/VG_100K{'_2' if i % 2 else ''}/{i}.jpg": jpeg(*SIZE, i) for i in range(1, 4)}
    triples, table = write_tables(tmp_path, site.url, [1, 2, 3, 4], [1, 2, 3, 4])
    words = ["visual-genome", "--root", str(tmp_path / "vg"), "--images-table", str(table)]
    for path in triples:
        words += ["--triples", str(path)]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 1, result.output
    assert "3 fetched" in result.output and "1 could not be had" in result.output and REJECTS in result.output
    site.files["/VG_100K/4.jpg"] = jpeg(*SIZE, 4)
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0 and "1 fetched" in result.output and "3 already there" in result.output


def test_command_refuses_what_makes_no_sense(tmp_path):
    for words in (["--release", "v2"], ["--annotations-only", "--triples", "t.parquet"]):
        result = CliRunner().invoke(app, ["visual-genome", "--root", str(tmp_path), *words])
        assert isinstance(result.exception, ParamsError)
