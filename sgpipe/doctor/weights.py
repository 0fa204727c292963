"""Are the weights of a pipeline there, whole, and those that the parameters describe?"""

import json
import struct
from pathlib import Path

from sgpipe.doctor.architecture import snapshot_folder
from sgpipe.doctor.findings import Finding, Level
from sgpipe.params.backbone import Backbone

AREA = "model"
_POINTER = b"version https://git-lfs"


def tensors(path: Path) -> int:
    """Number of tensors in a safetensors file, from its header and length alone. Raises `ValueError` saying
    what is wrong.

    The format: 8 bytes of header length, the JSON header with each tensor's offsets, then the data.
    """
    size = path.stat().st_size
    with path.open("rb") as stream:
        start = stream.read(len(_POINTER))
        if start == _POINTER:
            raise ValueError("a Git LFS pointer, not the file; run `git lfs pull`")
        if size < 8:
            raise ValueError(f"{size} bytes, too few for a safetensors file")
        length = struct.unpack("<Q", start[:8])[0]
        if 8 + length > size:
            raise ValueError(f"cut off: its header alone needs {8 + length} bytes, there are {size}")
        stream.seek(8)
        try:
            header = json.loads(stream.read(length))
            entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
            end = 8 + length + max((entry["data_offsets"][1] for entry in entries.values()), default=0)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a safetensors header ({error})") from None
    if end != size:
        raise ValueError(f"its tensors need {end} bytes, there are {size}")
    return len(entries)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of one part: those that its index names, else all there are."""
    indices = sorted(folder.glob("*.safetensors.index.json"))
    if indices:
        names = set(json.loads(indices[0].read_text(encoding="utf-8"))["weight_map"].values())
        return [folder / name for name in sorted(names)]
    return sorted(folder.glob("*.safetensors"))


def _part(folder: Path) -> str | None:
    """What is wrong with the weights of one part; None where nothing is."""
    try:
        files = weight_files(folder)
    except (ValueError, KeyError, OSError) as error:
        return f"{folder.name}: its index cannot be read ({error})"
    if not files:
        return f"{folder.name}: no .safetensors file"
    for path in files:
        try:
            tensors(path)
        except FileNotFoundError:
            return f"{folder.name}: {path.name} is missing"
        except ValueError as error:
            return f"{folder.name}: {path.name}: {error}"
    return None


def check_pipeline(backbone: Backbone) -> list[Finding]:
    """The pipeline folder, or the hub cache's copy of it: every part, its weights, and its number of
    blocks.
    """
    folder = snapshot_folder(backbone.model, backbone.revision)
    remedy = f"hf download {backbone.model}" + (
        f" --revision {backbone.revision}" if backbone.revision else ""
    )
    if backbone.model.startswith((".", "/", "models/")):
        remedy = "dvc pull"
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
        p for p in map(_part, weighted) if p is not None
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
