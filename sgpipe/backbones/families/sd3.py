"""Stable Diffusion 3 and 3.5: `StableDiffusion3Pipeline` of diffusers.

Unlike FLUX: three text encoders (77 rows of CLIP-L and CLIP-G side by side, zero-padded to T5's width, then T5's rows), latents
that stay images, the joint sequence [image, text], no rotary embedding, no text output in the last block, q/k norms in 3.5 alone
and, in 3.5-medium, a second attention of image rows among themselves in the first blocks: a place for LoRA, and nothing that
concepts have a part in.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import pad

from sgpipe.backbones.base import Family, Layout, TextCondition, TextEncoders, branched, check_sizes
from sgpipe.backbones.block_taps import Attended, attention
from sgpipe.backbones.blockwise import BlockForward, Rows
from sgpipe.backbones.config import Backbone
from sgpipe.backbones.joint_blocks import JointBlockTap, JointTaps
from sgpipe.backbones.rectified_flow import scheduler_times
from sgpipe.backbones.text import T5WithClips
from sgpipe.errors import ModelError


class ClipsAndT5(T5WithClips):
    """Both CLIPs and T5, with the results of `StableDiffusion3Pipeline.encode_prompt` bit for bit."""

    def prompts(self, texts: Sequence[str]) -> TextCondition:
        """All encodings of a batch, on the CPU."""
        pooled, made = zip(*self.pooled(texts, "text_embeds", output_hidden_states=True), strict=True)
        clips = torch.cat([each.hidden_states[-2].to(pooled[0].dtype).cpu() for each in made], dim=-1)
        words = self.states(texts)
        clips = pad(clips, (0, words.shape[-1] - clips.shape[-1]))
        return TextCondition(torch.cat([clips, words], dim=1), torch.cat(pooled, dim=-1))


class MaskedJointAttention:
    """Attention of [image, text] rows that honours a mask and the attention backend, which diffusers' processor ignores.

    `attention_mask` `[B, 1, 1, N + T]` is false where no query may attend; None runs the very operations of the original.
    """

    _attention_backend: Any = None
    _parallel_config: Any = None

    def __init__(self) -> None:
        from diffusers.models.attention_dispatch import dispatch_attention_fn

        self._attend = dispatch_attention_fn

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, attention_mask: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        def heads(states: Tensor, norm: nn.Module | None) -> Tensor:
            states = states.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            return states if norm is None else norm(states)

        rows = [
            heads(attn.to_q(hidden_states), attn.norm_q),
            heads(attn.to_k(hidden_states), attn.norm_k),
            heads(attn.to_v(hidden_states), None),
        ]
        if encoder_hidden_states is not None:
            text = [
                heads(attn.add_q_proj(encoder_hidden_states), attn.norm_added_q),
                heads(attn.add_k_proj(encoder_hidden_states), attn.norm_added_k),
                heads(attn.add_v_proj(encoder_hidden_states), None),
            ]
            rows = [torch.cat(pair, dim=2) for pair in zip(rows, text, strict=True)]
        query, key, value = (part.transpose(1, 2) for part in rows)
        mask = attention_mask if encoder_hidden_states is not None else None
        out = self._attend(query, key, value, attn_mask=mask, backend=self._attention_backend).flatten(2)
        image_out = attn.to_out[1](attn.to_out[0](out[:, : hidden_states.shape[1]]))
        if encoder_hidden_states is None:
            return image_out
        text_out = out[:, hidden_states.shape[1] :]
        return image_out, text_out if attn.context_pre_only else attn.to_add_out(text_out)


def _arguments(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Tensor, None]:
    return (args[2] if len(args) > 2 else kwargs["temb"]), None


def _in_place(keys: Tensor, positions: None) -> Tensor:
    return keys


@dataclass(frozen=True)
class OfficialBlockTap(JointBlockTap):
    """As ConceptAttention's port to SD3 reads a block: O_X is the image's output of the concept pass."""

    def image_output(self, given: Tensor, query: Tensor, attended: Attended, positions: None) -> Tensor:
        """Image queries attend to [concept keys; image keys], not to the prompt's."""
        return attention(query, attended.keys, attended.values)


@dataclass(frozen=True)
class OfficialTaps(JointTaps):
    """As that port conditions concepts."""

    def conditioning(self, args: tuple[Any, ...]) -> Tensor:
        """The prompt's own: time(t) + its pooled vector."""
        return self.transformer.time_text_embed.forward(*args)


class SD3Forward(BlockForward):
    """Joint attention of [image, text]; the last block puts out no text."""

    @property
    def blocks(self) -> list[Any]:
        return list(self.transformer.transformer_blocks)

    def embedded(self, latents: Tensor, t: Tensor, prompt: TextCondition, guidance: float | None) -> Rows:
        model = self.transformer
        image = model.pos_embed(latents).contiguous()
        vector = model.time_text_embed(t.float() * 1000, prompt.pooled)
        return Rows(image, model.context_embedder(prompt.states), vector, (latents.shape[-2], latents.shape[-1]))

    def arguments(self, rows: Rows, condition: TextCondition) -> tuple[Any, ...]:
        return rows.vector, condition.joint_attention(rows.image.shape[1], image_first=True)

    def velocity(self, rows: Rows) -> Tensor:
        model, patch = self.transformer, self.transformer.config.patch_size
        squares = model.proj_out(model.norm_out(rows.image, rows.vector))
        height, width = (side // patch for side in rows.grid)
        squares = squares.reshape(len(squares), height, width, patch, patch, model.out_channels)
        return squares.permute(0, 5, 1, 3, 2, 4).reshape(len(squares), model.out_channels, *rows.grid)


class StableDiffusion3(Family):
    """See `Family`."""

    pipeline = "StableDiffusion3Pipeline"
    transformer = "SD3Transformer2DModel"
    text_parts = ("text_encoder", "text_encoder_2", "text_encoder_3", "tokenizer", "tokenizer_2", "tokenizer_3")
    name_parts = ("text_encoder_3", "tokenizer_3")
    longest = 512
    residual_inputs = ("block_controlnet_hidden_states",)
    map_variants = ("ours", "official_sd3")

    def layout(self, transformer: Mapping[str, Any], vae: Mapping[str, Any]) -> Layout:
        check_sizes(transformer, ("num_layers", "joint_attention_dim", "patch_size", "in_channels"))
        channels, latents = transformer["in_channels"], vae["latent_channels"]
        if transformer.get("_class_name") != self.transformer or channels != latents:
            raise ModelError(
                f"{transformer.get('_class_name')} of {channels} input channels on a VAE of {latents} channels: an "
                f"{self.transformer} of as many channels is needed"
            )
        count, dual = transformer["num_layers"], set(transformer.get("dual_attention_layers") or ())
        second = ("attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0") if dual else ()
        without = [index for index in range(count) if index not in dual]
        return Layout(
            double_blocks=count,
            single_blocks=0,
            text_width=transformer["joint_attention_dim"],
            latent_channels=latents,
            patch=transformer["patch_size"],
            vae_factor=2 ** (len(vae["block_out_channels"]) - 1),
            guidance=False,
            double_block="transformer_blocks.{index}",
            single_block="",
            image_projections=("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"),
            text_projections=("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out"),
            single_projections={},
            lacking=frozenset(
                {f"transformer_blocks.{count - 1}.attn.to_add_out"}
                | {f"transformer_blocks.{index}.{part}" for index in without for part in second}
            ),
            second_projections=second,
        )

    def condition_size(self, configs: Mapping[str, Mapping[str, Any]], tokens: int) -> tuple[int, int | None]:
        """See `Family`. CLIP's rows stand before T5's, padded to all that it takes."""
        return configs["text_encoder"]["max_position_embeddings"] + tokens, configs["transformer"]["pooled_projection_dim"]

    def text_encoders(self, backbone: Backbone, device: torch.device, offload: str) -> TextEncoders:
        clips = [("text_encoder", "tokenizer"), ("text_encoder_2", "tokenizer_2")]
        return ClipsAndT5(backbone, self.name_parts, clips, device, offload)

    def prepare(self, transformer: Any) -> None:
        """Processors that take masks, and the name of the block that is compiled once for all."""
        transformer.set_attn_processor(MaskedJointAttention())
        transformer._repeated_blocks = ["JointTransformerBlock"]

    def velocity(self, transformer: Any, latents: Tensor, t: Tensor, condition: TextCondition, guidance: float | None) -> Tensor:
        """See `Family`. `guidance` is None: SD3 is guided by a second, negative prompt, not by an input."""
        image_tokens = latents.shape[-2] * latents.shape[-1] // transformer.config.patch_size**2
        inputs = {
            "hidden_states": latents,
            "encoder_hidden_states": condition.states,
            "pooled_projections": condition.pooled,
            "timestep": t.float() * 1000,
            "joint_attention_kwargs": condition.joint_attention(image_tokens, image_first=True),
            "return_dict": False,
        }
        return transformer(**inputs, **self.residuals(condition, latents, inputs))[0]

    def controlnet(self, transformer: Any, blocks: int, single_blocks: int) -> Any:
        """See `Family`. It takes the control image shifted as latents are, and the prompt's pooled vector."""
        from diffusers import SD3ControlNetModel

        plain = {"extra_conditioning_channels": 0, "force_zeros_for_pooled_projection": False}
        return branched(SD3ControlNetModel, transformer, num_layers=blocks, **plain)

    def by_blocks(self, transformer: Any) -> BlockForward:
        return SD3Forward(transformer)

    def pipeline_time(self, given: Mapping[str, Any]) -> float:
        return float(given["timestep"][0]) / 1000

    def pipeline_inputs(self, given: Mapping[str, Any], condition: TextCondition, layout: Layout) -> dict[str, Any]:
        """See `Family`. A mask needs the processors of `prepare`."""
        height, width = given["hidden_states"].shape[-2:]
        masked = condition.joint_attention(height * width // layout.patch**2, image_first=True)
        attention = {**(given["joint_attention_kwargs"] or {}), **(masked or {})}
        return {**given, "encoder_hidden_states": condition.states, "joint_attention_kwargs": attention}

    def sigmas(self, steps: int, layout: Layout, resolution: int, scheduler: Mapping[str, Any]) -> NDArray[np.float32]:
        """See `Family`. The pipeline leaves the grid to the scheduler, which ends close to 0 (`shift` 3, 4 steps: at 0.009)."""
        if scheduler.get("use_dynamic_shifting"):
            raise ModelError("scheduler: use_dynamic_shifting is not sampled here for SD3; set it to false, with `shift`")
        return scheduler_times(steps, scheduler)

    def taps(self, transformer: Any) -> JointTaps:
        """All blocks; q and k leave their norms as `[B, heads, N, d]`."""
        return JointTaps(transformer, _tapped(transformer, JointBlockTap))

    def variant_taps(self, transformer: Any, variant: str) -> JointTaps:
        """See `Family`; docs/attention_maps.md says how `official_sd3` differs."""
        if variant == "ours":
            return self.taps(transformer)
        return OfficialTaps(transformer, _tapped(transformer, OfficialBlockTap))


def _tapped(transformer: Any, kind: type[JointBlockTap]) -> tuple[JointBlockTap, ...]:
    return tuple(kind(block, _arguments, _in_place, heads_first=True) for block in transformer.transformer_blocks)
