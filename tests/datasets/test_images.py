"""Images by id, loose and inside the archives; damage ends in an error that names the file."""

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from sgpipe.datasets.images import AspectRatioError, ImageStore, same_aspect_ratio
from sgpipe.datasets.visual_genome.images import VisualGenomeImages
from sgpipe.errors import DataError


def png(colour: tuple[int, int, int], mode: str = "RGB") -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (6, 4), colour).convert(mode).save(stream, "PNG")
    return stream.getvalue()


def sizes(root: Path, *sizes: tuple[int, int], key: str = "image_id") -> None:
    """image_data.json of images 1, 2, … of these sizes (width, height)."""
    records = [{key: number, "width": w, "height": h} for number, (w, h) in enumerate(sizes, 1)]
    (root / "image_data.json").write_text(json.dumps(records))


def test_loose_and_packed_images(tmp_path: Path) -> None:
    sizes(tmp_path, *[(6, 4)] * 5)
    (tmp_path / "VG_100K").mkdir()
    (tmp_path / "VG_100K_2").mkdir()
    (tmp_path / "VG_100K/1.png").write_bytes(png((255, 0, 0)))
    (tmp_path / "VG_100K_2/2.png").write_bytes(png((9, 9, 9), "L"))
    with zipfile.ZipFile(tmp_path / "images2.zip", "w") as archive:
        archive.writestr("VG_100K_2/3.png", png((0, 0, 255)))
        archive.writestr("VG_100K_2/1.png", png((0, 255, 0)))
        archive.writestr("VG_100K_2/4.png", b"not a picture")
    store = ImageStore(VisualGenomeImages(tmp_path))
    assert store.load(1).pixels.shape == (4, 6, 3)
    assert store.load(1).pixels.dtype == np.uint8
    assert store.load(1).pixels[0, 0].tolist() == [255, 0, 0]
    assert store.load(2).pixels[0, 0].tolist() == [9, 9, 9]
    assert store.load(3).pixels[0, 0].tolist() == [0, 0, 255]
    assert [image_id in VisualGenomeImages(tmp_path) for image_id in (1, 3, 5)] == [True, True, False]
    with pytest.raises(DataError, match=r"image 5 is not there .*sgpipe fetch"):
        store.load(5)
    with pytest.raises(DataError, match=r"images2.zip: VG_100K_2/4.png: the image cannot be decoded: no known format"):
        store.load(4)


def test_a_broken_archive_is_named(tmp_path: Path) -> None:
    sizes(tmp_path, (6, 4))
    (tmp_path / "images.zip").write_bytes(b"PK nonsense")
    with pytest.raises(DataError, match=r"images.zip: not a readable archive"):
        ImageStore(VisualGenomeImages(tmp_path)).load(1)


def test_any_resized_copy_has_the_aspect_ratio_and_another_crop_has_not() -> None:
    rng = np.random.default_rng(0)
    for w, h in rng.integers(20, 1200, (300, 2)).tolist():
        factor = rng.uniform(0.05, 3)
        for rounded in (np.floor, np.round, np.ceil):
            assert same_aspect_ratio((int(rounded(w * factor)), int(rounded(h * factor))), (w, h))
    assert not same_aspect_ratio((640, 480), (640, 427))
    assert not same_aspect_ratio((480, 640), (640, 480))
    assert not same_aspect_ratio((500, 376 + 2), (500, 375))


@pytest.mark.parametrize("key", ["image_id", "id"])
def test_boxes_are_rescaled_to_copies_of_the_same_aspect_ratio_alone(tmp_path: Path, key: str) -> None:
    """Copies of 0.8 of the size, as they come from a mirror that shrinks, keep their regions; other ratios are refused."""
    (tmp_path / "VG_100K").mkdir()
    for number, (width, height) in enumerate([(80, 40), (64, 32), (160, 80), (64, 48)], 1):
        Image.new("RGB", (width, height)).save(tmp_path / f"VG_100K/{number}.png")
    sizes(tmp_path, *[(80, 40)] * 4, key=key)
    store = ImageStore(VisualGenomeImages(tmp_path))
    box = (40.0, 10.0, 40.0, 30.0)
    assert [store.load(n).rescaled for n in (1, 2, 3)] == [False, True, True]
    assert store.load(1).region(box) == (40, 10, 80, 40)
    assert store.load(2).region(box) == pytest.approx((32, 8, 64, 32))
    assert store.load(3).region(box) == (80, 20, 160, 80)
    with pytest.raises(AspectRatioError, match=r"4.png: the image is 64 × 48; image_data.json states 80 × 40"):
        store.load(4)
    with pytest.raises(DataError, match=r"crop .* is not inside the image of 80 × 40 .*dvc repro curate"):
        store.load(3).region((50.0, 0.0, 40.0, 40.0))
    with pytest.raises(DataError, match=r"image_data.json: image 9 is not named"):
        store.load(9)


def test_an_image_is_taken_as_a_viewer_shows_it(tmp_path: Path) -> None:
    """A camera's EXIF orientation is applied, so boxes that were drawn on what was seen fit; boxes on stored pixels do not."""
    (tmp_path / "VG_100K").mkdir()
    pixels = np.zeros((4, 6, 3), dtype=np.uint8)
    pixels[0, 0] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    for number in (1, 2):
        Image.fromarray(pixels).save(tmp_path / f"VG_100K/{number}.png", exif=exif)
    sizes(tmp_path, (40, 60), (60, 40))
    shown = ImageStore(VisualGenomeImages(tmp_path)).load(1).pixels
    assert shown.shape == (6, 4, 3) and shown[0, 3].tolist() == [255] * 3 and shown.sum() == 3 * 255
    with pytest.raises(AspectRatioError, match=r"is 4 × 6 once its EXIF orientation 6 is applied.*states 60 × 40"):
        ImageStore(VisualGenomeImages(tmp_path)).load(2)


def test_the_signature_knows_the_annotated_sizes(tmp_path: Path) -> None:
    sizes(tmp_path, (6, 4))
    before = ImageStore(VisualGenomeImages(tmp_path)).signature()
    assert ImageStore(VisualGenomeImages(tmp_path)).signature() == before
    sizes(tmp_path, (12, 8))
    assert ImageStore(VisualGenomeImages(tmp_path)).signature() != before


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA, zipfile.ZIP_STORED])
def test_damage_anywhere_in_an_archive_is_one_line_about_a_member_or_the_archive(tmp_path: Path, method: int) -> None:
    """Bytes of the packed data, of the headers and of the index are exchanged in turn; the other image stays readable."""
    sizes(tmp_path, (6, 4), (6, 4))
    noise = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noise).save(stream, "PNG")
    path = tmp_path / "images.zip"
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("VG_100K/1.png", stream.getvalue())
        archive.writestr("VG_100K/2.png", stream.getvalue())
        second = archive.infolist()[1].header_offset
    whole = path.read_bytes()
    failed = 0
    for at in range(0, len(whole), 3):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        try:
            store = ImageStore(VisualGenomeImages(tmp_path))
            assert np.array_equal(store.load(2).pixels, noise) or at >= second
            store.load(1)
        except DataError as error:
            failed += 1
            assert str(path) in str(error) or "is not there" in str(error)
            assert "\n" not in str(error)
    assert failed > len(whole) / 12


def test_orientations_are_those_of_the_standard_and_a_damaged_exif_block_costs_no_image(tmp_path: Path) -> None:
    """Pillow itself fails where another tag, which `exif_transpose` writes anew, or the block's header is damaged."""
    (tmp_path / "VG_100K").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    sizes(tmp_path, *[(6, 4)] * 4, *[(4, 6)] * 4, (4, 6), (6, 4))
    for number in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = number
        Image.fromarray(pixels).save(tmp_path / f"VG_100K/{number}.png", exif=exif)
        with Image.open(tmp_path / f"VG_100K/{number}.png") as image:
            assert np.array_equal(
                ImageStore(VisualGenomeImages(tmp_path)).load(number).pixels, np.asarray(ImageOps.exif_transpose(image))
            )
    exif = Image.Exif()
    exif[0x0112], exif[0x0100] = 6, 6
    entry = b"\x01\x00\x00\x04\x00\x00\x00\x01"
    block = exif.tobytes()
    assert entry in block
    damaged = block.replace(entry, b"\x01\x00\x00\x02\x00\x00\x00\x01")
    Image.fromarray(pixels).save(tmp_path / "VG_100K/9.png", exif=damaged)
    Image.fromarray(pixels).save(tmp_path / "VG_100K/10.jpg", "WEBP", exif=block.replace(b"MM\0*", b"MX\0*"), lossless=True)
    assert np.array_equal(ImageStore(VisualGenomeImages(tmp_path)).load(9).pixels, np.rot90(pixels, -1))
    assert np.array_equal(ImageStore(VisualGenomeImages(tmp_path)).load(10).pixels, pixels)
