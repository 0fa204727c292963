"""All of params.yaml in resolved form, with the checks that need more than one section."""

from pathlib import Path
from typing import Any

from sgpipe.params.blocks import Blocks, LayerGroup, Placement
from sgpipe.params.load import SECTIONS, read_sections, to_builtins


def load_all(path: Path) -> dict[str, Any]:
    """Every section of the file as its struct, in the registry's order; none may be missing. Raises as `read_sections` does."""
    return read_sections(path, SECTIONS)


def _spell_out(section: Any, plain: Any, key: str, counts: dict[str, int]) -> Any:
    """`plain` with every block set replaced by its indices within the stream that its key names."""
    if isinstance(section, Placement) and section.random:
        return str(section)
    if isinstance(section, LayerGroup):
        section.resolve(counts["double"], counts["single"], key)
        if isinstance(plain, dict):
            return {name: _spell_out(getattr(section, name), plain[name], f"{key}.{name}", counts) for name in plain}
        return list(section.blocks.resolve(counts["double"], key))
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
