"""Every knob that a message or docstring names is one that params.yaml can hold."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from sgpipe.params.load import SECTIONS, section_type

KNOB = re.compile(rf"(?<![\w./@])({'|'.join(SECTIONS)})\.([a-z_]+)(?:\.([a-z_]+))?(?![\w./])")


def fields(kind: Any) -> dict[str, Any] | None:
    """Names and types of a struct's fields, below `Annotated`; None for what is no struct."""
    kind = getattr(kind, "__origin__", kind)
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return {field.name: field.type for field in msgspec.structs.fields(kind)}
    return None


def unknown(text: str) -> Iterator[str]:
    """Knobs in a text that no section has; files such as `probes.json` are none."""
    for found in KNOB.finditer(text):
        section, *path = (part for part in found.groups() if part)
        if path[-1] in ("json", "parquet", "safetensors"):
            continue
        known = fields(section_type(section))
        for part in path:
            if known is None:
                break
            if part not in known:
                yield found[0]
                break
            known = fields(known[part])


def strings(path: Path) -> Iterator[str]:
    """Texts of a module, an f-string as one."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "0" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def test_messages_name_knobs_that_exist(repo_root: Path) -> None:
    assert list(unknown("set graph_encoder.unknown_names or train.optimiser.speed")) == [
        "graph_encoder.unknown_names",
        "train.optimiser.speed",
    ]
    texts = [
        (path.name, text)
        for folder in ("sgpipe", "sgworld", "stages")
        for path in sorted((repo_root / folder).rglob("*.py"))
        if path.name != "moved.py"  # which names what there is no longer
        for text in strings(path)
    ]
    assert sum(bool(KNOB.search(text)) for _, text in texts) > 80
    assert [(name, knob) for name, text in texts for knob in unknown(text)] == []
