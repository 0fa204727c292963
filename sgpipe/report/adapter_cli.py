"""`sgpipe adapter`: what becomes of a trained adapter outside this project."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from sgpipe.errors import ModelError

app = typer.Typer(no_args_is_help=True, help="A trained adapter outside this project: its model card, other formats.")
Folder = Annotated[Path, typer.Argument(help="folder of the adapter, as outputs/lora/graph/adapter")]


@app.command("card")
def card(
    folder: Folder,
    metrics: Annotated[Path, typer.Option(help="metrics of an evaluation of this adapter")] = Path("metrics/evaluation.json"),
    out: Annotated[
        Path | None, typer.Option(help="folder to publish: a copy with the card; without it the card is printed")
    ] = None,
) -> None:
    """Complete the model card with measured figures and their intervals. The adapter's own folder, an output of DVC, stays."""
    from sgpipe.report.card import completed_card, publish

    if out is None:
        return print(completed_card(folder, metrics), end="")
    publish(folder, metrics, out)
    print(out)


@app.command("convert")
def convert(
    folder: Folder,
    out: Annotated[Path, typer.Option(help="safetensors file to write")] = Path("outputs/lora_kohya.safetensors"),
    as_json: Annotated[bool, typer.Option("--json", help="print file, modules and warnings as JSON")] = False,
) -> None:
    """Write the LoRA in kohya's naming for FLUX.1, as ComfyUI reads it, and check it by reading it back with diffusers."""
    from sgpipe.arms.adapter import backbone_of, read_about
    from sgpipe.arms.convert import write_kohya
    from sgpipe.backbones.families import family_of_backbone

    about = read_about(folder)
    pipeline = family_of_backbone(backbone_of(about, folder)).pipeline
    if pipeline != "FluxPipeline":
        raise ModelError(f"{folder}: of a {pipeline}; kohya's naming is written for a FluxPipeline alone")
    count = write_kohya(folder, about["settings"].get("lora", {}).get("alpha", 1.0), out)
    warnings = []
    if "graph_tokens" in about["settings"]:
        warnings.append("graph tokens have no place in this format: who loads it gives no graph")
    if as_json:
        print(json.dumps({"file": str(out), "modules": count, "warnings": warnings}))
    else:
        print(f"{out}: {count} modules, read back by diffusers with the same updates")
    for each in warnings:
        print(f"warning: {each}", file=sys.stderr)
