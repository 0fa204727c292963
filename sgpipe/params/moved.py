"""Knobs that have moved: where those of an older params.yaml, or of an adapter that was trained with it, are now."""

from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import Any, Final

from sgpipe.errors import ParamsError

_TRAIN = ("losses", "times", "conditions", "optimiser", "epochs", "batch_size", "precision", "attention", "compile")
MOVED: Final[dict[str, str]] = {
    "evaluate.draw": "evaluate.conditions",
    "saliency.pictures": "saliency.images",
    "lora.optimiser.rate": "train.optimiser.learning_rate",
    "lora.optimiser.token_rate": "train.optimiser.token_lr_multiplier",
    "lora.validation.pictures": "train.validation.images",
    "lora.acts": "train.active_timesteps",
    "lora.accumulation": "train.gradient_accumulation_steps",
    "lora.ema": "train.ema_decay",
    "lora.checkpointing": "train.gradient_checkpointing",
    "lora.development": "curate.dev",
    **{f"lora.{name}": f"train.{name}" for name in _TRAIN},
    **{f"lora.{name}": f"train.{name}" for name in ("guidance", "validation", "keep_epochs", "save_every", "seed")},
    "train.dev": "curate.dev",
    "lora.arms": "arms.<name>, each with a kind (graph: {kind: graph_lora}, text_only: {kind: text_lora}, projector_only: {kind: "
    "graph_tokens}, random_blocks: {kind: graph_lora, blocks: random}; -seed<n>: seed: <n>)",
}  # fmt: skip
"""Old key to new place; what is within a mapping comes before the mapping."""


def _pop(raw: Any, key: str) -> Iterator[Any]:
    """Take the value at a dotted key out of nested mappings, if it is there."""
    *parents, last = key.split(".")
    for name in parents:
        raw = raw.get(name) if isinstance(raw, dict) else None
    if isinstance(raw, dict) and last in raw:
        yield raw.pop(last)


def with_moved(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Plain sections with every moved knob in its new place; `lora.arms` is left out, since its arms have kinds now."""
    made = deepcopy(dict(raw))
    for old, new in MOVED.items():
        for value in _pop(made, old):
            if old == "lora.arms":
                continue
            place, (*parents, last) = made, new.split(".")
            for name in parents:
                place = place.setdefault(name, {})
            place[last] = place.get(last, {}) | value if isinstance(value, dict) else value
    return made


def refuse_moved(raw: Mapping[str, Any], source: str) -> None:
    """Raise `ParamsError` for sections of an older params.yaml, naming the new place of each key that has moved."""
    rest = deepcopy(dict(raw))
    if found := [f"{old} is now {new}" for old, new in MOVED.items() for _ in _pop(rest, old)]:
        raise ParamsError(f"{source}: written for an older version: {'; '.join(found)}; move them (docs/parameters.md)")
