"""Z-Image: `ZImagePipeline` of diffusers.

Unlike FLUX: single-stream blocks alone, whose weights image and text share; a chat model reads the prompt, and prompts are as long
as their tokens; latents that stay images; the joint sequence [image, text]; times that run from 0 (noise) to 1 (data), and so a
velocity of the other sign; norms after attention and MLP, too, and gates through tanh.

The transformer pads image and text of each sample to multiples of 32 rows, with one learned vector each, which all rows attend to.
Text row i stands at (1 + i, 0, 0), its padding likewise, and the image at (L + 1, row, column), L the padded length of the text. So
an image moves by 32 where its text grows over a multiple of 32, and graph tokens take the places of padding up to there. Neither
depends on other samples of a batch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sgpipe.backbones.base import Family, Layout, TextCondition, TextEncoders, check_sizes
from sgpipe.backbones.block_taps import Attended, BlockCall, Projected, Streams, concept_attention
from sgpipe.backbones.chat import ChatEncoder, ChatTokenizer
from sgpipe.backbones.config import Backbone
from sgpipe.backbones.joint_blocks import JointTaps
from sgpipe.backbones.loading import load_plain
from sgpipe.backbones.rectified_flow import dynamic_mu, scheduler_times
from sgpipe.errors import ModelError

PATCH = 2
_SIZES = ("n_layers", "n_heads", "dim", "cap_feat_dim", "in_channels")


def captions(condition: TextCondition) -> list[Tensor]:
    """Text rows `[T_i, text width]` of each sample, as the transformer takes them: the prompt's own, then its graph tokens.

    A row's number is its position, so a prompt keeps its own; rows that nobody attends to are left out.
    """
    states = condition.states.roll(-condition.prepended, dims=1)
    if condition.mask is None:
        return list(states)
    return [rows[own] for rows, own in zip(states, condition.mask.roll(-condition.prepended, dims=1), strict=True)]


class CaptionEncoder(ChatEncoder):
    """A Qwen3 as `ZImagePipeline.encode_prompt` runs it: the states before its last layer, of a prompt's own tokens."""

    def prompts(self, texts: Sequence[str]) -> TextCondition:
        """States of the prompts within their template, without the tokenizer's padding; masked up to the longest of the batch."""
        tokens, states = self._run(texts)
        own = tokens.attention_mask.bool()
        return TextCondition.cat([TextCondition(row[mask][None]) for row, mask in zip(states, own, strict=True)])


class _Positions(NamedTuple):
    """Rotations `[B, rows, d / 2]`, complex, of the image's rows, and of all concepts `[B, 1, d / 2]`."""

    image: Tensor
    concepts: Tensor


def _padded(patches: int) -> int:
    """Image rows of a layer, whose number the transformer rounds up."""
    from diffusers.models.transformers.transformer_z_image import SEQ_MULTI_OF

    return patches + -patches % SEQ_MULTI_OF


def rotate(rows: Tensor, frequencies: Tensor) -> Tensor:
    """Queries or keys `[B, rows, H, d]` turned by complex `frequencies` `[B, rows or 1, d / 2]`, in float32."""
    pairs = torch.view_as_complex(rows.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * frequencies.unsqueeze(2)).flatten(-2).type_as(rows)


@dataclass(frozen=True)
class ZImageTap:
    """A `BlockTap` of diffusers' `ZImageTransformerBlock` with modulation; concept rows ride as text rows that nothing attends to.

    With c the conditioning, that of time, and at the position of the prompt's first row,

        C̃ = (1 + scale) · RMS₁(C),   q, k, v = to_q C̃, to_k C̃, to_v C̃,   q and k through norm_q and norm_k
        O_C = softmax(q · [k; image keys]ᵀ / √d) · [v; image values]
        C ← C + tanh(gate) · RMS₂(to_out O_C),   C ← C + tanh(gate′) · RMS₄(MLP((1 + scale′) · RMS₃(C)))

    with scale, gate, scale′, gate′ of the block's own modulation of c. Concepts do not attend to the image's padding.
    """

    block: Any
    stream: ClassVar[Streams] = "single"

    @property
    def query(self) -> nn.Module:
        return self.block.attention.norm_q or self.block.attention.to_q

    @property
    def key(self) -> nn.Module:
        return self.block.attention.norm_k or self.block.attention.to_k

    @property
    def value(self) -> nn.Module:
        return self.block.attention.to_v

    @property
    def output(self) -> nn.Module:
        return self.block.attention.to_out[0]

    def call(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], patches: int) -> BlockCall:
        """Rows are [image, padding, text, padding]. Raises `ValueError` where the image has another number of patches."""
        given = dict(zip(("x", "attn_mask", "freqs_cis", "adaln_input"), args, strict=False)) | dict(kwargs)
        frequencies = given["freqs_cis"]
        # the image alone stands at its frame, by whose angle the first of a row's rotations turns; on the meta device there is none
        looks = self.block.layer_id == 0 and not frequencies.is_meta
        if looks and patches != (found := int((frequencies[0, :, 0] == frequencies[0, 0, 0]).sum())):
            raise ValueError(f"grid: got {patches} patches; valid: H × W = {found}, the forward's image tokens")
        text = _padded(patches)
        positions = _Positions(frequencies[:, :patches], frequencies[:, text : text + 1])
        return BlockCall(given["adaln_input"], positions, slice(patches))

    def heads(self, made: Tensor, kind: Projected) -> Tensor:
        return self._split(made) if made.ndim == 3 else made

    def attend(self, rows: Tensor, conditioning: Tensor, image_key: Tensor, image_value: Tensor, positions: _Positions) -> Attended:
        attn, block = self.block.attention, self.block
        scale, *carried = block.adaLN_modulation(conditioning)[:, None].chunk(4, dim=2)
        modulated = block.attention_norm1(rows) * (1 + scale)
        query, key, value = map(self._split, (attn.to_q(modulated), attn.to_k(modulated), attn.to_v(modulated)))
        query = attn.norm_q(query) if attn.norm_q else query
        key = attn.norm_k(key) if attn.norm_k else key
        placed = rotate(key, positions.concepts)
        image_key = rotate(image_key, positions.image)
        attended = concept_attention(rotate(query, positions.concepts), placed, value, image_key, image_value)
        return attended._replace(key=key, carried=tuple(carried))

    def image_output(self, given: Tensor, query: Tensor, attended: Attended, positions: _Positions) -> Tensor:
        """The model's own."""
        return given

    def update(self, rows: Tensor, attended: Attended) -> Tensor:
        block = self.block
        gate, mlp_scale, mlp_gate = attended.carried
        rows = rows + gate.tanh() * block.attention_norm2(block.attention.to_out[0](attended.output))
        inner = block.feed_forward(block.ffn_norm1(rows) * (1 + mlp_scale))
        return rows + mlp_gate.tanh() * block.ffn_norm2(inner)

    def _split(self, states: Tensor) -> Tensor:
        return states.unflatten(-1, (self.block.attention.heads, -1))


class ZImageTaps(JointTaps):
    """The conditioning is that of time alone, the prompt's own."""

    @property
    def conditioner(self) -> nn.Module:
        return self.transformer.t_embedder

    def conditioning(self, args: tuple[Any, ...]) -> Tensor:
        return self.conditioner.forward(*args)

    def embed(self, concepts: Tensor) -> Tensor:
        """See `JointTaps`. Like the prompt's rows concepts go through the context refiner, where they see one another alone.

        All stand where the prompt's first row does, so that they stay a set; among themselves their rotations cancel.
        """
        rows = self.transformer.cap_embedder.forward(concepts)
        for layer in self.transformer.context_refiner:
            rows = layer.forward(rows, None, None)
        return rows


class ZImage(Family):
    """See `Family`; masks, attention backends and block compilation need no `prepare`.

    `ZImagePipeline` writes guidance as v_c + g (v_c − v_∅): its `guidance_scale` g is the scale here less 1, and 0 for none.
    """

    pipeline = "ZImagePipeline"
    transformer = "ZImageTransformer2DModel"
    text_parts = ("text_encoder", "tokenizer")
    name_parts = ("text_encoder", "tokenizer")
    longest = 512
    fixed_length = False
    float32_latents = True
    prompt_first = True

    def layout(self, transformer: Mapping[str, Any], vae: Mapping[str, Any]) -> Layout:
        check_sizes(transformer, _SIZES)
        kind, channels, latents = transformer.get("_class_name"), transformer["in_channels"], vae["latent_channels"]
        patches = [list(transformer[name]) for name in ("all_patch_size", "all_f_patch_size")]
        images = transformer.get("siglip_feat_dim") is not None
        if kind != self.transformer or images or channels != latents or patches != [[PATCH], [1]]:
            raise ModelError(
                f"{kind} of {channels} input channels, patch sizes {patches[0]} and frame patch sizes {patches[1]}"
                f"{', that reads images by siglip_feat_dim,' if images else ''} on a VAE of {latents} channels: a text-to-image "
                f"{self.transformer} of as many channels, patch sizes [{PATCH}] and [1] is needed"
            )
        return Layout(
            double_blocks=0,
            single_blocks=transformer["n_layers"],
            text_width=transformer["cap_feat_dim"],
            latent_channels=latents,
            patch=PATCH,
            vae_factor=2 ** (len(vae["block_out_channels"]) - 1),
            guidance=False,
            double_block="",
            single_block="layers.{index}",
            image_projections=(),
            text_projections=(),
            single_projections={name: f"attention.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0")},
        )

    def condition_size(self, configs: Mapping[str, Mapping[str, Any]], tokens: int) -> tuple[int, int | None]:
        return tokens, None

    def tokenizers(self, backbone: Backbone) -> ChatTokenizer:
        """Every text is a user's message, before the opening of an answer that may begin with thoughts."""
        tokenizer = load_plain(backbone, "tokenizer")
        if tokenizer.padding_side != "right":
            raise ModelError(
                f"{backbone.model}/tokenizer: padding_side is {tokenizer.padding_side!r}; a name's rows are counted in "
                "prompts that are padded on the right: set it to right"
            )

        def render(text: str) -> str:
            messages = [{"role": "user", "content": text}]
            return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, enable_thinking=True)

        return ChatTokenizer(tokenizer, render, "Qwen3", backbone.max_sequence_length)

    def text_encoders(self, backbone: Backbone, device: torch.device, offload: str) -> TextEncoders:
        return CaptionEncoder(backbone, "text_encoder", self.tokenizers(backbone), (-2,), device, offload)

    def velocity(self, transformer: Any, latents: Tensor, t: Tensor, condition: TextCondition, guidance: float | None) -> Tensor:
        """See `Family`; in float32, as the pipeline steps. `guidance` is None: Z-Image is guided by a second, negative prompt.

        Under autocast the latents have its precision, so that the blocks are handed the very tensor that the embedding of time
        puts out (`BlockCall.conditioning`), and not a copy in another one.
        """
        kind = latents.device.type
        if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
            latents = latents.to(torch.get_autocast_dtype(kind))
        made = transformer(
            list(latents.unsqueeze(2)),
            # the pipeline hands over 1000 t in float32, taken from 1000 and divided by 1000
            (1000 - t.float() * 1000) / 1000,
            captions(condition),
            return_dict=False,
        )[0]
        return -torch.stack([each.float() for each in made]).squeeze(2)

    def sigmas(self, steps: int, layout: Layout, resolution: int, scheduler: Mapping[str, Any]) -> NDArray[np.float32]:
        """See `Family`; a dynamic shift depends on the number of image tokens, without padding."""
        from diffusers.pipelines.z_image.pipeline_z_image import get_default_z_image_sigmas

        mu = dynamic_mu(layout.grid(resolution) ** 2, scheduler) if scheduler.get("use_dynamic_shifting") else None
        return scheduler_times(steps, scheduler, sigmas=get_default_z_image_sigmas(max(steps, 1)), mu=mu)

    def image_rows(self, patches: int, rows: int) -> slice:
        """The first, with the image's padding."""
        return slice(0, _padded(patches))

    def taps(self, transformer: Any) -> JointTaps:
        """The shared layers; the refiners of image and of text, where the other is not, have no maps."""
        return ZImageTaps(transformer, tuple(ZImageTap(block) for block in transformer.layers))
