"""How much memory each phase takes, from a dry run on the meta device, and how it fits on GPUs of several
sizes.

The dry run executes the real modules on tensors without data: every operator runs, forward and backward, and
the bytes of all storages alive are added up. Attention is counted as the fused kernel that a GPU would run.
"""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from sgpipe.doctor.architecture import Size, build, lora_parameters, lora_targets, size_of
from sgpipe.errors import ModelError
from sgpipe.params.blocks import Blocks

GIB = 2**30
GRAPH_TOKENS = 16
"""Graph tokens prepended to the text context: 15 triples and the whole graph (facts of SGDiff's encoder)."""
CONTEXT_BYTES = 0.6 * GIB
"""CUDA context and library workspaces of one process."""
USABLE = 0.97
"""Share of a GPU's nominal memory that an allocator can fill before it fragments."""
TRAINED_BYTES = 16
"""Bytes per trained parameter: float32 value, gradient and two AdamW moments."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
Precision = Literal["float32", "bfloat16", "float16", "int8", "nf4"]


def _fused(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    if attn_mask is None:
        aten = torch.ops.aten._scaled_dot_product_flash_attention
        return aten(query, key, value, dropout_p, is_causal, scale=scale)[0]
    bias = attn_mask.expand(*query.shape[:-1], key.shape[-2])
    aten = torch.ops.aten._scaled_dot_product_efficient_attention
    return aten(query, key, value, bias, query.requires_grad, dropout_p, is_causal, scale=scale)[0]


@contextmanager
def _fused_attention() -> Iterator[None]:
    """Run scaled-dot-product attention as the fused kernels of a GPU, which never store a score matrix.

    On the meta device PyTorch would choose the plain one, whose scores take gigabytes at full size.
    """
    with torch.library._scoped_library("aten", "IMPL", "CompositeImplicitAutograd") as library:
        library.impl("scaled_dot_product_attention", _fused, allow_override=True)
        yield


class PeakMemory(TorchDispatchMode):
    """Adds up the bytes of storages that operators make and that are still alive; `peak` is the most at any
    time.

    Storages of `known` modules (their weights) are not counted.
    """

    def __init__(self, *known: nn.Module) -> None:
        super().__init__()
        self.live = self.peak = 0
        tensors = [t for module in known for t in (*module.parameters(), *module.buffers())]
        self._seen = {t.untyped_storage()._cdata for t in tensors}

    def _track(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self._seen:
            self._seen.add(key)
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._free, key, size)
        return tensor

    def _free(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.live -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return tree_map_only(torch.Tensor, self._track, func(*args, **(kwargs or {})))


@dataclass(frozen=True)
class Setup:
    """What is to be run. `resolution` in pixels, `text_tokens` per prompt, `blocks` the double-stream
    blocks with LoRA; `graphs` forwards of a training batch go through the transformer at once: g⁺, or g⁺ and g⁻.
    """

    resolution: int = 256
    text_tokens: int = 256
    batch_size: int = 2
    graphs: int = 1
    blocks: Blocks = field(default_factory=lambda: Blocks.parse("7..12"))
    rank: int = 16
    dtype: Precision = "bfloat16"
    cache_batch: int = 8


@dataclass(frozen=True)
class Need:
    """Parameters of each part, and bytes that each phase takes on top of its weights."""

    sizes: dict[str, Size]
    lora: int
    encode_prompts: int
    encode_images: int
    decode_images: int
    forward: int
    train: int
    train_checkpointed: int
    dtype: Precision


def _peak(modules: tuple[nn.Module, ...], run: Callable[[], object]) -> int:
    with _fused_attention(), PeakMemory(*modules) as memory:
        run()
    return memory.peak


def _step(transformer: Any, setup: Setup, side: int, train: bool, checkpointing: bool) -> int:
    """Peak of one forward, or of forward and backward with the graph tokens (and so the text stream)
    receiving gradients.
    """
    config = transformer.config
    batch = setup.batch_size * (setup.graphs if train else 1)
    tokens, context = (side // 2) ** 2, setup.text_tokens + GRAPH_TOKENS
    (
        transformer.enable_gradient_checkpointing
        if checkpointing
        else transformer.disable_gradient_checkpointing
    )()
    transformer.train(train)

    def empty(*shape: int) -> torch.Tensor:
        return torch.empty(shape, device="meta", dtype=DTYPES[setup.dtype])

    def run() -> None:
        with torch.set_grad_enabled(train):
            velocity = transformer(
                hidden_states=empty(batch, tokens, config.in_channels),
                encoder_hidden_states=empty(batch, context, config.joint_attention_dim).requires_grad_(train),
                pooled_projections=empty(batch, config.pooled_projection_dim),
                timestep=empty(batch),
                guidance=empty(batch) if config.guidance_embeds else None,
                img_ids=empty(tokens, 3),
                txt_ids=empty(context, 3),
                return_dict=False,
            )[0]
            if train:
                (velocity - torch.empty_like(velocity)).square().mean().backward()

    try:
        return _peak((transformer,), run)
    finally:
        transformer.zero_grad(set_to_none=True)


def measure(configs: dict[str, dict[str, Any]], setup: Setup) -> Need:
    """Dry-run every phase of `setup` on the meta device. Raises `ModelError` for a transformer of
    another family.
    """
    from diffusers import FluxTransformer2DModel
    from peft import LoraConfig

    dtype = DTYPES[setup.dtype]
    parts: dict[str, Any] = {name: build(config) for name, config in configs.items()}
    sizes = {name: size_of(part) for name, part in parts.items()}
    for part in parts.values():
        nn.Module.to(part, dtype)
    transformer, vae = parts["transformer"], parts["vae"]
    if not isinstance(transformer, FluxTransformer2DModel):
        raise ModelError(
            f"the memory of {type(transformer).__name__} cannot be planned; valid: a pipeline whose "
            "transformer is a "
            "FluxTransformer2DModel"
        )
    blocks = setup.blocks.resolve(transformer.config.num_layers, "--blocks")
    targets = lora_targets(transformer, blocks)
    lora = lora_parameters(transformer, targets, setup.rank)
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    side, batch = setup.resolution // factor, setup.cache_batch

    def encode_prompts() -> None:
        for name, tokens in (("text_encoder", 77), ("text_encoder_2", setup.text_tokens)):
            length = min(tokens, getattr(parts[name].config, "max_position_embeddings", tokens))
            parts[name](torch.zeros(batch, length, dtype=torch.long, device="meta"))

    pixels = torch.empty(batch, 3, setup.resolution, setup.resolution, device="meta", dtype=dtype)
    latents = torch.empty(batch, vae.config.latent_channels, side, side, device="meta", dtype=dtype)
    with torch.no_grad():
        prompts = _peak((parts["text_encoder"], parts["text_encoder_2"]), encode_prompts)
        encode = _peak((vae,), lambda: vae.encode(pixels))
        decode = _peak((vae,), lambda: vae.decode(latents))
    forward = _step(transformer, setup, side, train=False, checkpointing=False)
    if targets:
        adapter = LoraConfig(r=setup.rank, lora_alpha=setup.rank, target_modules=targets)
        transformer.add_adapter(adapter)
    train = _step(transformer, setup, side, train=True, checkpointing=False)
    checkpointed = _step(transformer, setup, side, train=True, checkpointing=True)
    return Need(sizes, lora, prompts, encode, decode, forward, train, checkpointed, setup.dtype)
