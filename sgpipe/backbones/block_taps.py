"""The concept stream's view of one transformer block, whatever its kind (Helbling et al. 2025, section 4).

Shapes: B samples, K concepts, T text rows, N image rows, H heads of d, D = H·d.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

Projected = Literal["query", "key", "value"]
Streams = Literal["double", "single"]
"""Text and image with weights of their own (MM-DiT), or sharing them."""


class BlockCall(NamedTuple):
    """What a call of a block says."""

    conditioning: Tensor
    """The very tensor that `JointTaps.conditioner` put out in this forward."""
    positions: Any = None
    """Of its rows, as the tap's `attend` takes them."""
    image: slice = slice(None)
    """The image rows among those that `query`, `key`, `value` and `output` see: all, or a part of a joint sequence."""


class Attended(NamedTuple):
    """What the attention of one block yields for the concept rows."""

    output: Tensor
    """O_C `[B, K, D]`, heads concatenated, before the output projection."""
    key: Tensor
    """The concepts' `[B, K, H, d]`, after the norm and before any position."""
    keys: Tensor
    """`[B, K + N, H, d]`: the concepts', then the image's, each at its position."""
    values: Tensor
    """Likewise."""
    carried: tuple[Tensor, ...] = ()
    """What the tap's `update` needs beside the rows."""


class BlockTap(Protocol):
    """One block: where its image rows can be read, and what it does to text rows, as functions that concept rows go through.

    Modules are named by attribute so that hooks find them. A block whose modules serve image, text and concept rows alike is
    handed concept rows from within its own hooks; the stream reads none of these calls.
    """

    stream: ClassVar[Streams]

    @property
    def block(self) -> nn.Module: ...

    @property
    def query(self) -> nn.Module:
        """Its output is the queries after the norm, where there is one, and before any rotary embedding; likewise the others."""
        ...

    @property
    def key(self) -> nn.Module: ...

    @property
    def value(self) -> nn.Module: ...

    @property
    def output(self) -> nn.Module:
        """Its first input holds the attention output of the rows; called after `query`, `key` and `value`."""
        ...

    def call(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], patches: int) -> BlockCall:
        """Of the arguments of a call of the block, with N = `patches`, as the user of the stream gives it."""
        ...

    def heads(self, made: Tensor, kind: Projected) -> Tensor:
        """What one of the three modules gave, as `[B, rows, H, d]`."""
        ...

    def attend(self, rows: Tensor, conditioning: Tensor, image_key: Tensor, image_value: Tensor, positions: Any) -> Attended:
        """Concept rows `[B, K, D]`, modulated by `conditioning`, attend to [concept keys; image keys], never to the prompt's.

        `image_key` and `image_value` are `[B, N, H, d]` as `heads` gave them. Scale 1/√d.
        """
        ...

    def image_output(self, given: Tensor, query: Tensor, attended: Attended, positions: Any) -> Tensor:
        """O_X `[B, N, D]` that saliency is measured against, heads concatenated.

        `given` is the image's part of what `output` was given, `query` `[B, N, H, d]` as `heads` gave it.
        """
        ...

    def update(self, rows: Tensor, attended: Attended) -> Tensor:
        """Concept rows `[B, K, D]` after the block."""
        ...


def attention(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """softmax(q·k / √d)·v with heads concatenated `[B, rows, D]`, for `[B, rows, H, d]` each."""
    output = scaled_dot_product_attention(query.transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2))
    return output.transpose(1, 2).flatten(2)


def concept_attention(query: Tensor, key: Tensor, value: Tensor, image_key: Tensor, image_value: Tensor) -> Attended:
    """O_C of concept queries, keys and values `[B, K, H, d]` over [concepts; image], each at its position; concepts at that where
    rotation is the identity, or `Attended.key` is to be replaced."""
    keys, values = torch.cat([key, image_key], dim=1), torch.cat([value, image_value], dim=1)
    return Attended(attention(query, keys, values), key, keys, values)
