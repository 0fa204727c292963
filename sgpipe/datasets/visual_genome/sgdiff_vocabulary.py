"""SGDiff's vocabulary and split from Visual Genome's own files, by the rule of sg2im's preprocessing, which SGDiff took over.

Rule (Johnson et al. 2018, arXiv 1804.01622, section 4.1, and the published program): an alias stands for the head of its last line;
object names are counted over training images, one count an object and name; predicates over training relationships whose ends are
both kept objects. Two traits of the program decide the published counts and are kept: ends are found by their own id alone, never
by a merged one, and predicates of validation and test images are compared as they are written, capitals and aliases included.

Cost: one pass over each file, span by span; of an object 21 bytes stay in memory, of a relationship 28.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sgpipe.datasets.base import MISSING, Batch
from sgpipe.datasets.splits import NAMES
from sgpipe.datasets.tables import REJECTS
from sgpipe.datasets.visual_genome.columns import column
from sgpipe.datasets.visual_genome.data_set import FILES
from sgpipe.datasets.visual_genome.lookup import find_sorted
from sgpipe.datasets.visual_genome.passes import Spans, at_once, read_pass
from sgpipe.datasets.visual_genome.records import ImageRecord, ObjectsRecord, RelationshipsRecord, decode, detect_release
from sgpipe.datasets.visual_genome.span_tables import ALIASES
from sgpipe.errors import DataError
from sgpipe.relations.names import IMAGE, IN_IMAGE
from sgpipe.runs.progress import FileBars

PUBLISHED: Final = {"objects": 178, "predicates": 45, "train": 62_565, "val": 5_062, "test": 5_096}
"""Names without the two reserved rows, and images, of SGDiff's checkpoints and data."""
WHOLE: Final = {"train": 86_463, "val": 10_807, "test": 10_807}
"""Images of the published split: all 108,077 of Visual Genome."""


@dataclass(frozen=True)
class Rule:
    """Least side of images and of objects in pixels, least counts of names, and how many objects and relations an image has."""

    image_side: int = 200
    object_side: int = 32
    object_count: int = 2000
    predicate_count: int = 500
    objects: tuple[int, int] = (3, 30)
    relations: tuple[int, int] = (1, 30)


@dataclass(frozen=True)
class Found:
    """The names in row order without the reserved ones, the images of each split in the order of its list, how many of each split's
    images all three files have, and the records that could not be read.
    """

    objects: list[str]
    predicates: list[str]
    splits: dict[str, list[int]]
    images: dict[str, int]
    unread: list[str]

    def vocabulary(self) -> dict[str, list[str]]:
        """In the form that `graph_encoder` reads, with row 0 for the image and its edges."""
        return {"object_idx_to_name": [IMAGE, *self.objects], "pred_idx_to_name": [IN_IMAGE, *self.predicates]}

    def counts(self) -> dict[str, int]:
        """What `PUBLISHED` names."""
        images = {name: len(ids) for name, ids in self.splits.items()}
        return {"objects": len(self.objects), "predicates": len(self.predicates), **images}

    def whole(self) -> bool:
        """Whether all of Visual Genome was seen, in the published split, so that the counts can be compared."""
        return self.images == WHOLE

    def differences(self) -> list[str]:
        """Each count that is not the published one."""
        counts = self.counts()
        return [f"{name} {counts[name]:,} (published: {number:,})" for name, number in PUBLISHED.items() if counts[name] != number]


def read_last_heads(path: Path) -> dict[str, str]:
    """Alias -> head as sg2im reads them: nothing made lower case, the last of several lines with a name counts, heads are names."""
    if not path.is_file():
        raise DataError(f"{path}: no such file, and other aliases give another vocabulary; `sgpipe fetch visual-genome` gets it")
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text ({error.reason}); get the file again") from None
    names = [[name.strip() for name in line.split(",")] for line in lines]
    return {name: line[0] for line in names for name in line}


def sgdiff_vocabulary(root: Path, splits: Mapping[str, Sequence[int]], rule: Rule = Rule()) -> Found:
    """Vocabulary and split of the v1.4 files in `root`, for the images that `splits` lists and all three files have.

    Objects are numbered by falling count, equal ones by first appearance; predicates by first appearance in relationships.json.
    Raises `DataError` for missing or damaged files, another release, an image with two records, and a split that is not listed.
    """
    if missing := set(NAMES) - set(splits):
        raise DataError(f"the split file lists no {', '.join(sorted(missing))}; SGDiff's data has {', '.join(NAMES)}")
    object_heads, predicate_heads = (read_last_heads(root / name) for name in ALIASES)
    if (release := detect_release(root)) != "v1.4":
        raise DataError(f"{root}: files of {release}; SGDiff's vocabulary is v1.4's, and another release's fits no checkpoint")
    names: defaultdict[tuple[str, ...], int] = defaultdict(count().__next__)
    texts: defaultdict[str, int] = defaultdict(count().__next__)

    def sides(records: list[Any]) -> list[NDArray]:
        return [np.minimum(column(records, "width"), column(records, "height"))]

    def objects(items: list[Any]) -> list[NDArray]:
        large = np.minimum(column(items, "w", np.float64), column(items, "h", np.float64)) >= rule.object_side
        return [column(items, "object_id"), np.fromiter((names[item.names or ()] for item in items), np.int32, len(items)), large]

    def relationships(items: list[Any]) -> list[NDArray]:
        ends = [column(items, f"{end}.object_id") for end in ("subject", "object")]
        return [*ends, np.fromiter((texts[item.predicate] for item in items), np.int32, len(items))]

    unread: list[str] = []
    image_file, object_file, relationship_file = (root / name for name in FILES)
    images, sized, side = _read(image_file, ImageRecord, None, sides, unread)
    described, holder, ids, named, large = _read(object_file, ObjectsRecord, "objects", objects, unread)
    related, owner, *ends, written = _read(relationship_file, RelationshipsRecord, "relationships", relationships, unread)

    # An image is its row in the sorted list; -1, so the row behind the last, stands for all that are not listed.
    listed = np.unique(np.concatenate([np.asarray(splits[name], dtype=np.int64) for name in NAMES]))
    there = np.isin(listed, images) & np.isin(listed, described) & np.isin(listed, related)
    usable = np.append(there & np.isin(listed, sized[side >= rule.image_side]), False)
    training = usable & np.append(np.isin(listed, splits["train"]), False)
    holder, owner = find_sorted(listed, holder), find_sorted(listed, owner)

    # Names by their count over training objects of any size, and the objects that a relationship may have as ends.
    heads = [tuple(dict.fromkeys(object_heads.get(name, name) for name in each)) for each in names]
    totals = _totals(named[training[holder]], heads)
    object_names = sorted((name for name in totals if totals[name] >= rule.object_count), key=lambda name: -totals[name])
    known = np.array([not each.isdisjoint(object_names) for each in map(set, heads)], dtype=bool)
    kept = np.unique(ids[usable[holder] & known[named] & large & (ids != MISSING)])

    # Predicates between such objects of any image; only those counted here lose capitals and aliases.
    subjects, objects_ = (find_sorted(kept, each) for each in ends)
    counted = training[owner] & (subjects >= 0) & (objects_ >= 0)
    normal = [predicate_heads.get(text, text) for text in (text.lower().strip() for text in texts)]
    totals = _totals(written[counted], [(text,) for text in normal])
    predicates = {name: row for row, name in enumerate(name for name in totals if totals[name] >= rule.predicate_count)}
    as_counted, as_written = (np.array([text in predicates for text in each], dtype=bool) for each in (normal, texts))

    # Per image, its objects and the relationships between them: an object is one key of image and id.
    rows = find_sorted(kept, ids)
    placed = usable[holder] & (rows >= 0)
    keys = np.unique(holder[placed] * len(kept) + rows[placed])
    joined = usable[owner] & np.where(counted, as_counted[written], as_written[written])
    for each in (subjects, objects_):
        joined &= (each >= 0) & np.isin(owner * len(kept) + each, keys)
    many_objects, many_relations = (np.bincount(each, minlength=len(listed)) for each in (holder[placed], owner[joined]))
    accepted = listed[usable[:-1] & _within(many_objects, rule.objects) & _within(many_relations, rule.relations)]
    return Found(
        object_names,
        list(predicates),
        {
            name: [image for image, taken in zip(splits[name], np.isin(splits[name], accepted), strict=True) if taken]
            for name in NAMES
        },
        {name: int(np.isin(splits[name], listed[there]).sum()) for name in NAMES},
        unread,
    )


@dataclass
class _Run:
    """Sound records of a run of spans, rows of the rejects for the others, and the number of all."""

    records: list[Any]
    rejects: list[dict[str, Any]]
    count: int = 0


def _read(
    path: Path, kind: Any, items: str | None, columns: Callable[[list[Any]], list[NDArray]], unread: list[str]
) -> list[NDArray[Any]]:
    """The image ids of all records, sorted; then, an entry each of their `items` (or of the records), its image and its `columns`.

    What could not be read is added to `unread`, a line each. Raises `DataError` for a damaged file and an image with two records.
    """
    parts: list[list[NDArray]] = []

    def decoded(spans: Spans) -> _Run:
        run = _Run([], [])
        for span in spans:
            found = decode(span.read(), kind, "image_id")
            run.records += found.records
            run.rejects += [{"record": run.count + each.record, "raw": each.raw} for each in found.invalid]
            run.count += found.count
        return run

    def taken(spans: Spans, run: _Run) -> Batch:
        images = column(run.records, "image_id")
        lists = [getattr(record, items) if items else (record,) for record in run.records]
        owners = images.repeat(np.fromiter(map(len, lists), np.int64, len(lists)))
        parts.append([images, owners, *columns([item for each in lists for item in each])])
        return Batch("relations", path, run.count, REJECTS.empty_table(), pa.Table.from_pylist(run.rejects, schema=REJECTS))

    for batch in read_pass(path, lambda spans: at_once(decoded, spans), 1, taken, FileBars().show):
        unread += [f"{path.name} record {row['record']}: {' '.join(row['raw'].split())}" for row in batch.rejects.to_pylist()]
    images, *rest = (np.concatenate(each) for each in zip(*parts, strict=True))
    known, counts = np.unique(images, return_counts=True)
    if len(known) < len(images):
        raise DataError(f"{path}: image {known[counts > 1][0]} has two records, the rule needs one; get the file again")
    return [known, *rest]


def _totals(codes: NDArray[np.int32], names: Sequence[tuple[str, ...]]) -> dict[str, int]:
    """How often each name stands in `names[code]`, a count a code; in the order of first appearance."""
    values, first, counts = np.unique(codes, return_index=True, return_counts=True)
    totals: defaultdict[str, int] = defaultdict(int)
    for at in np.argsort(first):
        for name in names[values[at]]:
            totals[name] += int(counts[at])
    return dict(totals)


def _within(counts: NDArray[np.int64], limits: tuple[int, int]) -> NDArray[np.bool_]:
    return (counts >= limits[0]) & (counts <= limits[1])
