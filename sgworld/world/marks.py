"""Marks: what tells relations apart that boxes alone do not. Drawn for an object to the right of the subject, or mirrored.

Each has two colours that differ much, so that neither an object nor the background is taken for it.
"""

from collections.abc import Callable

from sgworld.pen import Colour, Pen

INK: Colour = (40, 40, 48)
MAGENTA: Colour = (235, 0, 215)
CYAN: Colour = (0, 215, 255)
BLUE: Colour = (20, 60, 255)
RED: Colour = (225, 0, 20)
YELLOW: Colour = (255, 225, 0)
BROWN: Colour = (125, 65, 10)
ORANGE: Colour = (255, 135, 0)
WHITE: Colour = (255, 255, 255)


def rope(p: Pen) -> None:
    """From the subject (left) to a knot at the object."""
    p.line([(1, 2), (p.width - 2, 2)], 2.4, BROWN)
    p.box(p.width - 4, 0, 4, 4, INK, 1)


def sight(p: Pen) -> None:
    """From a large dot at the subject's eye (left) to smaller ones."""
    p.oval(0, 0, 4, 4, RED)
    for x in range(5, p.width - 1, 4):
        p.oval(x, 0.6, 2.8, 2.8, RED)


def streaks(p: Pen) -> None:
    for y, start in ((1.6, 1.5), (6.2, 3.2)):
        p.line([(start, y), (6.6, y)], 2.6, BLUE)


def star(p: Pen) -> None:
    p.shape([(4, 0), (8, 4), (4, 8), (0, 4)], INK)
    p.shape([(4, 2), (6, 4), (4, 6), (2, 4)], YELLOW)


def bounces(p: Pen) -> None:
    p.pie(0, 0.4, 8, 13, 180, 360, BLUE)
    p.pie(2.4, 3, 3.2, 8, 180, 360, YELLOW)


def drops(p: Pen) -> None:
    for x, y in ((0, 0.2), (3.8, 3.8)):
        p.oval(x, y, 4.2, 4.2, CYAN)
        p.oval(x + 1.2, y + 1.2, 1.8, 1.8, BLUE)


def crumbs(p: Pen) -> None:
    for x, y, fill in ((0, 0.4, BROWN), (4.6, 0, ORANGE), (1, 4.6, ORANGE), (4.8, 4.6, BROWN)):
        p.box(x, y, 3.3, 3.3, fill, 0.6)


def hand(p: Pen) -> None:
    p.oval(0.2, 0.2, 7.6, 7.6, INK)
    p.oval(1.6, 1.6, 4.8, 4.8, (255, 190, 140))


def cushion(p: Pen) -> None:
    p.box(0, 0, p.width, 4, RED, 1.6)
    p.box(1.4, 1.3, p.width - 2.8, 1.4, YELLOW, 0.6)


def shadow(p: Pen) -> None:
    p.box(0, 0, p.width, 4, INK, 1.2)
    p.box(1, 1.4, p.width - 2, 1.4, CYAN)


def dust(p: Pen) -> None:
    for x, y, size in ((0, 3.4, 4.6), (3.6, 0, 4.4), (4.4, 4.4, 3.6)):
        p.oval(x, y, size, size, ORANGE)
        p.oval(x + 1.2, y + 1.2, size - 2.4, size - 2.4, RED)


def ribbon(p: Pen) -> None:
    p.box(0, 0, 8, 4, MAGENTA, 1)
    p.box(2.6, 1, 2.8, 2, WHITE)


def strap(p: Pen) -> None:
    p.box(0.6, 0, 6.8, 8, INK, 1)
    p.box(2.2, 1.6, 3.6, 4.8, ORANGE)


def string(p: Pen) -> None:
    p.line([(2, 0), (2, p.height)], 2.4, MAGENTA)
    p.oval(0, p.height - 4, 4, 4, MAGENTA)


MARKS: dict[str, Callable[[Pen], None]] = {
    "pulling": rope, "looking at": sight, "pushing": streaks, "using": star, "playing with": bounces, "drinking": drops,
    "eating": crumbs, "holding": hand, "sitting on": cushion, "standing on": shadow, "riding": dust, "wearing": ribbon,
    "carrying": strap, "hanging from": string,
}  # fmt: skip
"""The mark of each class that has one."""
