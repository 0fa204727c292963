"""FLUX.2: `Flux2Pipeline` (dev) and `Flux2KleinPipeline` (klein) of diffusers.

Unlike FLUX.1: hidden states of a chat model and no pooled vector; text has positions; latents are squares of 2 × 2 of the VAE's,
normalised by the statistics of its batch norm; one modulation for all double-stream blocks, handed over as their argument, and one
for all single-stream blocks, whose projections are two matrices.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sgpipe.backbones.base import Family, Layout, TextCondition, TextEncoders, check_sizes
from sgpipe.backbones.chat import ChatEncoder, ChatTokenizer
from sgpipe.backbones.config import Backbone
from sgpipe.backbones.families.flux import rotate
from sgpipe.backbones.joint_blocks import JointBlockTap, JointTaps
from sgpipe.backbones.loading import load_plain
from sgpipe.backbones.rectified_flow import scheduler_times
from sgpipe.errors import ModelError

PATCH = 2
_SIZES = ("num_layers", "num_single_layers", "num_attention_heads", "attention_head_dim", "joint_attention_dim", "in_channels")


def patchify(latents: Tensor) -> Tensor:
    """Latents `[B, C, 2h, 2w]` of the VAE to `[B, 4C, h, w]`: each 2 × 2 square is one, channel-major."""
    batch, channels, height, width = latents.shape
    squares = latents.reshape(batch, channels, height // 2, 2, width // 2, 2)
    return squares.permute(0, 1, 3, 5, 2, 4).reshape(batch, 4 * channels, height // 2, width // 2)


def unpatchify(latents: Tensor) -> Tensor:
    """Latents `[B, 4C, h, w]` to `[B, C, 2h, 2w]`, the inverse of `patchify`."""
    batch, channels, height, width = latents.shape
    squares = latents.reshape(batch, channels // 4, 2, 2, height, width)
    return squares.permute(0, 1, 4, 2, 5, 3).reshape(batch, channels // 4, 2 * height, 2 * width)


def image_ids(height: int, width: int) -> Tensor:
    """Positions `[h·w, 4]` of image tokens: (0, row, column, 0)."""
    return torch.cartesian_prod(torch.arange(1), torch.arange(height), torch.arange(width), torch.arange(1))


def text_ids(rows: int, prepended: int) -> Tensor:
    """Positions `[T, 4]` of text rows: (0, 0, 0, l). A prompt's rows have l from 0 on, those before it the next ones."""
    places = torch.arange(rows).roll(prepended)
    return torch.cartesian_prod(torch.arange(1), torch.arange(1), torch.arange(1), places)


def _arguments(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Tensor, Any]:
    return args[3:5] if args else (kwargs["temb_mod_txt"], kwargs["image_rotary_emb"])


class Flux2BlockTap(JointBlockTap):
    """A double-stream block; what it is handed for its conditioning vector is the text's whole modulation `[B, 6 D]`."""

    def modulated(self, rows: Tensor, conditioning: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        shift, scale, *modulation = conditioning.chunk(6, dim=-1)
        return (1 + scale[:, None]) * self.block.norm1_context(rows) + shift[:, None], tuple(modulation)


class Flux2Taps(JointTaps):
    """Without a pooled vector the concepts' modulation is the text's; concepts stand at position 0, where one token alone would."""

    @property
    def conditioner(self) -> nn.Module:
        return self.transformer.double_stream_modulation_txt

    def conditioning(self, args: tuple[Any, ...]) -> Tensor:
        return self.conditioner.forward(*args)


class _Reads(NamedTuple):
    """What a pipeline reads of its chat model."""

    encoder: str
    layers: tuple[int, ...]


class Flux2(Family):
    """FLUX.2-dev, guided by an input; see `Family`. Masks, attention backends and block compilation need no `prepare`."""

    pipeline = "Flux2Pipeline"
    transformer = "Flux2Transformer2DModel"
    text_parts = ("text_encoder", "tokenizer")
    name_parts = ("text_encoder", "tokenizer")
    longest = 512
    reads = _Reads("Mistral 3", (10, 20, 30))

    def layout(self, transformer: Mapping[str, Any], vae: Mapping[str, Any]) -> Layout:
        check_sizes(transformer, _SIZES)
        kind, channels, latents = transformer.get("_class_name"), transformer["in_channels"], vae["latent_channels"]
        fits = channels == latents * PATCH**2 and transformer["patch_size"] == 1 and list(vae["patch_size"]) == [PATCH, PATCH]
        if kind != self.transformer or vae.get("_class_name") != "AutoencoderKLFlux2" or not fits:
            raise ModelError(
                f"{kind} of {channels} input channels and patch size {transformer['patch_size']} on a {vae.get('_class_name')} of "
                f"{latents} channels: a {self.transformer} of patch size 1 and {latents} × 2 × 2 = {latents * 4} channels on an "
                "AutoencoderKLFlux2 is needed"
            )
        return Layout(
            double_blocks=transformer["num_layers"],
            single_blocks=transformer["num_single_layers"],
            text_width=transformer["joint_attention_dim"],
            latent_channels=channels,
            patch=1,
            vae_factor=PATCH * 2 ** (len(vae["block_out_channels"]) - 1),
            guidance=transformer["guidance_embeds"],
            double_block="transformer_blocks.{index}",
            single_block="single_transformer_blocks.{index}",
            image_projections=("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"),
            text_projections=("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out"),
            single_projections={name: f"attn.{name}" for name in ("to_qkv_mlp_proj", "to_out")},
        )

    def condition_size(self, configs: Mapping[str, Mapping[str, Any]], tokens: int) -> tuple[int, int | None]:
        return tokens, None

    def tokenizers(self, backbone: Backbone) -> ChatTokenizer:
        """Every text is a user's message after the pipeline's own system message."""
        from diffusers.pipelines.flux2.pipeline_flux2 import format_input

        processor = load_plain(backbone, "tokenizer")

        def render(text: str) -> str:
            return processor.apply_chat_template(format_input([text]), add_generation_prompt=False, tokenize=False)[0]

        return ChatTokenizer(processor.tokenizer, render, self.reads.encoder, backbone.max_sequence_length)

    def text_encoders(self, backbone: Backbone, device: torch.device, offload: str) -> TextEncoders:
        return ChatEncoder(backbone, "text_encoder", self.tokenizers(backbone), self.reads.layers, device, offload)

    def statistics(self, vae: Any) -> dict[str, Any]:
        """Mean and deviation of each of the 4C channels of the squares, by the batch norm that the VAE was trained with."""
        deviation = torch.sqrt(vae.bn.running_var + vae.config.batch_norm_eps)
        return {"mean": vae.bn.running_mean.tolist(), "std": deviation.tolist()}

    def normalised(self, statistics: Mapping[str, Any], latents: Tensor) -> Tensor:
        """Squares of the VAE's latents: (z − mean) / std."""
        mean, std = _channels(statistics, latents)
        return (patchify(latents) - mean) / std

    def denormalised(self, statistics: Mapping[str, Any], latents: Tensor) -> Tensor:
        mean, std = _channels(statistics, latents)
        return unpatchify(latents * std + mean)

    def velocity(self, transformer: Any, latents: Tensor, t: Tensor, condition: TextCondition, guidance: float | None) -> Tensor:
        """See `Family`. Padding rows of the prompt are attended to, as in the pipeline."""
        batch, channels, height, width = latents.shape
        tokens = latents.reshape(batch, channels, height * width).permute(0, 2, 1)
        # the pipeline hands over 1000 t in the precision of the latents, divided by 1000
        times = (t.float() * 1000).to(latents.dtype) / 1000
        scale = None if guidance is None else torch.full([batch], guidance, device=latents.device, dtype=torch.float32)
        velocity = transformer(
            hidden_states=tokens,
            encoder_hidden_states=condition.states,
            timestep=times,
            guidance=scale,
            img_ids=image_ids(height, width).to(latents.device),
            txt_ids=text_ids(condition.states.shape[1], condition.prepended).to(latents.device),
            joint_attention_kwargs=condition.joint_attention(tokens.shape[1]),
            return_dict=False,
        )[0]
        return velocity.permute(0, 2, 1).reshape(batch, channels, height, width)

    def sigmas(self, steps: int, layout: Layout, resolution: int, scheduler: Mapping[str, Any]) -> NDArray[np.float32]:
        """See `Family`. The shift's exponent is an empirical one of image tokens and steps, whatever the scheduler's own bounds."""
        from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu

        mu = compute_empirical_mu(layout.grid(resolution) ** 2, steps)
        return scheduler_times(steps, scheduler, sigmas=np.linspace(1.0, 1 / max(steps, 1), steps), mu=mu)

    def taps(self, transformer: Any) -> JointTaps:
        """The double-stream blocks."""
        blocks = tuple(Flux2BlockTap(each, _arguments, rotate) for each in transformer.transformer_blocks)
        return Flux2Taps(
            transformer,
            blocks,
            "FLUX.2's single-stream blocks, of one modulation and fused projections, have no maps: name double-stream blocks",
        )


class Flux2Klein(Flux2):
    """FLUX.2-klein: a Qwen3 reads the prompt without a system message, and the transformer takes no guidance."""

    pipeline = "Flux2KleinPipeline"
    reads = _Reads("Qwen3", (9, 18, 27))

    def tokenizers(self, backbone: Backbone) -> ChatTokenizer:
        """Every text is a user's message, before the opening of an answer without thoughts."""
        tokenizer = load_plain(backbone, "tokenizer")

        def render(text: str) -> str:
            messages = [{"role": "user", "content": text}]
            return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, enable_thinking=False)

        return ChatTokenizer(tokenizer, render, self.reads.encoder, backbone.max_sequence_length)


def _channels(statistics: Mapping[str, Any], like: Tensor) -> list[Tensor]:
    """Mean and deviation `[1, 4C, 1, 1]`."""
    return [torch.tensor(statistics[name], dtype=like.dtype, device=like.device)[:, None, None] for name in ("mean", "std")]
