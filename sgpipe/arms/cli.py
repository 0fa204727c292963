"""`sgpipe generate`: an image of a graph."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

Parts = Annotated[list[str], typer.Argument(help="folders of adapters of kind t2i_adapter, each with its weight: FOLDER=ω")]
Adapter = Annotated[Path | None, typer.Option(help="folder of an adapter, as outputs/lora/graph/adapter; none draws the base")]


def generate(
    graph: Annotated[
        str, typer.Option(help='"subject, predicate, object; …", JSON text, or a JSON file; "" is the empty graph')
    ] = "",
    adapter: Adapter = None,
    prompt: Annotated[str | None, typer.Option(help="text; by default the names of the graph without a relation")] = None,
    model: Annotated[Path, typer.Option(help="pipeline folder")] = Path("models/mini-flux"),
    out: Annotated[Path, typer.Option(help="image to write; several get numbers")] = Path("outputs/generated.png"),
    seed: Annotated[int, typer.Option(min=0, help="seed of the first image's noise")] = 0,
    count: Annotated[int, typer.Option(min=1, help="images, from consecutive seeds")] = 1,
    steps: Annotated[int, typer.Option(min=1, help="Euler steps")] = 4,
    guidance: Annotated[
        float | None, typer.Option(min=0, help="guidance scale; by default that of the adapter's training, if it had one")
    ] = None,
    size: Annotated[int | None, typer.Option(min=16, help="side in pixels; by default that of the adapter's training")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps")] = "cpu",
    strict: Annotated[
        bool, typer.Option("--strict", help="refuse what is otherwise a warning: truncated, unknown and untrained names and words")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print files, seeds, text, graph, adapter and warnings as JSON")] = False,
) -> None:
    """Draw an image of a graph with a trained adapter, or of a prompt with the base."""
    from sgpipe.arms.adapter import backbone_of, read_about, use_classes_of
    from sgpipe.arms.coverage import TRAINED_ON, uncovered
    from sgpipe.arms.generation import GraphGenerator, backbone_for
    from sgpipe.arms.sizes import check_size
    from sgpipe.backbones.families import open_tokenizers
    from sgpipe.backbones.images import write_images
    from sgpipe.backbones.truncation import describe, unknown_tokens
    from sgpipe.errors import ParamsError
    from sgpipe.graph_encoder.open_vocabulary import texts_of
    from sgpipe.graphs.prompts import words
    from sgpipe.graphs.scene_graph import given_graph
    from sgpipe.runs.processes import pick_device
    from sgpipe.runs.progress import progress
    from sgpipe.runs.quiet import late_bars

    where = pick_device(device, 0, "--device")
    about = {} if adapter is None else read_about(adapter)
    if adapter is not None:
        use_classes_of(about, adapter)
    scene = given_graph(graph)
    if prompt is None and not scene.objects:
        raise ParamsError("generate: neither --graph nor --prompt says what to draw; give one")
    if adapter is None and scene.triples:
        raise ParamsError("generate: --graph needs --adapter: the base reads no graph; give one, or --prompt alone")
    text = prompt if prompt is not None else words(scene, "neutral")
    if size is None:
        if adapter is None:
            raise ParamsError("generate: --size is needed without an adapter, whose training would name one")
        size = backbone_of(about, adapter).resolution
    backbone = backbone_for(model, adapter)
    check_size(backbone, size)
    tokenizers = open_tokenizers(backbone)
    tokens = tokenizers.prompts([text]) + tokenizers.names(texts_of([scene]))
    said = unknown_tokens(tokens)
    shown = about.get("settings", {}).get("boxes")
    if any(scene.boxes) and shown != "oracle":
        said.append(f"the boxes of the graph are not used: the adapter {'proposes its own' if shown else 'reads none'}")
    if adapter is not None:
        said += uncovered(scene, text, about.get(TRAINED_ON))
    if strict and (cut := describe(tokens)):
        said.append(cut)
    if strict and said:
        raise ParamsError(f"generate --strict: {'; '.join(said)}")
    for each in said:
        print(f"warning: {each}", file=sys.stderr)
    late_bars()
    generator = GraphGenerator.load(
        model, adapter, device=str(where), backbone=backbone, guidance=guidance, ahead=([text], [scene])
    )
    seeds = range(seed, seed + count)
    with progress(count * steps, "sampling", "step"):
        images = generator.sample([text] * count, [scene if adapter else None] * count, seeds, steps=steps, size=size)
    files = [str(path) for path in write_images(images, seeds, out)]
    if not as_json:
        return print(*files, sep="\n")
    shown_graph = None if adapter is None else {"objects": list(scene.objects), "triples": [list(each) for each in scene.triples]}
    given = {"adapter": None if adapter is None else str(adapter), "model": backbone.model, "prompt": text, "graph": shown_graph}
    print(json.dumps({"files": files, "seeds": list(seeds), **given, "size": size, "warnings": said}, ensure_ascii=False))


def compose(adapters: Parts, out: Annotated[Path, typer.Option(help="folder to write")]) -> None:
    """Make one adapter of several of kind t2i_adapter, whose features are added with the weights ω given here."""
    from sgpipe.arms.kinds.t2i_adapter import compose as write
    from sgpipe.errors import ParamsError

    given: dict[Path, float] = {}
    for text in adapters:
        folder, _, weight = text.rpartition("=")
        try:
            given[Path(folder)] = float(weight)
        except ValueError:
            raise ParamsError(f"compose: got {text!r}; write FOLDER=ω, as outputs/lora/boxes/adapter=0.5") from None
    if len(given) < 2:
        raise ParamsError(f"compose: got {', '.join(adapters)}; name two different folders or more")
    write(given, out)
    print(out)
