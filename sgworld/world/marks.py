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
WHITE: Colour = (255, 255, 255)


def rope(p: Pen) -> None:
    """From the subject (left) to a knot at the object."""
    p.line([(0.8, 1.4), (p.width / 2, 2.6), (p.width - 2, 2)], 1.7, BROWN)
    p.oval(p.width - 4.2, 0, 4, 4, BROWN)


def sight(p: Pen) -> None:
    """Dotted from a large dot at the subject's eye to smaller ones."""
    p.oval(0, 0, 4, 4, RED)
    for x in range(5, p.width, 3):
        p.oval(x, 1, 2, 2, RED)


def streaks(p: Pen) -> None:
    for y, start in ((1.2, 1.0), (4, 2.6), (6.8, 1.0)):
        p.line([(start, y), (7, y)], 1.5, BLUE)


def star(p: Pen) -> None:
    p.shape([(4, 0), (5.4, 2.6), (8, 4), (5.4, 5.4), (4, 8), (2.6, 5.4), (0, 4), (2.6, 2.6)], INK)
    p.shape([(4, 1.6), (4.9, 3.1), (6.4, 4), (4.9, 4.9), (4, 6.4), (3.1, 4.9), (1.6, 4), (3.1, 3.1)], YELLOW)


def bounces(p: Pen) -> None:
    p.pie(0, 0.6, 8, 10, 180, 360, MAGENTA)
    p.pie(1.8, 2.8, 4.4, 6, 180, 360, WHITE)
    p.line([(1, 7.2), (7, 7.2)], 1.3, MAGENTA)


def drops(p: Pen) -> None:
    for x, y in ((0.4, 0.2), (4.4, 1.4), (1.6, 4.4)):
        p.oval(x, y, 3.2, 3.4, CYAN)


def crumbs(p: Pen) -> None:
    for x, y, fill in ((0.2, 0.4, BROWN), (4.8, 0.2, YELLOW), (2.4, 2.8, YELLOW), (5.2, 4.2, BROWN), (0.4, 5, BROWN)):
        p.box(x, y, 2.6, 2.6, fill, 0.6)


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
    for x, y, size in ((0, 3.6, 4.2), (3.6, 1.6, 4.2), (3.8, 5, 3)):
        p.oval(x, y, size, size, (150, 110, 75))
    p.line([(0.8, 1.2), (3, 1.2)], 1.3, BLUE)


def ribbon(p: Pen) -> None:
    p.shape([(0, 0), (4, 2), (8, 0), (8, 4), (4, 2), (0, 4)], MAGENTA)
    p.box(3, 1, 2, 2, WHITE)


def strap(p: Pen) -> None:
    p.box(0.6, 0, 6.8, 8, INK, 1)
    p.box(2.2, 1.6, 3.6, 4.8, (255, 130, 0))


def string(p: Pen) -> None:
    p.line([(2, 0), (2, p.height)], 1.7, MAGENTA)
    p.oval(0, p.height - 4, 4, 4, MAGENTA)


MARKS: dict[str, Callable[[Pen], None]] = {
    "pulling": rope, "looking at": sight, "pushing": streaks, "using": star, "playing with": bounces, "drinking": drops,
    "eating": crumbs, "holding": hand, "sitting on": cushion, "standing on": shadow, "riding": dust, "wearing": ribbon,
    "carrying": strap, "hanging from": string,
}  # fmt: skip
"""The mark of each class that has one."""
