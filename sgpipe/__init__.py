"""Structure-aware scene-graph conditioning of diffusion transformers."""

from importlib import import_module
from typing import Any

_LAZY = {"GraphAdapter": "sgpipe.arms.pipeline", "SceneGraph": "sgpipe.graphs.scene_graph"}
"""Public names by the module that has each, which is imported when one is asked for: `import sgpipe` costs nothing."""


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'sgpipe' has no attribute {name!r}; public are {', '.join(_LAZY)}")
    return getattr(import_module(_LAZY[name]), name)
