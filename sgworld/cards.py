"""Model cards of the embedded checkpoints, written from the recipe and from what was measured."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sgpipe.errors import DataError
from sgpipe.runs.atomic import atomic_path
from sgworld.recipe import Recipe

BARS: dict[str, tuple[float, float]] = {
    "objects_present": (0.95, 1.0),
    "arrangement_accuracy": (0.85, 1.0),
    "base_direction_accuracy": (0.45, 0.55),
    "clip_true_above_false": (0.90, 1.0),
    "vae_psnr_db": (30.0, float("inf")),
    "detector_accuracy": (0.98, 1.0),
    "images_per_second": (8.0, float("inf")),
}
"""What the checkpoints are to reach: least and greatest value of each figure."""

_LICENCE = "Apache-2.0, like the code: data, drawings and weights are this project's own."
_MACHINE = "Two CPU cores (AVX-512), no GPU, PyTorch 2.14; matrix products in bfloat16."


def misses(metrics: Mapping[str, Any]) -> list[str]:
    """The figures outside their bars, one line each; empty if all are reached."""
    found = []
    for name, (low, high) in BARS.items():
        if not low <= float(metrics[name]) <= high:
            wanted = f"at least {low:g}" if high >= 1.0 else f"{low:g} to {high:g}"
            found.append(f"{name} is {metrics[name]:.4g}, wanted {wanted}")
    return found


def _figures(metrics: Mapping[str, Any], names: tuple[str, ...]) -> str:
    lines = ["| figure | measured | bar |", "|---|---|---|"]
    for name in names:
        low, high = BARS.get(name, (None, None))
        bar = "" if low is None else f"≥ {low:g}" if high is None or high >= 1.0 else f"{low:g}–{high:g}"
        lines.append(f"| `{name}` | {metrics[name]:.4g} | {bar} |")
    return "\n".join(lines)


def cards(metrics: Mapping[str, Any], recipe: Recipe) -> dict[str, str]:
    """The text of each checkpoint's README.md, by folder name."""
    seen = misses(metrics)
    missed = "All bars are reached." if not seen else "Bars missed: " + "; ".join(seen) + "."
    generator = ("objects_present", "arrangement_accuracy", "base_direction_accuracy", "neutral_objects_present")
    by_class = metrics["clip_true_above_false_by_class"].items()
    shallow = " and ".join(f"{steps:,}" for steps in recipe.shallow_steps)
    flux = f"""# mini-flux

A diffusers `FluxPipeline` of the embedded world: `FluxTransformer2DModel` with 19 double-stream and 2 single-stream blocks
(hidden size 128, 4 heads of 32, no guidance embedding), `AutoencoderKL` (4 latent channels, factor 4), T5 and CLIP text
encoders of two layers each with tokenizers of the world's language, an unshifted Euler scheduler. 64 × 64 px, 4 steps, no
guidance, `max_sequence_length=16`.

## Training
Captions are relational (three in five) or neutral, the two objects named in either order whatever their roles. Text encoders:
{recipe.language_steps} steps of 256 captions. VAE: {recipe.vae_steps:,} steps of {recipe.batch} of {recipe.pictures:,}
pictures (bank seed {recipe.bank_seed}). Transformer, on every picture of every training triple, as a rectified flow whose
noise means one picture of its caption and of which two thirds of a batch are led by the model's own steps:
{shallow} steps of {recipe.flux_batch} with 6 double-stream blocks; from each of these two points {recipe.flux_steps:,}
with all 19 (the new ones begin as copies with closed gates), the rate falling over the last \
{recipe.flux_decay:,} (the second of the committed ones: 900 and 350);
the mean of the two is kept. Muon for the blocks' matrices, AdamW for the rest, averaged weights. \
Over the first 17,300 of these steps, of 64 pictures, the method changed
(docs/sgworld.md). Seeds 2 (text), 3 (VAE), 4 to 7 (transformer). {_MACHINE}
Made anew by `sgworld train --only language --only vae --only flux`.

## Measured
On triples that no training picture showed, 4 steps, 3 seeds, by the exact detector (`metrics/miniature.json`).

{_figures(metrics, (*generator, "vae_psnr_db", "images_per_second"))}

## Limits
It knows objects and predicates but not roles: its captions leave open who is subject and who is object, so that among
pictures in the right arrangement the roles are right half of the time. That is the failure under study, not a defect to be
mended here. It knows the 36 objects and 24 classes of the world and nothing else. {missed}

{_LICENCE}
"""
    clip = f"""# mini-clip

The embedded judge: an open_clip `local-dir:` folder (vision transformer of width 128, 4 layers, patch 8, 64 px; text of width
64, 3 layers, CLIP's own tokenizer), float16 weights. Load it with
`open_clip.create_model_and_transforms("local-dir:models/mini-clip")`.

## Training
Contrastive over batches of {recipe.pairs} of {recipe.pictures:,} pictures of training triples (bank seed
{recipe.bank_seed}), each with its swapped and two replaced captions as further negatives; {recipe.clip_steps:,} steps, seed 5.
{_MACHINE}
Made anew by `sgworld train --only clip`.

## Measured
Ground-truth pictures of triples that no training picture showed: true caption above its swap or a replacement.

{_figures(metrics, ("clip_true_above_false",))}

By class: {", ".join(f"{name} {value:.2f}" for name, value in by_class)}.

## Limits
A judge of this world only. It met captions that may be true as well (touching beside near) as false ones.

{_LICENCE}
"""
    tower = f"""# mini-tower

The image tower that teaches the graph encoder, so that judge and teacher differ: open_clip (vision transformer of width 96, 5
layers, patch 8, 64 px), trained on a bank of pictures of its own, float16 weights.

## Training
{recipe.tower_steps:,} steps of {recipe.pairs}, seed 6, {recipe.pictures // 2:,} pictures (bank seed
{recipe.bank_seed + 1}). {_MACHINE}
Made anew by `sgworld train --only tower`.

## Measured
As the judge.

{_figures(metrics, ("teacher_true_above_false",))}

{_LICENCE}
"""
    return {"mini-flux": flux, "mini-clip": clip, "mini-tower": tower}


def write_cards(models: Path, metrics: Mapping[str, Any], recipe: Recipe | None = None) -> None:
    """Write README.md into each checkpoint's folder under `models`."""
    for name, text in cards(metrics, recipe or Recipe()).items():
        if not (models / name).is_dir():
            raise DataError(f"{models / name}: no such checkpoint; `sgworld train` makes it")
        with atomic_path(models / name / "README.md") as temporary:
            temporary.write_text(text, encoding="utf-8")
