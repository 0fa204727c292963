"""Read params.yaml strictly: unknown keys, wrong types and impossible values are refused by key, value and remedy."""

import difflib
import re
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import yaml

from sgpipe.errors import ParamsError
from sgpipe.params.blocks import Blocks
from sgpipe.params.registry import SECTIONS

T = TypeVar("T")
_AT = re.compile(r"^(?P<what>.*?)(?: - at `(?P<path>\$[^`]*)`)?$", re.DOTALL)


class _UniqueKeys(yaml.SafeLoader):
    """A safe loader that refuses a key given twice, where YAML would silently keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if key.value in seen:
                    raise ParamsError(
                        f"line {key.start_mark.line + 1}: key {key.value!r} is given twice; keep one"
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; anything else is refused."""
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeys)
    except FileNotFoundError:
        raise ParamsError(f"{path}: no such file; run from the repository root or give --params") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ParamsError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    except ParamsError as error:
        raise ParamsError(f"{path}: {error}") from None
    if not isinstance(raw, dict):
        raise ParamsError(f"{path}: a mapping of sections is needed, got {type(raw).__name__}")
    return raw


def _hook(kind: type, value: Any) -> Any:
    if kind is Blocks:
        return Blocks.parse(value)
    raise TypeError(f"params cannot hold {kind}")


def _unhook(value: Any) -> Any:
    if isinstance(value, Blocks):
        return str(value)
    raise TypeError(f"params cannot hold {type(value)}")


def _at(raw: Any, path: str) -> tuple[str, Any, Any]:
    """Dotted key, value there and its parent mapping, for a msgspec path such as `$.groups[...]` or `$.fractions.train`."""
    parent: Any = None
    key = ""
    for part in re.findall(r"\.([^.\[]+)|\[(\d+|\.\.\.)\]", path):
        name, index = part
        if name:
            key += f".{name}"
            parent, raw = raw, raw.get(name) if isinstance(raw, dict) else None
        elif index != "...":
            key += f"[{index}]"
            parent, raw = raw, raw[int(index)] if isinstance(raw, list) else None
        else:
            key += ".*"
    return key.lstrip("."), raw, parent


def _close(name: str, valid: list[str]) -> str:
    near = difflib.get_close_matches(name, valid, 1)
    return f"; did you mean {near[0]!r}?" if near else f"; valid: {', '.join(sorted(valid))}"


def decode(section: str, raw: Any, kind: type[T], source: str) -> T:
    """One section from plain values. Raises `ParamsError` with the key's full path, what was given and what is valid."""
    try:
        return msgspec.convert(raw, kind, dec_hook=_hook)
    except msgspec.ValidationError as error:
        match = _AT.match(str(error))
        assert match is not None
        what, path = match["what"], match["path"] or "$"
        key, given, _ = _at(raw, path)
        full = f"{section}.{key}" if key else section
        unknown = re.fullmatch(r"Object contains unknown field `(.*)`", what)
        if unknown:
            valid = _fields_at(kind, raw, key)
            raise ParamsError(
                f"{source}: {full}.{unknown[1]}: unknown key{_close(unknown[1], valid)}"
            ) from None
        what = what[:1].lower() + what[1:]
        shown = "" if what.startswith("got ") or "missing required" in what else f"got {given!r}; "
        raise ParamsError(f"{source}: {full}: {shown}{what}") from None


def _fields_at(kind: Any, raw: Any, key: str) -> list[str]:
    for part in key.split(".") if key else []:
        hints = {field.name: field.type for field in msgspec.structs.fields(kind)}
        if part not in hints:
            return []
        kind = hints[part]
        kind = next((k for k in getattr(kind, "__args__", ()) if hasattr(k, "__struct_fields__")), kind)
    return list(kind.__struct_encode_fields__) if hasattr(kind, "__struct_encode_fields__") else []


def read_section(path: Path, name: str, kind: type[T]) -> T:
    """Section `name` of params.yaml as `kind`. Unknown sections in the file are refused, other sections are not read."""
    raw = read_yaml(path)
    for given in raw:
        if given not in SECTIONS:
            raise ParamsError(f"{path}: {given}: unknown section{_close(str(given), list(SECTIONS))}")
    if name not in raw:
        raise ParamsError(f"{path}: section {name!r} is missing; `git checkout {path}` restores the default")
    return decode(name, raw[name], kind, str(path))


def to_builtins(value: Any) -> Any:
    """A section as plain values in canonical form (block sets spelled one way), for printing and hashing."""
    return msgspec.to_builtins(value, enc_hook=_unhook)
