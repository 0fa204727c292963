"""`sgpipe maps`, as the command line takes it."""

import json
from pathlib import Path
from typing import Annotated

import typer

from sgpipe.errors import ParamsError


def maps(
    prompt: Annotated[str, typer.Option(help="text that the image is sampled from, or seen under")],
    concepts: Annotated[str, typer.Option(help="names and phrases with commas between, as dog,left of,cat")],
    image: Annotated[Path | None, typer.Option(help="a real image; without one an image is sampled")] = None,
    out: Annotated[Path, typer.Option(help="PNG to write; the maps as numbers go beside it as .npz")] = Path("outputs/maps.png"),
    model: Annotated[
        Path | None, typer.Option(help="pipeline folder; by default that of the parameter file, with its maps section")
    ] = None,
    size: Annotated[int | None, typer.Option(min=16, help="side in pixels; needed with --model")] = None,
    seed: Annotated[int, typer.Option(min=0, help="seed of the noise")] = 0,
    steps: Annotated[int, typer.Option(min=1, help="Euler steps of sampling")] = 4,
    time: Annotated[float, typer.Option(min=0.001, max=1, help="t of z_t, with --image")] = 0.6,
    guidance: Annotated[float | None, typer.Option(min=0, help="guidance scale")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps")] = "cpu",
    params: Annotated[Path, typer.Option(help="parameter file")] = Path("params.yaml"),
    as_json: Annotated[bool, typer.Option("--json", help="print files, shapes and groups as JSON")] = False,
) -> None:
    """Show where the transformer looks for each concept: saliency and cross-attention by layer group, over the image."""
    from msgspec.structs import replace

    from sgpipe.arms.generation import read_backbone
    from sgpipe.arms.sizes import check_size
    from sgpipe.attention_maps.config import Maps
    from sgpipe.backbones.config import Backbone
    from sgpipe.params.load import read_section
    from sgpipe.report.maps import concept_maps, of_model, write_arrays, write_figure
    from sgpipe.runs.processes import pick_device
    from sgpipe.runs.quiet import late_bars

    named = [each.strip() for each in concepts.split(",")]
    if not all(named) or len(set(named)) < len(named):
        raise ParamsError(f"--concepts: got {concepts!r}; write different names with commas between, as dog,left of,cat")
    if out.suffix != ".png":
        raise ParamsError(f"--out: got {out}; a PNG is written: give a name that ends in .png")
    if model is None:
        backbone, chosen = read_section(params, "backbone", Backbone), read_section(params, "maps", Maps)
        backbone = backbone if size is None else replace(backbone, resolution=size)
    elif size is None:
        raise ParamsError("--size is needed with --model, whose folder does not say which size it is good at")
    else:
        backbone, chosen = of_model(read_backbone(model), size)
    check_size(backbone, backbone.resolution, "backbone.resolution" if size is None else "--size")
    where = pick_device(device, 0, "--device")
    late_bars()
    pixels, found = concept_maps(backbone, chosen, prompt, named, image, where, seed=seed, steps=steps, t=time, guidance=guidance)
    write_figure(pixels, named, found, f"{prompt} ({backbone.model})", out)
    write_arrays(pixels, named, found, prompt, out.with_suffix(".npz"))
    files = [str(out), str(out.with_suffix(".npz"))]
    shapes = {name: list(values.shape) for name, values in found.items()}
    groups = {name: str(blocks) for name, blocks in chosen.groups.items()}
    print(json.dumps({"files": files, "concepts": named, "maps": shapes, "groups": groups}) if as_json else "\n".join(files))
