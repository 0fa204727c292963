"""How much memory each phase takes, from a dry run on the meta device: real classes and shapes, no weights and no memory.

The dry run executes the real modules on tensors without data: every operator runs, forward and backward, and the bytes of all
storages alive are added up. Attention is counted as the fused kernel that a GPU would run. Classifier-free guidance runs its two
forwards one after the other, so that sampling takes what an unguided step does.
"""

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch
from msgspec.structs import replace
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from sgpipe.arms.config import Lora
from sgpipe.arms.kinds.base import Sections
from sgpipe.arms.lora import attach, count, target_modules
from sgpipe.arms.resolve import resolve
from sgpipe.backbones.base import Family, Layout, TextCondition
from sgpipe.backbones.config import Backbone
from sgpipe.backbones.families import FAMILIES, family_of, layout_of
from sgpipe.backbones.loading import DTYPES
from sgpipe.backbones.source import part_configs, snapshot_folder
from sgpipe.doctor.published import PUBLISHED
from sgpipe.errors import ModelError
from sgpipe.params.blocks import Blocks
from sgpipe.training.config import Train

GIB: Final = 2**30
GRAPH_TOKENS: Final = 16
"""Graph tokens prepended to the text context: 15 triples and the whole graph (facts of SGDiff's encoder)."""
CACHE_BATCH: Final = 8
"""Prompts or images that are encoded, and latents that are decoded, at a time."""


def family_of_configs(configs: Mapping[str, Mapping[str, Any]]) -> Family:
    """The family of a pipeline's parts, by its transformer's class. Raises `ModelError` for one that is not known."""
    name = configs["transformer"].get("_class_name")
    found = next((family for family in FAMILIES.values() if family.transformer == name), None)
    if found is None:
        raise ModelError(f"transformer/config.json: {name!r} is no transformer of a known family; valid: {', '.join(FAMILIES)}")
    return found


def _encoders(family: Family) -> tuple[str, ...]:
    return tuple(part for part in family.text_parts if not part.startswith("tokenizer"))


def configs_of(model: str, revision: str | None) -> tuple[dict[str, dict[str, Any]], Layout]:
    """Configurations of the parts of a folder, of a cached hub id, else as published; and their layout. Raises `ModelError`."""
    folder = snapshot_folder(model, revision)
    if folder is not None:
        return part_configs(folder, ("transformer", *_encoders(family_of(folder)), "vae")), layout_of(folder)
    if model not in PUBLISHED:
        raise ModelError(
            f"backbone.model: {model!r} is neither a folder nor in the hub cache, and its architecture is not known here "
            f"(known: {', '.join(PUBLISHED)}); run `hf download {model}` or give a folder"
        )
    configs = PUBLISHED[model]
    return configs, family_of_configs(configs).layout(configs["transformer"], configs["vae"])


def build(config: dict[str, Any]) -> Any:
    """The module that a config.json describes, on the meta device, frozen, in evaluation mode. Raises `ModelError`."""
    import diffusers
    import transformers

    name = config.get("_class_name") or (config.get("architectures") or [None])[0]
    kind: Any = getattr(diffusers, str(name), None) or getattr(transformers, str(name), None)
    if kind is None:
        raise ModelError(f"config.json names the class {name!r}, which neither diffusers nor transformers has")
    try:
        with torch.device("meta"):
            module = kind.from_config(config) if "_class_name" in config else kind(kind.config_class(**config))
    except Exception as error:  # as loading does: classes of errors differ by library and by value
        said = " ".join(str(error).split())[:300]
        raise ModelError(f"{name} cannot be built from its config.json: {type(error).__name__}: {said}") from error
    return module.requires_grad_(False).eval()


def planned_lora(sections: Mapping[str, Any], layout: Layout) -> Lora:
    """LoRA as the arm of `arms` that trains most modules of `layout` has it. Raises `ParamsError`."""
    blocks = {"double_blocks": layout.double_blocks, "single_blocks": layout.single_blocks}
    backbone = replace(sections["backbone"], **blocks)
    read = Sections.of({**sections, "backbone": backbone})
    arms = [resolve(name, options, read) for name, options in sections["arms"].items()]
    found = [getattr(arm.settings, "lora", Lora(Blocks(()))) for arm in arms]
    return max(found, key=lambda each: len(target_modules(layout, each)))


@dataclass(frozen=True)
class Size:
    """Parameters of a part: all, those in weights of linear layers (what quantisation shrinks), the largest such weight, the
    largest of all.
    """

    total: int
    linear: int
    largest_linear: int
    largest: int

    @classmethod
    def of(cls, module: nn.Module) -> "Size":
        """A module's; shared parameters count once."""
        linear = {id(m.weight): m.weight.numel() for m in module.modules() if isinstance(m, nn.Linear)}
        every = [weight.numel() for weight in module.parameters()]
        return cls(sum(every), sum(linear.values()), max(linear.values(), default=0), max(every, default=0))

    def bytes(self, precision: str) -> float:
        """Bytes of the weights. `nf4` keeps one float32 scale per 64 weights (QLoRA §3, without double quantisation)."""
        rest = 4.0 if precision == "float32" else 2.0
        linear = {"int8": 1.0, "nf4": 0.5 + 4 / 64}.get(precision, rest)
        return self.linear * linear + (self.total - self.linear) * rest


@dataclass(frozen=True)
class Need:
    """Parameters of each part and of LoRA, and bytes that each phase takes on top of its weights."""

    sizes: dict[str, Size]
    lora: int
    encode_prompts: int
    encode_images: int
    decode_images: int
    forward: int
    train: int
    train_checkpointed: int
    dtype: str


def _fused(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0, is_causal: bool = False,
    *, scale: float | None = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
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
    """Adds up the bytes of storages that operators make and that are still alive; `peak` is the most at any time.

    Storages of `known` modules (their weights) are not counted.
    """

    def __init__(self, *known: nn.Module) -> None:
        super().__init__()
        self.live = self.peak = 0
        tensors = [t for module in known for t in (*module.parameters(), *module.buffers())]
        self._seen = {t.untyped_storage()._cdata for t in tensors}

    def _track(self, tensor: Tensor) -> Tensor:
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
        return tree_map_only(Tensor, self._track, func(*args, **(kwargs or {})))


def _peak(modules: tuple[nn.Module, ...], run: Callable[[], object]) -> int:
    with _fused_attention(), PeakMemory(*modules) as memory:
        run()
    return memory.peak


def measure(configs: dict[str, dict[str, Any]], layout: Layout, backbone: Backbone, lora: Lora, train: Train) -> Need:
    """Dry-run every phase on the meta device, at the resolution, prompt length and precision of `backbone`.

    A training batch of a contrastive loss goes through the transformer under g⁺ and g⁻ at once. Raises `ModelError`, or
    `ParamsError` for blocks, targets or a resolution that do not fit the model.
    """
    dtype, shape = DTYPES[backbone.dtype], layout.latent_shape(backbone.resolution)
    parts = {name: build(config) for name, config in configs.items()}
    sizes = {name: Size.of(part) for name, part in parts.items()}
    for part in parts.values():
        nn.Module.to(part, dtype)
    transformer, vae, family = parts["transformer"], parts["vae"], family_of_configs(configs)
    family.prepare(transformer)
    encoders = tuple(parts[name] for name in _encoders(family))
    rows, pooled = family.condition_size(configs, backbone.max_sequence_length)

    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, device="meta", dtype=dtype)

    def encode_prompts() -> None:
        for encoder in encoders:
            # a chat model, with its head or without: its prompts may be shorter than it allows, and all layers' states are kept
            language = any(hasattr(encoder, part) for part in ("lm_head", "rotary_emb", "language_model"))
            length = backbone.max_sequence_length
            length = length if language else getattr(encoder.config, "max_position_embeddings", length)
            tokens = torch.zeros(CACHE_BATCH, length, dtype=torch.long, device="meta")
            if language:
                mask = torch.ones(CACHE_BATCH, 1, length, length, dtype=torch.bool, device="meta")
                read = encoder if family.logits else encoder.base_model
                read(tokens, attention_mask=mask, output_hidden_states=True, use_cache=family.logits)
            else:
                encoder(tokens)

    def step(backward: bool) -> None:
        """A forward, or forward and backward with the graph tokens (and so the text stream) receiving gradients."""
        batch = train.batch_size * (2 if backward and train.losses.contrastive else 1)
        transformer.train(backward)
        with torch.set_grad_enabled(backward):
            states = empty(batch, rows + GRAPH_TOKENS, layout.text_width).requires_grad_(backward)
            condition = TextCondition(states, None if pooled is None else empty(batch, pooled), prepended=GRAPH_TOKENS)
            scale = 1.0 if layout.guidance else None
            velocity = family.velocity(transformer, empty(batch, *shape), empty(batch), condition, scale)
            if backward:
                (velocity - torch.empty_like(velocity)).square().mean().backward()
        transformer.zero_grad(set_to_none=True)

    with torch.no_grad():
        frame = (1,) if family.frames else ()
        pixels = empty(CACHE_BATCH, 3, *frame, backbone.resolution, backbone.resolution)
        latents = vae.encode(pixels).latent_dist.mode()
        prompts = _peak(encoders, encode_prompts)
        encode = _peak((vae,), lambda: vae.encode(pixels))
        decode = _peak((vae,), lambda: vae.decode(latents))
    forward = _peak((transformer,), lambda: step(False))
    weights = attach(transformer, target_modules(layout, lora), lora, seed=0)
    nn.Module.to(transformer, dtype)
    plain = _peak((transformer,), lambda: step(True))
    transformer.enable_gradient_checkpointing()
    checkpointed = _peak((transformer,), lambda: step(True))
    phases = prompts, encode, decode, forward, plain, checkpointed
    return Need(sizes, count(weights), *phases, backbone.dtype)
