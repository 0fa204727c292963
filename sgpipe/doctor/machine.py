"""Is the machine what the lock file and the run expect: packages, disk, memory, GPU?"""

import re
import shutil
import sys
import tomllib
from functools import partial
from pathlib import Path

import psutil

from sgpipe.backbones.config import Backbone
from sgpipe.doctor.findings import Finding, fail, ok, refused, warn
from sgpipe.doctor.memory import GIB, Need
from sgpipe.doctor.plan import choose, gpu_room, ways
from sgpipe.runs.code import canonical, installed, not_as_locked, pinned

LEAST_FREE = 5 * GIB
"""Room for caches, checkpoints and reports of the embedded experiment; less than this ends in a full disk."""


def check_python(root: Path) -> list[Finding]:
    """Every package that the project depends on itself, against requirements.lock."""
    try:
        project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    except (OSError, tomllib.TOMLDecodeError, KeyError) as error:
        what = f"{root} is not the project's folder: {error}"
        return [fail("python", what, "run from the repository's folder")]
    names = [re.split(r"[^\w.-]", each, maxsplit=1)[0] for each in project["dependencies"]]
    found, lock = installed(map(canonical, names)), pinned(root)
    absent = [name for name, there in found.items() if there is None]
    other = not_as_locked({name: lock[name] for name in found if name in lock})
    findings = []
    if absent:
        findings.append(fail("python", f"not installed: {', '.join(absent)}", "make venv"))
    if other:
        said = ", ".join(f"{name} {there} (locked {lock[name]})" for name, there in other.items())
        findings.append(warn("python", f"not as locked: {said}", "make venv"))
    return findings or [ok("python", f"Python {sys.version.split()[0]}, {len(found)} direct dependencies as locked")]


def _existing(folder: Path) -> Path:
    return next(each for each in (folder, *folder.parents) if each.exists())


def check_disk(folders: dict[str, Path]) -> list[Finding]:
    """Free space under each named folder; one line per file system."""
    findings: dict[int, Finding] = {}
    for name, folder in ((name, _existing(folder)) for name, folder in folders.items()):
        free = shutil.disk_usage(folder).free
        what = f"{free / GIB:.1f} GiB free for {name} ({folder})"
        remedy = f"free some space ({LEAST_FREE / GIB:.0f} GiB at least), e.g. `dvc gc --workspace`"
        found = fail("disk", what, remedy) if free < LEAST_FREE else ok("disk", what)
        findings.setdefault(folder.stat().st_dev, found)
    return list(findings.values())


def check_download(need: Need, cache: Path) -> Finding:
    """Whether a pipeline that is still to be downloaded (16 bits per parameter) fits the disk of the hub's cache."""
    size = sum(part.bytes("bfloat16") for part in need.sizes.values())
    free = shutil.disk_usage(_existing(cache)).free
    what = f"{size / GIB:.1f} GiB of weights to download, {free / GIB:.1f} GiB free for the hub cache ({cache})"
    remedy = "free some space, or set HF_HOME to a larger disk"
    return fail("disk", what, remedy) if size + LEAST_FREE > free else ok("disk", what)


def available_memory() -> int:
    """Bytes that a new process can take: the machine's, or less where a control group (container) allows less."""
    room = psutil.virtual_memory().available
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    try:
        return max(0, min(room, int(limit.read_text()) - int(used.read_text())))
    except (OSError, ValueError):  # no control groups, or the limit is `max`
        return room


def gpus() -> list[tuple[str, float]]:
    """Name and GiB of each CUDA device."""
    import torch

    found = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return [(each.name, each.total_memory / GIB) for each in found]


def check_memory(need: Need | None, device: str, found: list[tuple[str, float]]) -> list[Finding]:
    """Where the run would take place, and whether every phase fits there; `need` None leaves the latter out."""
    if device == "cuda" and not found:
        what = "compute.device is cuda and no CUDA GPU is visible"
        return [fail("gpu", what, "set compute.device to auto")]
    if found and device in ("auto", "cuda"):
        findings = [ok("gpu", ", ".join(f"{name} ({gib:.1f} GiB)" for name, gib in found))]
        for phase, how, size, fits in choose(need, gpu_room(found[0][1])) if need else ():
            even = f"{phase}: {size / GIB:.1f} GiB even with {how}"
            without = fail("gpu", even, "a larger GPU, a smaller batch or a lower resolution")
            findings.append(ok("gpu", f"{phase}: {how}, {size / GIB:.1f} GiB") if fits else without)
        return findings
    room = available_memory()
    findings = [ok("memory", f"no GPU in use; {room / GIB:.1f} GiB of memory available")]
    for phase, options in ways(need).items() if need else ():
        if (size := next(iter(options.values()))) > room:
            what = f"{phase}: {size / GIB:.1f} GiB on the CPU, {room / GIB:.1f} GiB are available"
            remedy = "a machine with more memory, or a GPU (see the plan)"
            findings.append(fail("memory", what, remedy))
    return findings


def check_quantisation(backbone: Backbone, on_gpu: bool) -> list[Finding]:
    """Whether the transformer can be quantised as asked: the package, and a GPU for it. Nothing where none is asked for."""
    import torch

    from sgpipe.backbones.loading import quantiser

    if backbone.quantisation is None:
        return []
    device = torch.device("cuda" if on_gpu else "cpu")
    what = f"backbone.quantisation: {backbone.quantisation} by bitsandbytes"
    return refused(partial(quantiser, backbone, device), "gpu") or [ok("gpu", what)]
