"""The seam between this project and a diffusion transformer: what a family of generators must say, and the types that cross it.

A family is one file in `backbones/families/`; everything that knows a pipeline class by name stands there. docs/extending.md
shows how to add one.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from inspect import signature
from typing import Any, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from sgpipe.backbones.blockwise import BlockForward
from sgpipe.backbones.config import Backbone
from sgpipe.backbones.joint_blocks import JointTaps
from sgpipe.backbones.loading import load_plain
from sgpipe.backbones.truncation import ClipAndT5, Tokenizers
from sgpipe.errors import ModelError, ParamsError

Velocity = Callable[[Tensor, Tensor], Tensor]
"""v `[B, C, h, w]` of latents `[B, C, h, w]` at times `[B]`."""

Residuals = Callable[[Tensor, Mapping[str, Any]], Sequence[Sequence[Tensor] | None]]
"""What is added to the image rows behind blocks, for latents `[B, C, h, w]` and the transformer's own arguments: `[B, N, D]` by
place, one list for each of `Family.residual_inputs`. A list as long as the blocks of its stream has one for each; a shorter one is
spread over them as diffusers' transformer does for a ControlNet."""


@dataclass(frozen=True)
class TextCondition:
    """What a transformer is conditioned on beside time: text states, with graph tokens among them where a graph is given."""

    states: Tensor
    """`[B, T, text width]`."""
    pooled: Tensor | None = None
    """`[B, pooled width]`; None for a family without a pooled vector."""
    mask: Tensor | None = None
    """`[B, T]`, false where no query may attend; None attends to all rows, so that attention runs without a mask."""
    prepended: int = 0
    """How many of the first rows stand before the prompt's own. Where text has positions, these take those after the prompt's."""
    enter: int = 0
    """The block at which these rows join the text."""
    before: "TextCondition | None" = None
    """What the blocks before `enter` see: the prompt alone, which needs no gradient. None where rows enter at block 0."""

    @property
    def prompt(self) -> "TextCondition":
        """What the first block sees."""
        return self if self.before is None else self.before

    def first(self, count: int) -> Self:
        """The first samples of the batch."""
        before = None if self.before is None else self.before.first(count)
        pooled, mask = (None if part is None else part[:count] for part in (self.pooled, self.mask))
        return replace(self, states=self.states[:count], pooled=pooled, mask=mask, before=before)

    residuals: Residuals | None = None
    """What is added beside the text; only for a family that has `residual_inputs`."""

    @property
    def attended(self) -> Tensor:
        """The mask `[B, T]`, all true where there is none."""
        return self.states.new_ones(self.states.shape[:2], dtype=torch.bool) if self.mask is None else self.mask

    def to(self, device: torch.device, dtype: torch.dtype | None = None) -> Self:
        """On another device, in another precision; the mask stays boolean."""
        return replace(
            self,
            states=self.states.to(device, dtype),
            pooled=None if self.pooled is None else self.pooled.to(device, dtype),
            mask=None if self.mask is None else self.mask.to(device),
            before=None if self.before is None else self.before.to(device, dtype),
        )

    def rows(self) -> list[Self]:
        """The samples of the batch, each a batch of one. Raises `ValueError` for one with residuals, which are of the batch."""
        if self.residuals is not None:
            raise ValueError("a condition with residuals is of one batch and has no rows")
        before: list[Any] = [None] * len(self.states) if self.before is None else self.before.rows()
        parts = (self.states, self.pooled, self.mask)
        columns: list[list[Any]] = [[None] * len(self.states) if x is None else list(x.split(1)) for x in parts]
        each = zip(*columns, before, strict=True)
        return [type(self)(own[0], own[1], own[2], self.prepended, self.enter, own[3]) for own in each]

    @classmethod
    def cat(cls, parts: Sequence[Self]) -> Self:
        """Batches as one. Texts of unequal length are padded with masked rows of zeros; rows at the end that no sample attends to
        are left out, and a mask that is true throughout is None.

        Raises `ValueError` where some have a pooled vector and others none, or not as many rows before the prompt's, or rows that
        enter elsewhere, or residuals.
        """
        if any(part.residuals is not None for part in parts):
            raise ValueError("conditions with residuals, which are of their batch, do not go into one batch")
        if len({part.pooled is None for part in parts}) > 1:
            raise ValueError("conditions with and without a pooled vector do not go into one batch")
        if len(entries := {(part.prepended, part.enter) for part in parts}) > 1:
            said = ", ".join(f"{count} rows that enter at block {block}" for count, block in sorted(entries))
            raise ValueError(f"conditions with other rows before the prompt's do not go into one batch: {said}")
        prompts = [part.before for part in parts if part.before is not None]
        entry = (*entries.pop(), TextCondition.cat(prompts) if prompts else None)
        pooled = None if parts[0].pooled is None else torch.cat([part.pooled for part in parts if part.pooled is not None])
        longest = max(part.states.shape[1] for part in parts)
        if all(part.mask is None and part.states.shape[1] == longest for part in parts):
            return cls(torch.cat([part.states for part in parts]), pooled, None, *entry)
        states = torch.cat([pad(part.states, (0, 0, 0, longest - part.states.shape[1])) for part in parts])
        mask = torch.cat([pad(part.attended, (0, longest - part.states.shape[1])) for part in parts])
        mask = mask[:, : int(mask.any(dim=0).nonzero().max()) + 1]
        return cls(states[:, : mask.shape[1]], pooled, None if mask.all() else mask, *entry)

    def joint_attention(self, image_tokens: int, image_first: bool = False) -> dict[str, Tensor] | None:
        """`joint_attention_kwargs` that keep every query off masked text rows: `[B, 1, 1, T + N]`, which all backends take.

        None without a mask. The joint sequence is [text, image], or the other way round.
        """
        if self.mask is None:
            return None
        rows = [self.mask, self.mask.new_ones(len(self.mask), image_tokens)]
        return {"attention_mask": torch.cat(rows[::-1] if image_first else rows, dim=1)[:, None, None]}


@dataclass(frozen=True)
class Layout:
    """Blocks, widths and module names of a diffusion transformer, and how images become its tokens.

    A double-stream block has image and text streams with weights of their own and joint attention (MM-DiT); a
    single-stream block has one of both. An SD3 transformer has double-stream blocks only.
    """

    double_blocks: int
    single_blocks: int
    text_width: int
    latent_channels: int
    patch: int
    """Side, in latents, of the square that is one image token."""
    vae_factor: int
    """Pixels per latent along a side."""
    guidance: bool
    """The transformer takes the guidance scale as an input (guidance-distilled); others are guided by two forwards."""
    double_block: str
    """Module name of double-stream block `{index}`."""
    single_block: str
    image_projections: tuple[str, ...]
    """Query, key, value and output of the image stream, within a double-stream block."""
    text_projections: tuple[str, ...]
    single_projections: Mapping[str, str]
    """Projections of a single-stream block, where text and image share weights, by the name that `lora.targets` uses."""
    lacking: frozenset[str] = frozenset()
    """Full names that the patterns make and this model does not have (SD3's last block has no text output)."""
    second_projections: tuple[str, ...] = ()
    """Those of a second attention of image rows among themselves, in the double-stream blocks that have one; `lora.targets` takes
    them by these names."""

    @property
    def pixels_per_token(self) -> int:
        """Side of the pixels that one image token covers."""
        return self.patch * self.vae_factor

    def grid(self, resolution: int) -> int:
        """Image tokens along a side of a square image. Raises `ParamsError` if the resolution is no multiple of a token."""
        if resolution % self.pixels_per_token:
            raise ParamsError(
                f"backbone.resolution: got {resolution}; this model needs a multiple of {self.pixels_per_token} "
                f"({self.vae_factor} pixels per latent, {self.patch} latents per token)"
            )
        return resolution // self.pixels_per_token

    def classifier_free(self, scale: float | None, knob: str = "guidance") -> float | None:
        """The scale where it means classifier-free guidance: above 1, and the transformer does not take it as an input; else None.

        Raises `ModelError` naming the knob for one below 1 there, which would lead to the empty prompt's image.
        """
        if self.guidance or scale is None:
            return None
        if scale < 1:
            raise ModelError(
                f"{knob}: got {scale:g}; this transformer takes no scale as an input and is guided by a second forward: set it "
                "above 1, or to null for no guidance"
            )
        return scale if scale > 1 else None

    def latent_shape(self, resolution: int) -> tuple[int, int, int]:
        """`(channels, height, width)` of the latents of a square image."""
        side = self.grid(resolution) * self.patch
        return self.latent_channels, side, side


def check_sizes(config: Mapping[str, Any], names: Sequence[str]) -> None:
    """Raises `ModelError` for a size of a transformer that is no whole number from 1, `KeyError` for a missing one."""
    odd = [f"{name} {config[name]!r}" for name in names if not (isinstance(config[name], int) and config[name] >= 1)]
    if odd:
        raise ModelError(f"transformer/config.json: {', '.join(odd)}: a whole number from 1 is needed")


def branched(kind: Any, transformer: Any, **sizes: Any) -> Any:
    """A ControlNet of diffusers' class `kind` and these sizes, whose first blocks and embeddings are copies of a transformer's.

    Not by `from_transformer`: SD3's writes the sizes into the transformer's own configuration. Raises `ParamsError` for a block of
    which the transformer has only a part, and for quantised weights.
    """
    if getattr(transformer, "is_quantized", False):
        raise ParamsError("backbone.quantisation: a ControlNet copies the transformer's weights as they are; set it to null")
    known = {name: value for name, value in transformer.config.items() if name in signature(kind.__init__).parameters}
    with torch.random.fork_rng(devices=[]):
        made = kind.from_config({**known, **sizes})
    theirs = transformer.state_dict()
    own = {name: theirs[name] for name, value in made.state_dict().items() if name in theirs and theirs[name].shape == value.shape}
    made.load_state_dict(own, strict=False)
    if random := [name for name, weight in made.named_parameters() if name not in own and weight.any()]:
        raise ParamsError(f"ControlNet: the transformer has no {random[0]} to copy; name fewer blocks")
    return made


class TextEncoders(Protocol):
    """The text encoders of a family, loaded."""

    def prompts(self, texts: Sequence[str]) -> TextCondition:
        """The condition of a batch of prompts, on the CPU. Raises `ModelError` if it is not finite."""

    def concepts(self, texts: Sequence[str]) -> list[Tensor]:
        """States `[n, text width]` of the n tokens of each text's own words, on the CPU; at least one each."""


class Family(Protocol):
    """A family of diffusion transformers: the one place that knows its pipeline class, its units and its module names."""

    pipeline: str
    """The pipeline's class, as model_index.json names it."""
    transformer: str
    """The transformer's class."""
    text_parts: tuple[str, ...]
    """Folders of the text encoders and their tokenizers."""
    name_parts: tuple[str, str]
    """Folders of the encoder whose states stand for names and concepts, and of its tokenizer."""
    longest: int
    """Most text tokens of a prompt."""
    fixed_length: bool = True
    """All prompts have equally many rows, so that compiled blocks meet one shape of text."""
    frames: bool = False
    """The VAE is one of videos: an image is one frame, on an axis of its own behind the channels."""
    float32_latents: bool = False
    """The pipeline keeps latents in float32 between steps, whatever the precision of the weights, and so does `velocity`."""
    logits: bool = False
    """The pipeline has its language model compute logits, which nobody reads and which take memory."""
    prompt_first: bool = False
    """The transformer is given a prompt's own rows, then those before it in a condition, and rows that nobody attends to last."""
    residual_inputs: tuple[str, ...] = ()
    """Arguments of the transformer that take what is added to the image rows behind double- and single-stream blocks; none for a
    family without a ControlNet here."""
    map_variants: tuple[str, ...] = ("ours",)
    """Definitions of concept maps that there are for it, as `maps.variant` names them."""

    def configured(self, index: Mapping[str, Any]) -> "Family":
        """The family of a pipeline with this model_index.json: itself, unless the pipeline has settings there.

        Raises `ModelError` for settings that are not supported.
        """
        return self

    def prompt_settings(self) -> dict[str, Any]:
        """Of these settings, what encodings of prompts depend on, as JSON holds it."""
        return {}

    def layout(self, transformer: Mapping[str, Any], vae: Mapping[str, Any]) -> Layout:
        """From the config.json files. Raises `ModelError` if the two do not fit together, `KeyError` for a missing key."""
        ...

    def condition_size(self, configs: Mapping[str, Mapping[str, Any]], tokens: int) -> tuple[int, int | None]:
        """Rows of the condition of a prompt of `tokens` tokens, and the width of its pooled vector (None without one); from the
        config.json files by part."""
        ...

    def text_encoders(self, backbone: Backbone, device: torch.device, offload: str) -> TextEncoders:
        """The text encoders of `backbone.model`."""
        ...

    def tokenizers(self, backbone: Backbone) -> Tokenizers:
        """The tokenizers of these encoders. Raises `ModelError` for a pipeline without them."""
        clip, words = (load_plain(backbone, part) for part in ("tokenizer", self.name_parts[1]))
        return ClipAndT5(clip, words, backbone.max_sequence_length)

    def statistics(self, vae: Any) -> dict[str, Any]:
        """What a loaded VAE says of the scale of its latents, as JSON holds it: numbers, or lists of them."""
        return {"scale": vae.config.scaling_factor, "shift": vae.config.shift_factor or 0.0}

    def normalised(self, statistics: Mapping[str, Any], latents: Tensor) -> Tensor:
        """Latents of the VAE as the transformer sees them, `[B, C, h, w]`: (z − shift) · scale."""
        return (latents - statistics["shift"]) * statistics["scale"]

    def denormalised(self, statistics: Mapping[str, Any], latents: Tensor) -> Tensor:
        """Latents of the transformer as the VAE decodes them, in the operations of the family's pipeline."""
        return latents / statistics["scale"] + statistics["shift"]

    def prepare(self, transformer: Any) -> None:
        """What a freshly loaded transformer needs so that masks, attention settings and block compilation work."""
        return

    def velocity(self, transformer: Any, latents: Tensor, t: Tensor, condition: TextCondition, guidance: float | None) -> Tensor:
        """v `[B, C, h, w]` of latents `[B, C, h, w]` at times `[B]` in [0, 1]; all on one device, in the weights' precision.

        One forward. `guidance` is the input of a guidance-distilled transformer, None for others.
        """
        ...

    def by_blocks(self, transformer: Any) -> BlockForward:
        """`velocity` block by block, for graph tokens that enter behind the first one.

        Raises `ParamsError` where that cannot be done.
        """
        raise ParamsError(
            f"graph_tokens.enter: {self.pipeline} takes graph tokens before its first block alone; set it to 0, or take a model of "
            "FLUX.1 or SD3"
        )

    def residuals(self, condition: TextCondition, latents: Tensor, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """What `velocity` hands the transformer beside `inputs`: the condition's residuals, nothing without."""
        if condition.residuals is None:
            return {}
        return dict(zip(self.residual_inputs, condition.residuals(latents, inputs), strict=True))

    def controlnet(self, transformer: Any, blocks: int, single_blocks: int) -> Any:
        """diffusers' ControlNet of the family, with the transformer's weights in its first blocks and zeros where it is joined on.

        It takes the arguments of the transformer and `controlnet_cond`, the control image as `image_input` gives it.
        """
        raise ModelError(f"{self.pipeline}: no ControlNet of this family here; valid: FluxPipeline, StableDiffusion3Pipeline")

    def image_input(self, latents: Tensor) -> Tensor:
        """Latents `[B, C, h, w]` in the form that the transformer is given."""
        return latents

    def pipeline_time(self, given: Mapping[str, Any]) -> float:
        """t in [0, 1] of a forward that the family's own pipeline makes with these keyword arguments."""
        raise ModelError(f"{self.pipeline}: graphs are not given to this pipeline itself; sample by `sgpipe generate`")

    def pipeline_inputs(self, given: Mapping[str, Any], condition: TextCondition, layout: Layout) -> dict[str, Any]:
        """These keyword arguments with another condition: what `velocity` would hand over beside latents and time."""
        raise ModelError(f"{self.pipeline}: graphs are not given to this pipeline itself; sample by `sgpipe generate`")

    def guided(self, conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
        """Classifier-free guidance (Ho & Salimans 2022, eq. 6) of velocities `[B, C, h, w]`: v_∅ + s (v_c − v_∅).

        `scale` s is 1 + w in the paper's letters: 1 is the conditional velocity.
        """
        return unconditional + scale * (conditional - unconditional)

    def sigmas(self, steps: int, layout: Layout, resolution: int, scheduler: Mapping[str, Any]) -> NDArray[np.float32]:
        """Times `[steps + 1]` from 1 to 0 that the family's own pipeline steps between, for its scheduler's configuration."""
        ...

    def image_rows(self, patches: int, rows: int) -> slice:
        """The image's part of a joint sequence, its first or its last, in blocks that hand on text and image as one."""
        return slice(rows - patches, rows)

    def taps(self, transformer: Any) -> JointTaps:
        """Where the concept stream reads."""
        ...

    def variant_taps(self, transformer: Any, variant: str) -> JointTaps:
        """`taps` for one of `map_variants`."""
        return self.taps(transformer)
