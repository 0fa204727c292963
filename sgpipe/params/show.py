"""All of params.yaml in resolved form, with the checks that need more than one section."""

from pathlib import Path
from typing import Any

from sgpipe.errors import ParamsError
from sgpipe.params.blocks import Blocks, Placement
from sgpipe.params.check import check
from sgpipe.params.load import SECTIONS, decode, read_yaml, section_type, to_builtins
from sgpipe.params.moved import refuse_moved


def load_all(path: Path) -> dict[str, Any]:
    """Every section of the file as its struct, in the registry's order.

    Missing and unknown sections are refused, and sections that contradict one another.
    """
    raw = read_yaml(path)
    refuse_moved(raw, str(path))
    missing = [name for name in SECTIONS if name not in raw]
    if missing:
        raise ParamsError(f"{path}: sections missing: {', '.join(missing)}; `git checkout {path}` restores the defaults")
    unknown = [str(name) for name in raw if name not in SECTIONS]
    if unknown:
        raise ParamsError(f"{path}: {unknown[0]}: unknown section; valid: {', '.join(SECTIONS)}")
    found: dict[str, Any] = {name: decode(name, raw[name], section_type(name), str(path)) for name in SECTIONS}
    check(found, str(path))
    return found


def _spell_out(section: Any, plain: Any, key: str, counts: dict[str, int]) -> Any:
    """`plain` with every block set replaced by its indices within the stream that its key names."""
    if isinstance(section, Placement) and section.random:
        return str(section)
    if isinstance(section, Blocks):
        stream = "single" if key.rsplit(".", 1)[-1].startswith("single") else "double"
        return list(section.resolve(counts[stream], key))
    if hasattr(section, "__struct_fields__"):
        return {
            name: _spell_out(getattr(section, name), plain[name], f"{key}.{name}", counts) for name in section.__struct_fields__
        }
    if isinstance(section, dict):
        return {name: _spell_out(value, plain[name], f"{key}.{name}", counts) for name, value in section.items()}
    return plain


def spelled_out(sections: dict[str, Any]) -> dict[str, Any]:
    """Plain values of all sections; block sets as lists of indices, checked against the backbone's layout.

    A key that starts with `single` names single-stream blocks (as `lora.single_blocks`), any other double-stream blocks.
    """
    backbone = sections["backbone"]
    counts = {"double": backbone.double_blocks, "single": backbone.single_blocks}
    return {name: _spell_out(section, to_builtins(section), name, counts) for name, section in sections.items()}


def resolved(path: Path) -> dict[str, Any]:
    """All sections of a file, as `spelled_out` gives them."""
    return spelled_out(load_all(path))
