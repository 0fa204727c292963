"""Working state: shared between workspaces, locked, kept on failure, gone on success; a stage dies with its parent."""

import hashlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from sgpipe.errors import StateError
from sgpipe.runs.garbage import collect, describe, states
from sgpipe.runs.state import config_hash, file_hash, fingerprint, shared_dir, stage_state

ROOT = Path(__file__).resolve().parents[2]
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


@pytest.mark.parametrize("name", ["stage-state/train-f00d/step.bin", "mlflow.lock", "mlflow.db", "mlflow-artifacts/trial/loss.png"])
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
        with pytest.raises(StateError, match="another process is running"), stage_state("train", "f00d", root):
            pass
        with stage_state("train", "beef", root):
            pass
    finally:
        holder.kill()
        holder.wait()
    with stage_state("train", "f00d", root):
        pass


def test_fingerprint_changes_with_config_inputs_code_device_and_libraries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages" / "a.py").write_text("import numpy\nx = 1\n")
    (tmp_path / "requirements.lock").write_text("numpy==1.0\n")
    data = tmp_path / "in.bin"
    data.write_bytes(b"1")

    def of(config: int = 1, device: str = "cpu") -> str:
        return fingerprint("stages.a", {"k": config}, [data], tmp_path, device)

    found = [of(), of(config=2), of(device="cuda NVIDIA H100")]
    data.write_bytes(b"2")
    found.append(of())
    (tmp_path / "stages" / "a.py").write_text("import numpy\nx = 2\n")
    found.append(of())
    (tmp_path / "requirements.lock").write_text("numpy==1.1\n")
    found.append(of())
    monkeypatch.setattr("sgpipe.runs.state.installed", lambda names: {"numpy": "1.1+cu130"})
    found.append(of())
    assert len(set(found)) == len(found)
    (tmp_path / "stages" / "a.py").write_text("import numpy\n\nx = 2  # the same\n")
    assert of() == found[-1]


def as_another_user(code: str, home: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run Python in `folder` as a user who owns nothing there (root may write everywhere), modules being imported before."""
    become = (
        "import os, pwd, sys; from pathlib import Path; from sgpipe.errors import SgpipeError\n"
        "from sgpipe.runs.state import stage_state\n"
        "with stage_state('warm', 'beef', Path(sys.argv[1])):\n    pass\n"
        "if os.getuid() == 0:\n    nobody = pwd.getpwnam('nobody'); os.setgid(nobody.pw_gid); os.setuid(nobody.pw_uid)\n"
    )
    with tempfile.TemporaryDirectory() as warm:
        return subprocess.run(
            [sys.executable, "-c", become + code, str(repository(Path(warm) / "warm"))], cwd=folder, capture_output=True,
            text=True, check=False, env={**os.environ, "HOME": str(home), "XDG_STATE_HOME": str(home), "PYTHONPATH": str(ROOT)},
        )  # fmt: skip


@pytest.mark.parametrize("closed", ["parent", "states", "home too"])
def test_a_shared_cache_of_another_user_moves_the_state_to_ones_own(closed: str) -> None:
    """No long stage is refused without a word: it says where its state is, or what to make writable."""
    with tempfile.TemporaryDirectory() as top:
        shared, home = Path(top) / "shared", Path(top) / "home"
        root = repository(Path(top) / "clone", f"[cache]\n    dir = {shared}/cache\n")
        (shared / "cache").mkdir(parents=True)
        (shared / "stage-state").mkdir()
        home.mkdir()
        for path in (Path(top), *Path(top).rglob("*")):
            path.chmod(0o755)
        (shared / "stage-state").chmod(0o555)
        shared.chmod(0o777 if closed == "states" else 0o555)
        home.chmod(0o555 if closed == "home too" else 0o777)
        code = (
            "try:\n    with stage_state('train', 'f00d', Path()) as folder:\n        (folder / 'x').touch(); print(folder)\n"
            "except SgpipeError as error:\n    print('error:', error)\n"
        )
        done = as_another_user(code, home, root)
        shared.chmod(0o755)
    if closed == "home too":
        assert done.stdout == (
            f"error: neither {shared} nor {user_home(home, shared)} can be written; make one of them writable, or set "
            "XDG_STATE_HOME to a folder that is\n"
        )
        return
    own = user_home(home, shared) / "stage-state" if closed == "parent" else user_home(home, shared / "stage-state")
    assert (done.stdout, done.stderr) == (
        f"{own}/train-f00d\n", f"note: {shared} is not yours to write; working state is kept in {own}\n"
    )  # fmt: skip


def user_home(home: Path, of: Path) -> Path:
    """The stand-in of a folder in a user's state home."""
    return home / "sgpipe" / hashlib.sha256(str(of).encode()).hexdigest()[:16]


NAME = "train-0123456789abcdef"


def aged(folder: Path, days: float) -> None:
    """Set the times of all files back."""
    then = time.time() - days * 86400
    for path in (*folder.rglob("*"), folder):
        os.utime(path, (then, then))


def test_abandoned_states_are_collected_and_running_ones_are_not(tmp_path: Path) -> None:
    root = repository(tmp_path)
    place = root / ".dvc" / "stage-state"
    for name in (NAME, "saliency-0123456789abcdef", "probe-early-0123456789abcdef"):
        (place / name / "deep").mkdir(parents=True)
        (place / name / "deep" / "shard").write_bytes(bytes(2**20))
        (place / f"{name}.lock").touch()
    (place / "judge-0123456789abcdef.lock").touch()
    (place / "notes").mkdir()
    aged(place, 20)
    (place / "saliency-0123456789abcdef" / "deep" / "fresh").touch()
    code = (
        "import sys, time; from pathlib import Path; from sgpipe.runs.state import lock_of\n"
        f"lock = lock_of(Path({str(place / NAME)!r})); lock.acquire(); print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline().strip() == "held"
        found = {state.folder.name: state for state in states(root)}
        assert sorted(found) == sorted(
            [NAME, "saliency-0123456789abcdef", "probe-early-0123456789abcdef", "judge-0123456789abcdef"]
        )
        assert [name for name, state in found.items() if state.running] == [NAME]
        assert found[NAME].size == 2**20
        assert describe(found["probe-early-0123456789abcdef"]) == ("probe-early-0123456789abcdef  1.0 MiB  20.0 days old")
        removed = {state.folder.name for state in collect(root, 14)}
        assert removed == {"probe-early-0123456789abcdef", "judge-0123456789abcdef"}
    finally:
        holder.kill()
        holder.wait()
    assert sorted(path.name for path in place.iterdir()) == [
        "notes", "saliency-0123456789abcdef", "saliency-0123456789abcdef.lock", NAME, f"{NAME}.lock",
    ]  # fmt: skip


def test_config_hash_ignores_key_order() -> None:
    assert config_hash({"a": 1, "b": [1, 2]}) == config_hash({"b": [1, 2], "a": 1})


def test_folder_hash_sees_names_and_contents(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "a").write_text("1")
    before = file_hash(tmp_path / "d")
    (tmp_path / "d" / "a").rename(tmp_path / "d" / "b")
    assert file_hash(tmp_path / "d") != before


def test_a_stage_dies_with_its_parent() -> None:
    child = "import time; from sgpipe.runs.parent import die_with_parent as die; die(); print('up', flush=True); time.sleep(60)"
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
