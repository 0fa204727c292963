"""Text encoders of transformers and diffusers as conditions: T5 with CLIP, and encodings made ahead."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from sgpipe.backbones.base import TextCondition, TextEncoders
from sgpipe.backbones.config import Backbone
from sgpipe.backbones.loading import load_module, load_plain, on_device, place
from sgpipe.errors import ModelError

T = TypeVar("T")


class T5Words:
    """A T5 encoder and its tokenizer: states of whole prompts, and of the words of names and concepts.

    With `offload: model` it is on the device only while it runs.
    """

    def __init__(self, backbone: Backbone, encoder: str, tokenizer: str, device: torch.device, offload: str) -> None:
        self.length, self._part = backbone.max_sequence_length, encoder
        self._device, self._offload = device, offload
        self._tokenizer, self._t5 = load_plain(backbone, tokenizer), load_module(backbone, encoder)
        if offload != "model":
            place(self._t5, device, offload)

    @torch.no_grad()
    def states(self, texts: Sequence[str]) -> Tensor:
        """States `[B, T, text width]` of padded prompts, on the CPU. Raises `ModelError` if they are not finite."""
        return self._run(texts)[1]

    @torch.no_grad()
    def concepts(self, texts: Sequence[str]) -> list[Tensor]:
        """States `[n, text width]` of the n tokens of each text's words, on the CPU.

        Each is encoded alone, padded to the full length without an attention mask (facts of ConceptAttention's official
        code); the states of padding and of the end token are left out, but a text always keeps its first token.
        """
        tokens, states = self._run(texts)
        words = tokens.attention_mask.bool() & (tokens.input_ids != self._tokenizer.eos_token_id)
        words[:, 0] = True
        return [row[mask] for row, mask in zip(states, words, strict=True)]

    def _run(self, texts: Sequence[str]) -> tuple[Any, Tensor]:
        tokens = token_ids(self._tokenizer, texts, self.length)
        with on_device(self._t5, self._device, self._offload):
            states = self._t5(tokens.input_ids.to(self._device)).last_hidden_state.to(self._t5.dtype).cpu()
        check_finite(states, self._part, texts)
        return tokens, states


class T5AndClip(T5Words):
    """T5 and CLIP of a FLUX pipeline, with the results of `FluxPipeline.encode_prompt` bit for bit."""

    def __init__(self, backbone: Backbone, device: torch.device, offload: str = "none") -> None:
        super().__init__(backbone, "text_encoder_2", "tokenizer_2", device, offload)
        self._clip_tokenizer = load_plain(backbone, "tokenizer")
        self._clip = load_module(backbone, "text_encoder")
        if offload != "model":
            place(self._clip, device, offload)

    @torch.no_grad()
    def prompts(self, texts: Sequence[str]) -> TextCondition:
        """Both encodings of a batch, on the CPU. Raises `ModelError` if they are not finite."""
        ids = token_ids(self._clip_tokenizer, texts, self._clip_tokenizer.model_max_length).input_ids
        with on_device(self._clip, self._device, self._offload):
            pooled = self._clip(ids.to(self._device)).pooler_output.to(self._clip.dtype).cpu()
        check_finite(pooled, "text_encoder", texts)
        return TextCondition(self.states(texts), pooled)


class EncodedTexts:
    """Encodings of known texts, made at once and kept on the CPU; the encoders that made them can go.

    So an image's transformer need not share a device with T5. Raises `ModelError` for a text that was not named.
    """

    def __init__(self, encoders: TextEncoders, prompts: Iterable[str], names: Iterable[str], batch: int = 16) -> None:
        self._prompts: dict[str, TextCondition] = {}
        self._names: dict[str, Tensor] = {}
        for texts in _batches(prompts, batch):
            made = encoders.prompts(texts)
            self._prompts |= zip(texts, made.rows(), strict=True)
        for texts in _batches(names, batch):
            self._names |= zip(texts, encoders.concepts(texts), strict=True)

    def prompts(self, texts: Sequence[str]) -> TextCondition:
        """As `TextEncoders.prompts` made them."""
        return TextCondition.cat([_known(self._prompts, text) for text in texts])

    def concepts(self, texts: Sequence[str]) -> list[Tensor]:
        """As `TextEncoders.concepts` made them."""
        return [_known(self._names, text) for text in texts]


def _batches(texts: Iterable[str], size: int) -> Iterator[list[str]]:
    different = list(dict.fromkeys(texts))
    return (different[start : start + size] for start in range(0, len(different), size))


def _known(made: Mapping[str, T], text: str) -> T:
    if text not in made:
        raise ModelError(f"{text!r} was not encoded before its encoders were let go; name it when they are loaded")
    return made[text]


def token_ids(tokenizer: Any, texts: Sequence[str], length: int) -> Any:
    return tokenizer(list(texts), padding="max_length", max_length=length, truncation=True, return_tensors="pt")


def check_finite(values: Tensor, part: str, texts: Sequence[str]) -> None:
    bad = [text for text, row in zip(texts, values, strict=True) if not torch.isfinite(row).all()]
    if bad:
        raise ModelError(
            f"{part}: its result for {bad[0]!r} is not finite; T5 overflows in float16: set backbone.dtype to bfloat16"
        )
