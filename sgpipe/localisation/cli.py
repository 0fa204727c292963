"""`sgpipe localise`: one example as a heat map; `sgpipe placement`: short trainings of an arm at several places."""

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
    from sgpipe.arms.sizes import check_size
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
    from sgpipe.runs.progress import progress
    from sgpipe.runs.quiet import late_bars

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
    check_size(backbone, size)
    given = {"blocks": (blocks, layout.double_blocks), "single_blocks": (single_blocks, layout.single_blocks)}
    group = LayerGroup.parse({stream: named for stream, (named, there) in given.items() if there})
    indices = group.resolve(layout.double_blocks, layout.single_blocks, "--blocks")
    late_bars()
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
    apart = positive != negative
    runs_told = (positive, negative) if apart else (str(case.graph), str(case.negative_graph))
    said = "What a block hands on, copied from the run told “{}”\ninto the run told “{}”".format(*runs_told)
    prompt_told = "" if apart else f"\nboth under “{positive}”"
    title = f"{said}{prompt_told}; {count} noise{'s' * (count > 1)}"
    with progress(len(runs.active) * len(indices), "patching", "block"):
        found = effect_maps(runs, indices, kinds)
    draw(found, labels, [runs.times[step] for step in runs.active], title, out)
    print(out)


def placement(
    params: Annotated[Path, typer.Option(help="parameter file")] = Path("params.yaml"),
    epochs: Annotated[int, typer.Option(min=1, help="passes over the train triples: the budget")] = 4,
    seeds: Annotated[str, typer.Option(help="training seeds, with commas; one gives no interval of another training")] = "0,1,2",
    enter: Annotated[
        str | None, typer.Option(help="blocks at which tokens enter, with commas; by default the first of each layer group")
    ] = None,
    triples: Annotated[int | None, typer.Option(min=1, help="train triples, evenly spread; by default all")] = None,
    pairs: Annotated[int | None, typer.Option(min=2, help="val triples that are sampled; by default all that swap roles")] = None,
    precision: Annotated[str | None, typer.Option(help="float32 or bfloat16; by default train.precision")] = None,
    out: Annotated[Path, typer.Option(help="metrics file to write; what each image shows is written beside it as .parquet")] = Path(
        "metrics/placement.json"
    ),
) -> None:
    """Train LoRA on each layer group, and with tokens that enter at each block, at a small budget from several training seeds.

    Run the same command again after an interruption: finished trainings stay.
    """
    from sgpipe.arms.kinds.base import Sections
    from sgpipe.backbones.families import read_layout
    from sgpipe.backbones.source import locate
    from sgpipe.datasets.tables import NEGATIVES, TRIPLES, read_table
    from sgpipe.errors import ParamsError
    from sgpipe.evaluation.sampling_plan import read_evaluation_triples
    from sgpipe.localisation.pairs import items_of
    from sgpipe.localisation.placement import Trials, budgeted, limited, placement_figures, placement_samples, placements
    from sgpipe.params.load import decode, to_builtins
    from sgpipe.params.show import load_all
    from sgpipe.runs.command import write_metrics
    from sgpipe.runs.processes import start
    from sgpipe.runs.shards import shared_state
    from sgpipe.runs.state import fingerprint
    from sgpipe.training.config import Train
    from sgpipe.training.examples import Sources, read_data

    def numbers(option: str, given: str) -> list[int]:
        words = [word.strip() for word in given.split(",")]
        if not all(word.isdigit() for word in words) or len(set(words)) < len(words):
            raise ParamsError(f"{option}: got {given!r}; write different whole numbers with commas between, as 0,1,2")
        return [int(word) for word in words]

    training_seeds = numbers("--seeds", seeds)
    sections = load_all(params)
    backbone = sections["backbone"]
    train = budgeted(sections["train"], epochs)
    if precision is not None:
        train = decode("train", {**to_builtins(train), "precision": precision}, Train, "--precision")
    counts = backbone.double_blocks, backbone.single_blocks
    groups = {name: group.resolve(*counts, f"maps.groups.{name}") for name, group in sections["maps"].groups.items()}
    entries = [min(blocks) for blocks in groups.values()] if enter is None else numbers("--enter", enter)
    layout = read_layout(locate(backbone, ("transformer", "vae", "scheduler")), backbone)
    arms = placements(groups, entries, Sections.of({**sections, "train": train}), layout)
    sources, processes = Sources(), start(sections["compute"])
    cases = read_evaluation_triples(
        read_table(sources.curated / "triples.parquet", TRIPLES), read_table(sources.negatives / "negatives.parquet", NEGATIVES)
    )
    items = items_of(cases, pairs, sections["localise"].seeds)
    data = limited(read_data(sources, backbone), triples)
    trials = Trials(
        arms, training_seeds, items, data, backbone, sections["evaluate"], sections["judge"], processes, sections["compute"].offload
    )
    plain = trials.plain()
    digest = fingerprint("sgpipe.localisation.placement", plain, sources.paths(), Path(), processes.device_kind)
    with shared_state("placement", digest, Path(), processes) as state:
        table = trials.run(state)
        if processes.is_main:
            found = placement_samples(table, arms, sections["judge"].headline, sections["statistics"])
            figures = placement_figures(found, arms, len(data.train))
            found.write(out.with_suffix(".parquet"))
            write_metrics(figures, out, plain)
            for kind, by_place in (("LoRA on", figures["lora"]), ("tokens enter at", figures["enter"])):
                for place, each in by_place.items():
                    value, *bounds = (each[f"direction_accuracy{end}"] for end in ("", "_low", "_high"))
                    shown = ["–" if bound is None else f"{bound:.2f}" for bound in bounds]
                    said = "no decided image" if value is None else f"{value:.2f} [{', '.join(shown)}]"
                    print(f"{kind} {place}: direction accuracy {said}")
