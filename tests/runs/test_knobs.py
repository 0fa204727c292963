"""No knob that nothing reads."""

import inspect
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec

from sgpipe.arms.kinds import KINDS
from sgpipe.params import load

ROOT = Path(__file__).resolve().parents[2]
CONFIG = f"""[mypy]
plugins = {ROOT}/tests/runs/attribute_reads.py
files = sgpipe, stages, benchmarks
follow_imports = skip
check_untyped_defs = true
cache_dir = {os.devnull}
[mypy-msgspec.*]
follow_imports = normal
"""
"""Other packages are skipped: of types that a value passes through, only those of sections matter here."""


def attribute_reads(root: Path) -> set[str]:
    """`Class.attribute` of sections that code in `root` reads, outside of the modules that define them."""
    (root / "mypy.ini").write_text(CONFIG)
    found = root / "reads"
    subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", "mypy.ini"],
        cwd=root, capture_output=True, check=False, env={**os.environ, "ATTRIBUTE_READS": str(found)},
    )  # fmt: skip
    own = ("sgpipe/params/load.py", "sgpipe/params/show.py", "sgpipe/params/blocks.py")
    lines = [line.split("\t") for line in found.read_text().splitlines()]
    return {
        ".".join(name.split(".")[-2:])
        for name, path in lines
        if path in own or not (path.startswith("sgpipe/params/") or path.endswith("/config.py"))
    }


def structs(kind: object) -> set[type[msgspec.Struct]]:
    """The structs in a section's type, itself included."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return {kind}.union(*(structs(field.type) for field in msgspec.structs.fields(kind)))
    return set().union(*(structs(part) for part in getattr(kind, "__args__", ())))


def test_every_knob_is_read_by_code_that_has_its_section(tmp_path: Path) -> None:
    """By type, not by name: a knob that is added to `negatives` is not read because `evaluate` has one of the same name.

    A struct that goes through its own `__struct_fields__` reads all of them; DVC reads what dvc.yaml names as `${section.knob}`.
    """
    for name in ("sgpipe", "stages", "benchmarks"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    section = tmp_path / "sgpipe/graphs/config.py"
    section.write_text(section.read_text() + "    steps: int = 1\n")
    (tmp_path / "stages/planted.py").write_text(
        "from sgpipe.evaluation.config import Evaluate\n\n\ndef f(config: Evaluate) -> int:\n    return config.steps\n"
    )
    reads = attribute_reads(tmp_path)
    kinds = set().union(*(structs(load.section_type(name)) for name in load.SECTIONS))
    kinds = kinds.union(*(structs(kind.options) | structs(kind.settings) for kind in KINDS.values()))
    assert len(kinds) > 40
    fields = [(kind, field) for kind in kinds for field in kind.__struct_fields__]
    owners = [(next(each for each in kind.__mro__ if field in each.__annotations__), field) for kind, field in fields]
    knobs = {f"{kind.__name__}.{field}" for kind, field in owners if "__struct_fields__" not in inspect.getsource(kind)}
    reads |= {
        f"{load.section_type(section).__name__}.{knob}"
        for section, knob in re.findall(r"\$\{(\w+)\.(\w+)\}", (ROOT / "dvc.yaml").read_text())
        if section in load.SECTIONS
    }
    assert {*knobs, "Negatives.steps"} - reads == {"Negatives.steps"}
