"""Tiny FLUX.2 pipelines of random weights, and tokenizers of chat models, in the published formats."""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Pipeline,
    Flux2Transformer2DModel,
)
from diffusers.pipelines.flux2.system_messages import SYSTEM_MESSAGE
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import (
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    PixtralImageProcessor,
    PixtralProcessor,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
    TokenizersBackend,
)

from sgpipe.relations.predicates import PREDICATES, relational_prompt
from tests.tiny import DOUBLE, NAMES, SINGLE, edit_json

QWEN_CHAT = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)
MISTRAL_CHAT = (
    "{{ bos_token }}{% for message in messages %}{% set text = message['content'][0]['text'] %}{% if message['role'] == 'system' %}"
    "{{ '[SYSTEM_PROMPT]' + text + '[/SYSTEM_PROMPT]' }}{% else %}{{ '[INST]' + text + '[/INST]' }}{% endif %}{% endfor %}"
)
CHAT_TOKENS = 64
"""Tokens of a prompt of a FLUX.2, its template among them."""


def byte_pairs(special: list[str], *texts: str) -> Tokenizer:
    """A byte-level tokenizer whose merges are learned from prompts and `texts`."""
    learned = Tokenizer(models.BPE())
    learned.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=900, show_progress=False, initial_alphabet=alphabet, special_tokens=special)
    prompts = [relational_prompt(name, said, name) for name in NAMES for said in PREDICATES]
    learned.train_from_iterator([*prompts, *texts * 9], trainer)
    return learned


def _qwen() -> tuple[Qwen3ForCausalLM, Qwen2Tokenizer]:
    """28 layers, of which FLUX.2-klein reads three; prompts are padded on the right."""
    state = json.loads(byte_pairs(["<|endoftext|>"], "user\n", "assistant\n", "<think>\n\n</think>\n\n").to_str())["model"]
    tokenizer = Qwen2Tokenizer(
        vocab=state["vocab"],
        merges=[tuple(merge) for merge in state["merges"]],
        extra_special_tokens=["<|im_start|>", "<|im_end|>"],
        chat_template=QWEN_CHAT,
        model_max_length=1000,
    )
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=28,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        initializer_range=0.3,
        tie_word_embeddings=True,
    )
    return Qwen3ForCausalLM(config), tokenizer


def _mistral() -> tuple[Mistral3ForConditionalGeneration, PixtralProcessor]:
    """31 layers, of which FLUX.2-dev reads three; prompts are padded on the left, and begin with a token that the template has."""
    special = ["[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[IMG]", "[IMG_BREAK]", "[IMG_END]"]
    pairs = byte_pairs(["<s>", "</s>", "<pad>", "<unk>", *special], SYSTEM_MESSAGE)
    pairs.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer = TokenizersBackend(
        tokenizer_object=pairs,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        extra_special_tokens=special,
        padding_side="left",
        model_max_length=1000,
    )
    shared = {"hidden_size": 8, "intermediate_size": 16, "num_attention_heads": 2, "head_dim": 8}
    text = {"num_hidden_layers": 31, "num_key_value_heads": 1, "vocab_size": len(tokenizer), "initializer_range": 0.3}
    config = Mistral3Config(
        text_config={"model_type": "mistral", **shared, **text},
        vision_config={"model_type": "pixtral", **shared, "num_hidden_layers": 1, "head_dim": 4},
        image_token_index=tokenizer.convert_tokens_to_ids("[IMG]"),
    )
    return Mistral3ForConditionalGeneration(config), PixtralProcessor(
        PixtralImageProcessor(), tokenizer, chat_template=MISTRAL_CHAT
    )


def write_flux2_pipeline(folder: Path, *, dev: bool = False, seed: int = 0, **scheduler: Any) -> Path:
    """A `Flux2KleinPipeline` folder like FLUX.2-klein's, or with `dev` a `Flux2Pipeline` like FLUX.2-dev (guidance as an input)."""
    torch.manual_seed(seed)
    text_encoder, tokenizer = _mistral() if dev else _qwen()
    vae = AutoencoderKLFlux2(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=4,
    )
    vae.bn.running_mean.normal_()
    vae.bn.running_var.uniform_(0.5, 2.0)
    (Flux2Pipeline if dev else Flux2KleinPipeline)(
        scheduler=FlowMatchEulerDiscreteScheduler(**{"use_dynamic_shifting": True, "shift": 3.0, **scheduler}),
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        transformer=Flux2Transformer2DModel(
            in_channels=16,
            num_layers=DOUBLE,
            num_single_layers=SINGLE,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=24,
            guidance_embeds=dev,
            axes_dims_rope=(4, 4, 4, 4),
        ),
    ).save_pretrained(folder, safe_serialization=True)
    edit_json(folder / "vae" / "config.json", force_upcast=True)  # as published; unknown to the class
    return folder
