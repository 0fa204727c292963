"""Graphs by what they have in common with those that an arm was trained on, where it was trained on a few alone."""

from collections.abc import Collection
from typing import Final

from sgpipe.relations.predicates import INVERSE

GROUPS: Final = ("same_relation", "inverse_relation", "other_relations")


def relation_group(predicate: str, trained: Collection[str]) -> str:
    """Of `GROUPS`, that of a class beside the classes trained on; one that is trained, too, is no inverse."""
    if predicate in trained:
        return GROUPS[0]
    return GROUPS[1] if INVERSE.get(predicate) in trained else GROUPS[2]
