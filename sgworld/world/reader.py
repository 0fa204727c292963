"""The exact reader: objects of an image and the triples between them, by the table that drew them.

A pair shows at most one triple: that of a mark which stands where the class has it, else the one class without a mark that its
boxes show; where neither is so, the reader abstains.
"""

from dataclasses import dataclass
from itertools import combinations, permutations

from sgpipe.errors import DataError
from sgworld.world.classes import MARKED, plausible
from sgworld.world.geometry import Box, shared_area
from sgworld.world.matching import Canvas, Found, find
from sgworld.world.reading import expected_marks, unmarked_triple
from sgworld.world.sprites import CELL, SIDE, Pixels

CLEAR, OFF_GRID = 0.6, 0.1
"""Least agreement of a mark, and what it loses where the two objects stand a cell from where the class has them."""
BATCH = 32


@dataclass(frozen=True)
class Reading:
    """What an image shows: objects, the same name more than once if so drawn, and triples by their indices, one a pair at most."""

    objects: tuple[Found, ...]
    relations: tuple[tuple[int, str, int], ...]

    @property
    def duplicates(self) -> tuple[str, ...]:
        """Names that are shown more than once."""
        names = [each.name for each in self.objects]
        return tuple(sorted({name for name in names if names.count(name) > 1}))

    def between(self, first: str, second: str) -> tuple[str, str, str] | None:
        """The triple of two names, of the surest object of each; None where nothing is read."""
        surest = {name: index for index, name in reversed(list(enumerate(each.name for each in self.objects)))}
        ends = {surest.get(first), surest.get(second)}
        for s, p, o in self.relations:
            if {s, o} == ends:
                return self.objects[s].name, p, self.objects[o].name
        return None


def _marked(objects: list[Found], canvas: Canvas) -> list[tuple[int, str, int]]:
    """Triples of marks, clearest first: a pair has one mark, and where one stands no other does."""
    options = []
    for (s, subject), (o, object_) in permutations(enumerate(objects), 2):
        dx, dy = round((object_.x - subject.x) / CELL), round((object_.y - subject.y) / CELL)
        for kind in (each for each in MARKED if plausible(subject.name, each, object_.name)):
            for far, mark in expected_marks(subject.name, kind, object_.name, dx, dy):
                x, y, w, h = subject.x + CELL * mark.x, subject.y + CELL * mark.y, CELL * mark.w, CELL * mark.h
                clear = canvas.mark(kind, mark.w, mark.h, mark.mirrored, x, y)
                if clear >= CLEAR:
                    options.append((clear - OFF_GRID * far, s, kind, o, (x, y, w, h)))
    found: list[tuple[int, str, int]] = []
    taken: list[Box] = []
    for _, s, kind, o, box in sorted(options, reverse=True):
        paired = any({s, o} == {a, b} for a, _, b in found)
        if not paired and not any(shared_area(box, other) > 0.3 * box[2] * box[3] for other in taken):
            found.append((s, kind, o))
            taken.append(box)
    return found


def _read(objects: list[Found], canvas: Canvas) -> Reading:
    relations = _marked(objects, canvas)
    told = {frozenset((s, o)) for s, _, o in relations}
    for a, b in combinations(range(len(objects)), 2):
        first, second = objects[a], objects[b]
        if frozenset((a, b)) in told or first.name == second.name:
            continue
        offset = round((second.x - first.x) / CELL), round((second.y - first.y) / CELL)
        boxes: tuple[Box, Box] = (0, 0, first.w // CELL, first.h // CELL), (*offset, second.w // CELL, second.h // CELL)
        read = unmarked_triple((first.name, boxes[0]), (second.name, boxes[1]))
        if read is not None:
            relations.append((a, read[1], b) if read[0] else (b, read[1], a))
    return Reading(tuple(objects), tuple(relations))


def read(images: Pixels) -> list[Reading]:
    """What each image `[N, 64, 64, 3]`, 0–255, shows. Raises `DataError` for images of another size."""
    if images.ndim != 4 or images.shape[1:] != (SIDE, SIDE, 3):
        raise DataError(f"images of shape {images.shape} are not of this world; [N, {SIDE}, {SIDE}, 3] is")
    return [_read(*each) for start in range(0, len(images), BATCH) for each in find(images[start : start + BATCH])]
