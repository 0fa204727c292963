"""Images by id, loose and inside the archives; damage ends in an error that names the file."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sgpipe.errors import DataError
from sgpipe.scene_graphs.images import ImageStore


def png(colour: tuple[int, int, int], mode: str = "RGB") -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (6, 4), colour).convert(mode).save(stream, "PNG")
    return stream.getvalue()


def test_loose_and_packed_images(tmp_path: Path) -> None:
    (tmp_path / "VG_100K").mkdir()
    (tmp_path / "VG_100K_2").mkdir()
    (tmp_path / "VG_100K/1.png").write_bytes(png((255, 0, 0)))
    (tmp_path / "VG_100K_2/2.png").write_bytes(png((9, 9, 9), "L"))
    with zipfile.ZipFile(tmp_path / "images2.zip", "w") as archive:
        archive.writestr("VG_100K_2/3.png", png((0, 0, 255)))
        archive.writestr("VG_100K_2/1.png", png((0, 255, 0)))
        archive.writestr("VG_100K_2/4.png", b"not a picture")
    store = ImageStore(tmp_path)
    assert store.load(1).shape == (4, 6, 3)
    assert store.load(1).dtype == np.uint8
    assert store.load(1)[0, 0].tolist() == [255, 0, 0]
    assert store.load(2)[0, 0].tolist() == [9, 9, 9]
    assert store.load(3)[0, 0].tolist() == [0, 0, 255]
    assert [image_id in store for image_id in (1, 3, 5)] == [True, True, False]
    with pytest.raises(DataError, match=r"image 5 is not there .*sgpipe fetch"):
        store.load(5)
    with pytest.raises(
        DataError, match=r"images2.zip: VG_100K_2/4.png: the image cannot be decoded: no known format"
    ):
        store.load(4)


def test_a_broken_archive_is_named(tmp_path: Path) -> None:
    (tmp_path / "images.zip").write_bytes(b"PK nonsense")
    with pytest.raises(DataError, match=r"images.zip: not a readable archive"):
        ImageStore(tmp_path).load(1)
