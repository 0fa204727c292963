"""What torch.compile makes, kept from one training to the next.

Inductor and AOTAutograd find compiled graphs again by content: graph, shapes, options and versions. By default they keep them in
the system's temporary folder, which a restart or a container empties. Here they lie beside the working states, outside the outputs
and shared by all workspaces; the folder may be removed at any time. `TORCHINDUCTOR_CACHE_DIR` names another.
"""

import os
from pathlib import Path
from typing import Any, Final

from sgpipe.runs.state import shared_dir

FOLDER = "compiled"
_NAMED = "TORCHINDUCTOR_CACHE_DIR"
FORMS: Final = 64
"""Compiled forms of one class of blocks: one per shape of a batch, once more without gradients, and again for held blocks.

torch stops at 8, with an error where a full graph is asked for (torch 2.14.1; findings/frozen_blocks_halve_the_recompile_limit.sh).
"""


def keep_compiled(root: Path = Path()) -> None:
    """Name the folder of compiled graphs; before anything is compiled."""
    if _NAMED not in os.environ:
        os.environ[_NAMED] = str(shared_dir(root) / FOLDER)


def compile_blocks(transformer: Any, dynamic: bool | None = False, **options: Any) -> None:
    """Compile the repeated blocks of a diffusers transformer, each as one graph; `options` are those of `torch.compile`.

    With `dynamic` False each shape has a form of its own; with None the second one is compiled for all.
    """
    import torch

    torch._dynamo.config.recompile_limit = FORMS
    transformer.compile_repeated_blocks(fullgraph=True, dynamic=dynamic, **options)


def cache_use() -> dict[str, int]:
    """Graphs that this process found compiled, `hits`, and compiled itself, `misses`; forward and backward count one each."""
    from torch._dynamo.utils import counters

    counted = counters["inductor"]
    return {"hits": counted["fxgraph_cache_hit"], "misses": counted["fxgraph_cache_miss"]}
