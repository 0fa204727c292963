"""The parameter reference as Markdown: one table per section, made from the structs, so that it cannot fall behind them."""

import inspect
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import msgspec
from msgspec import NODEFAULT, Meta

from sgpipe.arms.config import arm_kinds
from sgpipe.params.blocks import SYNTAX, Blocks, LayerGroup, Placement
from sgpipe.params.load import to_builtins
from sgpipe.params.show import load_all

_NAMES: dict[Any, str] = {
    str: "text",
    int: "integer",
    float: "number",
    bool: "true or false",
    NoneType: "null",
    Blocks: "blocks",
    Placement: "blocks, or `random`",
    LayerGroup: "blocks, or `{blocks: …, single_blocks: …}`",
}
_BOUNDS = (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<"), ("multiple_of", "a multiple of"))

HEAD = f"""# Parameters

What you get: every knob of `params.yaml`. The page is made from code (`sgpipe params reference > docs/parameters.md`); a test
fails where they differ.

![The terminal after `sgpipe params show`: the first sections with their values](images/parameters.svg)

```
sgpipe params show      # what params.yaml means, in resolved form
```

- *params.yaml*: the value of the embedded default. *Left out*: what holds where the file does not name the knob.
- A knob is changed by an edit, or for one experiment by `dvc exp run -S 'section.knob=value'` ([experiments](experiments.md)).
  Unknown keys, wrong types and values out of bounds are refused by name; `sgpipe params show` prints what was understood.
- *blocks* is {SYNTAX};
  two spellings of one set are equal.
- *Mapping* is `{{name: value}}`; `<name>` in a knob stands for each of its names.
"""


def _is_struct(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def _parts(kind: Any) -> tuple[Any, list[Meta]]:
    """An annotation without `Annotated`, and what was annotated."""
    if get_origin(kind) is Annotated:
        inner, *metas = get_args(kind)
        return inner, metas
    return kind, []


def _bounds(metas: list[Meta]) -> str:
    found = [(sign, bound) for meta in metas for key, sign in _BOUNDS if (bound := getattr(meta, key)) is not None]
    return " and ".join(f"{sign} 2^{n.bit_length() - 1}" if n >= 1 << 16 else f"{sign} {n:g}" for sign, n in found)


def _type(kind: Any) -> str:
    """An annotation in words, with its bounds."""
    inner, metas = _parts(kind)
    origin, args = get_origin(inner), get_args(inner)
    least = next((meta.min_length for meta in metas if meta.min_length is not None), None)
    if origin in (Union, UnionType):
        return ", or ".join(_type(arg) for arg in args)
    if origin is Literal:
        return ", ".join(f"`{arg}`" for arg in args)
    if origin is tuple:
        return f"list{f' of at least {least}' if least else ''}: {_type(args[0])}"
    if origin is dict:
        key, value = args
        keys = "" if key is str else f" from {_type(key)}"
        values = "" if _is_struct(value) else f" to {_type(value)}"
        return f"mapping{keys}{values}"
    if inner is str and least:
        return "text, not empty"
    return f"{_NAMES[inner]} {_bounds(metas)}".rstrip()


def _value(value: Any) -> str:
    """A plain value as one writes it in YAML on one line."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {_value(item)}' for key, item in value.items())}}}"
    return str(value)


def _row(*cells: str) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _rows(kind: Any, prefix: str, given: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Rows of a struct's fields; `given` holds its plain values, by name where it stands in a mapping, else under ''."""
    for field in msgspec.structs.fields(kind):
        inner, metas = _parts(field.type)
        name = f"{prefix}{field.name}"
        values = {label: plain[field.name] for label, plain in given.items()}
        if _is_struct(inner):
            yield _row(f"`{name}`", "", "", "", _doc(inner))
            yield from _rows(inner, f"{name}.", values)
            continue
        says = next((meta.description for meta in metas if meta.description), "")
        member = get_args(inner)[1] if get_origin(inner) is dict else None
        default = field.default if field.default_factory is NODEFAULT else field.default_factory()
        left_out = "required" if default is NODEFAULT else f"`{_value(to_builtins(default))}`"
        if _is_struct(member):
            yield _row(f"`{name}`", f"`{_value(list(values['']))}`", left_out, _type(field.type), says)
            yield from _rows(member, f"{name}.<name>.", values[""])
            continue
        shown = {label: f"`{_value(value)}`" for label, value in values.items()}
        here = ", ".join(f"{label}: {value}" if label else value for label, value in shown.items())
        same = set(shown.values()) == {left_out}
        yield _row(f"`{name}`", here, "the same" if same else left_out, _type(field.type), says)


def _doc(kind: type) -> str:
    """A struct's docstring as one line, without the words that name its section."""
    text = " ".join((inspect.getdoc(kind) or "").split())
    return re.sub(r"^Section `\w+`[.:]\s*", "", text)


def _table(rows: Iterator[str]) -> str:
    head = _row("knob", "params.yaml", "left out", "type and bounds", "what it is")
    return "\n".join([head, "|---|---|---|---|---|", *rows])


def _arm_tables(arms: Mapping[str, Any]) -> Iterator[str]:
    """What an arm of each kind may say, with the values of those that there are."""
    for kind, adapter in arm_kinds().items():
        given = {name: to_builtins(options) for name, options in arms.items() if options.kind == kind}
        yield f"### {kind}\n\n{_doc(adapter)}\n\n{_table(_rows(adapter.options, '<name>.', given))}"


def reference(path: Path) -> str:
    """The reference with the values of the parameter file `path`, as Markdown. Raises `ParamsError` as reading it does."""
    blocks = [HEAD]
    for name, section in load_all(path).items():
        kind = type(section)
        own = [_table(_rows(kind, "", {"": to_builtins(section)}))] if _is_struct(kind) else _arm_tables(section)
        blocks.append("\n\n".join([f"## {name}", _doc(kind), *own]) + "\n")
    return "\n".join(blocks)
