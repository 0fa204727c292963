"""Qwen-Image: `QwenImagePipeline` of diffusers.

Unlike FLUX: one text encoder, a language model that reads the prompt within a template; prompts are as long as their tokens, and
padding is masked; no pooled vector; double-stream blocks alone, whose modulation bears other names; rotary embedding by complex
numbers, in which the image is centred on 0 and text row i stands at max(h, w)//2 + i on all three axes (h × w image tokens); a VAE
of videos, whose latents are normalised by channel; classifier-free guidance that keeps the norm of the conditional prediction.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sgpipe.backbones.base import Family, Layout, TextCondition, TextEncoders, check_sizes
from sgpipe.backbones.config import Backbone
from sgpipe.backbones.families.flux import PATCH, pack, unpack
from sgpipe.backbones.joint_blocks import JointBlockTap, JointTaps
from sgpipe.backbones.loading import load_module, load_plain, on_device, place
from sgpipe.backbones.rectified_flow import euler_times
from sgpipe.backbones.text import check_finite
from sgpipe.backbones.truncation import Tokenized, tokenized
from sgpipe.errors import ModelError

_VARIANTS = ("guidance_embeds", "zero_cond_t", "use_additional_t_cond", "use_layer3d_rope")
"""Switches of transformers that edit or layer images, or that diffusers cannot run."""


def in_order(condition: TextCondition) -> TextCondition:
    """Each prompt's own rows first, its graph tokens behind them, rows that nobody attends to last.

    A row's number is its position. So a prompt keeps its positions, tokens have those that follow, and what a sample gets does not
    depend on its batch.
    """
    if not condition.prepended:
        return condition
    states = condition.states.roll(-condition.prepended, dims=1)
    if condition.mask is None:
        return TextCondition(states)
    mask = condition.mask.roll(-condition.prepended, dims=1)
    order = (~mask).byte().argsort(dim=1, stable=True)
    return TextCondition(states.gather(1, order[..., None].expand_as(states)), mask=mask.gather(1, order))


@dataclass(frozen=True)
class WordTokenizer:
    """See `Tokenizers`; counts are of a text's own tokens, without those of the template, whose last five may be cut off."""

    tokenizer: Any
    length: int

    @property
    def longest(self) -> int:
        return self.tokenizer.model_max_length

    def prompts(self, texts: Sequence[str]) -> list[Tokenized]:
        return tokenized(self.tokenizer, "Qwen2.5-VL", texts, self.length)

    names = prompts

    def mentions(self, text: str, names: Iterable[str]) -> dict[str, list[range]]:
        """Rows of the tokens that overlap a name, found as whole words: after a space a word is another token than at the start."""
        offsets = self.tokenizer(text, return_offsets_mapping=True)["offset_mapping"][: self.length]
        found: dict[str, list[range]] = {}
        for name in names:
            places = [each.span() for each in re.finditer(rf"(?<!\w){re.escape(name)}(?!\w)", text)]
            rows = [[row for row, (start, end) in enumerate(offsets) if start < last and end > first] for first, last in places]
            found[name] = [range(each[0], each[-1] + 1) for each in rows if each]
        return found


class TemplatedLanguageModel:
    """Qwen2.5-VL as `QwenImagePipeline.encode_prompt` runs it: within its template, whose first 34 tokens are dropped."""

    def __init__(self, backbone: Backbone, device: torch.device, offload: str) -> None:
        from diffusers import QwenImagePipeline

        self._length, self._device, self._offload = backbone.max_sequence_length, device, offload
        self._encoder, self._tokenizer = load_module(backbone, "text_encoder"), load_plain(backbone, "tokenizer")
        parts = {"scheduler": None, "vae": None, "transformer": None, "tokenizer": self._tokenizer}
        self._pipeline = QwenImagePipeline(**parts, text_encoder=self._encoder)
        if offload != "model":
            place(self._encoder, device, offload)

    @torch.no_grad()
    def prompts(self, texts: Sequence[str]) -> TextCondition:
        """States of the prompts' tokens and of the template's five behind them, padded to the longest, with the mask of its own."""
        with on_device(self._encoder, self._device, self._offload):
            states, mask = self._pipeline.encode_prompt(list(texts), self._device, max_sequence_length=self._length)
        states = states.cpu()
        check_finite("text_encoder", texts, states)
        return TextCondition(states, mask=None if mask is None else mask.bool().cpu())

    def concepts(self, texts: Sequence[str]) -> list[Tensor]:
        """States `[n, text width]` of the n tokens of each text, a prompt of its own, without the template's tokens behind them.

        A token has read those before it alone: the first of several stands for a piece of its name (`maps.concept_tokens`). A
        text without tokens keeps its first row.
        """
        counts = [len(ids) for ids in self._tokenizer(list(texts)).input_ids]
        return [row[: max(count, 1)] for row, count in zip(self.prompts(texts).states, counts, strict=True)]


def _arguments(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Tensor, Any]:
    return args[3:5] if args else (kwargs["temb"], kwargs["image_rotary_emb"])


def _rotated(rows: Tensor, frequencies: Tensor) -> Tensor:
    from diffusers.models.transformers.transformer_qwenimage import apply_rotary_emb_qwen

    return apply_rotary_emb_qwen(rows, frequencies, use_real=False)


def _rotate(keys: Tensor, positions: tuple[Tensor, Tensor]) -> Tensor:
    return _rotated(keys, positions[0])


class QwenTap(JointBlockTap):
    """A block whose text side bears names of its own."""

    def place(self, rows: Tensor, positions: tuple[Tensor, Tensor]) -> Tensor:
        """All concepts stand where the prompt's first row does.

        ConceptAttention gives concepts the position of text. In FLUX that is 0; here 0 is the image's centre, where no text row
        was in training, and whose queries would favour the centre. One position for all, so that concepts stay a set.
        """
        return _rotated(rows, positions[1][:1])

    def modulated(self, rows: Tensor, conditioning: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        shift, scale, *modulation = self.block.txt_mod(conditioning).chunk(6, dim=-1)
        return self.block.txt_norm1(rows) * (1 + scale[:, None]) + shift[:, None], tuple(modulation)

    @property
    def text_mlp(self) -> tuple[nn.Module, nn.Module]:
        return self.block.txt_norm2, self.block.txt_mlp


class QwenTaps(JointTaps):
    """The conditioning vector is that of time alone, so concepts have the prompt's."""

    def conditioning(self, args: tuple[Any, ...]) -> Tensor:
        return self.transformer.time_text_embed.forward(*args)

    def embed(self, concepts: Tensor) -> Tensor:
        return self.transformer.txt_in.forward(self.transformer.txt_norm.forward(concepts))


def check_channels(vae: Mapping[str, Any]) -> None:
    """Raises `ModelError` for a VAE whose channels have not a mean and a deviation each."""
    if {len(vae[name]) for name in ("latents_mean", "latents_std")} != {latents := vae["z_dim"]}:
        raise ModelError(f"vae/config.json: latents_mean and latents_std of {latents} numbers each are needed, one per channel")


class OnQwenImageVae(Family):
    """A family whose VAE is Qwen-Image's: one of videos, whose latents are normalised by channel."""

    frames = True

    def statistics(self, vae: Any) -> dict[str, Any]:
        """Mean and deviation of each channel."""
        return {"mean": list(vae.config.latents_mean), "std": list(vae.config.latents_std)}

    def normalised(self, statistics: Mapping[str, Any], latents: Tensor) -> Tensor:
        """(z − mean) · 1/std, in the operations of diffusers' image-to-image pipeline."""
        mean, std = (latents.new_tensor(statistics[name])[:, None, None] for name in ("mean", "std"))
        return (latents - mean) * (1.0 / std)

    def denormalised(self, statistics: Mapping[str, Any], latents: Tensor) -> Tensor:
        mean, std = (latents.new_tensor(statistics[name])[:, None, None] for name in ("mean", "std"))
        return latents / (1.0 / std) + mean


class QwenImage(OnQwenImageVae):
    """See `Family`; masks, attention backends and block compilation need no `prepare`."""

    pipeline = "QwenImagePipeline"
    transformer = "QwenImageTransformer2DModel"
    text_parts = ("text_encoder", "tokenizer")
    name_parts = ("text_encoder", "tokenizer")
    longest = 512
    fixed_length = False
    logits = True
    prompt_first = True

    def layout(self, transformer: Mapping[str, Any], vae: Mapping[str, Any]) -> Layout:
        check_sizes(transformer, ("num_layers", "num_attention_heads", "attention_head_dim", "joint_attention_dim", "in_channels"))
        kind, variants = transformer.get("_class_name"), [name for name in _VARIANTS if transformer.get(name)]
        channels, latents, out = transformer["in_channels"], vae["z_dim"], transformer["out_channels"] or transformer["in_channels"]
        fits = channels == latents * PATCH**2 and transformer["patch_size"] == PATCH and out == latents
        if kind != self.transformer or variants or not fits:
            raise ModelError(
                f"{kind} of {channels} input and {out} output channels and patch size {transformer['patch_size']}"
                f"{' with ' + ', '.join(variants) if variants else ''} on a VAE of {latents} channels: a text-to-image "
                f"{self.transformer} is needed, of patch size {PATCH}, {latents} × 2 × 2 = {latents * 4} and {latents} channels"
            )
        check_channels(vae)
        return Layout(
            double_blocks=transformer["num_layers"],
            single_blocks=0,
            text_width=transformer["joint_attention_dim"],
            latent_channels=latents,
            patch=PATCH,
            vae_factor=2 ** len(vae["temperal_downsample"]),
            guidance=False,
            double_block="transformer_blocks.{index}",
            single_block="",
            image_projections=("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"),
            text_projections=("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out"),
            single_projections={},
        )

    def tokenizers(self, backbone: Backbone) -> WordTokenizer:
        return WordTokenizer(load_plain(backbone, "tokenizer"), backbone.max_sequence_length)

    def condition_size(self, configs: Mapping[str, Mapping[str, Any]], tokens: int) -> tuple[int, int | None]:
        return tokens, None

    def text_encoders(self, backbone: Backbone, device: torch.device, offload: str) -> TextEncoders:
        return TemplatedLanguageModel(backbone, device, offload)

    def velocity(self, transformer: Any, latents: Tensor, t: Tensor, condition: TextCondition, guidance: float | None) -> Tensor:
        """See `Family`. `guidance` is None: Qwen-Image is guided by a second, negative prompt, not by an input (`guided`)."""
        height, width = latents.shape[-2:]
        condition = in_order(condition)
        velocity = transformer(
            hidden_states=pack(latents),
            encoder_hidden_states=condition.states,
            encoder_hidden_states_mask=condition.mask,
            # QwenImagePipeline hands over 1000 t in the precision of the latents, divided by 1000
            timestep=(t.float() * 1000).to(latents.dtype) / 1000,
            img_shapes=[[(1, height // PATCH, width // PATCH)]] * len(latents),
            return_dict=False,
        )[0]
        return unpack(velocity, height, width)

    def guided(self, conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
        """u + scale · (c − u), with each image token's norm that of c: `QwenImagePipeline`'s `true_cfg_scale`."""
        wanted, against = pack(conditional), pack(unconditional)
        combined = against + scale * (wanted - against)
        ratio = wanted.norm(dim=-1, keepdim=True) / combined.norm(dim=-1, keepdim=True)
        return unpack(combined * ratio, *conditional.shape[-2:])

    def sigmas(self, steps: int, layout: Layout, resolution: int, scheduler: Mapping[str, Any]) -> NDArray[np.float32]:
        """See `Family`; the dynamic shift depends on the number of packed image tokens, and the last time is `shift_terminal`."""
        return euler_times(steps, layout.grid(resolution) ** 2, scheduler)

    def taps(self, transformer: Any) -> JointTaps:
        return QwenTaps(transformer, tuple(QwenTap(each, _arguments, _rotate) for each in transformer.transformer_blocks))
