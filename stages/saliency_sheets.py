"""What the maps look like (a contact sheet per class) and where they fall (their mass in the annotated boxes)."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from sgpipe.attention_maps.config import Maps
from sgpipe.attention_maps.extract import SAMPLES
from sgpipe.attention_maps.files import KINDS, MapFile
from sgpipe.attention_maps.localisation import Floats, boxes_in_crop, coverage, mass_in_box, peak_in_box, uniform_mass
from sgpipe.attention_maps.sheets import Row, write_sheet
from sgpipe.backbones.config import Backbone
from sgpipe.backbones.families import family_of, read_layout
from sgpipe.backbones.images import decode
from sgpipe.backbones.loading import load_module
from sgpipe.backbones.source import locate
from sgpipe.datasets.tables import TRIPLES, read_table
from sgpipe.errors import DataError
from sgpipe.params.load import read_params, to_builtins
from sgpipe.relations.predicates import PREDICATES, phrase
from sgpipe.runs.atomic import new_folder
from sgpipe.runs.command import run, write_metrics
from sgpipe.runs.progress import through
from sgpipe.tracking.recorder import record
from stages import MAP_TRIPLES_FILE, METRICS, PLOTS, SALIENCY, SALIENCY_NOISED

ROLES = {"subject": (0, "s"), "object": (2, "o")}
"""Of the three concepts, those with a box of their own: place among the concepts and prefix of the box's columns."""


def images(folder: Path, backbone: Backbone) -> dict[str, Any]:
    """The kept images `[S, S, 3]` by triple id."""
    samples = pq.read_table(folder / f"{SAMPLES}.parquet")
    where = locate(backbone, ("transformer", "vae", "scheduler"))
    family, shape = family_of(where), read_layout(where, backbone).latent_shape(backbone.resolution)
    vae = load_module(backbone, "vae")
    shown = {}
    for triple, value in zip(samples["triple_id"].to_pylist(), samples["latents"].to_pylist(), strict=True):
        latents = torch.from_numpy(np.frombuffer(value, np.float16).reshape(1, *shape).astype(np.float32))
        shown[triple] = decode(family, vae, latents)[0]
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


def main() -> None:
    """Draw the sheets and measure where the maps of real images fall."""
    backbone, maps = read_params(Backbone, Maps)
    triples = read_table(MAP_TRIPLES_FILE, TRIPLES)
    inputs = [MAP_TRIPLES_FILE, SALIENCY, SALIENCY_NOISED]
    with record("saliency_sheets", {"maps": maps, "backbone": backbone}, inputs) as recorded:
        generated, noised = (
            {group: MapFile(folder / f"{group}.parquet") for group in maps.groups} for folder in (SALIENCY, SALIENCY_NOISED)
        )
        values = {group: file.read("saliency") for group, file in generated.items()}
        shown = images(SALIENCY, backbone)
        said = dict(zip(triples["triple_id"].to_pylist(), triples["concepts"].to_pylist(), strict=True))
        sheets: dict[str, list[Row]] = {predicate: [] for predicate in PREDICATES}
        for i, item in enumerate(next(iter(generated.values())).items.to_pylist()):
            if (triple := item["triple_id"]) in shown:
                row = Row(shown[triple], said[triple], {group: of[i] for group, of in values.items()})
                sheets[item["predicate"]].append(row)
        with new_folder(PLOTS / "saliency") as folder:
            for predicate, rows in through(sheets.items(), "sheets", "sheet", len(sheets)):
                if rows:
                    name = phrase(predicate).replace(" ", "_")
                    write_sheet(f"{predicate}: saliency by layer group", rows, folder / f"{name}.png")
        found = localisation(noised, triples)
        write_metrics(found, METRICS / "saliency.json", to_builtins(maps), recorded)


if __name__ == "__main__":
    run(main)
