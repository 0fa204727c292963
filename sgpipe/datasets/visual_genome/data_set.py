"""Visual Genome as a data set: image_data.json, then objects.json, then relationships.json, in spans over several processes."""

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from sgpipe.datasets.base import Batch, Work
from sgpipe.datasets.image_files import cut_off
from sgpipe.datasets.visual_genome.columns import Columns, Kind, read_spans
from sgpipe.datasets.visual_genome.images import VisualGenomeImages
from sgpipe.datasets.visual_genome.lookup import LookupWriter
from sgpipe.datasets.visual_genome.passes import Submit, at_once, processes, read_pass
from sgpipe.datasets.visual_genome.records import Release, detect_release, older_objects
from sgpipe.datasets.visual_genome.span_tables import ALIASES, Annotations, ImageTables
from sgpipe.datasets.visual_genome.spans import Span
from sgpipe.errors import DataError

FILES = ("image_data.json", "objects.json", "relationships.json")
OLDER = "objects_v1_2.json"
"""v1.2's objects.json beside v1.4's files, which name objects that v1.4 itself lacks."""
_SMALL = 32 << 20


class VisualGenome(VisualGenomeImages):
    """A folder in Visual Genome's own layout, of any release; `release` other than auto refuses another one's layout."""

    def __init__(self, root: Path, release: Literal["auto"] | Release = "auto") -> None:
        super().__init__(root)
        self._wanted = release

    def annotations(self) -> list[Path]:
        """The three files, and v1.2's objects and the alias files, which may be absent."""
        return [self.root / name for name in (*FILES, OLDER, *ALIASES)]

    def damage(self) -> list[str]:
        """What a look at both ends of each JSON list shows to be wrong."""
        older = [OLDER] if (self.root / OLDER).is_file() else []
        return cut_off([self.root / name for name in (*FILES, *older)], b"[", b"]")

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
        """The release. Raises `DataError` for objects of another release beside it that do not go with it."""
        older_objects(self.root, OLDER, self.release)
        return {"release": self.release}

    def relations(self, work: Work) -> Generator[Batch, None, None]:
        """Images, then objects, then relations, each in the order of its file."""
        images, objects, relationships = (self.root / name for name in FILES)
        older = older_objects(self.root, OLDER, self.release)
        keys = ("id", "id", "id") if self.release == "v1.0" else ("image_id", "object_id", "relationship_id")

        def reading(kind: Kind, submit: Submit) -> Callable[[Sequence[Span]], Future[Columns]]:
            return lambda spans: submit(read_spans, spans, kind, keys, work.folder)

        size = sum(path.stat().st_size for path in (objects, relationships) if path.is_file())
        workers = work.workers if size > _SMALL else 1
        ahead = 4 * workers if workers > 1 else 1  # so that no process waits
        with processes(workers) as submit:
            found = ImageTables()
            yield from read_pass(images, reading("images", at_once), 1, found.tables, work.progress)
            if not (sizes := found.sizes()).size:
                return
            annotations = Annotations(self.root, keys, sizes, work)
            with LookupWriter(work.folder / FILES[1]) as lookup:
                yield from read_pass(objects, reading("objects", submit), ahead, annotations.objects(lookup), work.progress)
            if older is not None:
                with LookupWriter(work.folder / OLDER) as lookup:
                    for _ in read_pass(older, reading("objects", submit), ahead, annotations.objects(lookup), work.progress):
                        pass  # objects that v1.4 took away are ends of its relationships and nothing else
            yield from read_pass(relationships, reading("relationships", submit), ahead, annotations.relations(), work.progress)
