"""Truncation and unknown tokens: what the text encoders of a pipeline do not get of a text, told before it is encoded."""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from sgpipe.errors import DataError

LONGEST = 512
"""Text tokens that a transformer takes at most; a tokenizer may state a smaller number."""
TEMPLATE_END = " on a plain background"
"""How every prompt template ends: words that name neither an object nor a relation."""


@dataclass(frozen=True)
class Tokenized:
    """A text as one tokenizer gives it to its encoder."""

    text: str
    encoder: str
    tokens: int
    """Of the whole text, with the end token."""
    limit: int
    """Tokens that the encoder takes."""
    kept: int
    """Characters of the text up to the end of its last token that the encoder gets."""
    unknown: tuple[str, ...]
    """Words of which a piece is the unknown token."""

    @property
    def truncated(self) -> bool:
        """Whether a token of the text is lost."""
        return self.tokens > self.limit

    @property
    def loses_names(self) -> bool:
        """Whether what is lost is more than the end of a prompt template: a word of an object or of the relation."""
        return self.truncated and self.kept < len(self.text.removesuffix(TEMPLATE_END))


def tokenized(
    tokenizer: Any, encoder: str, texts: Iterable[str], limit: int, frame: tuple[str, str] = ("", ""), special: bool = True
) -> list[Tokenized]:
    """Each text's whole token ids against what is left of them at `limit` tokens.

    Every text stands between the two of `frame`; unless `special`, the tokenizer adds no tokens of its own.
    """
    found = []
    first, how = len(frame[0]), {"return_offsets_mapping": True, "verbose": False, "add_special_tokens": special}
    for text in texts:
        framed = text.join(frame)
        whole = tokenizer(framed, **how)
        given = tokenizer(framed, max_length=limit, truncation=True, **how)
        pieces = zip(whole.input_ids, whole["offset_mapping"], strict=True)
        unknown = [
            _word(text, start - first)
            for token, (start, end) in pieces
            if token == tokenizer.unk_token_id and first <= start < end <= first + len(text)
        ]
        kept = max((end for _, end in given["offset_mapping"]), default=0) - first
        kept = min(max(kept, 0), len(text))
        found.append(Tokenized(text, encoder, len(whole.input_ids), limit, kept, tuple(dict.fromkeys(unknown))))
    return found


def _word(text: str, place: int) -> str:
    start = text.rfind(" ", 0, place + 1) + 1
    return text[start:].split(" ", 1)[0]


class Tokenizers(Protocol):
    """The tokenizers of a pipeline: what its text encoders get of a text, and where in it."""

    @property
    def longest(self) -> int:
        """Most tokens of a text that the tokenizer of names allows."""

    def prompts(self, texts: Sequence[str]) -> list[Tokenized]:
        """Every text as each encoder gets it."""

    def names(self, texts: Sequence[str]) -> list[Tokenized]:
        """Names and phrases, as the encoder of names gets them."""

    def mentions(self, text: str, names: Iterable[str]) -> dict[str, list[range]]:
        """Where a text mentions each name, in order: rows of its encoding by the encoder of names."""


@dataclass(frozen=True)
class ClipAndT5:
    """The tokenizers of a pipeline's (first) CLIP and of its T5, and the tokens that T5 is given."""

    clip: Any
    t5: Any
    length: int

    @property
    def longest(self) -> int:
        return self.t5.model_max_length

    def prompts(self, texts: Sequence[str]) -> list[Tokenized]:
        """Every text as T5 gets it, then every text as CLIP does."""
        return self.names(texts) + tokenized(self.clip, "CLIP", texts, self.clip.model_max_length)

    def names(self, texts: Sequence[str]) -> list[Tokenized]:
        """Names and phrases, which T5 alone encodes."""
        return tokenized(self.t5, "T5", texts, self.length)

    def mentions(self, text: str, names: Iterable[str]) -> dict[str, list[range]]:
        """Where the ids of a name, without the end token, stand among those of the text."""
        ids, found = self.t5(text).input_ids, {}
        for name in names:
            wanted = self.t5(name).input_ids[:-1]
            spans = (range(start, start + len(wanted)) for start in range(len(ids) - len(wanted) + 1))
            found[name] = [span for span in spans if ids[span.start : span.stop] == wanted]
        return found


def describe(found: Iterable[Tokenized]) -> str | None:
    """How many texts are truncated, what the first of them loses, and what to do; None where none is."""
    cut = [each for each in found if each.truncated]
    if not cut:
        return None
    first = next((each for each in cut if each.loses_names), cut[0])
    count, worst = len({each.text for each in cut}), len({each.text for each in cut if each.loses_names})
    needed = max((each.tokens for each in cut if each.encoder != "CLIP"), default=0)
    remedy = [f"raise backbone.max_sequence_length to {needed}"] if 0 < needed <= LONGEST else []
    clip = next((each.limit for each in cut if each.encoder == "CLIP"), None)
    if needed > LONGEST or clip is not None:
        remedy.append(f"shorten the text (CLIP takes {clip} tokens)" if clip else "shorten the text")
    return (
        f"{count} texts are truncated, {worst} of them in a name or relation: {first.encoder} takes {first.limit} of "
        f"{first.tokens} tokens of {first.text!r} and loses {first.text[first.kept :].strip()!r}; {' and '.join(remedy)}"
    )


def unknown_tokens(texts: Iterable[Tokenized]) -> list[str]:
    """One sentence for each word that an encoder gets as its unknown token."""
    return sorted(
        {f"{word!r} has characters that the tokenizer of {each.encoder} does not know" for each in texts for word in each.unknown}
    )


def warn(found: Iterable[Tokenized], where: str) -> None:
    """Say on stderr how many texts are truncated; nothing where none is."""
    if said := describe(found):
        print(f"warning: {where}: {said}", file=sys.stderr)


def check_names_kept(found: Iterable[Tokenized], where: str) -> None:
    """Raises `DataError` where a text loses a word of a name or relation: its encoding would stand for another text."""
    if said := describe(each for each in found if each.loses_names):
        raise DataError(f"{where}: {said}")
