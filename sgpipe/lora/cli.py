"""`sgpipe generate`: a picture of a graph."""

from pathlib import Path
from typing import Annotated

import typer

Adapter = Annotated[
    Path | None, typer.Option(help="folder of an adapter, as outputs/lora/graph/adapter; none draws the base")
]


def generate(
    graph: Annotated[
        str,
        typer.Option(
            help='"subject, predicate, object; …", JSON text, or a JSON file; "" is the empty graph'
        ),
    ] = "",
    adapter: Adapter = None,
    prompt: Annotated[
        str | None, typer.Option(help="text; by default the names of the graph without a relation")
    ] = None,
    model: Annotated[Path, typer.Option(help="pipeline folder")] = Path("models/mini-flux"),
    out: Annotated[Path, typer.Option(help="picture to write; several get numbers")] = Path(
        "outputs/generated.png"
    ),
    seed: Annotated[int, typer.Option(min=0, help="seed of the first picture's noise")] = 0,
    count: Annotated[int, typer.Option(min=1, help="pictures, from consecutive seeds")] = 1,
    steps: Annotated[int, typer.Option(min=1, help="Euler steps")] = 4,
    size: Annotated[
        int | None, typer.Option(min=16, help="side in pixels; by default that of the adapter's training")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or mps")] = "cpu",
) -> None:
    """Draw a picture of a graph with a trained adapter, or of a prompt with the base."""
    from PIL import Image

    from sgpipe.errors import ParamsError
    from sgpipe.graph_encoder.graphs import SceneGraph, parse_graph, read_graph
    from sgpipe.lora.adapter import backbone_of, read_about
    from sgpipe.lora.generation import GraphGenerator
    from sgpipe.runs.atomic import atomic_path

    scene = SceneGraph()
    if graph.endswith(".json"):
        scene = read_graph(Path(graph))
    elif graph.strip():
        scene = parse_graph(graph)
    if prompt is None and not scene.objects:
        raise ParamsError("generate: neither --graph nor --prompt says what to draw; give one")
    if adapter is None and scene.triples:
        raise ParamsError(
            "generate: --graph needs --adapter: the base reads no graph; give one, or --prompt alone"
        )
    text = prompt if prompt is not None else prompt_of(scene.objects)
    if size is None:
        if adapter is None:
            raise ParamsError("generate: --size is needed without an adapter, whose training would name one")
        size = backbone_of(read_about(adapter), adapter).resolution
    generator = GraphGenerator.load(model, adapter, device=device, ahead=([text], [scene]))
    pictures = generator.draw(
        [text] * count,
        [scene if adapter else None] * count,
        range(seed, seed + count),
        steps=steps,
        size=size,
    )
    for index, picture in enumerate(pictures):
        path = out if count == 1 else out.with_stem(f"{out.stem}-{seed + index}")
        with atomic_path(path) as temporary:
            Image.fromarray(picture).save(temporary, format="PNG")
        print(path)


def prompt_of(names: tuple[str, ...]) -> str:
    """The neutral prompt of any number of names."""
    from sgpipe.scene_graphs.predicates import neutral_prompt

    first, last = ", ".join(names[:-1]), names[-1]
    return neutral_prompt(first, last) if first else f"a photo of {last} on a plain background"
