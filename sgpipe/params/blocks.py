"""Sets of transformer blocks, as people write them on a command line and in YAML.

`7..12`, `[7..12]`, `[7,8,9..12]`, `[0..6,13..18]`, `all`, `none`: `a..b` is inclusive. DVC hands `-S 'lora.blocks=[7..12]'`
over as the list `["7..12"]`. Two spellings of the same set are equal. A layer group has such a set of each stream.
"""

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any, Self

from sgpipe.errors import ParamsError

_RANGE = re.compile(r"(\d+)(?:\s*\.\.\s*(\d+))?")
LARGEST = 9999
SYNTAX = "a range `a..b` (inclusive), a list such as [7,8,9..12] or [0..6,13..18], `all` or `none`"


class Blocks:
    """A set of block indices of one stream; `indices` is `None` for `all`, whose meaning depends on the model.

    Not a dataclass: msgspec would read one from a mapping of its fields, not through `parse`.
    """

    __slots__ = ("indices",)

    def __init__(self, indices: tuple[int, ...] | None) -> None:
        self.indices = indices

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Blocks) and self.indices == other.indices

    def __hash__(self) -> int:
        return hash(self.indices)

    def __repr__(self) -> str:
        return f"Blocks({self})"

    @classmethod
    def parse(cls, raw: Any) -> Self:
        """Read one spelling. Raises `ValueError` saying what was given and what is valid."""
        if isinstance(raw, cls):
            return raw
        words: list[str] = []
        for item in raw if isinstance(raw, list | tuple) else [raw]:
            if isinstance(item, bool) or not isinstance(item, int | str):
                raise ValueError(f"got {raw!r}; valid: {SYNTAX}")
            words += str(item).strip().strip("[]").split(",")
        words = [word.strip() for word in words if word.strip()]
        if words in (["all"], ["none"], []):
            return cls(None if words == ["all"] else ())
        indices: list[int] = []
        for word in words:
            match = _RANGE.fullmatch(word)
            if match is None:
                raise ValueError(f"got {raw!r}: {word!r} is no block or range; valid: {SYNTAX}")
            first, last = int(match[1]), int(match[2] or match[1])
            if last < first:
                raise ValueError(f"got {raw!r}: {word!r} is reversed; write {last}..{first}")
            if last > LARGEST:
                raise ValueError(f"got {raw!r}: no model has a block {last}; valid: 0..{LARGEST}")
            indices += range(first, last + 1)
        if repeated := sorted(index for index, count in Counter(indices).items() if count > 1):
            raise ValueError(f"got {raw!r}: block {', '.join(map(str, repeated))} is named more than once")
        return cls(tuple(sorted(indices)))

    def resolve(self, count: int, key: str) -> tuple[int, ...]:
        """Ascending indices within a stream of `count` blocks. Raises `ParamsError` naming `key` if one lies outside."""
        if self.indices is None:
            return tuple(range(count))
        if outside := [index for index in self.indices if index >= count]:
            valid = f"0..{count - 1}" if count else "none (the model has no such blocks)"
            raise ParamsError(f"{key}: block {', '.join(map(str, outside))} is out of range; valid: {valid}, got {self}")
        return self.indices

    def __str__(self) -> str:
        if self.indices is None:
            return "all"
        runs: list[list[int]] = []
        for index in self.indices:
            if not runs or index != runs[-1][1] + 1:
                runs.append([index, index])
            runs[-1][1] = index
        return "[" + ",".join(str(a) if a == b else f"{a}..{b}" for a, b in runs) + "]" if runs else "none"


class Placement(Blocks):
    """`Blocks` of one arm, or `random`: as many as the section `lora` names, another set than that. A random one has no indices."""

    __slots__ = ("random",)

    def __init__(self, indices: tuple[int, ...] | None, random: bool = False) -> None:
        super().__init__(indices)
        self.random = random

    def __eq__(self, other: object) -> bool:
        return super().__eq__(other) and self.random == getattr(other, "random", False)

    def __hash__(self) -> int:
        return hash((self.indices, self.random))

    @classmethod
    def parse(cls, raw: Any) -> Self:
        """Read one spelling. Raises `ValueError` as `Blocks.parse` does."""
        if raw == "random":
            return cls((), random=True)
        try:
            return super().parse(raw)
        except ValueError as error:
            raise ValueError(str(error).replace(SYNTAX, f"{SYNTAX}, or `random`")) from None

    def __str__(self) -> str:
        return "random" if self.random else super().__str__()


class LayerGroup:
    """Blocks of both streams, as `maps.groups` names them: `7..12` is double-stream blocks alone, `{single_blocks: 0..18}` or
    `{blocks: 13..18, single_blocks: all}` say which of either stream, in the words of section `lora`.
    """

    __slots__ = ("blocks", "single_blocks")

    def __init__(self, blocks: Blocks, single_blocks: Blocks | None = None) -> None:
        self.blocks, self.single_blocks = blocks, single_blocks or Blocks(())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LayerGroup) and (self.blocks, self.single_blocks) == (other.blocks, other.single_blocks)

    def __hash__(self) -> int:
        return hash((self.blocks, self.single_blocks))

    def __repr__(self) -> str:
        return f"LayerGroup({self})"

    @classmethod
    def parse(cls, raw: Any) -> Self:
        """Read one spelling. Raises `ValueError` saying what was given and what is valid, also for a group of no blocks."""
        if isinstance(raw, cls):
            return raw
        given = raw if isinstance(raw, Mapping) else {"blocks": raw}
        if unknown := [str(key) for key in given if key not in cls.__slots__]:
            raise ValueError(f"got {', '.join(unknown)}; valid: {', '.join(cls.__slots__)}, or double-stream blocks alone")
        parts: dict[str, Blocks] = {}
        for stream, blocks in given.items():
            try:
                parts[stream] = Blocks.parse(blocks)
            except ValueError as error:
                raise ValueError(f"{stream}: {error}" if given is raw else str(error)) from None
        made = cls(**{"blocks": Blocks(()), **parts})
        if made.blocks.indices == made.single_blocks.indices == ():
            raise ValueError(f"has no blocks; name at least one or drop the group, got {raw!r}")
        return made

    def resolve(self, double: int, single: int, key: str) -> tuple[int, ...]:
        """Ascending places in a model of `double` double-stream blocks and, after them, `single` single-stream ones.

        Raises `ParamsError` naming `key` if a block lies outside its stream, or if `all` is of a stream that the model lacks.
        """
        chosen = self.blocks.resolve(double, key if self.single_blocks.indices == () else f"{key}.blocks")
        alone = self.single_blocks.resolve(single, f"{key}.single_blocks")
        if not chosen and not alone:
            raise ParamsError(f"{key}: got {self}, none of {double} double and {single} single blocks; name some of these")
        return (*chosen, *(double + index for index in alone))

    def plain(self) -> str | dict[str, str]:
        """One spelling of the set, that of `Blocks` where no single-stream block is named."""
        if self.single_blocks.indices == ():
            return str(self.blocks)
        return {name: str(part) for name in self.__slots__ if (part := getattr(self, name)).indices != ()}

    def __str__(self) -> str:
        plain = self.plain()
        return plain if isinstance(plain, str) else ", ".join(f"{name} {blocks}" for name, blocks in plain.items())
