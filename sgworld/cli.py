"""The `sgworld` command: draw the world's data set, train its checkpoints, measure them."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from sgpipe.errors import SgpipeError

app = typer.Typer(no_args_is_help=True, help="The embedded world: its data set, its checkpoints, what they can do.")
Models = Annotated[Path, typer.Option(help="folder of mini-flux, mini-clip and mini-tower")]


@app.command("render")
def render_command(
    out: Annotated[Path, typer.Option(help="folder to write")] = Path("data"),
    images: Annotated[int, typer.Option(help="images to draw")] = 6600,
    seed: Annotated[int, typer.Option(help="seed; the same numbers give the same bytes")] = 0,
) -> None:
    """Write the data set in Visual Genome's v1.4 layout, dirt included."""
    from sgworld.visual_genome import write_visual_genome

    write_visual_genome(out, images, seed)
    print(f"{out}: {images} images")


@app.command("train")
def train_command(
    out: Models = Path("models"),
    state: Annotated[Path, typer.Option(help="working state; an interrupted training continues from it")] = Path(
        "outputs/miniature"
    ),
    only: Annotated[list[str] | None, typer.Option(help="train this part only; may be repeated")] = None,
) -> None:
    """Train the checkpoints from nothing; about five hours on two cores by estimate, most of it the generator."""
    from sgworld.recipe import PARTS, train

    for part in only or ():
        if part not in PARTS:
            raise SgpipeError(f"--only: got {part!r}; valid: {', '.join(PARTS)}")
    train(state, out, tuple(only) if only else PARTS)


@app.command("train-on")
def train_on_command(
    steps: Annotated[int, typer.Option(min=1, help="steps to take")],
    decay: Annotated[int, typer.Option(min=1, help="steps at the end over which the rate falls to zero")],
    shallow_steps: Annotated[
        list[int] | None,
        typer.Option(
            min=1,
            help="steps before these, of six double-stream blocks: three times as fast; given several times, the mean of the "
            "generators made after each is kept",
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="folder of the new pipeline")] = Path("outputs/mini-flux"),
    start: Annotated[Path, typer.Option(help="pipeline whose transformer is trained on")] = Path("models/mini-flux"),
    state: Annotated[Path, typer.Option(help="working state; an interrupted training continues from it")] = Path(
        "outputs/miniature-onward"
    ),
    rarity: Annotated[
        float, typer.Option(min=0, help="0 draws all pictures of a class alike; 1 shows rare names nearly as often as others")
    ] = 1.0,
) -> None:
    """Train the generator on from where a checkpoint stands; text encoders and VAE stay as they are."""
    from sgworld.recipe import continue_flux

    continue_flux(start, state, out, steps, decay, tuple(sorted(shallow_steps or ())), rarity)
    print(out)


@app.command("measure")
def measure_command(
    models: Models = Path("models"),
    metrics: Annotated[Path, typer.Option(help="metrics file")] = Path("metrics/miniature.json"),
    per_class: Annotated[int, typer.Option(min=1, help="held-out triples of each class, three pictures each")] = 24,
) -> None:
    """Measure the checkpoints on triples that no training picture showed, and write the figures into their model cards."""
    from sgpipe.runs.atomic import DIGITS, write_json
    from sgworld.cards import misses, write_cards
    from sgworld.measure import measure

    values = measure(models, per_class)
    write_json(values, metrics, DIGITS)
    write_cards(models, values)
    for name, value in values.items():
        if not isinstance(value, dict):
            print(f"{name:28} {value:.4g}")
    for line in misses(values):
        print(f"missed: {line}")


@app.command("sheet")
def sheet_command(
    out: Annotated[Path, typer.Option(help="picture to write")] = Path("outputs/sheet.png"),
    models: Models = Path("models"),
    drawn: Annotated[bool, typer.Option("--drawn", help="show the drawing rules instead of generated pictures")] = False,
    seed: Annotated[int, typer.Option(help="seed of triples and noise")] = 0,
) -> None:
    """Draw a contact sheet of the 24 classes, a row each in two halves: sampled from mini-flux, or drawn by rule."""
    from sgworld.sheet import drawn_sheet, sampled_sheet

    if drawn:
        drawn_sheet(out, seed)
    else:
        sampled_sheet(models / "mini-flux", out, seed)
    print(out)


def main() -> None:
    """Entry point: an error of this project ends in one line and exit code 2."""
    try:
        app()
    except SgpipeError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
