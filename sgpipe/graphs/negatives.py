"""The negative graph g⁻ of every graph: subject and object of a triple swapped for a directional predicate, else another predicate.

In a graph of several triples one is changed, and the others stay as they are.

A swap is used only where it contradicts: never for a symmetric predicate. A replacement is taken from a table of confusions
and must not hold as well: not a class that can be true beside the annotated one, nor one that the image's annotations give to
the same two names.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa

from sgpipe.datasets.tables import NEGATIVES
from sgpipe.errors import DataError
from sgpipe.graphs.config import Negatives
from sgpipe.graphs.prompts import words
from sgpipe.graphs.scene_graph import graphs_of
from sgpipe.relations.predicates import (
    DIRECTIONAL,
    INVERSE,
    PREDICATE_INDEX,
    PREDICATES,
    RELATIONS,
    SYMMETRIC,
    may_hold,
    nothing_against,
)
from sgpipe.runs.hashing import fraction

Confusions = Mapping[str, Mapping[str, float]]


def default_confusions() -> Confusions:
    """Near classes by meaning, as the list of classes states them."""
    return {name: relation.confusions for name, relation in RELATIONS.items() if relation.confusions}


"""Used until the probes' confusions are known: near classes by meaning, weighted by hand. Not a measurement."""


def read_confusions(path: Path) -> dict[str, dict[str, float]]:
    """`{class: {class: count}}`. Raises `DataError` for an unreadable file, an unknown class or a negative count."""
    if not path.is_file():
        raise DataError(f"{path}: no such confusion table; run the probes first or set negatives.confusions to null")
    try:
        table = msgspec.json.decode(path.read_bytes(), type=dict[str, dict[str, float]])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a JSON mapping {{class: {{class: count}}}}: {error}") from None
    for name, row in table.items():
        for other, count in [(name, 0.0), *row.items()]:
            if other not in PREDICATE_INDEX:
                raise DataError(f"{path}: {other!r} is no class; valid: {', '.join(PREDICATES)}")
            if count < 0:
                raise DataError(f"{path}: {name} taken for {other}: count {count:g}; counts are not negative")
    return table


def replacements(predicate: str, confusions: Confusions, true: frozenset[str]) -> list[tuple[str, float]]:
    """Classes that may replace `predicate` with their weights, heaviest first; `true` holds what else is annotated.

    A table's row that leaves nothing is followed by the built-in table, then by all other classes with equal weights; empty where
    each of these can hold beside it.
    """
    held = (predicate, *true)
    for row in (confusions.get(predicate, {}), default_confusions().get(predicate, {}), dict.fromkeys(PREDICATES, 1.0)):
        allowed = [each for each in row.items() if each[1] > 0 and not any(may_hold(each[0], other) for other in held)]
        if allowed:
            return sorted(allowed, key=lambda item: (-item[1], PREDICATE_INDEX[item[0]]))
    return []


def contradiction(subject: str, predicate: str, object_: str) -> tuple[str, str, str]:
    """What stands against a triple that is not turned itself: its swap for a directional class, else the class most like it that
    cannot hold beside it (`default_confusions`)."""
    if predicate in DIRECTIONAL:
        return object_, predicate, subject
    return subject, _some(predicate, replacements(predicate, default_confusions(), frozenset()))[0][0], object_


def _some(predicate: str, options: list[tuple[str, float]]) -> list[tuple[str, float]]:
    if not options:
        raise nothing_against(predicate)
    return options


def stated(relations: Iterable[tuple[int, str, str, str]]) -> dict[tuple[int, str, str], set[str]]:
    """What an image says of two names in this order: also "b above a" said as "a below b", "b near a" as "a near b"."""
    held: dict[tuple[int, str, str], set[str]] = {}
    for image, subject, object_, predicate in relations:
        held.setdefault((image, subject, object_), set()).add(predicate)
        inverse = predicate if predicate in SYMMETRIC else INVERSE.get(predicate)
        if inverse is not None:
            held.setdefault((image, object_, subject), set()).add(inverse)
    return held


def negatives(triples: pa.Table, relations: pa.Table, params: Negatives) -> pa.Table:
    """One negative per graph, in the order of `triples`; `relations` are all canonical relations of their images."""
    confusions = default_confusions() if params.confusions is None else read_confusions(Path(params.confusions))
    columns = ("image_id", "subject", "object", "predicate")
    held = stated(zip(*(relations[name].to_pylist() for name in columns), strict=True))
    ids = [triples[name].to_numpy() for name in ("image_id", "relationship_id")]
    draws, places = (fraction(params.seed, what, *ids).tolist() for what in ("negatives", "changed triple"))
    rows = []
    asked = zip(triples["triple_id"].to_pylist(), ids[0].tolist(), graphs_of(triples), draws, places, strict=True)
    for triple_id, image, graph, draw, place in asked:
        changed = 0 if params.changes == "first" else int(place * len(graph.triples))
        subject, predicate, object_ = graph.named[changed]
        true = frozenset(held.get((image, subject, object_), set()) - {predicate})
        made = ("swap", object_, predicate, subject)
        if predicate not in DIRECTIONAL or predicate in held.get((image, object_, subject), ()):
            options = replacements(predicate, confusions, true) or replacements(predicate, confusions, frozenset())
            made = ("replace", subject, _pick(_some(predicate, options), draw, params.choice), object_)
        prompt = words(graph.negated(made[0], made[2], changed))
        rows.append(dict(zip(NEGATIVES.names, (triple_id, *made, prompt, changed), strict=True)))
    return pa.Table.from_pylist(rows, schema=NEGATIVES)


def _pick(options: list[tuple[str, float]], draw: float, choice: str) -> str:
    if choice == "hardest":
        return options[0][0]
    cumulative = np.cumsum([weight for _, weight in options])
    return options[int(np.searchsorted(cumulative, draw * cumulative[-1], side="right"))][0]
