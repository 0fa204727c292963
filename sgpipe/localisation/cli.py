"""`sgpipe localise`: one example as a heat map."""

from pathlib import Path
from typing import Annotated

import typer


def localise(
    graph: Annotated[str, typer.Option(help='"subject, predicate, object", JSON text, or a JSON file; its first triple is turned')],
    prompt: Annotated[str | None, typer.Option(help="text; by default the names of the graph without a relation")] = None,
    adapter: Annotated[Path | None, typer.Option(help="folder of an adapter; without one the base is told in words")] = None,
    model: Annotated[Path, typer.Option(help="pipeline folder")] = Path("models/mini-flux"),
    out: Annotated[Path, typer.Option(help="PNG to write")] = Path("outputs/localised.png"),
    rows: Annotated[
        str, typer.Option(help="with commas: image, text, prompt, graph, subject, relation, object, pooled")
    ] = "image,text",
    blocks: Annotated[str, typer.Option(help="double-stream blocks")] = "all",
    single_blocks: Annotated[str, typer.Option(help="single-stream blocks")] = "all",
    seed: Annotated[int, typer.Option(min=0, help="of the first noise")] = 0,
    count: Annotated[int, typer.Option(min=1, help="noises over which effects are taken, from consecutive seeds")] = 4,
    steps: Annotated[int, typer.Option(min=1, help="Euler steps from noise to image")] = 4,
    guidance: Annotated[float | None, typer.Option(min=0, help="guidance scale; by default that of the adapter's training")] = None,
    size: Annotated[int | None, typer.Option(min=16, help="side in pixels; by default that of the adapter's training")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps")] = "cpu",
) -> None:
    """Show through which blocks a relation reaches the image: what is told the graph is patched into what is told its swap."""
    from sgpipe.arms.adapter import backbone_of, read_about, use_classes_of
    from sgpipe.arms.generation import GraphGenerator, backbone_for
    from sgpipe.backbones.families import layout_of, open_tokenizers
    from sgpipe.errors import ParamsError
    from sgpipe.graphs.scene_graph import given_graph
    from sgpipe.localisation.config import Localise
    from sgpipe.localisation.heat_map import draw, effect_maps
    from sgpipe.localisation.pairs import conditions, items_of_graph, texts_of_runs
    from sgpipe.localisation.runs import Runs
    from sgpipe.params.blocks import LayerGroup
    from sgpipe.params.load import decode
    from sgpipe.runs.processes import pick_device

    where = pick_device(device, 0, "--device")
    kinds = decode("--rows", {"rows": [each.strip() for each in rows.split(",")]}, Localise, "sgpipe localise").rows
    if adapter is not None:
        use_classes_of(read_about(adapter), adapter)
    items = items_of_graph(given_graph(graph), prompt, range(seed, seed + count))
    if prompt is not None and adapter is None:
        raise ParamsError(
            "localise: --prompt stands beside a graph that an adapter reads; without --adapter the words say the graph"
        )
    if size is None:
        if adapter is None:
            raise ParamsError("localise: --size is needed without an adapter, whose training would name one")
        size = backbone_of(read_about(adapter), adapter).resolution
    backbone = backbone_for(model, adapter)
    layout = layout_of(Path(backbone.model))
    given = {"blocks": (blocks, layout.double_blocks), "single_blocks": (single_blocks, layout.single_blocks)}
    group = LayerGroup.parse({stream: named for stream, (named, there) in given.items() if there})
    indices = group.resolve(layout.double_blocks, layout.single_blocks, "--blocks")
    generator = GraphGenerator.load(
        model, adapter, device=str(where), backbone=backbone, guidance=guidance, ahead=texts_of_runs(items)
    )
    told = conditions(generator, open_tokenizers(backbone), items, backbone.max_sequence_length)
    runs = Runs(generator, told, [item.noise_seed for item in items], size, steps, generator.batch)
    if not runs.active:
        raise ParamsError(f"--steps: got {steps}; the adapter works at none of their times: raise it")
    double = layout.double_blocks
    labels = [f"double {index}" if index < double else f"single {index - double}" for index in indices]
    out.parent.mkdir(parents=True, exist_ok=True)
    case = items[0].case
    positive, negative = told.texts[0], told.texts[len(items)]
    said = (
        f"{positive!r}\ninto {negative!r}" if positive != negative else f"{case.graph}  into  {case.negative_graph}\n{positive!r}"
    )
    title = f"{said}, {count} noises"
    draw(effect_maps(runs, indices, kinds), labels, [runs.times[step] for step in runs.active], title, out)
    print(out)
