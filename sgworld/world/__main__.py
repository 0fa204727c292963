"""Commands of the world of several relations: `python -m sgworld.world --help`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from sgpipe.errors import SgpipeError

app = typer.Typer(no_args_is_help=True, help="The world of several relations: its data set, its reader's certificate, its looks.")
Seed = Annotated[int, typer.Option(min=0, help="seed; the same numbers give the same bytes")]


@app.command("render")
def render_command(
    out: Annotated[Path, typer.Option(help="folder to write")],
    images: Annotated[int, typer.Option(help="images to draw")] = 16_000,
    seed: Seed = 0,
) -> None:
    """Write the data set in Visual Genome's v1.4 layout, label noise included."""
    from sgworld.world.data import write_data

    write_data(out, images, seed)
    print(f"{out}: {images} images")


@app.command("certify")
def certify_command(
    metrics: Annotated[Path, typer.Option(help="metrics file")] = Path("metrics/world.json"),
    per_class: Annotated[int, typer.Option(min=1, help="scenes of each class")] = 50,
    seed: Seed = 0,
) -> None:
    """Measure on ground truth how well the reader reads, clean and softened, and how much names give away."""
    from sgpipe.runs.atomic import DIGITS, write_json
    from sgworld.world.certificate import certify

    values = certify(seed, per_class)
    write_json(values, metrics, DIGITS)
    for kind in ("clean", "softened"):
        print(
            f"{kind:10} {values[kind]['classes_reliable']} of 24 classes ≥ 0.98, objects exact {values[kind]['objects_exact']:.4g}"
        )


@app.command("sheet")
def sheet_command(out: Annotated[Path, typer.Option(help="image to write")] = Path("outputs/world.png"), seed: Seed = 0) -> None:
    """Draw a contact sheet: a row of each class, then scenes of three and four objects."""
    from sgworld.world.sheet import write_sheet

    write_sheet(out, seed)
    print(out)


@app.command("drawn")
def drawn_command(
    model: Annotated[Path, typer.Option(help="pipeline folder of the generator")] = Path("world_start"),
    out: Annotated[Path, typer.Option(help="image to write")] = Path("outputs/world_drawn.png"),
    seed: Seed = 0,
) -> None:
    """Let the generator draw captions of two, three and four objects, ten noises each."""
    from diffusers import FluxPipeline

    from sgworld.world.drawn import write_drawn

    if not (model / "model_index.json").is_file():
        raise SgpipeError(f"--model: {model} holds no pipeline; `dvc pull world_start.dvc` brings one")
    write_drawn(out, FluxPipeline.from_pretrained(model), seed)
    print(out)


@app.command("train")
def train_command(
    out: Annotated[Path, typer.Option(help="folder of mini-flux, mini-clip and mini-tower to write")],
    state: Annotated[Path, typer.Option(help="captions, checkpoints and logs; the same command goes on from there")] = Path(
        "outputs/world_training"
    ),
    part: Annotated[
        list[str] | None, typer.Option(help="language, vae, reading, flux, clip or tower; repeatable; all of them without it")
    ] = None,
    start: Annotated[
        Path | None, typer.Option(help="pipeline folder whose generator is trained on; its text encoders and VAE are kept")
    ] = None,
    reading_steps: Annotated[int | None, typer.Option(min=3, help="of reading from --start, in place of the recipe's")] = None,
    drawing_steps: Annotated[int | None, typer.Option(min=3, help="of drawing with all blocks, in place of the recipe's")] = None,
) -> None:
    """Train text encoders, VAE, generator, CLIP judge and the graph encoder's teacher of this world."""
    from sgpipe.runs.config import Compute
    from sgpipe.runs.processes import start as join
    from sgworld.world.recipe import PARTS, Recipe, train

    wanted = part or list(PARTS)
    if unknown := [each for each in wanted if each not in PARTS]:
        raise SgpipeError(f"--part: got {unknown[0]!r}; valid: {', '.join(PARTS)}")
    recipe = Recipe().going_on(reading_steps, drawing_steps)
    train(state, out, tuple(wanted), recipe, start, join(Compute(device="cpu")))


@app.command("measure")
def measure_command(
    models: Annotated[Path, typer.Option(help="folder of mini-flux, mini-clip and mini-tower")],
    metrics: Annotated[Path, typer.Option(help="metrics file")] = Path("metrics/world_generator.json"),
    captions: Annotated[int, typer.Option(min=2, help="captions of each number of objects, three images each")] = 96,
) -> None:
    """Measure what the checkpoints can do on captions that training never said."""
    from sgpipe.runs.atomic import DIGITS, write_json
    from sgworld.world.measure import measure

    values = measure(models, captions)
    write_json(values, metrics, DIGITS)
    for name, value in values.items():
        if name != "relation_type_by_class":
            print(f"{name:28} {value}")


@app.command("told")
def told_command(
    models: Annotated[Path, typer.Option(help="folder of mini-flux")],
    metrics: Annotated[Path, typer.Option(help="metrics file")] = Path("metrics/world_reading.json"),
    captions: Annotated[int, typer.Option(min=96, help="captions, a multiple of 96")] = 1_920,
) -> None:
    """Measure how well a generator reads in a noise where objects are to stand."""
    from sgpipe.runs.atomic import DIGITS, write_json
    from sgworld.world.told import told

    values = told(models, captions // 96 * 96)
    write_json(values, metrics, DIGITS)
    for kind, found in values.items():
        print(
            f"{kind:24} {found['captions']:5} captions, all within a cell {found['within_a_cell']:.3f}, error {found['error']:.4f}"
        )


def main() -> None:
    """Entry point: an error of this project ends in one line and exit code 2."""
    try:
        app()
    except SgpipeError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
