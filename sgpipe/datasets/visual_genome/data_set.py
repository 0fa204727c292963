"""Visual Genome as a data set: image_data.json, then objects.json, then relationships.json, in spans over several processes."""

from collections.abc import Generator
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from sgpipe.datasets.base import Batch, Work
from sgpipe.datasets.image_files import cut_off
from sgpipe.datasets.visual_genome.images import VisualGenomeImages
from sgpipe.datasets.visual_genome.passes import at_once, read_pass, span_workers
from sgpipe.datasets.visual_genome.records import Release, detect_release
from sgpipe.datasets.visual_genome.span_rows import ALIASES, ImagesReader, Setup
from sgpipe.errors import DataError

FILES = ("image_data.json", "objects.json", "relationships.json")
_SMALL = 32 << 20


class VisualGenome(VisualGenomeImages):
    """A folder in Visual Genome's own layout, of any release; `release` other than auto refuses another one's layout."""

    def __init__(self, root: Path, release: Literal["auto"] | Release = "auto") -> None:
        super().__init__(root)
        self._wanted = release

    def annotations(self) -> list[Path]:
        """The three files, and the alias files, which may be absent."""
        return [self.root / name for name in (*FILES, *ALIASES)]

    def damage(self) -> list[str]:
        """What a look at both ends of each JSON list shows to be wrong."""
        return cut_off([self.root / name for name in FILES], b"[", b"]")

    @cached_property
    def release(self) -> Release:
        """The layout of the files. Raises `DataError` if it is unknown or not the one asked for."""
        found = detect_release(self.root)
        if self._wanted not in ("auto", found):
            raise DataError(
                f"{self.root}: data.release is {self._wanted}, the files have the layout of {found}; correct one of the two"
            )
        return found

    def about(self) -> dict[str, Any]:
        """The release."""
        return {"release": self.release}

    def relations(self, work: Work) -> Generator[Batch, None, None]:
        """Images, then objects, then relations, each in the order of its file."""
        setup = Setup(self.root, work.folder, self.release, work.geometric)
        images, objects, relationships = (self.root / name for name in FILES)
        reader = ImagesReader(setup)
        yield from read_pass(images, partial(at_once, reader.rows), 1, np.zeros(0, dtype=np.int64), work.progress)
        if not (count := reader.save()):
            return
        owners = np.full(count, -1, dtype=np.int64)
        size = sum(path.stat().st_size for path in (objects, relationships) if path.is_file())
        workers = work.workers if size > _SMALL else 1
        ahead = 2 * workers if workers > 1 else 1  # so that no process waits
        with span_workers(setup, workers) as submit_of:
            yield from read_pass(objects, submit_of("objects"), ahead, owners, work.progress)
            np.save(setup.folder / "owners.npy", owners)
            owners[:] = -1
            yield from read_pass(relationships, submit_of("relationships"), ahead, owners, work.progress)
