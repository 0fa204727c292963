"""The embedded judge and the graph encoder's teacher: two open_clip models, trained apart, with hard negatives."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from sgpipe.relations.predicates import DIRECTIONAL, INVERSE, PREDICATES, SYMMETRIC, relational_prompt
from sgpipe.runs.atomic import atomic_path, write_json
from sgworld.bank import Bank, Triple, to_unit
from sgworld.training import quick_products, train_model

CONTEXT = 32
"""Text length: CLIP's tokenizer needs up to 20 tokens for the longest prompt."""


@dataclass(frozen=True)
class Tower:
    """Size of one model; judge and teacher differ in architecture, seed and order of the pictures."""

    width: int
    layers: int
    patch: int
    embed: int


JUDGE = Tower(width=128, layers=4, patch=8, embed=96)
TEACHER = Tower(width=96, layers=5, patch=8, embed=64)


def model_config(tower: Tower) -> dict[str, object]:
    """open_clip's `model_cfg`."""
    return {
        "embed_dim": tower.embed,
        "vision_cfg": {"image_size": 64, "layers": tower.layers, "width": tower.width, "head_width": 32, "patch_size": tower.patch},
        "text_cfg": {"context_length": CONTEXT, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 3},
    }


def build_clip(tower: Tower, seed: int) -> open_clip.CLIP:
    """An open_clip model of random weights."""
    torch.manual_seed(seed)
    return open_clip.CLIP(**model_config(tower))


def false_triples(rng: np.random.Generator, triple: Triple) -> list[Triple]:
    """Triples that are false of a picture of `triple`: its swap, and the same names under two other classes.

    Symmetric classes are not swapped, and the inverse with roles kept counts as a replacement. A class that the eye cannot
    exclude beside the true one ("near" beside "touching") may be among the replacements: the model meets it as noise.
    """
    subject, predicate, object_ = triple
    swapped = (object_, predicate, subject)
    others = [p for p in PREDICATES if p != predicate]
    made = [(subject, str(p), object_) for p in rng.choice(others, 2, replace=False)]
    if predicate in DIRECTIONAL:
        made[0] = (subject, INVERSE[predicate], object_)
    return [*([] if predicate in SYMMETRIC else [swapped]), *made]


def contrastive_loss(image: Tensor, text: Tensor, negatives: Tensor, owner: Tensor, scale: Tensor) -> Tensor:
    """Symmetric in-batch cross-entropy (Radford et al. 2021, fig. 3), each picture's own false captions joining its row.

    `image`, `text` unit vectors `[B, D]`; `negatives` `[M, D]`, of which row m belongs to picture `owner[m]`.
    """
    logits = scale * image @ text.T
    hard = scale * (image[owner] * negatives).sum(-1)
    extra = torch.full((len(image), len(negatives)), -torch.inf).scatter(
        1, torch.arange(len(negatives)).expand(len(image), -1),
        torch.where(owner[None] == torch.arange(len(image))[:, None], hard[None], -torch.inf),
    )  # fmt: skip
    target = torch.arange(len(image))
    rows = F.cross_entropy(torch.cat([logits, extra], dim=1), target)
    return (rows + F.cross_entropy(logits.T, target)) / 2


@dataclass(frozen=True)
class Statements:
    """Pictures `[B, 64, 64, 3]` (0–255), a true text of each, and texts that are false of the picture they are numbered by."""

    pictures: NDArray[np.uint8]
    true: Sequence[str]
    false: Sequence[tuple[int, str]]


def of_bank(bank: Bank) -> Callable[[np.random.Generator, int], Statements]:
    """Draws pictures of the bank with what is true and false of them."""

    def draw(rng: np.random.Generator, count: int) -> Statements:
        rows = np.sort(rng.choice(len(bank.triples), count, replace=False))
        triples = [bank.triples[row] for row in rows]
        false = [(i, relational_prompt(*each)) for i, triple in enumerate(triples) for each in false_triples(rng, triple)]
        return Statements(bank.pictures[rows], [relational_prompt(*t) for t in triples], false)

    return draw


def train_contrast(
    draw: Callable[[np.random.Generator, int], Statements], folder: Path, out: Path, tower: Tower, *, seed: int, steps: int,
    batch: int,
) -> None:  # fmt: skip
    """Train one model on `draw`n batches and save it as an open_clip `local-dir:` folder with half-precision weights."""
    model = build_clip(tower, seed)
    tokenizer = open_clip.get_tokenizer("ViT-B-32", context_length=CONTEXT)

    def losses(step: int, _: int) -> tuple[Tensor, dict[str, Tensor]]:
        shown = draw(np.random.default_rng((seed, step)), batch)
        pixels = torch.from_numpy(to_unit(shown.pictures))
        with quick_products(), sdpa_kernel(SDPBackend.MATH):
            texts = model.encode_text(tokenizer([*shown.true, *(text for _, text in shown.false)]), normalize=True).float()
            image = model.encode_image(pixels, normalize=True).float()
        scale = model.logit_scale.exp().clamp(max=100)
        owner = torch.tensor([i for i, _ in shown.false])
        return contrastive_loss(image, texts[:batch], texts[batch:], owner, scale), {}

    train_model(
        model, losses, folder, steps=steps, samples=batch, rate=1e-3, decay=steps // 2, warmup=100, average=0.995,
        weight_decay=0.05, muon="resblocks", muon_rate=2e-3,
    )  # fmt: skip
    save_local(model, tower, out)


def save_local(model: open_clip.CLIP, tower: Tower, out: Path) -> None:
    """Write `open_clip_config.json` and `open_clip_model.safetensors` (float16): what open_clip reads from `local-dir:…`."""
    half = (0.5, 0.5, 0.5)
    preprocess = {"mean": half, "std": half, "interpolation": "bicubic", "resize_mode": "squash"}
    write_json({"model_cfg": model_config(tower), "preprocess_cfg": preprocess}, out / "open_clip_config.json")
    with atomic_path(out / "open_clip_model.safetensors") as temporary:
        weights = {name: tensor.detach().half().contiguous() for name, tensor in model.state_dict().items()}
        save_file(weights, temporary, metadata={"format": "pt"})
