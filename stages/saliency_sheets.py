"""What the maps look like (a contact sheet per class) and where they fall (their mass in the annotated boxes)."""

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import typer
from numpy.typing import NDArray

from sgpipe.attention_maps.config import Maps
from sgpipe.attention_maps.extract import SAMPLES
from sgpipe.attention_maps.files import KINDS, MapFile
from sgpipe.attention_maps.localisation import Floats, boxes_in_crop, coverage, mass_in_box, peak_in_box, uniform_mass
from sgpipe.attention_maps.sheets import Row, write_sheet
from sgpipe.backbones.config import Backbone
from sgpipe.backbones.families import read_layout
from sgpipe.backbones.images import decode
from sgpipe.backbones.loading import load_module
from sgpipe.backbones.source import locate
from sgpipe.datasets.tables import TRIPLES, read_table
from sgpipe.errors import DataError
from sgpipe.params.load import read_section, to_builtins
from sgpipe.relations.predicates import PREDICATES, phrase
from sgpipe.runs.atomic import new_folder
from sgpipe.runs.command import run, write_metrics
from sgpipe.tracking.run import track

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
ROLES = {"subject": (0, "s"), "object": (2, "o")}
"""Of the three concepts, those with a box of their own: place among the concepts and prefix of the box's columns."""


def images(folder: Path, backbone: Backbone) -> dict[str, Any]:
    """The kept images `[S, S, 3]` by triple id."""
    samples = pq.read_table(folder / f"{SAMPLES}.parquet")
    shape = read_layout(locate(backbone, ("transformer", "vae", "scheduler")), backbone).latent_shape(backbone.resolution)
    vae = load_module(backbone, "vae")
    shown = {}
    for triple, value in zip(samples["triple_id"].to_pylist(), samples["latents"].to_pylist(), strict=True):
        latents = torch.from_numpy(np.frombuffer(value, np.float16).reshape(1, *shape).astype(np.float32))
        shown[triple] = decode(vae, latents)[0]
    return shown


def _mean(values: Floats | NDArray[np.bool_]) -> float | None:
    return float(values.mean()) if len(values) else None


def localisation(files: dict[str, MapFile], triples: pa.Table) -> dict[str, Any]:
    """Mass and peaks of the maps in the boxes of subject and object under the relational prompt, by group, kind and role.

    None where no map is under it. Raises `DataError` for a map of a triple that is not among `triples`.
    """
    place = {name: row for row, name in enumerate(triples["triple_id"].to_pylist())}
    result: dict[str, Any] = {"mass_in_box": {}, "peak_in_box": {}, "uniform": {}}

    def columns(prefix: str) -> Floats:
        return np.stack([triples[f"{prefix}{name}"].to_numpy() for name in "xywh"], axis=1).astype(np.float64)

    for group, file in files.items():
        told = np.array(file.items["condition"].to_pylist()) == "relational"
        names = file.items["triple_id"].to_pylist()
        lost = next((name for name in names if name not in place), None)
        if lost is not None:
            raise DataError(f"{file.path}: triple {lost} is not among the map triples; run its stage again")
        rows = np.array([place[name] for name in names], np.int64)[told]
        for kind in KINDS:
            maps = file.read(kind)[told].astype(np.float64)
            for role, (index, prefix) in ROLES.items():
                boxes = boxes_in_crop(columns(prefix)[rows], columns("crop_")[rows])
                inside = coverage(boxes, maps.shape[-2:])
                for name, share in (
                    ("mass_in_box", mass_in_box(maps[:, index], inside)),
                    ("peak_in_box", peak_in_box(maps[:, index], inside)),
                ):
                    result[name].setdefault(group, {}).setdefault(kind, {})[role] = _mean(share)
                result["uniform"][role] = _mean(uniform_mass(inside))
        result["images"] = len(set(rows.tolist()))
    return result


@app.command()
def main(
    params: Annotated[Path, typer.Option(help="parameter file")] = Path("params.yaml"),
    curated: Annotated[Path, typer.Option(help="folder of the triples")] = Path("outputs/curated"),
    generated: Annotated[Path, typer.Option(help="maps of sampled images")] = Path("outputs/saliency"),
    noised: Annotated[Path, typer.Option(help="maps of real images")] = Path("outputs/saliency_noised"),
    out: Annotated[Path, typer.Option(help="folder of the sheets")] = Path("plots/saliency"),
    metrics: Annotated[Path, typer.Option(help="metrics file")] = Path("metrics/saliency.json"),
) -> None:
    """Draw the sheets and measure where the maps of real images fall."""
    backbone = read_section(params, "backbone", Backbone)
    maps = read_section(params, "maps", Maps)
    triples = read_table(curated / "map_triples.parquet", TRIPLES)
    inputs = [curated / "map_triples.parquet", generated, noised]
    with track("saliency_sheets", {"maps": maps, "backbone": backbone}, inputs, params) as recorded:
        drawn = {group: MapFile(generated / f"{group}.parquet") for group in maps.groups}
        values = {group: file.read("saliency") for group, file in drawn.items()}
        shown = images(generated, backbone)
        said = dict(zip(triples["triple_id"].to_pylist(), triples["concepts"].to_pylist(), strict=True))
        items = next(iter(drawn.values())).items
        with new_folder(out) as folder:
            for predicate in PREDICATES:
                rows = [
                    Row(shown[triple], said[triple], {group: maps[i] for group, maps in values.items()})
                    for i, (triple, of) in enumerate(
                        zip(items["triple_id"].to_pylist(), items["predicate"].to_pylist(), strict=True)
                    )
                    if of == predicate and triple in shown
                ]
                if rows:
                    name = phrase(predicate).replace(" ", "_")
                    write_sheet(f"{predicate}: saliency by layer group", rows, folder / f"{name}.png")
        found = localisation({group: MapFile(noised / f"{group}.parquet") for group in maps.groups}, triples)
        write_metrics(found, metrics, to_builtins(maps))
        recorded.log_metrics(found)


if __name__ == "__main__":
    run(app)
