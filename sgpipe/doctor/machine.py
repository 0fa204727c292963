"""Is the machine what the lock file and the run expect: Python, packages, memory, disk, GPU?"""

import re
import shutil
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

from sgpipe.backbones.config import Backbone
from sgpipe.doctor.findings import Finding, Level
from sgpipe.doctor.memory import GIB, Need
from sgpipe.doctor.plan import choose, gpu_room, ways
from sgpipe.errors import ParamsError
from sgpipe.runs.code import pinned

AREA = "machine"
LEAST_FREE = 5 * GIB
"""Room for caches, checkpoints and reports of the embedded experiment; less than this ends in a full disk."""


def check_python(root: Path) -> list[Finding]:
    """Every package that the project depends on itself, against requirements.lock."""
    remedy = "make venv"
    findings: list[Finding] = []
    try:
        lock = pinned(root)
        project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    except (OSError, tomllib.TOMLDecodeError, KeyError) as error:
        what = f"{root} is not the project's folder: {error}"
        return [Finding(Level.FAIL, "python", what, "run from the repository's folder")]
    absent, other = [], []
    for requirement in project["dependencies"]:
        name = re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0]
        pin = lock.get(re.sub(r"[-_.]+", "-", name).lower())
        try:
            found = version(name)
        except PackageNotFoundError:
            absent.append(name)
            continue
        if pin is not None and found.split("+")[0] != pin.split("+")[0]:
            other.append(f"{name} {found} (locked {pin})")
    if absent:
        findings.append(Finding(Level.FAIL, "python", f"not installed: {', '.join(absent)}", remedy))
    if other:
        findings.append(Finding(Level.WARN, "python", f"not as locked: {', '.join(other)}", remedy))
    if not findings:
        count = len(project["dependencies"])
        what = f"Python {sys.version.split()[0]}, {count} direct dependencies as locked"
        findings.append(Finding(Level.OK, "python", what))
    return findings


def _existing(folder: Path) -> Path:
    while not folder.exists():
        folder = folder.parent
    return folder


def check_download(need: Need, cache: Path) -> Finding:
    """Whether a pipeline that is still to be downloaded (16 bits per parameter) fits into the hub
    cache's disk.
    """
    size = sum(part.bytes("bfloat16") for part in need.sizes.values())
    free = shutil.disk_usage(_existing(cache)).free
    what = (
        f"{size / GIB:.1f} GiB of weights to download, {free / GIB:.1f} GiB free for the hub cache ({cache})"
    )
    if size + LEAST_FREE > free:
        return Finding(Level.FAIL, "disk", what, "free some space, or set HF_HOME to a larger disk")
    return Finding(Level.OK, "disk", what)


def check_disk(folders: dict[str, Path]) -> list[Finding]:
    """Free space under each named folder; one line per file system."""
    findings: list[Finding] = []
    seen: set[int] = set()
    for name, folder in ((name, _existing(folder)) for name, folder in folders.items()):
        device = folder.stat().st_dev
        if device in seen:
            continue
        seen.add(device)
        free = shutil.disk_usage(folder).free
        what = f"{free / GIB:.1f} GiB free for {name} ({folder})"
        if free < LEAST_FREE:
            remedy = f"free some space ({LEAST_FREE / GIB:.0f} GiB at least), e.g. `dvc gc --workspace`"
            findings.append(Finding(Level.FAIL, "disk", what, remedy))
        else:
            findings.append(Finding(Level.OK, "disk", what))
    return findings


def available_memory() -> int:
    """Bytes that a new process can take: the machine's, or less where a control group (container)
    allows less.
    """
    room = psutil.virtual_memory().available
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    try:
        text = limit.read_text().strip()
        return room if text == "max" else max(0, min(room, int(text) - int(used.read_text())))
    except (OSError, ValueError):
        return room


def gpus() -> list[tuple[str, float]]:
    """Name and GiB of each CUDA device."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    found = [torch.cuda.get_device_properties(index) for index in range(count)]
    return [(properties.name, properties.total_memory / GIB) for properties in found]


def check_memory(need: Need | None, device: str, found: list[tuple[str, float]]) -> list[Finding]:
    """Where the run would take place, and whether every phase fits there; `need` None leaves the latter
    out.
    """
    on_gpu = device == "cuda" or (device == "auto" and bool(found))
    if device == "cuda" and not found:
        return [
            Finding(
                Level.FAIL,
                "gpu",
                "compute.device is cuda and no CUDA GPU is visible",
                "set compute.device to auto",
            )
        ]
    if on_gpu:
        findings = [Finding(Level.OK, "gpu", ", ".join(f"{name} ({gib:.1f} GiB)" for name, gib in found))]
        for choice in choose(need, gpu_room(found[0][1])) if need else []:
            way, total = choice.way, choice.way.bytes / GIB
            if choice.fits:
                findings.append(Finding(Level.OK, "gpu", f"{choice.phase}: {way.how}, {total:.1f} GiB"))
            else:
                remedy = "a larger GPU, a smaller batch or a lower resolution"
                findings.append(
                    Finding(Level.FAIL, "gpu", f"{choice.phase}: {total:.1f} GiB even with {way.how}", remedy)
                )
        return findings
    room = available_memory()
    findings = [Finding(Level.OK, "memory", f"no GPU in use; {room / GIB:.1f} GiB of memory available")]
    for phase, options in ways(need).items() if need else ():
        if options[0].bytes > room:
            what = f"{phase}: {options[0].bytes / GIB:.1f} GiB on the CPU, {room / GIB:.1f} GiB are available"
            findings.append(
                Finding(Level.FAIL, "memory", what, "a machine with more memory, or a GPU (see the plan)")
            )
    return findings


def check_quantisation(backbone: Backbone, on_gpu: bool) -> list[Finding]:
    """Whether the transformer can be quantised as asked: the package, and a GPU for it. Nothing where none is asked for."""
    import torch

    from sgpipe.backbones.loading import quantiser

    if backbone.quantisation is None:
        return []
    try:
        quantiser(backbone, torch.device("cuda" if on_gpu else "cpu"))
    except ParamsError as error:
        what, _, remedy = str(error).rpartition("; ")
        return [Finding(Level.FAIL, "gpu", what, remedy)]
    return [Finding(Level.OK, "gpu", f"backbone.quantisation: {backbone.quantisation} by bitsandbytes")]
