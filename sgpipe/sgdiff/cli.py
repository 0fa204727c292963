"""`sgpipe sgdiff`: SGDiff's published checkpoints, and images of graphs by its generator."""

import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="SGDiff's own generator: import a published checkpoint, sample graphs.", no_args_is_help=True)


@app.command("import")
def import_checkpoint(
    checkpoint: Annotated[Path, typer.Argument(help="published checkpoint of the whole model (VG or COCO), a .ckpt file")],
    vocabulary: Annotated[Path, typer.Option(help="vocab.json of the preprocessing that it was trained with")],
    out: Annotated[Path, typer.Option(help="folder to write")] = Path("models/sgdiff"),
) -> None:
    """Convert a published checkpoint: averaged noise predictor and first stage for diffusers, graph encoder, vocabulary.

    Only tensors are read. A tensor that is missing, unexpected or of another shape is an error.
    """
    from sgpipe.sgdiff.published import read_published

    model = read_published(checkpoint, vocabulary)
    model.save(out)
    names = len(model.vocabulary.objects) - 1, len(model.vocabulary.predicates) - 1
    print(f"{out}: SGDiff of {names[0]} object names and {names[1]} predicates; `sgpipe sgdiff sample --model {out}` samples")


@app.command("sample")
def sample(
    graph: Annotated[str, typer.Option(help='"subject, predicate, object; …", JSON text, or a JSON file; "" is the empty graph')],
    model: Annotated[Path, typer.Option(help="folder that `sgpipe sgdiff import` wrote")] = Path("models/sgdiff"),
    out: Annotated[Path, typer.Option(help="image to write; several get numbers")] = Path("outputs/sgdiff.png"),
    seed: Annotated[int, typer.Option(min=0, help="seed of the first image's noise")] = 0,
    count: Annotated[int, typer.Option(min=1, help="images, from consecutive seeds")] = 1,
    steps: Annotated[int, typer.Option(help="DDIM steps, a divisor of 1000 up to 500")] = 200,
    eta: Annotated[float, typer.Option(min=0, max=1, help="η of DDIM; 1 adds the noise of DDPM, 0 none")] = 1.0,
    batch_size: Annotated[int, typer.Option(min=1, help="images per forward of the U-Net")] = 16,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps")] = "auto",
) -> None:
    """Sample images of a graph of the vocabulary's names: at most 30 objects, 15 triples with a token of their own."""
    from sgpipe.backbones.images import write_images
    from sgpipe.graphs.scene_graph import given_graph
    from sgpipe.runs.processes import pick_device
    from sgpipe.runs.progress import progress
    from sgpipe.sgdiff.model import SgDiff

    generator = SgDiff.load(model, pick_device(device, 0, "--device"))
    scene = given_graph(graph, generator.predicates)
    said = generator.cut([scene])
    if any(scene.boxes):
        said.append("the boxes of the graph are not used: SGDiff reads names and relations alone")
    for each in said:
        print(f"warning: {each}", file=sys.stderr)
    seeds = range(seed, seed + count)
    with progress(count * steps, "sampling", "step"):
        images = generator.sample([scene] * count, seeds, steps=steps, eta=eta, batch=batch_size)
    print(*write_images(images, seeds, out), sep="\n")
