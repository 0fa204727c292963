"""What is remembered between the drawings of a page, so that nothing is computed twice, and the memory that this may take."""

from collections.abc import Sequence
from typing import Any, Final, TypeVar

from torch import Tensor

from sgpipe.backbones.base import TextCondition, TextEncoders

T = TypeVar("T")
TEXTS: Final = 64
"""Prompts, and names, whose encodings are held."""


def keep(held: dict[Any, T], key: Any, value: T, most: int) -> T:
    """Hold `value`; the oldest go."""
    held[key] = value
    while len(held) > most:
        held.pop(next(iter(held)))
    return value


class RememberedTexts:
    """Text encoders that encode a text once; see `TextEncoders`."""

    def __init__(self, encoders: TextEncoders) -> None:
        self._encoders = encoders
        self._prompts: dict[str, TextCondition] = {}
        self._names: dict[str, Tensor] = {}

    def prompts(self, texts: Sequence[str]) -> TextCondition:
        """As the encoders make them, each alone."""
        made = {text: self._prompts[text] if text in self._prompts else self._encoders.prompts([text]) for text in set(texts)}
        for text, one in made.items():
            keep(self._prompts, text, one, TEXTS)
        return TextCondition.cat([made[text] for text in texts])

    def concepts(self, texts: Sequence[str]) -> list[Tensor]:
        """As the encoders make them."""
        new = [text for text in dict.fromkeys(texts) if text not in self._names]
        made = {text: self._names[text] for text in texts if text in self._names}
        made |= zip(new, self._encoders.concepts(new), strict=True) if new else ()
        for text, one in made.items():
            keep(self._names, text, one, TEXTS)
        return [made[text] for text in texts]
