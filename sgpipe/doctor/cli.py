"""`sgpipe doctor`: what is missing before a long run, and what memory it will need."""

import json
from pathlib import Path
from typing import Annotated

import typer

TRIPLES = (Path("outputs/curated/triples.parquet"), Path("outputs/curated/map_triples.parquet"))


def doctor(
    params: Annotated[Path, typer.Option(help="parameters of the run")] = Path("params.yaml"),
    model: Annotated[str | None, typer.Option(help="plan the memory of this folder or hub id, not of backbone.model")] = None,
    blocks: Annotated[str | None, typer.Option(help="double-stream blocks with LoRA, instead of lora.blocks")] = None,
    rank: Annotated[int | None, typer.Option(min=1, help="rank, instead of lora.rank")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="triples per forward, instead of train.batch_size")] = None,
    gpu: Annotated[list[float] | None, typer.Option(help="GPU sizes to plan for, GiB")] = None,
    memory: Annotated[bool, typer.Option(help="plan the memory (a dry run; ~15 s at full size)")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="print the findings alone, as JSON")] = False,
) -> None:
    """Say what a run would miss: data, weights, memory, disk, GPU, packages, DVC. Ends with 1 if something is missing.

    Run it from the repository's folder. Nothing is downloaded and nothing is changed.
    """
    from huggingface_hub.constants import HF_HUB_CACHE
    from msgspec.structs import replace
    from rich.console import Console

    from sgpipe.backbones.source import snapshot_folder
    from sgpipe.doctor import inputs, machine
    from sgpipe.doctor.findings import Finding, Level, show, warn
    from sgpipe.doctor.memory import configs_of, measure, planned_lora
    from sgpipe.doctor.plan import GPU_SIZES, plan_table
    from sgpipe.errors import ModelError, ParamsError
    from sgpipe.params.blocks import Blocks
    from sgpipe.params.show import load_all

    console, root, sections = Console(stderr=as_json), params.parent, load_all(params)
    backbone, data = sections["backbone"], root / sections["data"].root
    placed = replace(sections["data"], root=str(data))
    device, found = sections["compute"].device, machine.gpus()
    try:
        chosen = None if blocks is None else Blocks.parse(blocks)
    except ValueError as error:
        raise ParamsError(f"--blocks: {error}") from None
    given = {"blocks": chosen, "rank": rank}
    lora = replace(sections["lora"], **{name: value for name, value in given.items() if value is not None})
    train = sections["train"] if batch_size is None else replace(sections["train"], batch_size=batch_size)
    need, unplanned, planned = None, [], model or backbone.model
    if memory:
        try:
            configs, layout = configs_of(planned, None if model else backbone.revision)
            if chosen is not None:
                chosen.resolve(layout.double_blocks, "--blocks")
            lora = planned_lora({**sections, "lora": lora}, layout)
            with console.status("dry run on the meta device"):
                need = measure(configs, layout, backbone, lora, train)
        except ModelError as error:
            unplanned = [warn("memory", str(error), "--no-memory leaves the plan out")]
        except ParamsError as error:
            if chosen is not None:
                raise
            unplanned = [Finding.of(error, "parameters")]
    absent = model is None and snapshot_folder(backbone.model, backbone.revision) is None
    pulled = data.resolve() in {path.resolve() for path in inputs.tracked(root)}
    findings = [
        *machine.check_python(root),
        *inputs.check_dvc(root),
        *inputs.check_data(placed, [root / path for path in TRIPLES], pulled),
        *inputs.check_parameters(params, sections),
        *inputs.check_pipeline(backbone),
        *inputs.check_guidance(backbone, sections),
        *machine.check_disk({"outputs": root / "outputs", "the data": data}),
        *([machine.check_download(need, Path(HF_HUB_CACHE))] if need and absent else []),
        *machine.check_memory(need, device, found),
        *machine.check_quantisation(backbone, device in ("auto", "cuda") and bool(found)),
        *unplanned,
    ]
    if as_json:
        named = [
            {"level": each.level.value, "area": each.area, "what": each.what, "remedy": each.remedy}
            for each in dict.fromkeys(findings)
        ]
        print(json.dumps(named, indent=1, ensure_ascii=False))
    else:
        show(dict.fromkeys(findings), console)
    if need is not None and not as_json:
        single = f" and single blocks {lora.single_blocks}" if lora.single_blocks.indices else ""
        console.print(
            f"{planned}: {need.sizes['transformer'].total:,} parameters in the transformer, {need.lora:,} in LoRA of rank "
            f"{lora.rank} on blocks {lora.blocks}{single}; {backbone.resolution} px, batch {train.batch_size} × "
            f"{2 if train.losses.contrastive else 1} graphs, {backbone.dtype}",
            markup=False,
        )
        console.print(plan_table(need, gpu or GPU_SIZES))
    if any(finding.level is Level.FAIL for finding in findings):
        raise typer.Exit(1)
