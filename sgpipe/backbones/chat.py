"""Chat language models as text encoders: every text is a user's message in the model's template, and its hidden states are read."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from sgpipe.backbones.base import TextCondition
from sgpipe.backbones.config import Backbone
from sgpipe.backbones.loading import load_module, on_device, place
from sgpipe.backbones.text import check_finite
from sgpipe.backbones.truncation import Tokenized, tokenized
from sgpipe.errors import ModelError

_SENTINEL = "\x00"


@dataclass(frozen=True)
class ChatTokenizer:
    """The tokenizer of a chat model; texts are padded or cut to `length` tokens, the template's among them."""

    tokenizer: Any
    render: Callable[[str], str]
    """A text within the template."""
    encoder: str
    """The model's name, for messages."""
    length: int

    @property
    def longest(self) -> int:
        """Most tokens that the tokenizer allows."""
        return self.tokenizer.model_max_length

    @cached_property
    def frame(self) -> tuple[str, str]:
        """What stands before and after a text. Raises `ModelError` for a template that does not hold the text once, as it is."""
        before, *after = self.render(_SENTINEL).split(_SENTINEL)
        if len(after) != 1:
            raise ModelError(f"{self.encoder}: its chat template shows a prompt {len(after)} times; fetch the tokenizer again")
        return before, after[0]

    @property
    def special(self) -> bool:
        """Whether the tokenizer adds its own special tokens: not where the template has the first of them (as transformers)."""
        return not (self.tokenizer.bos_token and self.frame[0].startswith(self.tokenizer.bos_token))

    def own(self, text: str) -> str:
        """The text as it stands in the template."""
        before, after = self.frame
        whole = self.render(text)
        return whole[len(before) : len(whole) - len(after)]

    def __call__(self, texts: Sequence[str]) -> Any:
        """Token ids and attention mask `[B, length]`, and `offset_mapping` `[B, length, 2]` in the rendered texts."""
        return self.tokenizer(
            [self.render(text) for text in texts],
            padding="max_length",
            max_length=self.length,
            truncation=True,
            add_special_tokens=self.special,
            return_offsets_mapping=True,
            return_tensors="pt",
        )

    def prompts(self, texts: Sequence[str]) -> list[Tokenized]:
        """Every text as the model gets it."""
        return tokenized(self.tokenizer, self.encoder, map(self.own, texts), self.length, self.frame, self.special)

    names = prompts

    def mentions(self, text: str, names: Iterable[str]) -> dict[str, list[range]]:
        """Rows of the tokens that overlap a name, which is found as a whole word."""
        own, first = self.own(text), len(self.frame[0])
        offsets = self([text]).offset_mapping[0]

        def rows(found: re.Match[str]) -> range:
            inside = _overlapping(offsets, first + found.start(), first + found.end()).nonzero().flatten().tolist()
            return range(inside[0], inside[-1] + 1) if inside else range(0)

        places = {name: re.finditer(rf"(?<!\w){re.escape(name)}(?!\w)", own) for name in names}
        return {name: [span for each in found if (span := rows(each))] for name, found in places.items()}

    def words(self, texts: Sequence[str], tokens: Any) -> Tensor:
        """Which of `tokens`, made of these texts, hold a text's own words `[B, length]`; for an empty text the token after it.

        Raises `ModelError` where none is left.
        """
        first = len(self.frame[0])
        rows = [
            _overlapping(offsets, first, first + max(len(self.own(text)), 1))
            for text, offsets in zip(texts, tokens.offset_mapping, strict=True)
        ]
        lost = [text for text, row in zip(texts, rows, strict=True) if not row.any()]
        if lost:
            raise ModelError(
                f"backbone.max_sequence_length: got {self.length}; no token of {lost[0]!r} is left after those of the template of "
                f"{self.encoder}; raise it to {self.prompts(lost[:1])[0].tokens}"
            )
        return torch.stack(rows)


def _overlapping(offsets: Tensor, start: int, stop: int) -> Tensor:
    """Tokens `[T]` with characters in `start..stop`; padding has none."""
    return (offsets[:, 0] < stop) & (offsets[:, 1] > start) & (offsets[:, 1] > offsets[:, 0])


class ChatEncoder:
    """The states of some layers of a chat model, side by side: `[B, T, layers · width]`, T with padding.

    The model is causal, so a token's states do not depend on later ones: the first of a name does not know the rest.
    With `offload: model` the model is on the device only while it runs.
    """

    def __init__(
        self, backbone: Backbone, part: str, tokenizer: ChatTokenizer, layers: tuple[int, ...], device: torch.device, offload: str
    ) -> None:
        self._part, self._tokenizer, self._layers, self._device, self._offload = part, tokenizer, layers, device, offload
        self._encoder = load_module(backbone, part)
        held = self._encoder.config.get_text_config().num_hidden_layers
        if held < max(layers):
            raise ModelError(
                f"{backbone.model}/{part}: has {held} layers; the states of layers {', '.join(map(str, layers))} are needed; fetch "
                "the checkpoint again"
            )
        if offload != "model":
            place(self._encoder, device, offload)

    def prompts(self, texts: Sequence[str]) -> TextCondition:
        """The states of whole prompts, padding among them, which the transformer attends to."""
        return TextCondition(self._run(texts)[1])

    def concepts(self, texts: Sequence[str]) -> list[Tensor]:
        """The states of the tokens of each text's own words, each encoded alone."""
        tokens, states = self._run(texts)
        return [row[mask] for row, mask in zip(states, self._tokenizer.words(texts, tokens), strict=True)]

    @torch.no_grad()
    def _run(self, texts: Sequence[str]) -> tuple[Any, Tensor]:
        tokens = self._tokenizer(texts)
        with on_device(self._encoder, self._device, self._offload):
            # without its head, whose logits of every token nobody reads
            made = self._encoder.base_model(
                input_ids=tokens.input_ids.to(self._device),
                attention_mask=tokens.attention_mask.to(self._device),
                output_hidden_states=True,
                use_cache=False,
            )
        states = torch.cat([made.hidden_states[layer] for layer in self._layers], dim=-1).to(self._encoder.dtype).cpu()
        check_finite(self._part, texts, states)
        return tokens, states
