"""FLUX.1 (schnell, dev and local copies): `FluxPipeline` of diffusers."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sgpipe.backbones.base import Family, Layout, TextCondition, TextEncoders, branched, check_sizes
from sgpipe.backbones.block_taps import BlockCall
from sgpipe.backbones.blockwise import BlockForward, Rows
from sgpipe.backbones.config import Backbone
from sgpipe.backbones.joint_blocks import JointBlockTap, JointTaps
from sgpipe.backbones.rectified_flow import euler_times
from sgpipe.backbones.shared_blocks import SharedBlockTap
from sgpipe.backbones.text import T5WithClips
from sgpipe.errors import ModelError

PATCH = 2
_SIZES = (
    "num_layers", "num_attention_heads", "attention_head_dim", "joint_attention_dim", "pooled_projection_dim", "in_channels",
)  # fmt: skip


def pack(latents: Tensor) -> Tensor:
    """Latents `[B, C, 2h, 2w]` to image tokens `[B, h·w, 4C]`: each 2 × 2 square is one token, channel-major."""
    batch, channels, height, width = latents.shape
    squares = latents.reshape(batch, channels, height // 2, 2, width // 2, 2)
    return squares.permute(0, 2, 4, 1, 3, 5).reshape(batch, height * width // 4, 4 * channels)


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """Image tokens `[B, h·w, 4C]` to latents `[B, C, height, width]`, the inverse of `pack`."""
    batch, _, channels = tokens.shape
    squares = tokens.reshape(batch, height // 2, width // 2, channels // 4, 2, 2)
    return squares.permute(0, 3, 1, 4, 2, 5).reshape(batch, channels // 4, height, width)


def image_ids(height: int, width: int, like: Tensor) -> Tensor:
    """Positions `[h·w, 3]` of image tokens for the rotary embedding: (0, row, column); text tokens have (0, 0, 0)."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    ids = torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).reshape(-1, 3)
    return ids.to(like)


class T5AndClip(T5WithClips):
    """T5 states of every token and CLIP's pooled vector, with the results of `FluxPipeline.encode_prompt` bit for bit."""

    def prompts(self, texts: Sequence[str]) -> TextCondition:
        """Both encodings of a batch, on the CPU."""
        ((pooled, _),) = self.pooled(texts, "pooler_output")
        return TextCondition(self.states(texts), pooled)


def _arguments(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Tensor, Any]:
    return args[2:4] if args else (kwargs["temb"], kwargs["image_rotary_emb"])


def _single_arguments(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> BlockCall:
    """Rows are [text, image], graph tokens among the text."""
    text = args[1] if args else kwargs["encoder_hidden_states"]
    return BlockCall(*_arguments(args, kwargs), image=slice(text.shape[1], None))


def rotate(keys: Tensor, positions: tuple[Tensor, Tensor]) -> Tensor:
    """Image rows stand at the end of the joint sequence [text, image]; text, and concepts, at position 0, the identity."""
    from diffusers.models.embeddings import apply_rotary_emb

    return apply_rotary_emb(keys, tuple(part[-keys.shape[1] :] for part in positions), sequence_dim=1)


def _times(t: Tensor, like: Tensor) -> Tensor:
    """FluxPipeline hands over 1000 t in the precision of the latents, divided by 1000."""
    return (t.float() * 1000).to(like.dtype) / 1000


class FluxForward(BlockForward):
    """Double-stream, then single-stream blocks; rotary embedding of [text, image], in which text stands at position 0."""

    @property
    def blocks(self) -> list[Any]:
        return [*self.transformer.transformer_blocks, *self.transformer.single_transformer_blocks]

    def embedded(self, latents: Tensor, t: Tensor, prompt: TextCondition, guidance: float | None) -> Rows:
        model, tokens = self.transformer, pack(latents)
        image = model.x_embedder(tokens)
        given = [_times(t, latents).to(image.dtype) * 1000]
        if guidance is not None:
            given.append(torch.full([len(latents)], guidance, device=image.device).to(image.dtype) * 1000)
        vector = model.time_text_embed(*given, prompt.pooled)
        return Rows(image, model.context_embedder(prompt.states), vector, (latents.shape[-2], latents.shape[-1]))

    def arguments(self, rows: Rows, condition: TextCondition) -> tuple[Any, ...]:
        height, width = rows.grid
        text = rows.image.new_zeros(condition.states.shape[1], 3)
        ids = torch.cat([text, image_ids(height // 2, width // 2, text)])
        return rows.vector, self.transformer.pos_embed(ids), condition.joint_attention(rows.image.shape[1])

    def velocity(self, rows: Rows) -> Tensor:
        return unpack(self.transformer.proj_out(self.transformer.norm_out(rows.image, rows.vector)), *rows.grid)


class Flux(Family):
    """See `Family`; masks, attention backends and block compilation need no `prepare`."""

    pipeline = "FluxPipeline"
    transformer = "FluxTransformer2DModel"
    text_parts = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
    name_parts = ("text_encoder_2", "tokenizer_2")
    longest = 512
    residual_inputs = ("controlnet_block_samples", "controlnet_single_block_samples")

    def layout(self, transformer: Mapping[str, Any], vae: Mapping[str, Any]) -> Layout:
        check_sizes(transformer, _SIZES)
        kind = transformer.get("_class_name")
        channels, latents = transformer["in_channels"], vae["latent_channels"]
        if kind != self.transformer or channels != latents * PATCH**2 or transformer["patch_size"] != 1:
            raise ModelError(
                f"{kind} of {channels} input channels and patch size {transformer['patch_size']} on a VAE of {latents} channels: "
                f"a text-to-image FluxTransformer2DModel is needed, of patch size 1 and {latents} × 2 × 2 = {latents * 4} channels"
            )
        return Layout(
            double_blocks=transformer["num_layers"],
            single_blocks=transformer["num_single_layers"],
            text_width=transformer["joint_attention_dim"],
            latent_channels=latents,
            patch=PATCH,
            vae_factor=2 ** (len(vae["block_out_channels"]) - 1),
            guidance=transformer["guidance_embeds"],
            double_block="transformer_blocks.{index}",
            single_block="single_transformer_blocks.{index}",
            image_projections=("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"),
            text_projections=("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out"),
            single_projections={name: f"attn.{name}" for name in ("to_q", "to_k", "to_v")} | {"proj_out": "proj_out"},
        )

    def condition_size(self, configs: Mapping[str, Mapping[str, Any]], tokens: int) -> tuple[int, int | None]:
        return tokens, configs["transformer"]["pooled_projection_dim"]

    def text_encoders(self, backbone: Backbone, device: torch.device, offload: str) -> TextEncoders:
        return T5AndClip(backbone, self.name_parts, [("text_encoder", "tokenizer")], device, offload)

    def velocity(self, transformer: Any, latents: Tensor, t: Tensor, condition: TextCondition, guidance: float | None) -> Tensor:
        """See `Family`. Positions of text are 0; padding rows of the prompt are attended to, as in training of FLUX."""
        height, width = latents.shape[-2:]
        tokens = pack(latents)
        scale = None if guidance is None else torch.full([len(latents)], guidance, device=latents.device, dtype=torch.float32)
        inputs = {
            "hidden_states": tokens,
            "encoder_hidden_states": condition.states,
            "pooled_projections": condition.pooled,
            "timestep": _times(t, latents),
            "guidance": scale,
            "img_ids": image_ids(height // 2, width // 2, tokens),
            "txt_ids": tokens.new_zeros(condition.states.shape[1], 3),
            "joint_attention_kwargs": condition.joint_attention(tokens.shape[1]),
            "return_dict": False,
        }
        velocity = transformer(**inputs, **self.residuals(condition, latents, inputs))[0]
        return unpack(velocity, height, width)

    def controlnet(self, transformer: Any, blocks: int, single_blocks: int) -> Any:
        from diffusers import FluxControlNetModel

        return branched(FluxControlNetModel, transformer, num_layers=blocks, num_single_layers=single_blocks)

    def image_input(self, latents: Tensor) -> Tensor:
        return pack(latents)

    def by_blocks(self, transformer: Any) -> BlockForward:
        return FluxForward(transformer)

    def pipeline_time(self, given: Mapping[str, Any]) -> float:
        return float(given["timestep"][0])

    def pipeline_inputs(self, given: Mapping[str, Any], condition: TextCondition, layout: Layout) -> dict[str, Any]:
        """See `Family`. The pipeline's positions of text are as many as its own rows."""
        masked = condition.joint_attention(given["hidden_states"].shape[1])
        attention = {**(given["joint_attention_kwargs"] or {}), **(masked or {})}
        ids = given["txt_ids"].new_zeros(condition.states.shape[1], 3)
        return {**given, "encoder_hidden_states": condition.states, "txt_ids": ids, "joint_attention_kwargs": attention}

    def sigmas(self, steps: int, layout: Layout, resolution: int, scheduler: Mapping[str, Any]) -> NDArray[np.float32]:
        """See `Family`; a dynamic shift depends on the number of packed image tokens."""
        return euler_times(steps, layout.grid(resolution) ** 2, scheduler)

    def taps(self, transformer: Any) -> JointTaps:
        """All blocks; the concept rows that leave the last double-stream block enter the first single-stream one."""
        double = (JointBlockTap(block, _arguments, rotate) for block in transformer.transformer_blocks)
        single = (SharedBlockTap(block, _single_arguments, rotate) for block in transformer.single_transformer_blocks)
        return JointTaps(transformer, (*double, *single))
