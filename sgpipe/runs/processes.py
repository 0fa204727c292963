"""The processes of a stage: one, or those that `compute.launch` starts, each with a device and a share of the work."""

import os
import shlex
import shutil
import sys
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import PartialState

from sgpipe.errors import ParamsError
from sgpipe.runs.config import Compute

_PATIENCE = timedelta(days=30)
"""How long a process waits for the others: shards may take very unequal times."""
_LAUNCHED = "SGPIPE_LAUNCHED"
"""Set for what `compute.launch` starts: a launcher of one process sets no rank by which to know it."""


@dataclass(frozen=True)
class Processes:
    """This process among `count`, and the device on which it computes."""

    index: int
    count: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """The process that locks, merges, writes metrics and talks."""
        return self.index == 0

    @property
    def device_kind(self) -> str:
        """What the bits of a result depend on besides code and input: `cpu`, or the type and model of the accelerator."""
        if self.device.type == "cuda":
            return f"cuda {torch.cuda.get_device_name(self.device)}"
        return self.device.type

    def wait(self) -> None:
        """Return when every process has come here."""
        if self.count > 1:
            torch.distributed.barrier()


def pick_device(name: str, local_index: int, key: str = "compute.device") -> torch.device:
    """The device that `key` names; processes of a machine take its GPUs in turn. Raises `ParamsError`."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not present.get(name, False):
        valid = ", ".join(["auto", *(other for other, there in present.items() if there)])
        raise ParamsError(f"{key}: got {name}, which this machine does not have; valid here: {valid}")
    if name == "cuda":
        return torch.device("cuda", local_index % torch.cuda.device_count())
    return torch.device(name)


def launch(compute: Compute) -> None:
    """Replace this process by `compute.launch` running the same module with the same arguments, unless it already did."""
    if not compute.launch or _LAUNCHED in os.environ or "LOCAL_RANK" in os.environ:
        return
    words = shlex.split(compute.launch)
    beside = Path(sys.executable).parent / words[0]
    program = str(beside) if beside.is_file() else shutil.which(words[0])
    if program is None:
        raise ParamsError(
            f"compute.launch: got {compute.launch!r}; there is no command {words[0]!r}; valid: `torchrun --nproc-per-node N`, "
            "`accelerate launch --num_processes N`, or null"
        )
    spec = sys.modules["__main__"].__spec__
    if spec is None:
        raise ParamsError("compute.launch: start the stage as `python -m stages.<name>`")
    os.environ[_LAUNCHED] = "1"
    os.execv(program, [program, *words[1:], "-m", spec.name, *sys.argv[1:]])


def set_deterministic() -> None:
    """Have every operation give the same bits each time on the same kind of device, a GPU included, or raise.

    Deterministic algorithms (scatter, index_add, attention backward), a fixed workspace of cuBLAS, which must be chosen before its
    first use, and no TF32.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


def start(compute: Compute) -> Processes:
    """Join the processes of this run. On a GPU the same bits every time are asked for by `compute.deterministic` alone."""
    launch(compute)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    if compute.deterministic:
        set_deterministic()
    state = PartialState(cpu=True, timeout=_PATIENCE)
    if compute.threads:  # PartialState sets a number of its own
        torch.set_num_threads(compute.threads)
    device = pick_device(compute.device, state.local_process_index)
    return Processes(state.process_index, state.num_processes, device)
