"""From nothing to the world's checkpoints: which trainings, in which order, with which numbers."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from diffusers import AutoencoderKL, FluxPipeline, FluxTransformer2DModel

from sgpipe.errors import DataError
from sgpipe.relations.predicates import PREDICATES
from sgpipe.runs.processes import Processes
from sgworld.bank import Bank
from sgworld.contrast import JUDGE, TEACHER, train_contrast
from sgworld.flux import assemble, build_transformer, deepen
from sgworld.language import train_language
from sgworld.training import ALONE
from sgworld.vae import train_decoder, train_vae
from sgworld.world.certificate import drawn
from sgworld.world.compose import compose
from sgworld.world.examples import caption_pool
from sgworld.world.generator import LEADING, SHIFT, STARTING, Phase, fit
from sgworld.world.hearing import Ear, Sounds, listen, sharpen
from sgworld.world.raster import render
from sgworld.world.rows import HeardBatches, Reader, TextRows, linear_maps, mute, muted, read_alone
from sgworld.world.specification import SLOTS, Caption
from sgworld.world.statements import of_captions

PARTS = ("language", "vae", "reading", "flux", "clip", "tower")
TOKENS = 32
"""Of a caption: four relations between four objects take 29."""


BLOCKS = tuple(range(16))
"""Double-stream blocks to begin with."""
DOUBLED = (*range(13), *(index for index in range(13, 16) for _ in range(2)))
"""All 19: those that draw twice."""
BEHIND = {"heard": 1, "link": 3, "frame": 5, "rough": 9, "place": 12}
PHASES = (
    Phase(1_000, STARTING, BLOCKS, BEHIND),
    Phase(9_000, LEADING, DOUBLED, BEHIND, decay=3_000, batch=64, average=0.998, behind_alone=True),
)


@dataclass(frozen=True)
class Recipe:
    """The numbers of a training. The last phase of the generator is of all 19 double-stream blocks."""

    captions: int = 300_000
    """Captions drawn ahead. Of 60,000 those trained on were told exactly more often than others."""
    language_steps: int = 600
    vae_images: int = 24_000
    vae_steps: int = 1_500
    decoder_images: int = 3_000
    decoder_steps: int = 500
    line_steps: int = 400
    """Of hearing before it is sharpened."""
    hearing_steps: int = 600
    sounds: int = 96
    reading_steps: int = 3_000
    own_steps: int = 6_000
    texts: int = 192
    phases: tuple[Phase, ...] = PHASES
    clip_steps: int = 8_000
    tower_steps: int = 2_000
    pairs: int = 64
    compiled: bool = True

    def going_on(self, reading: int | None, drawing: int | None) -> "Recipe":
        """With other numbers of steps of what a generator is trained on with: reading, and the last phase; None leaves one."""
        last = self.phases[-1] if drawing is None else replace(self.phases[-1], steps=drawing, decay=drawing // 3)
        return replace(self, own_steps=reading or self.own_steps, phases=(*self.phases[:-1], last))


def _said_of(pool: list[Caption]) -> Callable[[np.random.Generator], str]:
    return lambda rng: pool[int(rng.integers(len(pool)))].text()


def _images(pool: list[Caption], count: int, seed: int) -> Bank:
    """Images of captions of the pool, held in memory."""
    rng = np.random.default_rng(seed)
    scenes = (compose(pool[index % len(pool)], rng.random(SLOTS)) for index in range(count))
    return Bank(np.stack([render(scene) for scene in scenes]), [("", "", "")] * count)


def _of_two(pool: list[Caption], every: int) -> list[Caption]:
    """The pool with one in `every` of its captions of two objects, which are soon learned."""
    return [caption for number, caption in enumerate(pool) if len(caption.names) > 2 or number % every == 0]


def _hear(model: FluxTransformer2DModel, pool: list[Caption], encoders: FluxPipeline, state: Path, recipe: Recipe) -> None:
    """Teach a new model's first blocks to hear."""
    ear = Ear(model, BEHIND["heard"], TOKENS)
    listen(ear, Sounds(pool, encoders, recipe.sounds, 7), state / "hearing-line", recipe.line_steps, 1e-3)
    sharpen(ear, Sounds(pool, encoders, recipe.sounds, 8))
    listen(ear, Sounds(pool, encoders, recipe.sounds, 9), state / "hearing", recipe.hearing_steps, 3e-4)


def _read(
    model: FluxTransformer2DModel, pool: list[Caption], encoders: FluxPipeline, state: Path, recipe: Recipe, begun: bool,
    processes: Processes,
) -> None:  # fmt: skip
    """Teach a muted model to read on its text rows alone: unless it has `begun`, what noises mean by themselves; then what is
    nearest to what it tells.
    """
    rows = TextRows(model, BEHIND, linear_maps(model))
    sounds = Sounds(_of_two(pool, every=4), encoders, recipe.texts // processes.count, 10)
    batches, compiled = HeardBatches(sounds, Ear(model, BEHIND["heard"], TOKENS).frozen()), recipe.compiled
    for folder, steps, rate, own in (("reading", recipe.reading_steps, 1e-3, False), ("reading-own", recipe.own_steps, 5e-4, True)):
        if own or not begun:
            read_alone(rows, batches, state / folder, steps=steps, rate=rate, own=own, compiled=compiled, processes=processes)


def _transformer(folder: Path) -> FluxTransformer2DModel:
    model = FluxTransformer2DModel.from_pretrained(folder, subfolder="transformer").float()
    if len(model.transformer_blocks) not in (len(BLOCKS), len(DOUBLED)) or not muted(model, BEHIND):
        raise DataError(f"{folder}: {len(BLOCKS)} or {len(DOUBLED)} double-stream blocks are needed that read on text rows alone")
    return model


def train(
    state: Path, out: Path, parts: tuple[str, ...] = PARTS, recipe: Recipe | None = None, start: Path | None = None,
    processes: Processes = ALONE,
) -> None:  # fmt: skip
    """Train `parts` in order, working state in `state`, results in `out/{mini-flux,mini-clip,mini-tower}`.

    `start` is a pipeline folder that the generator is trained on from: its transformer has the blocks of a phase and reads, and its
    text encoders and VAE are kept. With the part `reading` it goes on with that first. Phases of fewer blocks are passed over.

    A training that was interrupted continues with the same command; a finished one is not repeated. `processes` share the steps of
    reading and of drawing; the rest the first of them does.
    """
    recipe = recipe or Recipe()
    if start is None and "reading" in parts and processes.count > 1:
        raise DataError("part reading: several processes go on from --start; a new generator begins with one")
    if processes.is_main:
        caption_pool(state, recipe.captions, 1)
    processes.wait()
    pool = caption_pool(state, recipe.captions, 1)
    languages, vae_folder = (state / "language-out", state / "vae-out") if start is None else (start, start / "vae")
    if "language" in parts and start is None and processes.is_main:
        train_language(
            state / "language",
            languages,
            seed=2,
            steps=recipe.language_steps,
            batch=256,
            say=_said_of(pool),
            tokens=TOKENS,
            marks=",",
        )
    if "vae" in parts and start is None and processes.is_main:
        images = _images(pool, recipe.vae_images, 3)
        train_vae(images, state / "vae", vae_folder, seed=3, steps=recipe.vae_steps, batch=32, rate=2e-3)
        vae = AutoencoderKL.from_pretrained(vae_folder)
        pictures = np.stack([render(scene) for scene in drawn(31, recipe.decoder_images // len(PREDICATES))])
        train_decoder(vae, pictures, state / "decoder", seed=31, steps=recipe.decoder_steps, batch=24, rate=5e-4)
        vae.save_pretrained(vae_folder, safe_serialization=True)
    processes.wait()
    reads = state / "reader" if start is None or "reading" in parts else start
    if "reading" in parts:
        vae = AutoencoderKL.from_pretrained(vae_folder)
        model = build_transformer(4, len(BLOCKS)) if start is None else _transformer(start)
        encoders = assemble(languages, vae, model)
        model.set_attention_backend("_native_math")
        if start is None:
            _hear(model, pool, encoders, state, recipe)
            mute(model, BEHIND)
        _read(model, pool, encoders, state, recipe, start is not None, processes)
        if processes.is_main:
            assemble(languages, vae, model.half(), SHIFT).save_pretrained(reads, safe_serialization=True)
        processes.wait()
    if "flux" in parts:
        vae, model = AutoencoderKL.from_pretrained(reads / "vae").requires_grad_(False), _transformer(reads)
        encoders, reader = assemble(reads, vae, model), Reader(model, BEHIND, TOKENS).frozen()
        for number, phase in enumerate(recipe.phases):
            if len(model.transformer_blocks) > len(phase.blocks):
                continue
            if len(model.transformer_blocks) < len(phase.blocks):
                model = deepen(model, phase.blocks, 4 + number)
            folder = state / f"flux-{number}"
            model = fit(
                model, reader, _of_two(pool, every=2), encoders, vae, folder, phase,
                seed=4 + number, compiled=recipe.compiled, processes=processes,
            )  # fmt: skip
        if processes.is_main:
            assemble(reads, vae, model.half(), SHIFT).save_pretrained(out / "mini-flux", safe_serialization=True)
    if "clip" in parts and processes.is_main:
        train_contrast(
            of_captions(pool), state / "clip", out / "mini-clip", JUDGE, seed=5, steps=recipe.clip_steps, batch=recipe.pairs
        )
    if "tower" in parts and processes.is_main:
        train_contrast(
            of_captions(pool), state / "tower", out / "mini-tower", TEACHER, seed=6, steps=recipe.tower_steps, batch=recipe.pairs
        )
