"""What no training scene shows: triples, and combinations of triples that are shown singly. Roles do not matter."""

import hashlib
from collections.abc import Iterable
from functools import cache
from itertools import combinations

Triple = tuple[str, str, str]
TRIPLES_ONE_IN, COMBINATIONS_ONE_IN = 16, 8
"""How many are held out, by hash of names and classes."""


def _chosen(one_in: int, *parts: str) -> bool:
    return hashlib.sha256("|".join(parts).encode()).digest()[0] % one_in == 0


def _unordered(triple: Triple) -> str:
    first, second = sorted((triple[0], triple[2]))
    return f"{first}|{triple[1]}|{second}"


@cache
def held_out_triple(triple: Triple) -> bool:
    """Whether no training scene shows this pair of names in this class, either way round: one in 16."""
    return _chosen(TRIPLES_ONE_IN, "triple", _unordered(triple))


@cache
def held_out_combination(first: Triple, second: Triple) -> bool:
    """Whether no training scene shows these two triples together, though each with others: one in 8."""
    return _chosen(COMBINATIONS_ONE_IN, "combination", *sorted(map(_unordered, (first, second))))


def held_out(triples: Iterable[Triple]) -> str | None:
    """What of triples in one scene training captions never say: `triple`, else `combination`, else None."""
    listed = list(triples)
    if any(map(held_out_triple, listed)):
        return "triple"
    return "combination" if any(held_out_combination(*each) for each in combinations(listed, 2)) else None
