"""Krea 2: `Krea2Pipeline` of diffusers, Raw and Turbo.

Unlike FLUX: single-stream blocks alone, of gated attention with grouped heads (`GatedBlockTap`), whose modulation is one for all
and a table of each block's own. The states of twelve layers of a Qwen3-VL go in per token; the transformer fuses them by attention
over the layers, then over the text, before its blocks. Text stands at position 0. The VAE is Qwen-Image's. Turbo, distilled to few
steps, has a fixed shift of times.

The pipeline pads a prompt to its full length *within* the template, before the template's end, and masks the padding. No row that
is read depends on it, so conditions are without: a row takes 61 KB at full size, and 512 of them are twice an image of 256 px.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sgpipe.backbones.base import Family, Layout, TextCondition, TextEncoders, check_sizes
from sgpipe.backbones.config import Backbone
from sgpipe.backbones.families.flux import PATCH, pack, rotate, unpack
from sgpipe.backbones.families.qwen_image import OnQwenImageVae, WordTokenizer, check_channels
from sgpipe.backbones.gated_blocks import GatedBlockTap
from sgpipe.backbones.joint_blocks import JointTaps
from sgpipe.backbones.loading import load_module, load_plain, on_device, place
from sgpipe.backbones.rectified_flow import euler_times, scheduler_times
from sgpipe.backbones.text import check_finite
from sgpipe.backbones.truncation import Tokenized, tokenized
from sgpipe.errors import ModelError, ParamsError

END = 5
"""Tokens of the template behind a prompt, which are never cut off."""
_TURBO_MU = 1.15
_SIZES = (
    "num_layers", "num_attention_heads", "num_key_value_heads", "attention_head_dim", "num_text_layers", "text_hidden_dim",
    "in_channels",
)  # fmt: skip


class OwnTokenizer(WordTokenizer):
    """`length` is of a prompt's own tokens; counts and limits are told with those of the template's end."""

    def prompts(self, texts: Sequence[str]) -> list[Tokenized]:
        found = tokenized(self.tokenizer, "Qwen3-VL", texts, self.length)
        return [replace(each, tokens=each.tokens + END, limit=each.limit + END) for each in found]

    names = prompts


class LayeredLanguageModel:
    """Qwen3-VL as `Krea2Pipeline` runs it: within its template, whose first 34 tokens are dropped; states of several layers."""

    def __init__(self, backbone: Backbone, layers: tuple[int, ...], device: torch.device, offload: str) -> None:
        from diffusers import Krea2Pipeline

        self._length, self._device, self._offload = backbone.max_sequence_length, device, offload
        self._encoder = load_module(backbone, "text_encoder")
        text = self._encoder.config.get_text_config()
        if text.num_hidden_layers < max(layers):
            raise ModelError(
                f"{backbone.model}/text_encoder: has {text.num_hidden_layers} layers; the states of layers "
                f"{', '.join(map(str, layers))} are needed; fetch the checkpoint again"
            )
        text.use_cache = False  # nobody reads keys and values again
        parts = {"scheduler": None, "vae": None, "transformer": None, "tokenizer": load_plain(backbone, "tokenizer")}
        self._pipeline = Krea2Pipeline(**parts, text_encoder=self._encoder, text_encoder_select_layers=layers)
        if offload != "model":
            place(self._encoder, device, offload)

    @torch.no_grad()
    def prompts(self, texts: Sequence[str]) -> TextCondition:
        """The layers' states side by side `[B, T, layers · width]` of a prompt's tokens and of the template's five behind them."""
        with on_device(self._encoder, self._device, self._offload):
            states, mask = self._pipeline.get_text_hidden_states(list(texts), self._length, self._device)
        states = states.flatten(2)
        made = TextCondition.cat([TextCondition(row[kept][None].cpu()) for row, kept in zip(states, mask, strict=True)])
        check_finite("text_encoder", texts, made.states)
        return made

    def concepts(self, texts: Sequence[str]) -> list[Tensor]:
        """States `[n, layers · width]` of the n tokens of each text, a prompt of its own, without the template's behind them.

        A token has read those before it alone. A text without tokens keeps its first row.
        """
        made = self.prompts(texts)
        counts = (made.attended.sum(dim=1) - END).clamp(min=1).tolist()
        return [row[:count] for row, count in zip(made.states, counts, strict=True)]


class KreaTaps(JointTaps):
    """Blocks are handed the modulation `[B, 1, 6 D]` of time alone, so concepts have the prompt's."""

    @property
    def conditioner(self) -> nn.Module:
        return self.transformer.time_mod_proj

    def conditioning(self, args: tuple[Any, ...]) -> Tensor:
        return self.conditioner.forward(*args)

    def embed(self, concepts: Tensor) -> Tensor:
        """Through the text's own way: its layers are fused, and concepts attend to one another where text rows do."""
        layered = concepts.unflatten(-1, (self.transformer.config.num_text_layers, -1))
        return self.transformer.txt_in.forward(self.transformer.text_fusion.forward(layered))


@dataclass(frozen=True)
class Krea2(OnQwenImageVae):
    """See `Family`; masks, attention backends and block compilation need no `prepare`."""

    layers: tuple[int, ...] = (2, 5, 8, 11, 14, 17, 20, 23, 26, 29, 32, 35)
    """Of the text encoder, whose states stand side by side in a condition; 0 is what goes into its first layer."""
    distilled: bool = False

    pipeline = "Krea2Pipeline"
    transformer = "Krea2Transformer2DModel"
    text_parts = ("text_encoder", "tokenizer")
    name_parts = ("text_encoder", "tokenizer")
    longest = 512
    fixed_length = False

    def configured(self, index: Mapping[str, Any]) -> Family:
        """With `text_encoder_select_layers` and `is_distilled` of model_index.json."""
        layers, distilled = index.get("text_encoder_select_layers") or self.layers, index.get("is_distilled", False)
        sound = isinstance(layers, list | tuple) and all(type(each) is int and each >= 0 for each in layers)
        if not sound or type(distilled) is not bool or index.get("patch_size", PATCH) != PATCH:
            raise ModelError(
                f"model_index.json: text_encoder_select_layers {layers!r}, is_distilled {distilled!r}, patch_size "
                f"{index.get('patch_size', PATCH)!r}: whole numbers from 0, true or false, and {PATCH} are needed"
            )
        return replace(self, layers=tuple(layers), distilled=distilled)

    def prompt_settings(self) -> dict[str, Any]:
        return {"layers": list(self.layers)}

    def layout(self, transformer: Mapping[str, Any], vae: Mapping[str, Any]) -> Layout:
        check_sizes(transformer, _SIZES)
        kind, channels, latents, layers = (
            transformer.get("_class_name"), transformer["in_channels"], vae["z_dim"], transformer["num_text_layers"],
        )  # fmt: skip
        if kind != self.transformer or channels != latents * PATCH**2 or layers != len(self.layers):
            raise ModelError(
                f"{kind} of {channels} input channels and {layers} text layers on a VAE of {latents} channels: a "
                f"{self.transformer} is needed, of {latents} × 2 × 2 = {latents * 4} channels, and of {len(self.layers)} text "
                "layers, as text_encoder_select_layers of model_index.json names"
            )
        check_channels(vae)
        return Layout(
            double_blocks=0,
            single_blocks=transformer["num_layers"],
            text_width=layers * transformer["text_hidden_dim"],
            latent_channels=latents,
            patch=PATCH,
            vae_factor=2 ** len(vae["temperal_downsample"]),
            guidance=False,
            double_block="",
            single_block="transformer_blocks.{index}",
            image_projections=(),
            text_projections=(),
            single_projections={name: f"attn.{name}" for name in ("to_q", "to_k", "to_v", "to_gate", "to_out.0")},
        )

    def condition_size(self, configs: Mapping[str, Mapping[str, Any]], tokens: int) -> tuple[int, int | None]:
        return tokens, None

    def tokenizers(self, backbone: Backbone) -> OwnTokenizer:
        """See `Family`. Raises `ParamsError` for a length that leaves no token to the prompt."""
        if backbone.max_sequence_length <= END:
            raise ParamsError(
                f"backbone.max_sequence_length: got {backbone.max_sequence_length}; {END} of these tokens are the template's end; "
                f"valid: {END + 1}..{self.longest}"
            )
        return OwnTokenizer(load_plain(backbone, "tokenizer"), backbone.max_sequence_length - END)

    def text_encoders(self, backbone: Backbone, device: torch.device, offload: str) -> TextEncoders:
        self.tokenizers(backbone)
        return LayeredLanguageModel(backbone, self.layers, device, offload)

    def velocity(self, transformer: Any, latents: Tensor, t: Tensor, condition: TextCondition, guidance: float | None) -> Tensor:
        """See `Family`. `guidance` is None: Krea 2 is guided by a second, negative prompt, not by an input (`guided`)."""
        from diffusers import Krea2Pipeline

        height, width = latents.shape[-2:]
        rows, grid = condition.states.shape[1], (height // PATCH, width // PATCH)
        velocity = transformer(
            hidden_states=pack(latents),
            encoder_hidden_states=condition.states.unflatten(-1, (transformer.config.num_text_layers, -1)),
            # the pipeline divides the scheduler's 1000 t, and hands it over in the precision of the latents
            timestep=(t.float() * 1000 / 1000).to(latents.dtype),
            position_ids=Krea2Pipeline.prepare_position_ids(rows, *grid, latents.device),
            encoder_attention_mask=condition.mask,
            return_dict=False,
        )[0]
        return unpack(velocity, height, width)

    def guided(self, conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
        """c + (scale − 1) · (c − u): the pipeline's `guidance_scale` is scale − 1, so that its 4.5 is 5.5 here."""
        return conditional + (scale - 1) * (conditional - unconditional)

    def sigmas(self, steps: int, layout: Layout, resolution: int, scheduler: Mapping[str, Any]) -> NDArray[np.float32]:
        """See `Family`. The shift's exponent is linear in the number of image tokens, as FLUX's, or 1.15 for Turbo."""
        if self.distilled:
            return scheduler_times(steps, scheduler, sigmas=np.linspace(1.0, 1 / max(steps, 1), steps), mu=_TURBO_MU)
        return euler_times(steps, layout.grid(resolution) ** 2, scheduler)

    def taps(self, transformer: Any) -> JointTaps:
        taps = (GatedBlockTap(block, rotate, first=index == 0) for index, block in enumerate(transformer.transformer_blocks))
        return KreaTaps(transformer, tuple(taps), "Krea 2 has single-stream blocks alone: write {single_blocks: …}")
