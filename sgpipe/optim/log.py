"""The log of a training: means over an interval of steps, as a line of JSON.

{"step": 120, "loss": 0.4913, "flow": 0.4913, "gradient_norm": 0.2077, "learning_rate": 0.01, "samples_per_second": 31.2,
 "peak_memory_bytes": 1483124736}
"""

import json
import math
import resource
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from sgpipe.runs.atomic import atomic_path

LOG = "log.jsonl"
TIMINGS = Path("outputs/timings")
"""Where nothing depends on what lies there: it differs between runs of one training."""
_STATUS = Path("/proc/self/status")


def peak_memory(device: torch.device) -> int:
    """Most bytes that this process has held so far: allocated on a GPU, else resident.

    Where /proc is, it tells; `ru_maxrss` starts at the size of the process that started this one, and is in bytes on macOS.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if _STATUS.is_file():
        return 1024 * int(_STATUS.read_text().partition("VmHWM:")[2].split()[0])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@dataclass
class Interval:
    """`steps` steps, the last of which made `step` in all: mean of each loss part, the last learning rate, seconds, memory."""

    step: int = 0
    steps: int = 0
    means: dict[str, float] = field(default_factory=dict)
    learning_rate: float = 0.0
    seconds: float = 0.0
    peak_memory: int = 0

    def add(self, step: int, parts: Mapping[str, float]) -> None:
        """Take in the parts of one step, the `step`-th."""
        self.step, self.steps = step, self.steps + 1
        for name, value in parts.items():
            mean = self.means.get(name, 0.0)
            self.means[name] = mean + (value - mean) / self.steps

    def line(self, samples: int) -> str:
        """The interval as JSON, of steps of `samples` samples; six digits, null for what is not finite."""
        speed = samples * self.steps / self.seconds if self.seconds else math.nan
        numbers = {**self.means, "learning_rate": self.learning_rate, "samples_per_second": speed}
        shown = {name: float(f"{value:.6g}") if math.isfinite(value) else None for name, value in numbers.items()}
        return json.dumps({"step": self.step, **shown, "peak_memory_bytes": self.peak_memory})


def publish_log(folder: Path, name: str) -> None:
    """Copy the log of the training in `folder` to `TIMINGS/<name>.jsonl`, before its working state is removed."""
    with atomic_path(TIMINGS / f"{name}.jsonl") as temporary:
        shutil.copyfile(folder / LOG, temporary)
