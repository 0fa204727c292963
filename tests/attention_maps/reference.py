"""ConceptAttention in float64, written from the formulas on the weights of a state dict: no diffusers, no batching, no hooks.

For one sample. Streams are X (image), T (text), C (concepts); every vector is a row.
"""

import math

import torch
from torch import Tensor

Weights = dict[str, Tensor]


def linear(weights: Weights, name: str, x: Tensor) -> Tensor:
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def layer_norm(x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + 1e-6)


def rms_norm(x: Tensor, gain: Tensor) -> Tensor:
    return x / torch.sqrt((x**2).mean(-1, keepdim=True) + 1e-6) * gain


def mlp(weights: Weights, name: str, x: Tensor) -> Tensor:
    return linear(weights, f"{name}.net.2", gelu(linear(weights, f"{name}.net.0.proj", x)))


def embedded(weights: Weights, name: str, x: Tensor) -> Tensor:
    return linear(weights, f"time_text_embed.{name}.linear_2", silu(linear(weights, f"time_text_embed.{name}.linear_1", x)))


def sinusoid(value: float) -> Tensor:
    """256 features of a time or guidance scale (already times 1000): cosines, then sines.

    Angles are in float32, as in FLUX itself: at a time of 1000 their rounding is 3e-5, more than all the rest.
    """
    frequencies = torch.exp(-math.log(10000) * torch.arange(128, dtype=torch.float32) / 128)
    angles = (torch.tensor(value, dtype=torch.float32) * frequencies).double()
    return torch.cat([torch.cos(angles), torch.sin(angles)])


def conditioning(weights: Weights, t: float, guidance: float | None, pooled: Tensor) -> Tensor:
    total = embedded(weights, "timestep_embedder", sinusoid(1000 * t)) + embedded(weights, "text_embedder", pooled)
    return total if guidance is None else total + embedded(weights, "guidance_embedder", sinusoid(1000 * guidance))


def rotate(x: Tensor, ids: Tensor, axes: tuple[int, ...], theta: float = 10000.0) -> Tensor:
    """RoPE on `[rows, heads, d]`: pair 2j, 2j+1 of an axis turns by position × θ^(-2j / width of the axis)."""
    turned = x.clone()
    start = 0
    for axis, width in enumerate(axes):
        for j in range(width // 2):
            angle = ids[:, axis] * theta ** (-2 * j / width)
            cosine, sine = torch.cos(angle)[:, None], torch.sin(angle)[:, None]
            a, b = x[..., start + 2 * j], x[..., start + 2 * j + 1]
            turned[..., start + 2 * j] = a * cosine - b * sine
            turned[..., start + 2 * j + 1] = a * sine + b * cosine
        start += width
    return turned


def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Heads concatenated `[rows, D]`."""
    weights = torch.softmax(torch.einsum("qhd,khd->hqk", query, key) / math.sqrt(query.shape[-1]), -1)
    return torch.einsum("hqk,khd->qhd", weights, value).flatten(1)


class Stream:
    """Rows of one kind in one block: modulation, projections and update on the image or the text side."""

    def __init__(self, weights: Weights, block: str, text: bool, heads: int, rows: Tensor, c: Tensor) -> None:
        self.weights, self.rows = weights, rows
        norm, self.ff, self.out = ("norm1_context", "ff_context", "attn.to_add_out") if text else ("norm1", "ff", "attn.to_out.0")
        self.ff, self.out = f"{block}.{self.ff}", f"{block}.{self.out}"
        shift, scale, self.gate, self.mlp_shift, self.mlp_scale, self.mlp_gate = linear(
            weights, f"{block}.{norm}.linear", silu(c)
        ).chunk(6)
        modulated = (1 + scale) * layer_norm(rows) + shift
        names = ("add_q_proj", "add_k_proj", "add_v_proj") if text else ("to_q", "to_k", "to_v")
        query, key, self.value = (linear(weights, f"{block}.attn.{name}", modulated).unflatten(1, (heads, -1)) for name in names)
        added = "added_" if text else ""
        self.query = rms_norm(query, weights[f"{block}.attn.norm_{added}q.weight"])
        self.key = rms_norm(key, weights[f"{block}.attn.norm_{added}k.weight"])

    def updated(self, output: Tensor) -> Tensor:
        rows = self.rows + self.gate * linear(self.weights, self.out, output)
        modulated = (1 + self.mlp_scale) * layer_norm(rows) + self.mlp_shift
        return rows + self.mlp_gate * mlp(self.weights, self.ff, modulated)


class Shared:
    """Rows of one kind in one single-stream block, whose weights are those of all kinds; attention and MLP side by side."""

    def __init__(self, weights: Weights, block: str, heads: int, rows: Tensor, c: Tensor) -> None:
        self.weights, self.block, self.rows = weights, block, rows
        shift, scale, self.gate = linear(weights, f"{block}.norm.linear", silu(c)).chunk(3)
        modulated = (1 + scale) * layer_norm(rows) + shift
        query, key, self.value = (
            linear(weights, f"{block}.attn.{name}", modulated).unflatten(1, (heads, -1)) for name in ("to_q", "to_k", "to_v")
        )
        self.query = rms_norm(query, weights[f"{block}.attn.norm_q.weight"])
        self.key = rms_norm(key, weights[f"{block}.attn.norm_k.weight"])
        self.inner = gelu(linear(weights, f"{block}.proj_mlp", modulated))

    def updated(self, output: Tensor) -> Tensor:
        return self.rows + self.gate * linear(self.weights, f"{self.block}.proj_out", torch.cat([output, self.inner], dim=1))


def scores(state: Weights, config: dict, arguments: dict[str, Tensor], concepts: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Raw saliency and cross-attention `[K, N]` per block, double before single, of one sample (arguments without a batch axis)."""
    weights = {name: value.double() for name, value in state.items()}
    given = {name: value.double() for name, value in arguments.items()}
    heads, axes = config["num_attention_heads"], tuple(config["axes_dims_rope"])
    guidance = float(given["guidance"]) if config["guidance_embeds"] else None
    t = float(given["timestep"])
    prompt = conditioning(weights, t, guidance, given["pooled_projections"])
    concept = conditioning(weights, t, guidance, torch.zeros_like(given["pooled_projections"]))
    image = linear(weights, "x_embedder", given["hidden_states"])
    text = linear(weights, "context_embedder", given["encoder_hidden_states"])
    rows = linear(weights, "context_embedder", concepts.double())
    image_ids, text_ids, concept_ids = given["img_ids"], given["txt_ids"], torch.zeros(len(rows), 3).double()
    found = []
    for index in range(config["num_layers"] + config["num_single_layers"]):
        if index < config["num_layers"]:
            block = f"transformer_blocks.{index}"
            x, p, c = (
                Stream(weights, block, text_side, heads, own, vector)
                for text_side, own, vector in ((False, image, prompt), (True, text, prompt), (True, rows, concept))
            )
        else:
            block = f"single_transformer_blocks.{index - config['num_layers']}"
            x, p, c = (
                Shared(weights, block, heads, own, vector) for own, vector in ((image, prompt), (text, prompt), (rows, concept))
            )
        image_query, image_key = rotate(x.query, image_ids, axes), rotate(x.key, image_ids, axes)
        text_query, text_key = rotate(p.query, text_ids, axes), rotate(p.key, text_ids, axes)
        concept_query, concept_key = rotate(c.query, concept_ids, axes), rotate(c.key, concept_ids, axes)
        keys, values = torch.cat([text_key, image_key]), torch.cat([p.value, x.value])
        image_output = attention(image_query, keys, values)
        text_output = attention(text_query, keys, values)
        concept_output = attention(concept_query, torch.cat([concept_key, image_key]), torch.cat([c.value, x.value]))
        saliency = concept_output @ image_output.T
        cross = torch.einsum("nhd,khd->hkn", x.query, c.key).mean(0)
        found.append((saliency, cross))
        image, text, rows = x.updated(image_output), p.updated(text_output), c.updated(concept_output)
    return found
