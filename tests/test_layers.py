"""Which package may import which: dependencies point one way."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
FILES = sorted(path.relative_to(ROOT).as_posix() for name in ("sgpipe", "stages") for path in (ROOT / name).rglob("*.py"))


def imported(source: str) -> set[str]:
    """Top-level packages that a source imports, inside functions too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


def test_imports_inside_functions_count() -> None:
    assert imported("import a.b\ndef f():\n    from c.d import e\n") == {"a", "c"}


def test_the_pipeline_does_not_know_the_drawn_world() -> None:
    """The world joins by checkpoints, data files and the entry point `sgpipe.judges` alone."""
    assert len(FILES) > 100
    assert [path for path in FILES if "sgworld" in imported((ROOT / path).read_text(encoding="utf-8"))] == []


LAYERS = (
    ("relations", "runs", "params", "tracking", "optim"), ("datasets",), ("graphs",), ("backbones",), ("attention_maps",),
    ("probes", "graph_encoder"), ("sgdiff",), ("arms",), ("training",), ("evaluation",), ("localisation",), ("report",),
    ("doctor", "fetch", "cli", "presets"),
)  # fmt: skip
"""Packages by what they may import: those before them, and beside them in a layer."""


def packages(path: str) -> set[str]:
    """Packages of sgpipe that a file imports; sections of params.yaml (`config`) are data and may be read from anywhere."""
    names = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        module = node.module if isinstance(node, ast.ImportFrom) and node.module else ""
        parts = module.split(".")
        if parts[0] == "sgpipe" and len(parts) > 1 and parts[-1] != "config":
            names.add(parts[1])
    return names - {"errors"}


def test_packages_import_those_below_them() -> None:
    level = {name: number for number, layer in enumerate(LAYERS) for name in layer}
    upwards = []
    for path in FILES:
        own = Path(path).with_suffix("").parts
        if own[0] == "sgpipe" and own[1] in level:
            upwards += [f"{path} imports {name}" for name in packages(path) if level[name] > level[own[1]]]
    assert upwards == []
