"""What is averaged into a map. Concepts as the transformer's text side takes them: one T5 vector each."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor

from sgpipe.attention_maps.config import Normalisation, Pooling, Variant
from sgpipe.errors import ParamsError
from sgpipe.params.blocks import Blocks, LayerGroup


def concept_embeddings(hidden_states: Tensor, token_mask: Tensor, pooling: Pooling = "first") -> Tensor:
    """One vector per concept `[C, d_T5]` from T5's states `[C, L, d_T5]`.

    Each concept string is encoded alone, padded to the backbone's maximum length without an attention mask (padding takes part).
    `first` keeps token 0, as published; `mean` averages the tokens of `token_mask` `[C, L]`, for concepts of several words.
    Raises `ValueError` if a concept has no token of its own.
    """
    if token_mask.shape != hidden_states.shape[:2]:
        raise ValueError(
            f"token_mask is {list(token_mask.shape)}; states {list(hidden_states.shape)} need {list(hidden_states.shape[:2])}"
        )
    empty = (~token_mask.any(dim=1)).nonzero().flatten().tolist()
    if empty:
        raise ValueError(f"concepts {empty} have no tokens of their own; an empty string is no concept")
    if pooling == "first":
        return hidden_states[:, 0]
    if pooling == "mean":
        weights = token_mask / token_mask.sum(dim=1, keepdim=True)
        return torch.einsum("cl,cld->cd", weights.to(hidden_states.dtype), hidden_states)
    raise ValueError(f"pooling: got {pooling!r}; valid: first, mean")


@dataclass(frozen=True)
class MapOptions:
    """Layer groups, normalisation, steps and definition of the maps.

    groups: name to double-stream blocks, or to blocks of each stream, e.g. `{"early": "0..6", "single": {"single_blocks": "all"}}`;
    groups may overlap.
    normalisation: of the saliency scores of one block and forward, before the mean: none, or a softmax over concepts or patches.
    steps: the forwards that count, numbered from 0 since the stream was opened; None for all. The others cost nothing.
    detach: maps carry no gradients, though the caller's forward does.
    variant: `ours`, or `official_sd3` (docs/attention_maps.md), which a family offers or not.
    Raises `ParamsError` naming the option.
    """

    groups: Mapping[str, LayerGroup | Blocks | str | list[int | str] | Mapping[str, Any]]
    normalisation: Normalisation = "none"
    steps: tuple[int, ...] | None = None
    detach: bool = False
    variant: Variant = "ours"

    def __post_init__(self) -> None:
        if not self.groups:
            raise ParamsError('groups: none given; valid: name to blocks, such as {"middle": "7..12"}')
        parsed = {}
        for name, blocks in self.groups.items():
            try:
                parsed[name] = LayerGroup.parse(blocks)
            except ValueError as error:
                raise ParamsError(f"groups.{name}: {error}") from None
        object.__setattr__(self, "groups", parsed)
        if self.normalisation not in get_args(Normalisation):
            valid = ", ".join(get_args(Normalisation))
            raise ParamsError(f"normalisation: got {self.normalisation!r}; valid: {valid}")
        if self.steps is not None and (not self.steps or min(self.steps) < 0 or len(set(self.steps)) < len(self.steps)):
            raise ParamsError(f"steps: got {self.steps}; valid: None, or distinct forwards counted from 0")

    @property
    def joined(self) -> bool:
        """Whether the vector of a concept is read in the encoding of all concepts as one text, not in that of its own."""
        return self.variant == "official_sd3"

    def resolve(self, double: int, single: int = 0, limits: str = "") -> dict[str, tuple[int, ...]]:
        """Ascending places of each group's blocks in a model of `double` double-stream blocks, then `single` single-stream ones.

        Raises `ParamsError` if one lies outside, which also says the model's `limits`.
        """
        try:
            return {name: LayerGroup.parse(group).resolve(double, single, f"groups.{name}") for name, group in self.groups.items()}
        except ParamsError as error:
            raise ParamsError(f"{error}{limits and f'; {limits}'}") from None
