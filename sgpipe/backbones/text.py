"""Texts to what a FLUX transformer is conditioned on: T5 states of every token, and CLIP's pooled vector."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeVar

import torch
from torch import Tensor

from sgpipe.backbones.config import Backbone
from sgpipe.backbones.loading import load_module, on_device, place
from sgpipe.backbones.truncation import Tokenizers
from sgpipe.errors import ModelError

T = TypeVar("T")


@dataclass(frozen=True)
class Prompts:
    """Encoded prompts of a batch, as the transformer takes them."""

    encoder_hidden_states: Tensor
    """`[B, T, text width]`, padding included: FLUX attends to it."""
    pooled_projections: Tensor
    """`[B, pooled width]`."""

    def to(self, device: torch.device, dtype: torch.dtype | None = None) -> Self:
        """On another device, in another precision."""
        return type(self)(
            self.encoder_hidden_states.to(device, dtype), self.pooled_projections.to(device, dtype)
        )


class TextEncoders:
    """T5 and CLIP of a FLUX pipeline, with the results of `FluxPipeline.encode_prompt` bit for bit.

    With `offload: model` only the encoder that is running is on the device.
    """

    def __init__(self, backbone: Backbone, device: torch.device, offload: str = "none") -> None:
        self.length = backbone.max_sequence_length
        self._device, self._offload = device, offload
        self.tokenizers = Tokenizers.load(backbone)
        self._clip, self._t5 = (load_module(backbone, part) for part in ("text_encoder", "text_encoder_2"))
        if offload != "model":
            for encoder in (self._clip, self._t5):
                place(encoder, device, offload)

    @torch.no_grad()
    def prompts(self, texts: Sequence[str]) -> Prompts:
        """Both encodings of a batch, on the CPU. Raises `ModelError` if they are not finite."""
        states = self._states(_tokens(self.tokenizers.t5, texts, self.length).input_ids)
        ids = _tokens(self.tokenizers.clip, texts, self.tokenizers.clip.model_max_length).input_ids
        with on_device(self._clip, self._device, self._offload):
            pooled = self._clip(ids.to(self._device)).pooler_output.to(self._clip.dtype).cpu()
        _check_finite(pooled, "text_encoder", texts)
        _check_finite(states, "text_encoder_2", texts)
        return Prompts(states, pooled)

    @torch.no_grad()
    def concepts(self, texts: Sequence[str]) -> list[Tensor]:
        """T5 states `[n, text width]` of the n tokens of each text's words, on the CPU.

        Each is encoded alone, padded to the full length without an attention mask (facts of ConceptAttention's official
        code); the states of padding and of the end token are left out, but a text always keeps its first token.
        """
        tokens = _tokens(self.tokenizers.t5, texts, self.length)
        states = self._states(tokens.input_ids)
        _check_finite(states, "text_encoder_2", texts)
        words = tokens.attention_mask.bool() & (tokens.input_ids != self.tokenizers.t5.eos_token_id)
        words[:, 0] = True
        return [row[mask] for row, mask in zip(states, words, strict=True)]

    def _states(self, ids: Tensor) -> Tensor:
        with on_device(self._t5, self._device, self._offload):
            return self._t5(ids.to(self._device)).last_hidden_state.to(self._t5.dtype).cpu()


class EncodedTexts:
    """Encodings of known texts, made at once and kept on the CPU; the encoders that made them can go.

    So a picture's transformer need not share a device with T5. Raises `ModelError` for a text that was not named.
    """

    def __init__(
        self, encoders: TextEncoders, prompts: Iterable[str], names: Iterable[str], batch: int = 16
    ) -> None:
        self._prompts: dict[str, Prompts] = {}
        self._names: dict[str, Tensor] = {}
        for texts in _batches(prompts, batch):
            made = encoders.prompts(texts)
            for text, states, pooled in zip(
                texts, made.encoder_hidden_states, made.pooled_projections, strict=True
            ):
                self._prompts[text] = Prompts(states, pooled)
        for texts in _batches(names, batch):
            self._names |= zip(texts, encoders.concepts(texts), strict=True)

    def prompts(self, texts: Sequence[str]) -> Prompts:
        """As `TextEncoders.prompts` made them."""
        rows = [_known(self._prompts, text) for text in texts]
        return Prompts(
            torch.stack([row.encoder_hidden_states for row in rows]),
            torch.stack([row.pooled_projections for row in rows]),
        )

    def concepts(self, texts: Sequence[str]) -> list[Tensor]:
        """As `TextEncoders.concepts` made them."""
        return [_known(self._names, text) for text in texts]


def _batches(texts: Iterable[str], size: int) -> Iterator[list[str]]:
    different = list(dict.fromkeys(texts))
    return (different[start : start + size] for start in range(0, len(different), size))


def _known(made: Mapping[str, T], text: str) -> T:
    if text not in made:
        raise ModelError(
            f"{text!r} was not encoded before its encoders were let go; name it when they are loaded"
        )
    return made[text]


def _tokens(tokenizer: Any, texts: Sequence[str], length: int) -> Any:
    return tokenizer(
        list(texts), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
    )


def _check_finite(values: Tensor, part: str, texts: Sequence[str]) -> None:
    bad = [text for text, row in zip(texts, values, strict=True) if not torch.isfinite(row).all()]
    if bad:
        raise ModelError(
            f"{part}: its result for {bad[0]!r} is not finite; T5 overflows in float16: set backbone.dtype to bfloat16"
        )
