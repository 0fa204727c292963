"""The files whose code a stage can run: the transitive closure of its imports of `sgpipe` and `stages`.

Read from the syntax tree, without importing anything; imports inside functions count, and so does a file beside a module that
the module names (a table, a template). `dvc.yaml` lists exactly these as `deps`, and the fingerprint of a long stage's working
state hashes them.
"""

import ast
from functools import cache
from pathlib import Path

PACKAGES = ("sgpipe", "stages")
VIEWS = ("sgpipe.tracking",)
"""Packages that only show results; they never change one, so a stage does not depend on their code."""


def _path(module: str, root: Path) -> Path | None:
    base = root.joinpath(*module.split("."))
    for candidate in (base.with_suffix(".py"), base / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


@cache
def _named_files(path: Path) -> frozenset[Path]:
    """Files in a module's folder whose names stand in it as a string of their own, other modules left out."""
    words = (node.value for node in ast.walk(_tree(path)) if isinstance(node, ast.Constant))
    beside = {
        other.name: other for other in path.parent.iterdir() if other.is_file() and other.suffix != ".py"
    }
    return frozenset(beside[word] for word in words if isinstance(word, str) and word in beside)


@cache
def _imports(path: Path) -> frozenset[str]:
    """Dotted names that a file imports from our packages; `from a import b` yields both `a` and `a.b`."""
    names: set[str] = set()
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise ValueError(f"{path}:{node.lineno}: relative import; write the full module name")
            if node.module:
                names.add(node.module)
                names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return frozenset(name for name in names if name.split(".")[0] in PACKAGES)


def import_closure(module: str, root: Path) -> list[str]:
    """Paths relative to `root`, sorted, of `module`, all of our modules that it imports, however deep, and the files they name.

    A package's `__init__.py` belongs to the closure of each of its modules. `VIEWS` are left out.
    """
    files: set[Path] = set()
    pending = [module]
    while pending:
        name = pending.pop()
        if name.startswith(VIEWS):
            continue
        path = _path(name, root)
        if path is None:
            continue
        if path in files:
            continue
        files |= {path, *_named_files(path)}
        pending += _imports(path)
        parts = name.split(".")
        pending += [".".join(parts[:n]) for n in range(1, len(parts))]
    return sorted(path.relative_to(root).as_posix() for path in files)
