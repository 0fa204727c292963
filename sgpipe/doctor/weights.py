"""Are the weights of a pipeline there, whole, and those that the parameters describe?"""

import json
from pathlib import Path

from sgpipe.backbones.source import snapshot_folder
from sgpipe.backbones.weights import part_problem, weight_files
from sgpipe.doctor.findings import Finding, Level
from sgpipe.params.backbone import Backbone

AREA = "model"


def check_pipeline(backbone: Backbone) -> list[Finding]:
    """The pipeline folder, or the hub cache's copy of it: every part, its weights, and its number of
    blocks.
    """
    folder = snapshot_folder(backbone.model, backbone.revision)
    remedy = f"hf download {backbone.model}" + (
        f" --revision {backbone.revision}" if backbone.revision else ""
    )
    if backbone.model.startswith((".", "/", "models/")):
        remedy = "dvc pull models.dvc"
    if folder is None:
        return [Finding(Level.FAIL, AREA, f"{backbone.model}: neither a folder nor in the hub cache", remedy)]
    findings = []
    if not Path(backbone.model).is_dir() and backbone.revision is None:
        what = f"{backbone.model}: no pinned revision, so another day may bring other weights"
        findings.append(Finding(Level.WARN, AREA, what, "set backbone.revision to a commit"))
    try:
        index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
        config = json.loads((folder / "transformer" / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return [
            *findings,
            Finding(Level.FAIL, AREA, f"{folder}: not a diffusers pipeline folder ({error})", remedy),
        ]
    parts = sorted(name for name, kind in index.items() if isinstance(kind, list) and kind[0] is not None)
    absent = [name for name in parts if not (folder / name).is_dir()]
    weighted = [folder / name for name in parts if (folder / name / "config.json").is_file()]
    problems = [f"{name}: no such folder" for name in absent] + [
        p for p in map(part_problem, (folder / name for name in parts)) if p is not None
    ]
    found = (config.get("num_layers"), config.get("num_single_layers"))
    if found != (backbone.double_blocks, backbone.single_blocks):
        what = (
            f"{backbone.model} has {found[0]} double and {found[1]} single blocks, params.yaml says "
            f"{backbone.double_blocks} and {backbone.single_blocks}"
        )
        findings.append(
            Finding(Level.FAIL, AREA, what, "set backbone.double_blocks and backbone.single_blocks")
        )
    findings += [Finding(Level.FAIL, AREA, f"{folder}: {problem}", remedy) for problem in problems]
    if not problems:
        size = sum(path.stat().st_size for part in weighted for path in weight_files(part))
        findings.append(
            Finding(
                Level.OK, AREA, f"{backbone.model}: {len(parts)} parts, {size / 2**30:.2f} GiB of weights"
            )
        )
    return findings
