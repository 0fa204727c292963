"""An adapter's folder: LoRA as diffusers reads it, graph tokens, and what the two belong to.

- `pytorch_lora_weights.safetensors`: taken by `load_lora_weights` of the family's pipeline; absent without LoRA.
- `graph_tokens.safetensors`: projector, roles, gate; absent where graphs are not read.
- `graph_encoder/`: the encoder that the tokens read, where they read one.
- `adapter.json`: arm, parameters, base, blocks, counts, seed, and the names and predicates of its training triples; nothing of
  when, where or by which commit it was trained.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from sgpipe.arms.conditioning import GraphConditioner, read_encoder
from sgpipe.arms.model import GraphLora
from sgpipe.arms.resolve import Arm
from sgpipe.arms.targeting import attach, count, plain_name, target_modules
from sgpipe.backbones.base import Family
from sgpipe.backbones.config import Backbone
from sgpipe.backbones.denoiser import Denoiser
from sgpipe.backbones.loading import load_plain
from sgpipe.backbones.source import identity
from sgpipe.backbones.strict import check_state, write_tensors
from sgpipe.errors import ModelError
from sgpipe.graph_encoder.checkpoints import load_encoder, load_strictly, save_encoder
from sgpipe.params.load import decode, to_builtins
from sgpipe.runs.atomic import write_json

LORA_FILE, TOKENS_FILE, ENCODER, ABOUT = (
    "pytorch_lora_weights.safetensors",
    "graph_tokens.safetensors",
    "graph_encoder",
    "adapter.json",
)
_PREFIX = "transformer"


def base_identity(backbone: Backbone, family: Family) -> dict[str, Any]:
    """What an adapter was trained on and fits to: the transformer, and the encoder whose vectors its tokens carry."""
    return identity(backbone, ("transformer", family.name_parts[0]))


def build(
    denoiser: Denoiser, backbone: Backbone, arm: Arm, text_scale: float, folder: Path | None = None
) -> GraphLora:
    """`denoiser` with fresh LoRA and tokens for an arm; a graph encoder is read from `folder`, if that is given, else as the
    parameters say. Raises `ParamsError` for blocks or targets that the model lacks.
    """
    layout = denoiser.layout
    weights = attach(denoiser.transformer, target_modules(layout, arm.lora), arm.lora)
    conditioner = None
    if arm.graph_tokens is not None:
        params = arm.graph_tokens
        given = read_encoder(params) if folder is None else None
        if folder is not None and params.needs_encoder:
            given = load_encoder(folder / ENCODER)
        conditioner = GraphConditioner(
            params,
            layout.text_width,
            text_scale,
            seed=arm.lora.seed,
            encoder=given,
            words=load_plain(backbone, denoiser.family.name_parts[1])
            if params.injection == "residual"
            else None,
            word_rows=backbone.max_sequence_length,
        ).to(denoiser.device)
    precision = torch.bfloat16 if arm.lora.precision == "bfloat16" else None
    lora = arm.lora
    times = (lora.times.low, lora.times.high) if lora.acts == "trained" else (0.0, 1.0)
    return GraphLora(denoiser, conditioner, weights, lora.guidance, precision, times)


def counts(model: GraphLora) -> dict[str, int]:
    """Trained numbers by part, and the modules that carry LoRA."""
    trained = model.trainable()
    lora = {name: weight for name, weight in trained.items() if name.startswith("lora.")}
    return {
        "lora_parameters": count(lora),
        "token_parameters": count(trained) - count(lora),
        "lora_modules": len(lora) // 2,
    }


def save_adapter(
    folder: Path,
    model: GraphLora,
    arm: Arm,
    backbone: Backbone,
    modules: Sequence[str],
    facts: Mapping[str, Any],
) -> None:
    """Write an adapter's folder; the same weights give the same bytes. `facts` go into `adapter.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    if model.weights:
        tensors = {f"{_PREFIX}.{plain_name(name)}": weight for name, weight in model.weights.items()}
        about = {f"{_PREFIX}.{key}": value for key, value in {
            "r": arm.lora.rank, "lora_alpha": arm.lora.alpha, "target_modules": sorted(modules),
        }.items()}  # fmt: skip
        write_tensors(
            tensors, folder / LORA_FILE, {"lora_adapter_metadata": json.dumps(about, sort_keys=True)}
        )
    if model.conditioner is not None:
        write_tensors(model.conditioner.projector(), folder / TOKENS_FILE, {"format": "pt"})
        if model.conditioner.encoder is not None:
            (folder / ENCODER).mkdir(exist_ok=True)
            save_encoder(folder / ENCODER, model.conditioner.encoder, model.conditioner.vocabulary)
    lora = arm.lora
    write_json(
        {
            **arm.plain(),
            **facts,
            "backbone": to_builtins(backbone),
            "base": base_identity(backbone, model.denoiser.family),
            "blocks": list(lora.blocks.indices or ()),
            "single_blocks": list(lora.single_blocks.indices or ()),
            "seed": lora.seed,
            **counts(model),
        },
        folder / ABOUT,
        digits=None,
    )


def read_about(folder: Path) -> dict[str, Any]:
    """`adapter.json`. Raises `ModelError` for a folder that is no adapter."""
    path = folder / ABOUT
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        about["arm"], about["lora"], about["graph_tokens"], about["backbone"], about["base"]
    except FileNotFoundError:
        raise ModelError(
            f"{path}: no such file; {folder} is no adapter folder (`dvc repro train_lora` makes one)"
        ) from None
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise ModelError(f"{path}: not an adapter's description ({error}); train or fetch it again") from None
    return about


def backbone_of(about: Mapping[str, Any], source: Path) -> Backbone:
    """The section `backbone` that an adapter was trained with."""
    return decode("backbone", about["backbone"], Backbone, str(source / ABOUT))


def load_adapter(folder: Path, denoiser: Denoiser, backbone: Backbone) -> GraphLora:
    """`denoiser` with the adapter in `folder`, frozen. Raises `ModelError` for an adapter of another base, or a damaged one."""
    about = read_about(folder)
    found = base_identity(backbone, denoiser.family)
    if about["base"] != found:
        raise ModelError(
            f"{folder}: trained on another base than {backbone.model} (by the hash of transformer and text encoder); give the "
            f"model it was trained on ({about['backbone']['model']}), or train again"
        )
    arm = Arm.read(about, str(folder / ABOUT))
    model = build(denoiser, backbone, arm, 1.0, folder)
    denoiser.transformer.eval()  # peft adds its modules, dropout among them, in training mode
    if model.weights:
        state = _load(folder / LORA_FILE)
        names = {f"{_PREFIX}.{plain_name(name)}": weight for name, weight in model.weights.items()}
        check_state(state, names, folder / LORA_FILE, f"blocks and rank are those in {ABOUT}; fetch it again")
        with torch.no_grad():
            for name, weight in names.items():
                weight.copy_(state[name])
                weight.requires_grad_(False)
    if model.conditioner is not None:
        own = _load(folder / TOKENS_FILE)
        encoder = {k: v for k, v in model.conditioner.state_dict().items() if k.startswith("encoder.")}
        load_strictly(model.conditioner, {**own, **encoder}, folder / TOKENS_FILE)
        model.conditioner.requires_grad_(False).eval()
    return model


def _load(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path}: cannot be read ({error}); train or fetch the adapter again") from None
