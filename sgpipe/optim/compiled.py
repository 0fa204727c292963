"""What torch.compile makes, kept from one training to the next.

Inductor and AOTAutograd find compiled graphs again by content: graph, shapes, options and versions. By default they keep them in
the system's temporary folder, which a restart or a container empties. Here they lie beside the working states, outside the outputs
and shared by all workspaces; the folder may be removed at any time. `TORCHINDUCTOR_CACHE_DIR` names another.
"""

import os
from pathlib import Path

from sgpipe.runs.state import shared_dir

FOLDER = "compiled"
_NAMED = "TORCHINDUCTOR_CACHE_DIR"


def keep_compiled(root: Path = Path()) -> None:
    """Name the folder of compiled graphs; before anything is compiled."""
    if _NAMED not in os.environ:
        os.environ[_NAMED] = str(shared_dir(root) / FOLDER)


def cache_use() -> dict[str, int]:
    """Graphs that this process found compiled, `hits`, and compiled itself, `misses`; forward and backward count one each."""
    from torch._dynamo.utils import counters

    counted = counters["inductor"]
    return {"hits": counted["fxgraph_cache_hit"], "misses": counted["fxgraph_cache_miss"]}
