"""LoRA (Hu et al. 2022) on exactly the projections asked for, by peft, and its file as diffusers reads it."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import torch
from msgspec.structs import replace
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from sgpipe.arms.config import Lora, LoraOptions
from sgpipe.arms.kinds.base import Base, Sections
from sgpipe.backbones.base import Layout
from sgpipe.backbones.rectified_flow import generator
from sgpipe.backbones.strict import check_state, write_tensors
from sgpipe.errors import ModelError, ParamsError
from sgpipe.params.blocks import Blocks

NAME = "default"
LORA_FILE = "pytorch_lora_weights.safetensors"
_PREFIX = "transformer"


def random_blocks(chosen: Sequence[int], count: int, seed: int, key: str, asked: str) -> tuple[int, ...]:
    """As many of `count` blocks as `chosen`, those of knob `key`, has, another set than that.

    Raises `ParamsError` naming the knob `asked` where there is no other.
    """
    if not chosen:
        return ()
    if len(chosen) == count:
        raise ParamsError(
            f"{asked}: got random; {key} names all {count} blocks, so there is no other set of as many: name fewer there, or "
            "blocks here"
        )
    random = generator(seed, "random blocks", key)
    while True:
        drawn = tuple(sorted(torch.randperm(count, generator=random)[: len(chosen)].tolist()))
        if drawn != tuple(chosen):
            return drawn


def resolve_lora(key: str, options: LoraOptions, sections: Sections) -> Lora:
    """Section `lora` with what arm `key` says otherwise, in canonical form: block sets as ascending indices, targets in one order.

    Without blocks all else has its default value. Raises `ParamsError` for blocks that the model lacks.
    """
    given, backbone = options.given(), sections.backbone
    for name, count in (("blocks", backbone.double_blocks), ("single_blocks", backbone.single_blocks)):
        shared, own = getattr(sections.lora, name), given.get(name)
        if own is not None and not own.random:
            indices = own.resolve(count, f"{key}.{name}")
        else:
            indices = shared.resolve(count, f"lora.{name}")
        if own is not None and own.random:
            indices = random_blocks(indices, count, sections.train.seed, f"lora.{name}", f"{key}.{name}")
        given[name] = Blocks(indices)
    if not any(given[name].indices for name in ("blocks", "single_blocks")):
        return Lora(Blocks(()))
    made = replace(sections.lora, **given)
    return replace(made, targets=tuple(sorted(made.targets)))


_FUNCTIONS: Final[dict[str, str]] = {
    "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "o",
    "add_q_proj": "q", "add_k_proj": "k", "add_v_proj": "v", "to_add_out": "o",
    "proj_out": "o", "to_qkv_mlp_proj": "qkv", "to_out": "o",
    "to_gate": "",
    "attn2.to_q": "", "attn2.to_k": "", "attn2.to_v": "", "attn2.to_out.0": "",
}  # fmt: skip
"""What a target computes: query, key, value, output. Where text and image share weights, one module does it for both, and a fused
one all of its functions. Nothing else does what a second attention or an output gate does."""


def target_modules(layout: Layout, lora: Lora) -> list[str]:
    """Full module names that get LoRA, block by block.

    Raises `ParamsError` for blocks that the model lacks, for a target that reaches no module, and for one that a named stream lacks
    where what does the same there is no target.
    """
    double = lora.blocks.resolve(layout.double_blocks, "lora.blocks")
    single = lora.single_blocks.resolve(layout.single_blocks, "lora.single_blocks")
    there = {name.removeprefix("attn."): name for name in (*layout.image_projections, *layout.text_projections)}
    there |= {name: name for name in layout.second_projections}
    names: list[str] = []
    valid: dict[str, Mapping[str, str]] = {}
    found: set[tuple[str, str]] = set()
    for knob, blocks, block, parts in (
        (f"lora.blocks {lora.blocks}", double, layout.double_block, there),
        (f"lora.single_blocks {lora.single_blocks}", single, layout.single_block, layout.single_projections),
    ):
        for index in blocks:
            valid[knob] = parts
            for target in lora.targets:
                name = f"{block.format(index=index)}.{parts.get(target)}"
                if target in parts and name not in layout.lacking:
                    names.append(name)
                    found.add((knob, target))
    for knob, parts in valid.items():
        for target in lora.targets:
            does = set(_FUNCTIONS[target])
            same = [] if target in parts else [name for name in parts if does & set(_FUNCTIONS[name])]
            nowhere = not any((each, target) in found for each in valid)
            if (knob, target) not in found and (nowhere or not found & {(knob, name) for name in same}):
                instead = f"; the same is done there by {' and '.join(same)}" if same else ""
                raise ParamsError(
                    f"lora.targets: {target}: none of {knob} has it{instead}; valid there: {', '.join(parts)}; "
                    f"{'drop it' if nowhere or not same else f'add {same[0]}'}, or name other blocks"
                )
    return names


def attach(transformer: Any, names: Sequence[str], lora: Lora, seed: int, adapter: str = NAME) -> dict[str, nn.Parameter]:
    """Inject LoRA into `names` and nothing else; everything else is frozen. The trainable weights by name, in float32.

    Of several adapters of a transformer, by peft's name `adapter`, the last one is active.

    Down-projections start as Kaiming-uniform draws that depend on the seed and the module's name, up-projections at 0, so the
    model's function does not change. Raises `ModelError` if peft matched other modules than those asked for.
    """
    transformer.requires_grad_(False)
    if not names:
        return {}
    from peft import LoraConfig  # takes seconds, and only what carries LoRA needs it

    config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=list(names), bias="none")
    transformer.add_adapter(config, adapter_name=adapter)
    weights: dict[str, nn.Parameter] = {}
    for name, parameter in transformer.named_parameters():
        if ".lora_" not in name or f".{adapter}." not in name:
            continue
        parameter.data = parameter.data.float()
        if ".lora_A." in name and parameter.device.type != "meta":
            bound = 1 / math.sqrt(parameter.shape[1])
            draw = torch.rand(parameter.shape, generator=generator(seed, "lora", name))
            parameter.data.copy_((2 * draw - 1) * bound)
        weights[name] = parameter
    matched = {name.partition(".lora_")[0] for name in weights}
    if matched != set(names):
        odd = sorted(matched ^ set(names))
        raise ModelError(f"LoRA sits on other modules than asked for: {', '.join(odd[:5])}; these differ")
    return weights


def count(weights: dict[str, Tensor] | dict[str, nn.Parameter]) -> int:
    """Numbers in all weights."""
    return sum(weight.numel() for weight in weights.values())


@dataclass(frozen=True)
class LoraLayers:
    """LoRA inside a transformer: its weights by name, and the full names of modules that carry it; both empty without blocks."""

    transformer: Any
    lora: Lora
    names: tuple[str, ...]
    weights: dict[str, nn.Parameter]
    first: int = 0
    """The first block that carries it, single-stream blocks after double-stream ones."""
    adapter: str = NAME

    @classmethod
    def open(cls, base: Base, lora: Lora, folder: Path | None, adapter: str = NAME) -> Self:
        """On the blocks and targets of `lora`, with the weights in `folder`; for None fresh, as `attach` says.

        Raises `ModelError` for a file that is damaged or holds others.
        """
        transformer, layout = base.denoiser.transformer, base.denoiser.layout
        names = target_modules(layout, lora)
        double, single = (
            lora.blocks.resolve(layout.double_blocks, "lora.blocks"),
            lora.single_blocks.resolve(layout.single_blocks, ""),
        )
        first = min([*double, *(layout.double_blocks + index for index in single), layout.double_blocks + layout.single_blocks])
        made = cls(transformer, lora, tuple(names), attach(transformer, names, lora, base.seed, adapter), first, adapter)
        if folder is not None and made.weights:
            state, wanted = load_tensors(folder / LORA_FILE), made.tensors()
            check_state(state, wanted, folder / LORA_FILE, "blocks and rank are those in adapter.json; fetch it again")
            with torch.no_grad():
                for name, weight in wanted.items():
                    weight.copy_(state[name])
        return made

    def tensors(self) -> dict[str, nn.Parameter]:
        """The weights by their names in a file: that of the pipeline's part before, that of peft's adapter left out."""
        return {f"{_PREFIX}.{name.replace(f'.{self.adapter}.', '.')}": weight for name, weight in self.weights.items()}

    def save(self, folder: Path) -> None:
        """Write what `load_lora_weights` of the family's pipeline takes; nothing without weights."""
        if not self.weights:
            return
        about = {"r": self.lora.rank, "lora_alpha": self.lora.alpha, "target_modules": sorted(self.names)}
        about = {f"{_PREFIX}.{key}": value for key, value in about.items()}
        write_tensors(self.tensors(), folder / LORA_FILE, {"lora_adapter_metadata": json.dumps(about, sort_keys=True)})

    def scale(self, strength: float) -> None:
        """Multiply all updates: W + s·(α/r) B A."""
        for name in self.names:
            self.transformer.get_submodule(name).set_scale(NAME, strength)

    @contextmanager
    def off(self) -> Iterator[None]:
        """Within the body the transformer runs without LoRA, to the bit."""
        if not self.weights:
            yield
            return
        wanted = {name: weight.requires_grad for name, weight in self.weights.items()}
        self.transformer.disable_adapters()
        try:
            yield
        finally:
            self.transformer.enable_adapters()
            for name, weight in self.weights.items():
                weight.requires_grad_(wanted[name])


def load_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file of an adapter. Raises `ModelError` for one that cannot be read."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path}: cannot be read ({error}); train or fetch the adapter again") from None
