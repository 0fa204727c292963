"""The official alias files (`object_alias.txt`, `relationship_alias.txt`) and names in canonical form.

A line is `head,alias,alias...`. Some aliases are heads elsewhere (in relationship_alias.txt fifteen of them), so following
heads until nothing changes merges what no line says is the same: here one step is taken, and a head stays itself.
"""

import string
from pathlib import Path

from sgpipe.errors import DataError

_ENDS = string.punctuation + string.whitespace
_ARTICLES = frozenset(("a", "an", "the"))


def read_aliases(path: Path) -> dict[str, str]:
    """Alias -> head, words separated by single spaces. Of two lines that claim an alias the first wins; heads map nowhere."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise DataError(f"{path}: line {line}: not UTF-8 text; get the file again or remove it") from None
    lines = [
        [" ".join(word.lower().split()) for word in line.split(",")]
        for line in text.splitlines()
        if line.strip()
    ]
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


class Names(dict[str, str]):
    """Raw name -> canonical name, filled on demand; forgets everything when it holds `limit` names, so memory stays bounded."""

    def __init__(self, aliases: dict[str, str], limit: int = 1 << 16) -> None:
        super().__init__()
        self._aliases = aliases
        self._limit = limit

    def __missing__(self, raw: str) -> str:
        if len(self) >= self._limit:
            self.clear()
        name = plain_name(raw)
        found = self[raw] = self._aliases.get(name, name)
        return found
