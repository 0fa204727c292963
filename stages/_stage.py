"""What long stages have in common: their working state, and the record of their run."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from sgpipe.runs.processes import Processes
from sgpipe.runs.shards import shared_state
from sgpipe.runs.state import fingerprint
from sgpipe.tracking.recorder import record
from sgpipe.tracking.run import StageRun


@contextmanager
def working(
    stage: str, config: Any, sections: Mapping[str, Any], inputs: Iterable[Path], processes: Processes, module: str | None = None
) -> Iterator[tuple[Path, StageRun]]:
    """The folder of working state that belongs to `config`, the inputs, the code and the kind of device, and the stage's run, which
    the main process records. `module` in `stages` runs it, by default the one of its name.
    """
    paths = list(inputs)
    digest = fingerprint(f"stages.{module or stage.partition('@')[0]}", config, paths, Path(), processes.device_kind)
    recording = record(stage, sections, paths, fingerprint=digest) if processes.is_main else nullcontext(StageRun())
    with shared_state(stage, digest, Path(), processes) as state, recording as recorded:
        yield state, recorded
