"""Where the two objects of a class stand: how it is drawn (offsets of the object's corner), and how it is read (rules on boxes).

Lengths are cells, a box is `(x, y, w, h)` with its origin at the top left; offsets are of an object to the right of the subject.
"""

from collections.abc import Callable, Sequence

from sgworld.pictograms import PICTOGRAMS
from sgworld.world.sprites import size_of

Offset = tuple[int, int]
Box = tuple[int, int, int, int]
Offsets = Callable[[str, str], Sequence[Offset]]
"""Places of the object's corner relative to the subject's, in the order of the slot `distance`."""
Holds = Callable[[Box, Box, int], bool]
"""Whether boxes of subject and object, and the object's seat row, stand as a class without a mark is drawn."""
SEAT_ROWS = {"chair": 1}
"""Rows of cells from the top of a thing down to where others rest on it, where that is not its top."""


def _gaps(a: Box, b: Box) -> tuple[int, int]:
    """Free cells between two boxes from left to right and from top to bottom; negative where they overlap."""
    return max(a[0], b[0]) - min(a[0] + a[2], b[0] + b[2]), max(a[1], b[1]) - min(a[1] + a[3], b[1] + b[3])


def _off_centre(a: Box, b: Box) -> tuple[int, int]:
    """Twice the distance of the centres, b less a: whole numbers."""
    return 2 * b[0] + b[2] - 2 * a[0] - a[2], 2 * b[1] + b[3] - 2 * a[1] - a[3]


def left_holds(a: Box, b: Box, _: int) -> bool:
    """Apart from left to right, centres on one height within a cell."""
    across, down = _off_centre(a, b)
    return across > 0 and _gaps(a, b)[0] >= 1 and abs(down) <= 2


def above_holds(a: Box, b: Box, _: int) -> bool:
    """Apart from top to bottom, centres on one vertical within a cell."""
    across, down = _off_centre(a, b)
    return down > 0 and _gaps(a, b)[1] >= 1 and abs(across) <= 2


def front_holds(a: Box, b: Box, _: int) -> bool:
    """Overlapping both ways, centres at least 1.5 cells apart from left to right, the front one's foot lower by 1 or 2."""
    across, down = _gaps(a, b)
    return across < 0 and down < 0 and abs(_off_centre(a, b)[0]) >= 3 and 1 <= a[1] + a[3] - b[1] - b[3] <= 2


def near_holds(a: Box, b: Box, _: int) -> bool:
    """Corner to corner: at most a cell of space, at most a cell of common height."""
    across, down = _gaps(a, b)
    return 0 <= max(across, down) <= 1 and min(across, down) >= -1


def touching_holds(a: Box, b: Box, _: int) -> bool:
    """Side by side without a gap."""
    across, down = _gaps(a, b)
    return across == 0 and down <= -2


def on_holds(a: Box, b: Box, seat: int) -> bool:
    """Foot at the height of the object's seat, centre within its width."""
    return a[1] + a[3] == b[1] + seat and abs(_off_centre(a, b)[0]) <= b[2]


def in_holds(a: Box, b: Box, seat: int) -> bool:
    """Foot one or two cells below the object's rim, centre within a cell of its middle."""
    return 1 <= a[1] + a[3] - b[1] - seat <= 2 and abs(_off_centre(a, b)[0]) <= 2 and _off_centre(a, b)[1] >= 1


def _middle(first: int, second: int) -> int:
    """Offset that puts the middle of the second at the middle of the first, rounded down."""
    return (first - second) // 2


def left(s: str, o: str) -> list[Offset]:
    (sw, sh), (_, oh) = size_of(s), size_of(o)
    return [(sw + gap, _middle(sh, oh)) for gap in (1, 2, 3)]


def above(s: str, o: str) -> list[Offset]:
    (sw, sh), (ow, _) = size_of(s), size_of(o)
    return [(_middle(sw, ow), sh + gap) for gap in (1, 2, 3)]


def in_front(s: str, o: str) -> list[Offset]:
    (sw, sh), (ow, oh) = size_of(s), size_of(o)
    return [(sw - (1 if min(sw, ow) < 4 else 2), sh - oh - lower) for lower in (1, 2) if lower < sh]


def near(s: str, o: str) -> list[Offset]:
    (sw, sh), (_, oh) = size_of(s), size_of(o)
    return [(sw + 1, -oh + 1), (sw + 1, sh - 1)]


def beside(*gaps: int) -> Offsets:
    """Feet on one line."""

    def offsets(s: str, o: str) -> list[Offset]:
        (sw, sh), (_, oh) = size_of(s), size_of(o)
        return [(sw + gap, sh - oh) for gap in gaps]

    return offsets


def touching(s: str, o: str) -> list[Offset]:
    (sw, sh), (_, oh) = size_of(s), size_of(o)
    return [(sw, dy) for dy in dict.fromkeys((sh - oh, _middle(sh, oh)))]


def reached(share: float) -> Offsets:
    """The object overlaps the subject's front by a cell, its middle at `share` of the subject's height, or a cell lower."""

    def offsets(s: str, o: str) -> list[Offset]:
        (sw, sh), (_, oh) = size_of(s), size_of(o)
        top = round(share * sh - oh / 2)
        return [(sw - 1, top), (sw - 1, top + 1)]

    return offsets


def _shifts(s: str, o: str) -> list[int]:
    """Horizontal offsets with the middles on one vertical or at most a cell to a side."""
    (sw, _), (ow, _) = size_of(s), size_of(o)
    return [dx for dx in range(-ow, sw + 1) if abs(2 * dx + ow - sw) <= 2]


def resting(sink: int) -> Offsets:
    """The subject's foot `sink` cells below the object's seat."""

    def offsets(s: str, o: str) -> list[Offset]:
        return [(dx, size_of(s)[1] - sink - SEAT_ROWS.get(o, 0)) for dx in _shifts(s, o)]

    return offsets


def inside(s: str, o: str) -> list[Offset]:
    height = size_of(s)[1]
    return [(dx, height - (1 if height <= 3 else 2) - SEAT_ROWS.get(o, 0)) for dx in _shifts(s, o)]


def _head(s: str) -> int:
    """Column of cells of the head of a subject that faces right."""
    (w, _), pictogram = size_of(s), PICTOGRAMS[s]
    return min(w - 1, int((pictogram.head or (pictogram.size[0] / 2, 0))[0] / pictogram.size[0] * w))


def worn(s: str, o: str) -> list[Offset]:
    ow, oh = size_of(o)
    return [(_head(s) - ow // 2, 1 - oh)]


def load(s: str, o: str) -> list[Offset]:
    return [(dx, -size_of(o)[1]) for dx in _shifts(s, o)]


def hanging(s: str, o: str) -> list[Offset]:
    (sw, _), (ow, oh) = size_of(s), size_of(o)
    return [(_middle(sw, ow), -oh - gap) for gap in (2, 3)]


def shared_area(a: Box, b: Box) -> int:
    """Area that two boxes share."""
    across = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    down = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    return max(0, across) * max(0, down)
