"""Visual Genome's images: loose, or inside the official archives."""

from pathlib import Path

from sgpipe.datasets.image_files import StoredImages
from sgpipe.datasets.visual_genome.records import ImageRecord, Malformed, decode, id_key
from sgpipe.errors import DataError


class VisualGenomeImages(StoredImages):
    """`VG_100K/<id>.jpg` or `VG_100K_2/<id>.jpg` (or .png) under `root`, else in `images.zip`, `images2.zip`."""

    folders = ("VG_100K", "VG_100K_2")
    archives = ("images.zip", "images2.zip")

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.sizes_file = root / "image_data.json"

    def remedy(self, triples: Path | None = None) -> str:
        """The command that gets all, or the images of these triples alone."""
        images = f" --triples {triples}" if triples else ""
        return f"sgpipe fetch visual-genome --root {self.root}{images}"

    def sizes(self) -> dict[int, tuple[int, int]]:
        """Width and height by image id; of a repeated id the first counts, as in canonicalize."""
        path = self.sizes_file
        key = id_key(path, None)
        try:
            records = decode(path.read_bytes().removeprefix(b"\xef\xbb\xbf"), ImageRecord, key).records
        except Malformed as error:
            raise DataError(f"{path}: {error}; the file is damaged, get it again") from None
        return {getattr(record, key): (record.width, record.height) for record in reversed(records)}
