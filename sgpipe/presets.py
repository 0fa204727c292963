"""Presets: files of overrides over params.yaml, shown as a difference and written into it with its comments and order."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from msgspec import Struct
from rich.table import Table
from rich.text import Text
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.representer import RoundTripRepresenter

from sgpipe.errors import ParamsError
from sgpipe.params.check import check
from sgpipe.params.load import SECTIONS, decode, read_yaml, section_type, to_builtins
from sgpipe.params.moved import refuse_moved
from sgpipe.params.show import load_all, spelled_out
from sgpipe.runs.atomic import atomic_path

FOLDER = "presets"
"""Where presets are, beside params.yaml."""
WIDTH = 128
"""Columns after which a list or mapping in one line is broken."""


class _Representer(RoundTripRepresenter):
    """Writes `null` by its name."""


_Representer.add_representer(type(None), lambda into, _: into.represent_scalar("tag:yaml.org,2002:null", "null"))


@dataclass(frozen=True)
class Change:
    """A knob by its dotted key, with its values in params.yaml and in the preset, plain and in canonical form."""

    knob: str
    old: Any
    new: Any


def available(folder: Path) -> dict[str, str]:
    """The presets in a folder by name, each with its first comment line."""
    found = {}
    for path in sorted(folder.glob("*.yaml")):
        first = path.read_text(encoding="utf-8").partition("\n")[0]
        found[path.stem] = first.removeprefix("#").strip() if first.startswith("#") else ""
    return found


def preset_path(folder: Path, name: str) -> Path:
    """The file of a preset. Raises `ParamsError` with the valid names."""
    if name not in (names := available(folder)):
        raise ParamsError(f"preset {name!r} is unknown; valid: {', '.join(names) or f'none in {folder}'}")
    return folder / f"{name}.yaml"


def with_preset(params: Path, preset: Path) -> dict[str, Any]:
    """Every section of params.yaml as its struct, with the preset's values.

    Raises `ParamsError` for a section or knob that there is not, and for values that params.yaml would not take together.
    """
    found, raw, overrides = load_all(params), read_yaml(params), read_yaml(preset)
    refuse_moved(overrides, str(preset))
    if unknown := [name for name in overrides if name not in SECTIONS]:
        raise ParamsError(f"{preset}: {unknown[0]}: unknown section; valid: {', '.join(SECTIONS)}")
    for name, given in overrides.items():
        found[name] = decode(name, _merged(found[name], raw[name], given), section_type(name), str(preset))
    check(found, str(preset))
    spelled_out(found)
    return found


def changes(params: Path, preset: Path) -> list[Change]:
    """What the preset would change, in the order of the knobs. Raises `ParamsError` as `with_preset` does."""
    before, after = load_all(params), with_preset(params, preset)
    return [change for name in SECTIONS for change in _changes(name, before[name], after[name])]


def apply(params: Path, preset: Path) -> list[Change]:
    """Write the preset's changes into params.yaml, whole or not at all; what they were."""
    made = changes(params, preset)
    if not made:
        return made
    yaml = YAML()
    yaml.Representer = _Representer
    yaml.preserve_quotes = True
    yaml.width = 1 << 16
    document, source = (yaml.load(path.read_text(encoding="utf-8")) for path in (params, preset))
    for change in made:
        *parents, last = change.knob.split(".")
        into, value = document, source
        for name in parents:
            if not isinstance(into.get(name), dict):
                _put(into, name, _plain_node({}))
            into, value = into[name], value[name]
        _put(into, last, _plain_node(value[last]))
    if not params.stat().st_mode & 0o222:
        raise ParamsError(f"{params}: is read-only; `chmod u+w {params}`, or give a copy with --params")
    stream = StringIO()
    yaml.dump(document, stream)
    with atomic_path(params) as temporary:
        lines = [part for line in stream.getvalue().splitlines() for part in _broken(line)]
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
        if left := changes(temporary, preset):
            raise ParamsError(f"{params}: {left[0].knob} cannot be written; set it by hand to {shown(left[0].new)}")
    return made


def settings(made: list[Change]) -> list[str]:
    """The changes as `key=value`, as `dvc exp run -S` takes them; no blanks, so that a shell keeps each as one word."""
    return [f"{change.knob}={shown(change.new).replace(', ', ',').replace(': ', ':')}" for change in made]


def table(made: list[Change]) -> Table:
    """Old and new value of each knob."""
    found = Table("knob", "params.yaml", "preset")
    for change in made:
        found.add_row(change.knob, Text(shown(change.old)), Text(shown(change.new)))
    return found


def shown(value: Any) -> str:
    """A value as YAML writes it in one line."""
    stream = StringIO()
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style, yaml.width = True, 1 << 16
    yaml.dump(value, stream)
    return stream.getvalue().removesuffix("...\n").strip()


def _merged(held: Any, raw: Any, over: Any) -> Any:
    """`raw` with the knobs of `over`: what decodes to a struct in `held` is gone into, lists and mappings are replaced."""
    if not (isinstance(held, Struct) and isinstance(raw, Mapping) and isinstance(over, Mapping)):
        return over
    return {**raw, **{name: _merged(getattr(held, str(name), None), raw.get(name, {}), value) for name, value in over.items()}}


def _changes(knob: str, before: Any, after: Any) -> Iterator[Change]:
    if isinstance(before, Struct):
        for name in before.__struct_fields__:
            yield from _changes(f"{knob}.{name}", getattr(before, name), getattr(after, name))
    elif before != after:
        yield Change(knob, to_builtins(before), to_builtins(after))


def _plain_node(value: Any) -> Any:
    """A value without the comments of the file that it comes from, in one line unless it is a mapping of mappings."""
    if isinstance(value, dict):
        node = CommentedMap((name, _plain_node(each)) for name, each in value.items())
        if not any(isinstance(each, dict) for each in value.values()):
            node.fa.set_flow_style()
        return node
    if isinstance(value, list):
        items = CommentedSeq(_plain_node(each) for each in value)
        items.fa.set_flow_style()
        return items
    return value


def _broken(line: str) -> Iterator[str]:
    """A long line broken after commas, the rest below what its first bracket holds; lines with comments stay."""
    bracket = re.search(r"[\[{]", line)
    while bracket and "#" not in line and len(line) > WIDTH:
        end = line.rfind(", ", bracket.end(), WIDTH) + 1
        if not end:
            break
        yield line[:end]
        line = " " * bracket.end() + line[end + 1 :]
    yield line


def _put(into: CommentedMap, name: str, value: Any) -> None:
    """Set a key where it stands; a new one goes before the last, to which what follows the mapping is attached."""
    if name not in into:
        into.insert(max(0, len(into) - 1), name, value)
        return
    old = into[name]
    into[name] = value
    if hasattr(old, "ca") and hasattr(value, "ca"):
        value.ca.comment = old.ca.comment
