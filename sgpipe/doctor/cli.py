"""`sgpipe doctor`: what is missing before a long run, and what memory it will need."""

from pathlib import Path
from typing import Annotated

import typer

from sgpipe.backbones.config import Backbone
from sgpipe.datasets.config import Data
from sgpipe.params.blocks import Blocks
from sgpipe.params.load import read_section
from sgpipe.runs.config import Compute
from sgpipe.training.config import Lora

TRIPLES = (Path("outputs/curated/triples.parquet"), Path("outputs/curated/map_triples.parquet"))


def doctor(
    params: Annotated[Path, typer.Option(help="parameters of the run")] = Path("params.yaml"),
    model: Annotated[
        str | None, typer.Option(help="plan the memory of this folder or hub id, not of backbone.model")
    ] = None,
    blocks: Annotated[
        str | None, typer.Option(help="double-stream blocks with LoRA, instead of lora.blocks")
    ] = None,
    rank: Annotated[int | None, typer.Option(min=1, help="rank, instead of lora.rank")] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="triples per forward, instead of lora.batch_size")
    ] = None,
    gpu: Annotated[list[float] | None, typer.Option(help="GPU sizes to plan for, GiB")] = None,
    memory: Annotated[bool, typer.Option(help="plan the memory (a dry run; ~15 s at full size)")] = True,
) -> None:
    """Say what a run would miss: data, weights, memory, disk, GPU, packages, DVC. Ends with 1 if something is
    missing.

    Run it from the repository's folder. Nothing is downloaded and nothing is changed.
    """
    from huggingface_hub.constants import HF_HUB_CACHE
    from rich.console import Console

    from sgpipe.backbones.source import snapshot_folder
    from sgpipe.doctor.architecture import configs_of
    from sgpipe.doctor.data import check_data
    from sgpipe.doctor.findings import Finding, Level, show
    from sgpipe.doctor.machine import (
        check_disk,
        check_download,
        check_memory,
        check_python,
        check_quantisation,
        gpus,
    )
    from sgpipe.doctor.memory import Setup, measure
    from sgpipe.doctor.parameters import check_parameters
    from sgpipe.doctor.plan import GPU_SIZES, plan_table
    from sgpipe.doctor.repository import check_dvc, tracked
    from sgpipe.doctor.weights import check_pipeline
    from sgpipe.errors import ModelError, ParamsError

    console, root = Console(), params.parent
    backbone = read_section(params, "backbone", Backbone)
    data = read_section(params, "data", Data)
    compute = read_section(params, "compute", Compute)
    lora = read_section(params, "lora", Lora)
    try:
        trained = lora.blocks if blocks is None else Blocks.parse(blocks)
    except ValueError as error:
        raise ParamsError(f"--blocks: {error}") from None
    setup = Setup(
        backbone.resolution,
        backbone.max_sequence_length,
        batch_size or lora.batch_size,
        2 if lora.losses.contrastive else 1,
        trained,
        rank or lora.rank,
        backbone.dtype,
    )
    need, problem = None, None
    if memory:
        try:
            with console.status("dry run on the meta device"):
                need = measure(
                    configs_of(model or backbone.model, None if model else backbone.revision), setup
                )
        except ModelError as error:
            problem = Finding(Level.WARN, "memory", str(error), "--no-memory leaves the plan out")
    absent = model is None and snapshot_folder(backbone.model, backbone.revision) is None
    pulled = (root / data.root).resolve() in {path.resolve() for path in tracked(root)}
    findings = [
        *check_python(root),
        *check_dvc(root),
        *check_data(root / data.root, [root / path for path in TRIPLES], pulled),
        *check_parameters(params),
        *check_pipeline(backbone),
        *check_disk({"outputs": root / "outputs", "the data": root / data.root}),
        *([check_download(need, Path(HF_HUB_CACHE))] if need and absent else []),
        *check_memory(need, compute.device, gpus()),
        *check_quantisation(backbone, compute.device in ("auto", "cuda") and bool(gpus())),
        *([problem] if problem else []),
    ]
    show(findings, console)
    if need is not None:
        transformer = need.sizes["transformer"].total
        console.print(
            f"{model or backbone.model}: {transformer:,} parameters in the transformer, {need.lora:,} in "
            f"LoRA of rank {setup.rank} on "
            f"blocks {setup.blocks}; {setup.resolution} px, batch {setup.batch_size} × {setup.graphs} graphs, {backbone.dtype}"
        )
        console.print(plan_table(need, gpu or GPU_SIZES))
    if any(finding.level is Level.FAIL for finding in findings):
        raise typer.Exit(1)
