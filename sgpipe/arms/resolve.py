"""What the parameters mean for each arm, written one way, so that two spellings of a meaning train once."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import replace as with_fields
from pathlib import Path
from typing import Any, Literal

from msgspec import Struct
from msgspec.structs import replace

from sgpipe.arms.config import ArmOptions
from sgpipe.arms.kinds import KINDS
from sgpipe.arms.kinds.base import Adapter, External, Kind, Sections
from sgpipe.attention_maps.config import Maps
from sgpipe.errors import DataError, ParamsError
from sgpipe.params.load import decode, to_builtins
from sgpipe.params.moved import with_moved
from sgpipe.training.config import Conditions, Losses, Margin, Preference, Ranking, Times, Train, Weighted


@dataclass(frozen=True)
class Arm:
    """What one arm trains, in canonical form: equal meanings are equal here.

    `settings` are those of its kind; `maps` is None where no loss reads saliency maps, `triples` where it is trained on all.
    """

    name: str
    kind: str
    settings: Struct
    train: Train
    maps: Maps | None = None
    triples: tuple[str, ...] | None = None

    @property
    def kind_class(self) -> type[Kind]:
        """The class of its kind."""
        return KINDS[self.kind]

    @property
    def external(self) -> bool:
        """Whether it is a generator of its own, which nothing here trains."""
        return issubclass(self.kind_class, External)

    @property
    def adapter(self) -> type[Adapter]:
        """The class of its kind, which adds to the backbone. Raises `ParamsError` for a generator of its own."""
        kind = self.kind_class
        if not issubclass(kind, Adapter):
            raise ParamsError(f"arms.{self.name}.kind: got {self.kind}, a generator of its own, which adds nothing to the backbone")
        return kind

    def plain(self) -> dict[str, Any]:
        """As JSON holds it. Tokens that enter at block 0, or with names read alone, are not said to, as arms of before these
        knobs: equal meanings are equal."""
        parts = {"settings": self.settings, "train": self.train, "maps": self.maps}
        plain = {key: to_builtins(part) for key, part in parts.items()}
        tokens = plain["settings"].get("graph_tokens", {})
        if not tokens.get("enter"):
            tokens.pop("enter", None)
        if tokens.get("names") == "alone":
            tokens.pop("names")
        only = {} if self.triples is None else {"triples": list(self.triples)}
        return {"arm": self.name, "kind": self.kind, **plain, **only}

    @classmethod
    def read(cls, plain: Mapping[str, Any], source: str) -> "Arm":
        """From what `plain` gave. Raises `ParamsError` naming the key at fault."""
        kind, maps = plain["kind"], plain["maps"]
        if kind not in KINDS:
            raise ParamsError(f"{source}: kind: got {kind!r}; valid: {', '.join(KINDS)}")
        return cls(
            plain["arm"],
            kind,
            decode("settings", plain["settings"], KINDS[kind].settings, source),
            decode("train", plain["train"], Train, source),
            None if maps is None else decode("maps", maps, Maps, source),
            tuple(plain["triples"]) if "triples" in plain else None,
        )


def updated(plain: Mapping[str, Any]) -> dict[str, Any]:
    """What `Arm.plain` gives, from that of a version which kept `lora` and `graph_tokens` side by side and knew arms by name."""
    tokens, moved = plain["graph_tokens"], with_moved({"lora": plain["lora"]})
    lora = moved["lora"]
    settings = {"lora": lora} if tokens is None else {"lora": lora, "graph_tokens": tokens}
    rest = {key: value for key, value in plain.items() if key not in ("lora", "graph_tokens")}
    kind = "text_lora" if tokens is None else "graph_lora"
    return {**rest, "kind": kind, "settings": settings, "train": moved["train"]}


def resolve(name: str, options: ArmOptions, sections: Sections, device: str = "auto") -> Arm:
    """The arm of this name in canonical form. Raises `ParamsError` for blocks that the model lacks.

    What a choice leaves without effect gets its default value: settings of losses of weight 0 and of another density, prompts and
    the tokens' learning rate where graphs go in words. Precision `auto` becomes the faster one on `device`, which is a value of
    `compute.device`.
    """
    given = sections.train
    train = replace(
        given,
        seed=given.seed if options.seed is None else options.seed,
        keep_epochs=tuple(sorted(given.keep_epochs)),
        optimiser=replace(given.optimiser, learning_rate=options.learning_rate or given.optimiser.learning_rate),
        losses=_losses(given.losses),
        precision=_precision(given.precision, device),
        times=_times(given.times),
    )
    if not options.reads_graph:
        train = replace(
            train, conditions=Conditions(neutral=0.0, relational=1.0), optimiser=replace(train.optimiser, token_lr_multiplier=1.0)
        )
    settings = KINDS[options.kind].resolve(f"arms.{name}", options, with_fields(sections, train=train))
    triples = None if options.triples is None else tuple(sorted(set(options.triples)))
    return Arm(name, options.kind, settings, train, _maps(train.losses, sections.maps), triples)


def _precision(given: Literal["float32", "bfloat16", "auto"], device: str) -> Literal["float32", "bfloat16"]:
    if given != "auto":
        return given
    from sgpipe.optim.precision import choose  # imports what it measures with
    from sgpipe.runs.processes import pick_device

    return choose(pick_device(device, 0))


def _losses(losses: Losses) -> Losses:
    without = {"margin": Margin(weight=0.0), "preference": Preference(), "ranking": Ranking(), "saliency": Weighted()}
    return replace(losses, **{name: plain for name, plain in without.items() if not getattr(losses, name).weight})


def _maps(losses: Losses, maps: Maps | None) -> Maps | None:
    """What the losses read of `maps`: their groups, and how maps are made."""
    wanted = {term.group for term in (losses.ranking, losses.saliency) if term.weight}
    if not wanted:
        return None
    groups = {} if maps is None else maps.groups
    lacking = sorted(wanted - groups.keys())
    if maps is None or lacking:
        raise ParamsError(f"train.losses: group {lacking[0]!r} is not in maps.groups; valid: {', '.join(groups) or 'none'}")
    used = {name: blocks for name, blocks in groups.items() if name in wanted}
    return Maps(used, maps.normalisation, maps.concept_tokens, maps.variant, maps.side)


def _times(times: Times) -> Times:
    read = {"uniform": (), "sampler": ("steps",), "logit_normal": ("mean", "deviation")}[times.density]
    return Times(**{name: getattr(times, name) for name in ("density", "low", "high", *read)})


def read_arm(path: Path) -> Arm:
    """What stage `resolve` wrote for an arm. Raises `DataError` where there is none."""
    try:
        return Arm.read(json.loads(path.read_text(encoding="utf-8")), str(path))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; name the arm in `arms` and run `dvc repro resolve`") from None
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: is no resolved arm ({error}); run `dvc repro resolve`") from None
