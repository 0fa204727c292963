"""Text encoders of transformers and diffusers as conditions: T5 with CLIPs, and encodings made ahead."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from sgpipe.backbones.base import TextCondition, TextEncoders
from sgpipe.backbones.config import Backbone
from sgpipe.backbones.loading import load_module, load_plain, on_device, place
from sgpipe.errors import ModelError

T = TypeVar("T")


def check_finite(part: str, texts: Sequence[str], values: Tensor) -> None:
    """Raises `ModelError` naming the first text whose encoding, in the same row of `values`, is not finite."""
    bad = [text for text, row in zip(texts, values, strict=True) if not torch.isfinite(row).all()]
    if bad:
        raise ModelError(
            f"{part}: its result for {bad[0]!r} is not finite; text encoders overflow in float16: set backbone.dtype to bfloat16"
        )


class T5WithClips:
    """T5 and CLIPs, named by their folders (encoder, tokenizer): states of whole prompts, and of the words of names and concepts.

    With `offload: model` each is on the device only while it runs.
    """

    def __init__(
        self, backbone: Backbone, t5: tuple[str, str], clips: Sequence[tuple[str, str]], device: torch.device, offload: str
    ) -> None:
        self._length, self._device, self._offload = backbone.max_sequence_length, device, offload
        self._parts = [part for part, _ in (t5, *clips)]
        self._encoders = {part: load_module(backbone, part) for part in self._parts}
        self._tokenizers = {part: load_plain(backbone, tokenizer) for part, tokenizer in (t5, *clips)}
        if offload != "model":
            for encoder in self._encoders.values():
                place(encoder, device, offload)

    @torch.no_grad()
    def states(self, texts: Sequence[str]) -> Tensor:
        """T5's states `[B, T, text width]` of padded prompts, on the CPU. Raises `ModelError` if they are not finite."""
        return self._words(texts)[1]

    @torch.no_grad()
    def concepts(self, texts: Sequence[str]) -> list[Tensor]:
        """T5's states `[n, text width]` of the n tokens of each text's words, on the CPU.

        Each is encoded alone, padded to the full length without an attention mask (facts of ConceptAttention's official
        code); the states of padding and of the end token are left out, but a text always keeps its first token.
        """
        tokens, states = self._words(texts)
        words = tokens.attention_mask.bool() & (tokens.input_ids != self._tokenizers[self._parts[0]].eos_token_id)
        words[:, 0] = True
        return [row[mask] for row, mask in zip(states, words, strict=True)]

    @torch.no_grad()
    def pooled(self, texts: Sequence[str], name: str, **options: Any) -> Iterator[tuple[Tensor, Any]]:
        """Of each CLIP its output `name` `[B, pooled width]`, on the CPU, and all outputs. Raises `ModelError` if not finite."""
        length = self._tokenizers[self._parts[1]].model_max_length
        for part in self._parts[1:]:
            _, pooled, made = self._run(part, texts, length, name, **options)
            yield pooled, made

    def _words(self, texts: Sequence[str]) -> tuple[Any, Tensor]:
        return self._run(self._parts[0], texts, self._length, "last_hidden_state")[:2]

    def _run(self, part: str, texts: Sequence[str], length: int, name: str, **options: Any) -> tuple[Any, Tensor, Any]:
        """Tokens, the output of this name, and all outputs."""
        encoder = self._encoders[part]
        tokens = self._tokenizers[part](list(texts), padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        with on_device(encoder, self._device, self._offload):
            made = encoder(tokens.input_ids.to(self._device), **options)
        values = made[name].to(encoder.dtype).cpu()
        check_finite(part, texts, values)
        return tokens, values, made


class EncodedTexts:
    """Encodings of known texts, made at once and kept on the CPU; the encoders that made them can go.

    So an image's transformer need not share a device with T5. Prompts of `apart` are encoded one by one, so that the others round
    alike with and without them. Raises `ModelError` for a text that was not named.
    """

    def __init__(
        self, encoders: TextEncoders, prompts: Iterable[str], names: Iterable[str], batch: int = 16, apart: Iterable[str] = ()
    ) -> None:
        self._prompts: dict[str, TextCondition] = {}
        self._names: dict[str, Tensor] = {}
        for texts in _batches(prompts, batch):
            self._prompts |= zip(texts, encoders.prompts(texts).rows(), strict=True)
        self._prompts |= {text: encoders.prompts([text]) for text in apart if text not in self._prompts}
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
