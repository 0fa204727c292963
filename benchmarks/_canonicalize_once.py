"""One run of `canonicalize` on Visual Genome's files, in a process of its own, by the sgpipe that PYTHONPATH names.

Nothing of sgpipe is imported before the clock starts, here or in the worker processes that import this module again.
"""

import json
import sys
import threading
import time
from pathlib import Path

import psutil


class Peak(threading.Thread):
    """Largest sum of the resident memory of this process and its children, in bytes."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.bytes = 0
        self.done = threading.Event()

    def run(self) -> None:
        process = psutil.Process()
        finished = False
        while not finished:
            finished = self.done.wait(0.05)
            total = 0
            for each in [process, *process.children(recursive=True)]:
                try:
                    total += each.memory_info().rss
                except psutil.Error:
                    continue
            self.bytes = max(self.bytes, total)


def main(root: Path, out: Path, workers: int) -> None:
    """Run and print seconds, CPU seconds, peak memory and the metrics as JSON."""
    from sgpipe.datasets.canonicalize import canonicalize
    from sgpipe.datasets.config import Canonicalize
    from sgpipe.datasets.visual_genome.data_set import VisualGenome

    peak = Peak()
    peak.start()
    cpu, start = psutil.Process().cpu_times(), time.perf_counter()
    metrics = canonicalize(VisualGenome(root), out, Canonicalize(), workers=workers)
    seconds = time.perf_counter() - start
    peak.done.set()
    peak.join()
    after = psutil.Process().cpu_times()
    spent = sum(getattr(after, name) - getattr(cpu, name) for name in ("user", "system", "children_user", "children_system"))
    print(json.dumps({"seconds": seconds, "cpu_seconds": spent, "peak_bytes": peak.bytes, "metrics": metrics}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
