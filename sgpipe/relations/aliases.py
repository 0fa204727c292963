"""Names in canonical form, and free-text predicates as classes: through `predicate_aliases.tsv`, then the official alias files.

A line of an official file (`object_alias.txt`, `relationship_alias.txt`) is `head,alias,alias...`. Some aliases are heads elsewhere
(in relationship_alias.txt fifteen of them), so following heads until nothing changes merges what no line says is the same: here
one step is taken, and a head stays itself.
"""

import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Final

from sgpipe.errors import DataError
from sgpipe.relations.predicates import PREDICATE_INDEX, PREDICATES, own_relations

_ENDS = string.punctuation + string.whitespace
_ARTICLES = frozenset(("a", "an", "the"))
REMEMBERED: Final = 1 << 16
"""Texts whose meaning a look-up keeps, so that memory stays bounded."""


def read_aliases(path: Path) -> dict[str, str]:
    """Alias -> head, words separated by single spaces. Of two lines that claim an alias the first wins; heads map nowhere."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise DataError(f"{path}: line {line}: not UTF-8 text; get the file again or remove it") from None
    lines = [[" ".join(word.lower().split()) for word in line.split(",")] for line in text.splitlines() if line.strip()]
    heads = {line[0] for line in lines}
    aliases: dict[str, str] = {}
    for head, *others in lines:
        for alias in others:
            if alias and alias not in heads:
                aliases.setdefault(alias, head)
    return aliases


def plain_name(raw: str) -> str:
    """An object name in lower case, single spaces, without punctuation at its ends and without a leading article.

    A plain name stays what it is, so that a table's name written in a graph is found again.
    """
    words = " ".join(raw.lower().split()).strip(_ENDS).split()
    while len(words) > 1 and words[0] in _ARTICLES:
        words = " ".join(words[1:]).strip(_ENDS).split()
    return " ".join(words)


def canonical_names(aliases: Mapping[str, str]) -> Callable[[str], str]:
    """The look-up from raw to canonical names; it remembers the last `REMEMBERED` ones."""

    @lru_cache(REMEMBERED)
    def canonical(raw: str) -> str:
        name = plain_name(raw)
        return aliases.get(name, name)

    return canonical


UNKNOWN: Final = "predicate unknown"
EMPTY: Final = "predicate empty"
_BE: Final = frozenset(["is", "are", "was", "were", "be", "being", "been", "am"])
_AUXILIARY: Final = frozenset(["has", "have", "had", "that", "which", "who"])
_DETERMINERS: Final = frozenset(["a", "an", "the", "its", "his", "her", "their", "some", "this", "that"])
_PASTS: Final = {
    "ate": "eating", "drank": "drinking", "drove": "driving", "flew": "flying", "grew": "growing", "hung": "hanging",
    "ran": "running", "rode": "riding", "sat": "sitting", "stood": "standing", "swam": "swimming", "wore": "wearing",
}  # fmt: skip


@dataclass(frozen=True)
class Meaning:
    """What an alias stands for: a class, perhaps with subject and object exchanged, or the reason of a rejection."""

    predicate: str | None
    inverse: bool = False
    reason: str | None = None


def read_table() -> tuple[dict[str, Meaning], frozenset[str]]:
    """The alias table and the words that may be dropped. Raises `DataError` naming a line that cannot be used.

    With own classes in force their names, phrases and aliases come first, and of the table the lines of classes that bear a name
    of theirs.
    """
    own = own_relations()
    path = files("sgpipe.relations").joinpath("predicate_aliases.tsv")
    table: dict[str, Meaning] = {}
    dropped: set[str] = set()
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        alias, _, meaning = line.partition("\t")
        kind, _, name = meaning.partition(" ")
        if meaning == "drop":
            dropped.add(alias)
            continue
        if alias in table:
            raise DataError(f"predicate_aliases.tsv: line {number}: alias {alias!r} is given twice; keep one")
        if meaning in PREDICATE_INDEX:
            table[alias] = Meaning(meaning)
        elif kind == "inverse" and name in PREDICATE_INDEX:
            table[alias] = Meaning(name, inverse=True)
        elif kind == "reject" and name:
            table[alias] = Meaning(None, reason=f"predicate: {name}")
        elif own and kind != "reject":
            continue
        else:
            valid = f"a class ({', '.join(PREDICATES)}), `inverse <class>`, `reject <name>` or `drop`"
            raise DataError(f"predicate_aliases.tsv: line {number}: {alias!r} has the meaning {meaning!r}; valid: {valid}")
    for each, relation in own.items():
        for text in (each, relation.phrase or each, *relation.aliases):
            table[" ".join(text.lower().split())] = Meaning(each)
    return table, frozenset(dropped)


def ing_forms(verb: str) -> list[str]:
    """Possible -ing forms of an inflected English verb: wears -> wearing, carries -> carrying, sits -> sitting, lies -> lying."""
    if verb in _PASTS:
        return [_PASTS[verb]]
    stems = [verb]
    for ending, stem in (("ies", "y"), ("ied", "y"), ("es", ""), ("es", "e"), ("s", ""), ("ed", ""), ("d", "")):
        if verb.endswith(ending) and len(verb) > len(ending) + 1:
            stems.append(verb[: -len(ending)] + stem)
    forms = []
    for stem in stems:
        forms.append(f"{stem}ing")
        if stem.endswith("ie"):
            forms.append(f"{stem[:-2]}ying")
        elif stem.endswith("e"):
            forms.append(f"{stem[:-1]}ing")
        elif len(stem) > 1 and stem[-1] not in "aeiouy":
            forms.append(f"{stem}{stem[-1]}ing")
    return forms


@dataclass
class PredicateMap:
    """Look-up of raw predicates; `heads` maps an alias of the official file to its head, followed for one step only."""

    table: dict[str, Meaning]
    dropped: frozenset[str]
    heads: dict[str, str] = field(default_factory=dict)

    @classmethod
    def load(cls, alias_file: Path | None = None) -> "PredicateMap":
        """The repository's table, with `relationship_alias.txt` behind it if given."""
        table, dropped = read_table()
        return cls(table, dropped, read_aliases(alias_file) if alias_file is not None else {})

    def meaning(self, raw: str) -> Meaning:
        """The class of a free-text predicate, or why it has none. Never fails."""
        words = [word.strip(_ENDS) for word in raw.lower().replace("_", " ").split()]
        words = [word for word in words if word]
        if not words:
            return Meaning(None, reason=EMPTY)
        head = self.heads.get(" ".join(words), "").split()
        return self._found(words) or self._found(head) or Meaning(None, reason=UNKNOWN)

    def _found(self, words: list[str]) -> Meaning | None:
        """The meaning of the words, else of what is left once determiners, be-verbs, inflections and dropped words fall off."""
        if found := self.table.get(" ".join(words)):
            return found
        while len(words) > 1 and words[-1] in _DETERMINERS:
            words = words[:-1]
            if found := self.table.get(" ".join(words)):
                return found
        while len(words) > 1 and (words[0] in _BE or (words[0] in _AUXILIARY and words[1] in _BE)):
            words = words[1:]
            if found := self.table.get(" ".join(words)):
                return found
        for form in ing_forms(words[0]) if words else ():
            if found := self.table.get(" ".join([form, *words[1:]])):
                return found
        for length in (2, 1):
            first = " ".join(words[:length])
            if len(words) > length and not self.dropped.isdisjoint([first, *ing_forms(first)]):
                return self._found(words[length:])
        return None
