"""Pipelines that no family takes: why they cannot, or where a family of theirs would start."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from sgpipe.backbones.source import part_configs
from sgpipe.errors import ModelError

_CAUSAL = "its attention is block-causal, so that text never attends to the image"
_CROSS = "its image rows read the text by cross-attention, so that text never attends to the image"
_NO_QUERY = "its joint attention has keys and values of the text and no queries, so that text never attends to the image"
NO_CONCEPTS = {
    "QwenImage21Transformer2DModel": _CAUSAL,
    "Kandinsky5Transformer3DModel": _CROSS,
    "Kandinsky6Transformer3DModel": _CROSS,
    "BriaFibo2Transformer2DModel": _CROSS,
    "PRXTransformer2DModel": _NO_QUERY,
    "NucleusMoEImageTransformer2DModel": _NO_QUERY,
}
"""Transformers of which concept maps would mean nothing (ConceptAttention's rows are text that attends to the image), and why."""
_FILES = "sgpipe/backbones/families"


def refusal(folder: Path, index: Mapping[str, Any]) -> str:
    """Why no family takes the pipeline of this model_index.json, and what to do; without what it is and what is valid."""
    named = index.get("transformer")
    transformer = named[1] if isinstance(named, list) and len(named) == 2 else None
    if transformer in NO_CONCEPTS:
        return f"a {transformer} is not supported: {NO_CONCEPTS[transformer]}, and concept maps mean nothing there"
    return f"docs/extending.md says how a family is added, {_start(folder, transformer)}"


def _start(folder: Path, transformer: str | None) -> str:
    """The file to start from, by the projections of the transformer's blocks where they can be told."""
    names, start = _modules(folder, transformer), f"starting from {_FILES}/flux.py"
    if not names:
        return start
    if not any(name.endswith(".attn.add_q_proj") for name in names):
        return f"{start}; its blocks have no queries of the text's own: see first whether text attends to the image"
    if any(name.endswith((".norm1_context.linear", ".txt_mod.1")) for name in names):
        return f"{start} (packed latents, rotary positions) or sd3.py (latents as images), whose double-stream blocks it has"
    return (
        f"{start}: it has the same double-stream blocks, but for the text's modulation, which a tap of its own must make "
        "(JointBlockTap.modulated)"
    )


def _modules(folder: Path, transformer: str | None) -> list[str]:
    """Names of the modules that transformer/config.json describes; none where this diffusers cannot make them of it."""
    import diffusers

    kind: Any = getattr(diffusers, str(transformer), None)
    if not hasattr(kind, "from_config"):
        return []
    try:
        with torch.device("meta"):
            return [name for name, _ in kind.from_config(part_configs(folder, ("transformer",))["transformer"]).named_modules()]
    except (ModelError, ValueError, TypeError, KeyError, AttributeError, RuntimeError):  # a class's own, by what is wrong
        return []
