"""Working state: shared between workspaces, locked, kept on failure, gone on success; a stage dies with its parent."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sgpipe.errors import StateError
from sgpipe.runs.state import config_hash, file_hash, fingerprint, shared_dir, stage_state

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="process semantics tested on Linux")


def repository(path: Path, local: str = "") -> Path:
    (path / ".dvc").mkdir(parents=True)
    (path / ".dvc" / "config").write_text("[core]\n    analytics = false\n")
    if local:
        (path / ".dvc" / "config.local").write_text(local)
    return path


def test_a_temporary_workspace_shares_the_main_one(tmp_path: Path) -> None:
    main = repository(tmp_path / "main")
    cache = main / ".dvc" / "cache"
    temporary = repository(tmp_path / "temp", f"[cache]\n    dir = {cache}\n")
    assert shared_dir(main) == shared_dir(temporary) == main / ".dvc"


def test_without_dvc_the_place_is_absolute_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert shared_dir(Path()) == tmp_path / ".dvc"


@pytest.mark.parametrize(
    "name", ["stage-state/train-f00d/step.bin", "mlflow.lock", "mlflow.db", "mlflow-artifacts/trial/loss.png"]
)
def test_git_does_not_see_what_lies_beside_the_cache(repo_root: Path, name: str) -> None:
    path = f".dvc/{name}"
    done = subprocess.run(["git", "check-ignore", "-q", path], cwd=repo_root, check=False)
    assert done.returncode == 0
    listed = subprocess.run(["git", "ls-files", path], cwd=repo_root, capture_output=True, check=True)
    assert not listed.stdout


def test_state_stays_on_failure_and_goes_on_success(tmp_path: Path) -> None:
    root = repository(tmp_path)
    with pytest.raises(RuntimeError), stage_state("saliency", "f00d", root) as folder:
        (folder / "shard-0").write_text("done")
        raise RuntimeError
    with stage_state("saliency", "f00d", root) as again:
        assert again == folder
        assert (again / "shard-0").read_text() == "done"
    assert not folder.exists()


def test_a_second_copy_is_kept_out(tmp_path: Path) -> None:
    root = repository(tmp_path)
    code = (
        "import sys, time; from pathlib import Path; from sgpipe.runs.state import stage_state\n"
        f"with stage_state('train', 'f00d', Path({str(root)!r})):\n    print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline().strip() == "held"
        with (
            pytest.raises(StateError, match="another process is running"),
            stage_state("train", "f00d", root),
        ):
            pass
        with stage_state("train", "beef", root):
            pass
    finally:
        holder.kill()
        holder.wait()
    with stage_state("train", "f00d", root):
        pass


def test_fingerprint_changes_with_config_inputs_and_code(tmp_path: Path) -> None:
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages" / "a.py").write_text("x = 1\n")
    data = tmp_path / "in.bin"
    data.write_bytes(b"1")
    first = fingerprint("stages.a", {"k": 1}, [data], tmp_path)
    assert first == fingerprint("stages.a", {"k": 1}, [data], tmp_path)
    assert first != fingerprint("stages.a", {"k": 2}, [data], tmp_path)
    data.write_bytes(b"2")
    second = fingerprint("stages.a", {"k": 1}, [data], tmp_path)
    assert second != first
    (tmp_path / "stages" / "a.py").write_text("x = 2\n")
    assert fingerprint("stages.a", {"k": 1}, [data], tmp_path) != second


def test_config_hash_ignores_key_order() -> None:
    assert config_hash({"a": 1, "b": [1, 2]}) == config_hash({"b": [1, 2], "a": 1})


def test_folder_hash_sees_names_and_contents(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "a").write_text("1")
    before = file_hash(tmp_path / "d")
    (tmp_path / "d" / "a").rename(tmp_path / "d" / "b")
    assert file_hash(tmp_path / "d") != before


def test_a_stage_dies_with_its_parent() -> None:
    child = "import time; from sgpipe.runs.state import die_with_parent; die_with_parent(); print('up', flush=True); time.sleep(60)"
    code = (
        "import subprocess, sys, time\n"
        f"p = subprocess.Popen([sys.executable, '-c', {child!r}], stdout=subprocess.PIPE, text=True)\n"
        "p.stdout.readline(); print(p.pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    for _ in range(100):
        try:
            os.kill(pid, 0)
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except (ProcessLookupError, FileNotFoundError):
            break
        if state == "Z":
            break
        time.sleep(0.05)
    else:
        pytest.fail("the child outlived its parent")
