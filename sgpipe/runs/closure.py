"""The files whose code a stage can run: the transitive closure of its imports within this repository.

Read from the syntax tree, without importing anything; imports inside functions count, and so does a file beside a module that
the module names (a table, a template), and what pyproject.toml declares for a group of entry points that the module names.
"""

import ast
import hashlib
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from sgpipe.errors import CodeError

VIEWS = ("sgpipe.tracking", "sgpipe.runs.closure", "sgpipe.runs.code")
"""What shows results or compares code; it never changes a result, so a stage does not depend on it."""


@dataclass(frozen=True)
class Source:
    """What one Python file imports (`from a import b` yields both `a` and `a.b`), which strings it holds, and the SHA-256 of
    its syntax tree."""

    imports: frozenset[str]
    strings: frozenset[str]
    digest: str


@dataclass(frozen=True)
class Closure:
    """Files as POSIX paths relative to the root, sorted, and the top-level names imported from elsewhere."""

    files: tuple[str, ...]
    foreign: frozenset[str]


def _is_text(node: Any) -> bool:
    """Whether a statement is nothing but a string: a docstring."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _syntax(node: Any) -> Any:
    """Nested tuples of a syntax tree without positions, docstrings and empty fields: equal for equal code on any Python."""
    if isinstance(node, ast.Constant):
        return ("Constant", repr(node.value))
    if isinstance(node, ast.AST):
        fields = ((name, _syntax(value)) for name, value in ast.iter_fields(node))
        return (type(node).__name__, *(field for field in fields if field[1] not in (None, ())))
    if isinstance(node, list):
        return tuple(_syntax(each) for each in node if not _is_text(each))
    return node


@cache
def read_source(text: str, name: str) -> Source:
    """The facts of a Python file's text; `name` stands in errors. Raises `CodeError` for no Python and for a relative import."""
    try:
        tree = ast.parse(text, filename=name)
    except SyntaxError as error:
        raise CodeError(f"{name}:{error.lineno}: {error.msg}; mend it") from None
    imports: set[str] = set()
    strings: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imports.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise CodeError(f"{name}:{node.lineno}: relative import; write the full module name")
            if node.module:
                imports.add(node.module)
                imports.update(f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            strings.add(node.value)
    digest = hashlib.sha256(repr(_syntax(tree)).encode()).hexdigest()
    return Source(frozenset(imports), frozenset(strings), digest)


def source_at(path: Path) -> Source:
    """`read_source` of a file as it is now."""
    return read_source(path.read_text(encoding="utf-8"), str(path))


def _path(module: str, root: Path) -> Path | None:
    base = root.joinpath(*module.split("."))
    for candidate in (base.with_suffix(".py"), base / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


def _named_files(path: Path, strings: frozenset[str]) -> set[Path]:
    """Files in a module's folder whose names stand in it as a string of their own, other modules left out."""
    named = (other for other in path.parent.iterdir() if other.name in strings and other.suffix != ".py")
    return {other for other in named if other.is_file()}


def _plugins(root: Path) -> dict[str, list[str]]:
    """Modules that this repository declares for each group of entry points."""
    path = root / "pyproject.toml"
    if not path.is_file():
        return {}
    groups = tomllib.loads(path.read_text(encoding="utf-8")).get("project", {}).get("entry-points", {})
    return {group: [str(at).partition(":")[0] for at in named.values()] for group, named in groups.items()}


def import_closure(module: str, root: Path) -> Closure:
    """The closure of `module`: it, all modules of the repository at `root` that it imports, however deep, and files they name.

    A package's `__init__.py` belongs to the closure of each of its modules. `VIEWS` are left out.
    """
    plugins = _plugins(root)
    files: set[Path] = set()
    foreign: set[str] = set()
    pending = [module]
    while pending:
        name = pending.pop()
        if any(name == view or name.startswith(f"{view}.") for view in VIEWS):
            continue
        path, top = _path(name, root), name.split(".")[0]
        if path is None:
            if not (root / top).is_dir():
                foreign.add(top)
            continue
        if path in files:
            continue
        source = source_at(path)
        files |= {path, *_named_files(path, source.strings)}
        pending += source.imports
        pending += (each for group in source.strings & plugins.keys() for each in plugins[group])
        parts = name.split(".")
        pending += [".".join(parts[:n]) for n in range(1, len(parts))]
    return Closure(tuple(sorted(path.relative_to(root).as_posix() for path in files)), frozenset(foreign) - {"__future__"})
