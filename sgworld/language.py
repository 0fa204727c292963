"""The embedded text encoders: T5 and CLIP architectures, small, with tokenizers for the world's language.

Both are pre-trained on captions before the generator sees them: T5 restores masked words, names unmasked ones and counts clauses,
CLIP's pooled vector names the words of the caption. No task says who is subject and who is object, because captions do not.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5Tokenizer

from sgpipe.relations.predicates import PREDICATES, phrase
from sgworld.bank import NEUTRAL, caption, sample_triple
from sgworld.pictograms import NAMES
from sgworld.training import step_generator, train_model

T5_WIDTH = 96
POOLED_WIDTH = 64
TOKENS = 16
MASKED = 0.2
_FRAME = "a photo of and on a plain background"
_SENTINELS = 4
_CLAUSES = 5
"""What T5 says of each piece: how many `,` and `and` stand before it, up to four."""


def words() -> list[str]:
    """Every word of the world's language, sorted."""
    text = " ".join([_FRAME, *NAMES, *(phrase(p) for p in PREDICATES)])
    return sorted(set(text.split()))


def t5_tokenizer(tokens: int = TOKENS, marks: str = "") -> T5Tokenizer:
    """Unigram tokenizer whose pieces are the language's words, punctuation `marks`, and single letters for anything else."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -8.0)]
    pieces += [(f"▁{word}", -2.0) for word in words()]
    pieces += [(letter, -10.0) for letter in [*marks, *letters]]
    pieces += [(f"<extra_id_{index}>", 0.0) for index in reversed(range(_SENTINELS))]
    return T5Tokenizer(vocab=pieces, extra_ids=_SENTINELS, model_max_length=tokens)


def clip_tokenizer(captions: Sequence[str], tokens: int = TOKENS) -> CLIPTokenizer:
    """Byte-pair tokenizer with CLIP's word ends and special tokens, its merges learned from `captions`."""
    learned = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learned.normalizer = normalizers.Lowercase()
    learned.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.BpeTrainer(
        vocab_size=1000,
        show_progress=False,
        end_of_word_suffix="</w>",
        initial_alphabet=[chr(code) for code in range(ord("a"), ord("z") + 1)],
        special_tokens=["<|startoftext|>", "<|endoftext|>"],
    )
    learned.train_from_iterator([*captions, "a b c d e f g h i j k l m n o p q r s t u v w x y z"], trainer)
    state = _bpe_state(learned)
    return CLIPTokenizer(vocab=state[0], merges=state[1], model_max_length=tokens)


def _bpe_state(tokenizer: Tokenizer) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges of a byte-pair tokenizer."""
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], [tuple(merge) for merge in model["merges"]]


def build_t5(vocabulary: int) -> T5EncoderModel:
    """Two T5 encoder layers of width 96."""
    return T5EncoderModel(
        T5Config(
            vocab_size=vocabulary,
            d_model=T5_WIDTH,
            d_kv=24,
            d_ff=2 * T5_WIDTH,
            num_layers=2,
            num_heads=4,
            feed_forward_proj="gated-gelu",
            dropout_rate=0.0,
            relative_attention_num_buckets=16,
            relative_attention_max_distance=32,
        )
    )


def build_clip(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Two CLIP text layers of width 64; the state at the end token is the pooled vector."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=POOLED_WIDTH,
            intermediate_size=2 * POOLED_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=tokenizer.model_max_length,
            projection_dim=POOLED_WIDTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def token_ids(tokenizer: T5Tokenizer | CLIPTokenizer, texts: Sequence[str]) -> Tensor:
    """Token ids `[B, T]`, padded to the tokenizer's own length."""
    return tokenizer(list(texts), padding="max_length", truncation=True, return_tensors="pt").input_ids


class _Reading(nn.Module):
    """Both encoders with the heads of their pre-training."""

    def __init__(self, t5: T5EncoderModel, clip: CLIPTextModel, vocabulary: int, separators: Sequence[int]) -> None:
        super().__init__()
        self.t5, self.clip = t5, clip
        self.piece = nn.Linear(T5_WIDTH, vocabulary)
        self.word = nn.Linear(POOLED_WIDTH, vocabulary)
        self.clause = nn.Linear(T5_WIDTH, _CLAUSES)
        self.separators = torch.tensor(separators)

    def forward(self, ids: Tensor, masked: Tensor, clip_ids: Tensor) -> Tensor:
        states = self.t5(masked).last_hidden_state
        pieces = self.piece(states)
        present = F.one_hot(ids, pieces.shape[-1]).amax(dim=1).float()
        named = self.word(self.clip(clip_ids).pooler_output)
        restored = F.cross_entropy(pieces.flatten(0, 1), ids.flatten())
        before = torch.isin(ids, self.separators).cumsum(1).clamp(max=_CLAUSES - 1)
        counted = F.cross_entropy(self.clause(states)[ids > 2], before[ids > 2])
        return restored + counted + F.binary_cross_entropy_with_logits(named, present) * 10


def one_pair(rng: np.random.Generator) -> str:
    """A caption of a training triple."""
    return caption(rng, sample_triple(rng, unseen=False), rng.random() < NEUTRAL)


def train_language(
    folder: Path, out: Path, *, seed: int, steps: int, batch: int, say: Callable[[np.random.Generator], str] = one_pair,
    tokens: int = TOKENS, marks: str = "",
) -> None:  # fmt: skip
    """Pre-train both encoders on what `say` says, and save them with their tokenizers as
    `out/{text_encoder,text_encoder_2,tokenizer,tokenizer_2}`.
    """
    t5_tok = t5_tokenizer(tokens, marks)
    sample = np.random.default_rng((seed, 1 << 20))
    clip_tok = clip_tokenizer([say(sample) for _ in range(20_000)], tokens)
    torch.manual_seed(seed)
    separators = t5_tok.convert_tokens_to_ids(["▁and", *marks])
    model = _Reading(build_t5(len(t5_tok)), build_clip(clip_tok), len(t5_tok), separators)
    sentinel = t5_tok.convert_tokens_to_ids("<extra_id_0>")

    def losses(step: int, _: int) -> tuple[Tensor, dict[str, Tensor]]:
        rng = np.random.default_rng((seed, step))
        texts = [say(rng) for _ in range(batch)]
        ids = token_ids(t5_tok, texts)
        hidden = torch.rand(ids.shape, generator=step_generator(seed, step)) < MASKED
        masked = ids.masked_fill(hidden & (ids > 2), sentinel)
        return model(ids, masked, token_ids(clip_tok, texts)), {}

    train_model(model, losses, folder, steps=steps, samples=batch, rate=2e-3, decay=steps // 2, warmup=50)
    model.t5.save_pretrained(out / "text_encoder_2", safe_serialization=True)
    model.clip.save_pretrained(out / "text_encoder", safe_serialization=True)
    t5_tok.save_pretrained(out / "tokenizer_2")
    clip_tok.save_pretrained(out / "tokenizer")
