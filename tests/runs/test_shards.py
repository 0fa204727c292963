"""Shards: the same bytes whole, interrupted, or dealt over processes; what is done is not done again."""

import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from sgpipe.errors import DataError, ParamsError, StateError
from sgpipe.runs import processes
from sgpipe.runs.atomic import link, new_folder
from sgpipe.runs.config import Compute
from sgpipe.runs.processes import Processes, launch, pick_device
from sgpipe.runs.shards import cut, run_shards, shared_state

CPU = torch.device("cpu")
ALONE = Processes(0, 1, CPU)


class Maker:
    """Writes a shard's squares; remembers what it made; fails at a shard if told to."""

    def __init__(self, fails_at: str = "", error: type[Exception] = RuntimeError) -> None:
        self.made: list[str] = []
        self.opened = 0
        self._fails_at, self._error = fails_at, error

    def __call__(self):
        self.opened += 1
        return self.make

    def make(self, shard, folder, tick):
        for batch in shard.batches(2):
            with (folder / "squares").open("a") as stream:
                stream.writelines(f"{i * i}\n" for i in range(batch.start, batch.stop))
            tick(batch.stop - batch.start)
        if shard.name == self._fails_at:
            raise self._error("the disk is full")
        self.made.append(shard.name)


def read(folder: Path) -> str:
    return "".join(path.read_text() for path in sorted(folder.glob("*/squares")))


WHOLE = "".join(f"{i * i}\n" for i in range(11))


def test_shards_cover_every_item_once_in_order(tmp_path):
    assert [(s.name, s.start, s.stop) for s in cut("a", 5, 2)] == [("a-00000", 0, 2), ("a-00001", 2, 4), ("a-00002", 4, 5)]
    assert cut("a", 0, 2) == []
    run_shards(cut("a", 11, 3), tmp_path, ALONE, Maker(), "item")
    assert read(tmp_path) == WHOLE


def test_an_interrupted_run_goes_on_with_what_is_missing(tmp_path):
    shards, broken, again, idle = cut("a", 11, 3), Maker("a-00002"), Maker(), Maker()
    with pytest.raises(RuntimeError):
        run_shards(shards, tmp_path, ALONE, broken, "item")
    run_shards(shards, tmp_path, ALONE, again, "item")
    assert broken.made == ["a-00000", "a-00001"] and again.made == ["a-00002", "a-00003"]
    assert read(tmp_path) == WHOLE
    run_shards(shards, tmp_path, ALONE, idle, "item")
    assert idle.opened == 0


def test_a_damaged_shard_is_made_again(tmp_path, capsys):
    """A kill leaves shards whole; a failing disk may not, and the same command must get past that."""
    shards, again = cut("a", 11, 3), Maker()

    def check(folder):
        if not (folder / "squares").read_text().endswith("\n"):
            raise DataError(f"{folder}: cut off")

    run_shards(shards, tmp_path, ALONE, Maker(), "item")
    (tmp_path / "a-00001" / "squares").write_text("")
    (tmp_path / "a-00003" / "squares").write_text("81\n1")
    run_shards(shards, tmp_path, ALONE, again, "item", check)
    assert again.made == ["a-00001", "a-00003"] and read(tmp_path) == WHOLE
    said = capsys.readouterr().out
    assert said.count("cut off; it is made again") == 2


def test_what_a_kill_left_half_written_is_cleared_away(tmp_path):
    """A folder of a shard, and a file of `atomic_path`, which shards share their state with."""
    with pytest.raises(KeyboardInterrupt), shared_state("s", "d", tmp_path, ALONE) as state:
        (state / ".a-00000.7.tmp").mkdir()
        (state / ".step-00000001.pt.7.tmp").write_bytes(b"half")
        (state / "step-00000001.pt").write_bytes(b"whole")
        raise KeyboardInterrupt
    with shared_state("s", "d", tmp_path, ALONE) as again:
        assert again == state and [path.name for path in state.iterdir()] == ["step-00000001.pt"]


def test_processes_share_the_shards_and_may_change_in_number(tmp_path, monkeypatch):
    monkeypatch.setattr(Processes, "wait", lambda self: None)
    shards, made = cut("a", 11, 2), []
    with pytest.raises(RuntimeError):
        run_shards(shards, tmp_path, Processes(1, 2, CPU), Maker("a-00003"), "item")
    for index in range(3):
        maker = Maker()
        run_shards(shards, tmp_path, Processes(index, 3, CPU), maker, "item")
        made += maker.made
    assert sorted(made) == [shard.name for shard in shards if shard.name != "a-00001"]
    assert read(tmp_path) == WHOLE


def test_a_file_that_cannot_be_written_says_how_far_the_work_came(tmp_path):
    with pytest.raises(StateError, match=r"a-00001: the disk is full; 1 finished shards stay in"):
        run_shards(cut("a", 4, 2), tmp_path, ALONE, Maker("a-00001", OSError), "item")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a-00000"]


def test_the_state_loses_what_a_killed_process_left_half_done(tmp_path):
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc" / "config").write_text("")
    with pytest.raises(RuntimeError), shared_state("s", "f00d", tmp_path, ALONE) as folder:
        (folder / "a-00000").mkdir()
        (folder / ".a-00001.77.tmp").mkdir()
        raise RuntimeError
    with shared_state("s", "f00d", tmp_path, ALONE) as again:
        assert [path.name for path in again.iterdir()] == ["a-00000"]
    assert not again.exists()


def test_a_new_folder_takes_the_place_of_the_old_one_when_it_is_whole(tmp_path):
    out = tmp_path / "out"
    with new_folder(out) as folder:
        (folder / "old").write_text("1")
    with pytest.raises(RuntimeError), new_folder(out) as folder:
        (folder / "half").write_text("2")
        raise RuntimeError
    assert [path.name for path in out.iterdir()] == ["old"]
    with new_folder(out) as folder:
        (tmp_path / "source").write_text("3")
        link(tmp_path / "source", folder / "new")
    assert [path.name for path in out.iterdir()] == ["new"]
    assert (out / "new").read_text() == "3"


def test_devices_and_launchers_that_are_not_there_are_refused(monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert pick_device("cpu", 3) == CPU
    if not torch.cuda.is_available():
        with pytest.raises(ParamsError, match=r"compute\.device: got cuda.*valid here: auto, cpu"):
            pick_device("cuda", 0)
    with pytest.raises(ParamsError, match=r"compute\.launch: .*no command 'nosuchlauncher'"):
        launch(Compute(launch="nosuchlauncher -n 2"))


def test_a_stage_is_launched_once_with_its_own_arguments(monkeypatch):
    started = []
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setenv("SGPIPE_LAUNCHED", "")
    monkeypatch.delenv("SGPIPE_LAUNCHED")
    monkeypatch.setattr("os.execv", lambda program, words: started.append((program, words)))
    monkeypatch.setattr("sys.argv", ["stages/cache_prompts.py", "--out", "a folder"])
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", ModuleSpec("stages.cache_prompts", None))
    compute = Compute(launch="torchrun --nproc-per-node 2")
    launch(compute)
    launch(compute)
    program = str(Path(sys.executable).parent / "torchrun")
    tail = ["--nproc-per-node", "2", "-m", "stages.cache_prompts", "--out", "a folder"]
    assert started == [(program, [program, *tail])]


def test_the_threads_asked_for_outlast_the_launcher(monkeypatch):
    """accelerate sets threads of its own where a process is one of several machines."""

    def joined(**_):
        torch.set_num_threads(1)
        return SimpleNamespace(local_process_index=0, process_index=1, num_processes=2)

    monkeypatch.setattr(processes, "PartialState", joined)
    before = torch.get_num_threads()
    try:
        assert processes.start(Compute(device="cpu", threads=3)) == Processes(1, 2, CPU)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
