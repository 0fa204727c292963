"""The files whose code a stage can run: the transitive closure of its imports within this repository.

Read from the syntax tree, without importing anything; imports inside functions count, and so does a file beside a module that
the module names (a table, a template), and what pyproject.toml declares for a group of entry points that the module names.
"""

import ast
import hashlib
import json
import sys
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

from sgpipe.errors import CodeError
from sgpipe.runs.atomic import write_json

VIEWS = ("sgpipe.tracking", "sgpipe.runs.closure", "sgpipe.runs.code")
"""What shows results or compares code; it never changes a result, so a stage does not depend on it."""
KEPT = Path(".dvc/tmp/sgpipe-sources.json")
"""What is known of files by their content, for the next process: to parse all files of a stage takes longer than to start it."""
_MOST = 4000
"""Contents kept; of more, those that the process met."""
_LONGEST = 255
"""Characters of a name."""


class Source(NamedTuple):
    """What one Python file imports (`from a import b` yields `a` and `a.b`), its strings, and the SHA-256 of its syntax tree."""

    imports: frozenset[str]
    strings: frozenset[str]
    digest: str


class Closure(NamedTuple):
    """Files as POSIX paths relative to the root, sorted, and the top-level names imported from elsewhere."""

    files: tuple[str, ...]
    foreign: frozenset[str]


def _may_name(text: str) -> bool:
    """Whether a string may name a file or a group of entry points: what is kept of a file is less than the file."""
    return len(text) <= _LONGEST and text.isprintable()


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


_RULES = f"{sys.version_info[:2]} {hashlib.sha256(Path(__file__).read_bytes()).hexdigest()}"
_known: dict[str, Source] = {}
"""By the hash of the rules and of a file's text."""
_met: set[str] = set()
_unkept: set[str] = set()


def recall(root: Path) -> None:
    """Take over what was kept in the repository at `root`; of a damaged file nothing."""
    try:
        kept = json.loads((root / KEPT).read_bytes())
        _known.update({key: Source(frozenset(names), frozenset(said), digest) for key, (names, said, digest) in kept.items()})
    except (OSError, ValueError, TypeError, AttributeError):
        return


def keep(root: Path) -> None:
    """Keep what was read of files that were not known, where there is a DVC repository at `root` that can be written."""
    if not _unkept or not (root / ".dvc").is_dir():
        return
    chosen = _known if len(_known) <= _MOST else {key: _known[key] for key in _met}
    try:
        (root / KEPT).parent.mkdir(exist_ok=True)
        write_json({key: [sorted(each.imports), sorted(each.strings), each.digest] for key, each in chosen.items()}, root / KEPT)
    except OSError:
        return
    _unkept.clear()


def _read(text: str, name: str) -> Source:
    """The facts of a Python file's text; `name` stands in errors."""
    key = hashlib.sha256(f"{_RULES}\n{text}".encode()).hexdigest()
    _met.add(key)
    if key not in _known:
        _known[key] = _parse(text, name)
        _unkept.add(key)
    return _known[key]


def _parse(text: str, name: str) -> Source:
    try:
        tree = ast.parse(text, filename=name)
    except SyntaxError as error:
        raise CodeError(f"{name}:{error.lineno}: {error.msg}; mend it") from None
    imports, strings = set[str](), set[str]()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imports.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise CodeError(f"{name}:{node.lineno}: relative import; write the full module name")
            imports.update((str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and _may_name(node.value):
            strings.add(node.value)
    return Source(frozenset(imports), frozenset(strings), hashlib.sha256(repr(_syntax(tree)).encode()).hexdigest())


def source_at(path: Path) -> Source:
    """The facts of a Python file as it is now. Raises `CodeError` for no Python and for a relative import."""
    return _read(path.read_text(encoding="utf-8"), str(path))


def _plugins(root: Path) -> dict[str, list[str]]:
    """Modules that this repository declares for each group of entry points."""
    path = root / "pyproject.toml"
    project = tomllib.loads(path.read_text(encoding="utf-8")).get("project", {}) if path.is_file() else {}
    groups = project.get("entry-points", {})
    return {group: [str(at).partition(":")[0] for at in named.values()] for group, named in groups.items()}


def import_closure(module: str, root: Path) -> Closure:
    """The closure of `module`: it, all modules of the repository at `root` that it imports, however deep, and files they name.

    A package's `__init__.py` belongs to the closure of each of its modules. `VIEWS` are left out.
    """
    plugins, files, foreign, pending = _plugins(root), set[Path](), set[str](), [module]
    while pending:
        name = pending.pop()
        if any(f"{name}.".startswith(f"{view}.") for view in VIEWS):
            continue
        parts = name.split(".")
        base = root.joinpath(*parts)
        path = next((each for each in (base.with_suffix(".py"), base / "__init__.py") if each.is_file()), None)
        if path is None:
            if not (root / parts[0]).is_dir():
                foreign.add(parts[0])
        elif path not in files:
            source = source_at(path)
            beside = (other for other in path.parent.iterdir() if other.name in source.strings and other.suffix != ".py")
            files |= {path, *(other for other in beside if other.is_file())}
            pending += source.imports
            pending += (each for group in source.strings & plugins.keys() for each in plugins[group])
            pending += [".".join(parts[:n]) for n in range(1, len(parts))]
    return Closure(tuple(sorted(path.relative_to(root).as_posix() for path in files)), frozenset(foreign) - {"__future__"})
