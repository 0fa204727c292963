"""The rows that the blocks of a transformer hand on, to be read and replaced in any family: the seam of activation patching.

A double-stream block hands on text and image, so does FLUX.1's single-stream block; others hand on one joint sequence, of which
`Family.image_rows` says the image's part. Within `block_states` a function stands around each named block: it is given the rows
that go in and the block itself as a function, and says which rows go out. So a block is read, patched, ablated or left out
without a word on its kind. `diffusers.hooks` carries the functions; its own `apply_layer_skip` does not serve here
(findings/layer_skip_swaps_streams.sh).

Shapes: B samples, N image rows (Z-Image: with the image's padding), T text rows of a block, D its width.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sgpipe.backbones.base import Family, TextCondition
from sgpipe.backbones.denoiser import Denoiser

_NAME = "sgpipe_block_states"
_TEXT = "encoder_hidden_states"


class BlockRows(NamedTuple):
    """Rows between two blocks."""

    image: Tensor
    """`[B, N, D]`."""
    text: Tensor | None
    """`[B, T, D]`; None after SD3's last block, which has no text output."""

    def take(self, samples: Tensor) -> "BlockRows":
        """Those of the samples at these places `[B']`."""
        return BlockRows(self.image[samples], None if self.text is None else self.text[samples])


Block = Callable[[BlockRows], BlockRows]
"""A block with all else that this call hands it: time, positions, masks."""
Around = Callable[[Block, BlockRows], BlockRows]
"""What stands around a block: given it and the rows that go in, the rows that go out."""


def blocks_of(denoiser: Denoiser) -> list[nn.Module]:
    """The blocks in the order of a forward: double-stream ones, then single-stream ones."""
    layout = denoiser.layout
    names = [
        *(layout.double_block.format(index=index) for index in range(layout.double_blocks)),
        *(layout.single_block.format(index=index) for index in range(layout.single_blocks)),
    ]
    return [denoiser.transformer.get_submodule(name) for name in names]


def text_places(family: Family, condition: TextCondition) -> Tensor:
    """Where each row of a condition stands among the text rows of a block, `[B, T]`; rows that nobody attends to may stand past the
    last one."""
    count = condition.states.shape[1]
    if not family.prompt_first:
        return torch.arange(count).expand(len(condition.states), count)
    left = ~condition.attended.cpu().roll(-condition.prepended, dims=1)
    order = left.byte().argsort(dim=1, stable=True)
    return ((order + condition.prepended) % count).argsort(dim=1)


class _Around:
    """Stands around the forward of one block: what a `ModelHook` of diffusers does here."""

    fn_ref: Any

    def __init__(self, around: Around, family: Family, patches: int) -> None:
        super().__init__()
        self.signature: inspect.Signature | None = None
        self.around, self.family, self.patches = around, family, patches
        self.paused = False

    def split(self, joint: Tensor) -> BlockRows:
        image = self.family.image_rows(self.patches, joint.shape[1])
        text = joint[:, image.stop :] if image.start == 0 else joint[:, : image.start]
        return BlockRows(joint[:, image], text)

    def join(self, rows: BlockRows, given: Tensor) -> Tensor:
        assert rows.text is not None
        parts = [rows.text, rows.image]
        return torch.cat(parts[::-1] if self.family.image_rows(self.patches, given.shape[1]).start == 0 else parts, dim=1)

    def new_forward(self, block: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """What the transformer calls in place of the block."""
        if self.paused:
            return self.fn_ref.original_forward(*args, **kwargs)
        self.signature = self.signature or inspect.signature(type(block).forward)
        given = self.signature.bind(block, *args, **kwargs).arguments
        (own, _), (first, states) = list(given.items())[:2]
        del given[own]
        text = given.get(_TEXT)

        def run(rows: BlockRows) -> BlockRows:
            changed = {first: self.join(rows, states)} if text is None else {first: rows.image, _TEXT: rows.text}
            made = self.fn_ref.original_forward(**{**given, **changed})
            return self.split(made) if isinstance(made, Tensor) else BlockRows(made[1], made[0])

        made = self.around(run, self.split(states) if text is None else BlockRows(states, text))
        return self.join(made, states) if text is None else (made.text, made.image)


@contextmanager
def block_states(
    denoiser: Denoiser, resolution: int, around: Mapping[int, Around]
) -> Iterator[Callable[[], AbstractContextManager[None]]]:
    """Within the body each forward goes through these functions around the blocks of these indices (`blocks_of`).

    `resolution` is the side of the sampled images in pixels. It yields a function whose context leaves the blocks as they are, for
    the forward of the empty prompt (`Denoiser.velocity`'s `aside`). Compiled blocks do not run the functions.
    """
    from diffusers.hooks import HookRegistry, ModelHook

    class AroundHook(_Around, ModelHook):
        """As the registry of a block takes it."""

    blocks, patches = blocks_of(denoiser), denoiser.layout.grid(resolution) ** 2
    hooks = {index: AroundHook(function, denoiser.family, patches) for index, function in around.items()}

    @contextmanager
    def paused() -> Iterator[None]:
        for hook in hooks.values():
            hook.paused = True
        try:
            yield
        finally:
            for hook in hooks.values():
                hook.paused = False

    with ExitStack() as stack:
        for index, hook in hooks.items():
            registry = HookRegistry.check_if_exists_or_initialize(blocks[index])
            registry.register_hook(hook, _NAME)
            stack.callback(registry.remove_hook, _NAME, recurse=False)
        yield paused


def reading(states: list[BlockRows]) -> Around:
    """Appends what a block hands on to `states`."""

    def around(block: Block, rows: BlockRows) -> BlockRows:
        states.append(made := block(rows))
        return made

    return around


def resuming(after: int, rows: BlockRows) -> dict[int, Around]:
    """For a forward that begins behind block `after`, which hands on `rows`: neither it nor those before it run."""

    def passes(block: Block, given: BlockRows) -> BlockRows:
        return given

    def hands_on(block: Block, given: BlockRows) -> BlockRows:
        return rows

    return {**dict.fromkeys(range(after), passes), after: hands_on}
