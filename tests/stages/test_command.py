"""How a stage starts and ends as a command."""

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from sgpipe import cli, presets
from sgpipe.errors import DataError, ParamsError
from sgpipe.runs import command
from sgpipe.tracking.run import StageRun
from stages import canonicalize


def ending(with_: Exception) -> Callable[[], None]:
    def main() -> None:
        raise with_

    return main


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (DataError("objects.json: gone"), "error: objects.json: gone\n"),
        (
            OSError(errno.ENOSPC, "No space left on device", "out/a.parquet"),
            "error: out/a.parquet: No space left on device; mend this and run the same command again\n",
        ),
        (
            PermissionError(errno.EACCES, "Permission denied", "data/objects.json"),
            "error: data/objects.json: Permission denied; mend this and run the same command again\n",
        ),
    ],
)
def test_what_a_user_can_mend_is_one_line(
    error: Exception, says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sgpipe.runs.parent.die_with_parent", lambda: None)
    monkeypatch.setattr("sys.argv", ["stage"])
    with pytest.raises(SystemExit) as ended:
        command.run(ending(error))
    assert (ended.value.code, capsys.readouterr().err) == (2, says)


def test_the_command_says_what_stages_say(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    error = PermissionError(errno.EACCES, "Permission denied", ".params.yaml.1.tmp")
    monkeypatch.setattr(cli, "app", ending(error))
    monkeypatch.setattr("sys.argv", ["sgpipe"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = "error: .params.yaml.1.tmp: Permission denied; mend this and run the same command again\n"
    assert (ended.value.code, capsys.readouterr().err) == (2, said)
    monkeypatch.setattr(cli, "app", ending(AssertionError("a fault of the program")))
    with pytest.raises(AssertionError):
        cli.main()


def test_a_lack_of_memory_is_one_line_that_says_what_to_lower() -> None:
    """CUDA's and the CPU allocator's errors; another RuntimeError keeps its traceback."""
    with pytest.raises(RuntimeError) as refused:
        torch.empty(1 << 60, dtype=torch.uint8)
    cuda = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB. GPU 0 has\na total capacity of 1 GiB")
    for error, begins in ((refused.value, ""), (cuda, "CUDA out of memory; lower"), (MemoryError(), "out of memory; lower")):
        said = command.one_line(error)
        assert said is not None and said.startswith(begins) and "\n" not in said
        assert "batch_size" in said and "sgpipe doctor" in said
    assert command.one_line(RuntimeError("size mismatch")) is None


def test_a_read_only_parameter_file_is_left_as_it_is(tmp_path: Path, repo_root: Path) -> None:
    params = tmp_path / "params.yaml"
    shutil.copy(repo_root / "params.yaml", params)
    before = params.read_bytes()
    params.chmod(0o444)
    preset = presets.preset_path(repo_root / "presets", "predecessor-miniature")
    with pytest.raises(ParamsError, match=r"params\.yaml: is read-only; `chmod u\+w"):
        presets.apply(params, preset)
    assert params.read_bytes() == before
    params.chmod(0o644)
    presets.apply(params, preset)
    assert params.read_bytes() != before


def test_other_errors_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sgpipe.runs.parent.die_with_parent", lambda: None)
    monkeypatch.setattr("sys.argv", ["stage"])
    with pytest.raises(ConnectionResetError):
        command.run(ending(ConnectionResetError(errno.ECONNRESET, "reset")))


def test_the_optional_inputs_are_recorded_too(tmp_path: Path, repo_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DVC watches the three JSON files only, so the run says which alias and split files it was made with."""
    recorded: list[Path] = []

    @contextmanager
    def record(stage: str, sections: object, inputs: list[Path]) -> Iterator[StageRun]:
        recorded.extend(inputs)
        yield StageRun()

    monkeypatch.setattr(canonicalize, "record", record)
    monkeypatch.chdir(tmp_path)
    root = repo_root / "tests/data/visual_genome/v1_4"
    Path("splits.json").write_text('{"train": [11]}')
    Path("params.yaml").write_text(f"data: {{root: {root}}}\ncanonicalize: {{splits: {{file: splits.json}}}}\n")
    canonicalize.main()
    assert {root / "relationship_alias.txt", root / "object_alias.txt", Path("splits.json")} < set(recorded)


def test_canonicalize_runs_where_the_system_tells_no_affinity(
    tmp_path: Path, repo_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """macOS has no `sched_getaffinity`."""
    monkeypatch.delattr(os, "sched_getaffinity")
    root = repo_root / "tests/data/visual_genome/v1_4"
    (tmp_path / "params.yaml").write_text(f"data: {{root: {root}}}\ncanonicalize: {{}}\ntracking: {{enabled: false}}\n")
    monkeypatch.chdir(tmp_path)
    canonicalize.main()
    assert (tmp_path / "outputs/canonical/relations.parquet").is_file()
