"""dvc.yaml kept in step with the code: each stage's deps on code are its import closure, its params the sections it reads."""

import ast
import io
from pathlib import Path
from typing import Any

from sgpipe.runs.closure import PACKAGES, import_closure

NOT_RESULTS = frozenset({"compute", "tracking"})
"""Sections that say how or where a stage runs; they never change a result, so no stage depends on them."""


def body(definition: dict[str, Any]) -> dict[str, Any]:
    """The part of a stage's definition that holds cmd, deps and params (inside `do` for a foreach stage)."""
    return definition.get("do", definition)


def module_of(definition: dict[str, Any]) -> str:
    """The module that a stage's command runs with `python -m`."""
    words = str(body(definition)["cmd"]).split()
    return next(word for word in words if word.startswith("stages."))


def _is_code(dep: Any) -> bool:
    return str(dep).split("/")[0] in PACKAGES


def sections_read(module: str, root: Path) -> set[str]:
    """Literal section names in the `read_section(...)` calls of a stage's file, without `NOT_RESULTS`."""
    tree = ast.parse((root / (module.replace(".", "/") + ".py")).read_text(encoding="utf-8"))
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "read_section":
            argument = node.args[1]
            if not isinstance(argument, ast.Constant):
                raise ValueError(f"{module}:{node.lineno}: read_section needs a literal section name")
            found.add(str(argument.value))
    return found - NOT_RESULTS


def differences(stages: dict[str, dict[str, Any]], root: Path) -> list[str]:
    """What dvc.yaml lists and the code does not need, or the other way round; empty when they agree."""
    problems: list[str] = []
    for name, definition in stages.items():
        module = module_of(definition)
        listed = {str(dep) for dep in body(definition).get("deps", []) if _is_code(dep)}
        wanted = set(import_closure(module, root))
        problems += [f"{name}: deps lack {path}" for path in sorted(wanted - listed)]
        problems += [
            f"{name}: deps list {path}, which the stage cannot run" for path in sorted(listed - wanted)
        ]
        keys = {str(key).split(".")[0] for key in body(definition).get("params", [])}
        read = sections_read(module, root)
        problems += [f"{name}: params lack {key}" for key in sorted(read - keys)]
        problems += [
            f"{name}: params list {key}, which the stage does not read" for key in sorted(keys - read)
        ]
    return problems


def updated(text: str, root: Path) -> str:
    """The text of dvc.yaml with every stage's deps on code and params rewritten from the code; all else, comments too, stays.

    Data comes first, then the tables and templates that the code names, then the code.
    """
    from ruamel.yaml import YAML

    yaml = YAML()
    yaml.width = 120
    yaml.preserve_quotes = True
    document = yaml.load(text)
    for definition in document["stages"].values():
        inner, module = body(definition), module_of(definition)
        data = [dep for dep in inner.get("deps", []) if not _is_code(dep)]
        code = sorted(import_closure(module, root), key=lambda name: name.endswith(".py"))
        inner["deps"] = [*data, *code]
        inner["params"] = sorted(sections_read(module, root))
    stream = io.StringIO()
    yaml.dump(document, stream)
    return stream.getvalue()
