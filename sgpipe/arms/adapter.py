"""An adapter's folder: what its kind saves, and what that belongs to.

- `pytorch_lora_weights.safetensors`: taken by `load_lora_weights` of the family's pipeline; absent without LoRA.
- `graph_tokens.safetensors`: projector, roles, gate; absent where graphs are not read.
- `graph_encoder/`: the encoder that the tokens read, where they read one.
- `README.md`: the model card, without figures (`sgpipe adapter card`).
- `adapter.json`: arm, kind, settings, training, base, counts, the relation classes in force in training, and the names and
  predicates of its training triples; nothing of when, where or by which commit it was trained.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from sgpipe.arms.card import CARD, card_text
from sgpipe.arms.kinds.base import Adapter, Base
from sgpipe.arms.lora import count
from sgpipe.arms.model import ArmModel
from sgpipe.arms.resolve import Arm, updated
from sgpipe.backbones.base import Family, Layout
from sgpipe.backbones.config import Backbone
from sgpipe.backbones.denoiser import Denoiser
from sgpipe.backbones.source import identity
from sgpipe.errors import ModelError, ParamsError
from sgpipe.params.load import decode, to_builtins
from sgpipe.relations.predicates import PREDICATES, class_definitions, own_relations, phrase, use_classes
from sgpipe.runs.atomic import write_json
from sgpipe.training.config import Train

ABOUT = "adapter.json"
RELATIONS = "relations"
"""Key of `adapter.json`: the relation classes that were in force in training, as `class_definitions` gives them."""


def base_identity(backbone: Backbone, family: Family) -> dict[str, Any]:
    """What an adapter was trained on and fits to: the transformer, and the encoder whose vectors its tokens carry."""
    return identity(backbone, ("transformer", family.name_parts[0]))


def use_classes_of(about: Mapping[str, Any], source: Path) -> None:
    """Put the relation classes of an adapter in force in this process, unless own ones are: for commands that read no parameters.

    An adapter of an older version states none.
    """
    if RELATIONS in about and not own_relations() and about[RELATIONS] != class_definitions():
        use_classes(about[RELATIONS], str(source / ABOUT))


def _classes_of(about: Mapping[str, Any], source: Path) -> tuple[str, ...]:
    """The classes that an adapter was trained with. Raises `ModelError` where one has another phrase in this process, whose words
    the adapter was never told.
    """
    stated = about.get(RELATIONS, class_definitions())
    for each in stated:
        said = each.get("phrase", each["name"])
        if (now := phrase(each["name"])) != said:
            raise ModelError(
                f"{source}: trained with the words {said!r} for the relation {each['name']!r}, which are {now!r} here; set "
                "data.relations to the classes it was trained with, or open it in a process of its own"
            )
    return tuple(each["name"] for each in stated)


def _model(denoiser: Denoiser, adapter: Adapter, train: Train, classes: Sequence[str]) -> ArmModel:
    precision = torch.bfloat16 if train.precision == "bfloat16" else None
    times = (train.times.low, train.times.high) if train.active_timesteps == "trained" else (0.0, 1.0)
    return ArmModel(denoiser, adapter, train.guidance, precision, times, classes)


def check_guidance(layout: Layout, train: Train) -> None:
    """Raises `ParamsError` where `train.guidance` is missing for a guidance-distilled transformer, or given to another one.

    That is trained on conditional velocities, and guided in sampling alone.
    """
    if layout.guidance and train.guidance is None:
        raise ParamsError("train.guidance: got null; this transformer takes the scale as an input: set it (FLUX.1-dev: 3.5)")
    if not layout.guidance and train.guidance is not None:
        raise ParamsError(
            f"train.guidance: got {train.guidance:g}; this transformer takes no scale and is trained on conditional velocities: "
            "set it to null, and evaluate.guidance for classifier-free guidance in sampling"
        )


def build(denoiser: Denoiser, backbone: Backbone, arm: Arm, text_scale: float) -> ArmModel:
    """`denoiser`, frozen, with what the arm adds to it, fresh.

    Raises `ParamsError` for blocks or targets that the model lacks, and as `check_guidance`.
    """
    check_guidance(denoiser.layout, arm.train)
    denoiser.transformer.requires_grad_(False)
    base = Base(denoiser, backbone, arm.train.seed, text_scale, tuple(PREDICATES))
    return _model(denoiser, arm.adapter.build(arm.settings, base), arm.train, base.classes)


def counts(model: ArmModel) -> dict[str, int]:
    """Trained numbers by part, and the modules that carry LoRA."""
    groups = {"lora": {}, "tokens": {}, **model.adapter.parameters()}
    found = {f"{group.removesuffix('s')}_parameters": count(weights) for group, weights in groups.items()}
    return {**found, "lora_modules": len(groups["lora"]) // 2}


def save_adapter(folder: Path, model: ArmModel, arm: Arm, backbone: Backbone, facts: Mapping[str, Any]) -> None:
    """Write an adapter's folder; the same weights give the same bytes. `facts` go into `adapter.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    model.adapter.save(folder)
    about = {
        **arm.plain(),
        **facts,
        "backbone": to_builtins(backbone),
        "base": base_identity(backbone, model.denoiser.family),
        RELATIONS: class_definitions(),
        **counts(model),
    }
    write_json(about, folder / ABOUT, digits=None)
    (folder / CARD).write_text(card_text(about, model.denoiser.family.pipeline), encoding="utf-8")


def read_about(folder: Path) -> dict[str, Any]:
    """`adapter.json`, that of an older version in the present form. Raises `ModelError` for a folder that is no adapter."""
    path = folder / ABOUT
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        about = about if "kind" in about else updated(about)
        about["arm"], about["settings"], about["train"], about["maps"], about["backbone"], about["base"]
    except FileNotFoundError:
        raise ModelError(f"{path}: no such file; {folder} is no adapter folder (`dvc repro train_lora` makes one)") from None
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise ModelError(f"{path}: not an adapter's description ({error}); train or fetch it again") from None
    return about


def backbone_of(about: Mapping[str, Any], source: Path) -> Backbone:
    """The section `backbone` that an adapter was trained with."""
    return decode("backbone", about["backbone"], Backbone, str(source / ABOUT))


def load_adapter(folder: Path, denoiser: Denoiser, backbone: Backbone) -> ArmModel:
    """`denoiser` with the adapter in `folder`, frozen. Raises `ModelError` for an adapter of another base, or a damaged one."""
    about = read_about(folder)
    check_base(folder, about, denoiser.family, backbone)
    return open_adapter(folder, about, denoiser, backbone)


def check_base(folder: Path, about: Mapping[str, Any], family: Family, backbone: Backbone) -> None:
    """Raises `ModelError` where an adapter was trained on another base than `backbone`, or is none: a generator of its own."""
    if about["base"] is None:
        raise ModelError(
            f"{folder}: arm of kind {about['kind']}, a generator of its own and no adapter; sample it by its own command "
            f"(`{Arm.read(about, str(folder / ABOUT)).kind_class.command}`)"  # type: ignore[attr-defined]
        )
    found = base_identity(backbone, family)
    if about["base"] != found:
        raise ModelError(
            f"{folder}: trained on another base than {backbone.model} (by the hash of transformer and text encoder); give the "
            f"model it was trained on ({about['backbone']['model']}), or train again"
        )


def open_adapter(folder: Path, about: Mapping[str, Any], denoiser: Denoiser, backbone: Backbone) -> ArmModel:
    """As `load_adapter`, of a base that is known to be the right one."""
    arm, classes = Arm.read(about, str(folder / ABOUT)), _classes_of(about, folder)
    denoiser.transformer.requires_grad_(False)
    base = Base(denoiser, backbone, arm.train.seed, text_scale=1.0, classes=classes)
    model = _model(denoiser, arm.adapter.load(arm.settings, base, folder), arm.train, classes)
    for weight in model.trainable().values():
        weight.requires_grad_(False)
    for part in (denoiser.transformer, *model.adapter.modules()):
        part.requires_grad_(False).eval()  # peft adds its modules, dropout among them, in training mode
    return model
