"""From nothing to the embedded checkpoints: which trainings, in which order, with which numbers."""

from dataclasses import dataclass
from pathlib import Path

from sgpipe.errors import DataError
from sgworld.bank import draw_bank, whole_bank
from sgworld.contrast import JUDGE, TEACHER, of_bank, train_contrast
from sgworld.flux import Schedule, train_flux, train_on
from sgworld.language import train_language
from sgworld.vae import train_vae

PARTS = ("language", "vae", "flux", "clip", "tower")


@dataclass(frozen=True)
class Recipe:
    """The numbers behind the committed checkpoints. `decay` counts the last steps, over which the rate falls to zero."""

    pictures: int = 80_000
    bank_seed: int = 1
    language_steps: int = 380
    vae_steps: int = 1_200
    shallow_steps: tuple[int, ...] = (23_250, 25_320)
    flux_steps: int = 950
    flux_decay: int = 750
    clip_steps: int = 1_500
    tower_steps: int = 1_000
    pairs: int = 64
    flux_batch: int = 48
    batch: int = 32
    compiled: bool = True
    rarity: float = 1.0


def train(state: Path, out: Path, parts: tuple[str, ...] = PARTS, recipe: Recipe | None = None) -> None:
    """Train `parts` in order; working state in `state`, results in `out/{mini-flux,mini-clip,mini-tower}`.

    A training that was interrupted continues with the same command; a finished one is not repeated. Teacher and judge are
    trained on banks of their own.
    """
    recipe = recipe or Recipe()
    languages, vae = state / "language-out", state / "vae-out"
    if {"vae", "clip"} & set(parts):
        bank = draw_bank(state / "bank", recipe.pictures, recipe.bank_seed)
    if "language" in parts:
        train_language(state / "language", languages, seed=2, steps=recipe.language_steps, batch=256)
    if "vae" in parts:
        train_vae(bank, state / "vae", vae, seed=3, steps=recipe.vae_steps, batch=recipe.batch, rate=2e-3)
    if "flux" in parts:
        schedule = Schedule(
            recipe.shallow_steps, recipe.flux_steps, recipe.flux_decay, recipe.flux_batch, 1e-3, recipe.compiled, recipe.rarity
        )
        train_flux(whole_bank(state / "world"), languages, vae, state / "flux", out / "mini-flux", schedule, seed=4)
    if "clip" in parts:
        train_contrast(of_bank(bank), state / "clip", out / "mini-clip", JUDGE, seed=5, steps=recipe.clip_steps, batch=recipe.pairs)
    if "tower" in parts:
        other = draw_bank(state / "tower-bank", recipe.pictures // 2, recipe.bank_seed + 1)
        train_contrast(
            of_bank(other), state / "tower", out / "mini-tower", TEACHER, seed=6, steps=recipe.tower_steps, batch=recipe.pairs
        )


def continue_flux(
    start: Path,
    state: Path,
    out: Path,
    steps: int,
    decay: int,
    shallow_steps: tuple[int, ...] = (),
    rarity: float = 1.0,
    recipe: Recipe | None = None,
) -> None:
    """Train the generator in `start` on for `steps`, with another order of the bank's pictures, into `out`.

    `shallow_steps` come before these, with six of its double-stream blocks; of several numbers each is followed by `steps` of its
    own, and the mean is kept (see `flux.train_on`).

    `rarity` favours pictures of names that few pictures show (see `bank.row_chances`).

    Raises `DataError` if `out` is `start`, whose weights are read while `out` is written.
    """
    if out.resolve() == start.resolve():
        raise DataError(f"{out}: is the folder that the training starts from; name another and move it afterwards")
    recipe = recipe or Recipe()
    bank = whole_bank(state / "world")
    schedule = Schedule(shallow_steps, steps, decay, recipe.flux_batch, 1e-3, recipe.compiled, rarity)
    train_on(bank, start, state, out, schedule, seed=6)
