"""Are the weights of a pipeline there, whole, and those that the parameters describe?"""

from functools import partial
from pathlib import Path

from sgpipe.backbones.config import Backbone
from sgpipe.backbones.families import family_of, read_layout
from sgpipe.backbones.loading import check_part
from sgpipe.backbones.source import check_source, part_configs, snapshot_folder
from sgpipe.backbones.weights import part_problem, weight_files
from sgpipe.doctor.findings import Finding, Level
from sgpipe.doctor.parameters import refused

AREA = "model"


def _parts(folder: Path) -> list[str]:
    """The parts that the stages load, and all others that model_index.json names. Raises `ModelError`."""
    index = part_configs(folder, ("",))[""]
    named = {name for name, kind in index.items() if isinstance(kind, list) and kind[:1] not in ([], [None])}
    return sorted({*named, *family_of(folder).text_parts, "transformer", "vae", "scheduler"})


def check_pipeline(backbone: Backbone) -> list[Finding]:
    """The pipeline folder, or the hub cache's copy of it: pinned, every part with its weights and of the class named, its
    layout as the parameters say.
    """
    folder = snapshot_folder(backbone.model, backbone.revision)
    remedy = f"hf download {backbone.model}" + (
        f" --revision {backbone.revision}" if backbone.revision else ""
    )
    if backbone.model.startswith((".", "/", "models/")):
        remedy = "dvc pull models.dvc"
    if folder is None:
        return [Finding(Level.FAIL, AREA, f"{backbone.model}: neither a folder nor in the hub cache", remedy)]
    findings = refused(partial(check_source, backbone), AREA)
    found: list[list[str]] = []
    if unreadable := refused(lambda: found.append(_parts(folder)), AREA):
        return findings + unreadable
    (parts,) = found
    absent = [name for name in parts if not (folder / name).is_dir()]
    weighted = [folder / name for name in parts if (folder / name / "config.json").is_file()]
    problems = [f"{name}: no such folder" for name in absent] + [
        p for p in map(part_problem, (folder / name for name in parts)) if p is not None
    ]
    findings += refused(partial(read_layout, folder, backbone), AREA)
    for part in (name for name in parts if name not in absent):
        findings += refused(partial(check_part, folder, part), AREA)
    findings += [Finding(Level.FAIL, AREA, f"{folder}: {problem}", remedy) for problem in problems]
    if not problems:
        size = sum(path.stat().st_size for part in weighted for path in weight_files(part))
        findings.append(
            Finding(
                Level.OK, AREA, f"{backbone.model}: {len(parts)} parts, {size / 2**30:.2f} GiB of weights"
            )
        )
    return findings
