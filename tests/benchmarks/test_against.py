"""The comparison with another revision: pairs and ratios, the settings of both checkouts, and what a stage without work is."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from benchmarks import against
from benchmarks._workspace import Workspace, busy_process, merged, timed
from benchmarks.against import OTHERS, RESUMABLE, SHORT, TINY, main, measure_busy, paired
from sgpipe.errors import SgpipeError
from sgpipe.params.load import PARAMS, read_sections
from sgpipe.runs.code import stage_modules

ROOT = Path(__file__).resolve().parents[2]
STAGE = """
import shutil, sys
from pathlib import Path
from sgpipe.runs.atomic import write_json
from sgpipe.runs.state import stage_state

def main():
    with stage_state("toy", "0" * 16, Path()) as folder:
        worked = not (folder / "done").exists()
        (folder / "done").write_text("1")
    write_json({"worked": worked}, Path("said.json"))

if __name__ == "__main__":
    assert sys.modules["__main__"].__spec__.name == "toy" and sys.argv[1:] == ["--arm", "x"]
    main()
"""


def workspace(folder: Path, name: str = "now") -> Workspace:
    """A folder with one toy stage, which says whether it found work to do."""
    (folder / ".dvc").mkdir(parents=True)
    (folder / "toy.py").write_text(STAGE)
    (folder / "sgpipe").symlink_to(ROOT / "sgpipe")
    return Workspace(name, folder, {})


def test_pairs_alternate_and_the_ratio_is_the_median_of_theirs(tmp_path: Path) -> None:
    now, rev = Workspace("now", tmp_path, {}), Workspace("rev", tmp_path, {})
    order: list[str] = []
    seconds = {"now": iter([1.0, 2.0, 9.0]), "rev": iter([2.0, 8.0, 10.0])}

    def measure(each: Workspace) -> float:
        order.append(each.name)
        return next(seconds[each.name])

    found = paired(measure, now, rev, 3)
    assert order == ["rev", "now", "now", "rev", "rev", "now"]
    assert found == {"now": 2.0, "rev": 8.0, "ratio": 0.5, "lowest": 0.25, "highest": 0.9}


def test_a_busy_run_is_beside_a_process_that_computes_and_a_quiet_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside: list[bool] = []

    class Busy:
        def __enter__(self) -> None:
            beside.append(True)

        def __exit__(self, *_: object) -> None:
            beside.append(False)

    monkeypatch.setattr(against, "busy_process", Busy)
    ratio = measure_busy(lambda each: 3.0 if beside and beside[-1] else 2.0, Workspace("now", tmp_path, {}), 2)
    assert ratio == 1.5 and beside == [True, False] * 2


def test_the_busy_process_has_the_lowest_priority_and_ends() -> None:
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    if not children.is_file():
        pytest.skip("no /proc here")
    before = set(children.read_text().split())
    with busy_process():
        (mine,) = set(children.read_text().split()) - before
        niceness = 0
        while niceness != 19:
            niceness = int(Path(f"/proc/{mine}/stat").read_text().rpartition(")")[2].split()[16])
    assert set(children.read_text().split()) == before


@pytest.mark.parametrize("settings", [SHORT, TINY])
def test_shorter_settings_are_valid_and_leave_the_model_and_the_batch_alone(settings: dict[str, object], tmp_path: Path) -> None:
    values = merged(yaml.safe_load((ROOT / PARAMS).read_text()), settings)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values))
    found, default = (read_sections(path, []) for path in (tmp_path / "params.yaml", ROOT / PARAMS))
    for name in ("backbone", "lora", "graph_tokens"):
        assert found[name] == default[name]
    assert (found["train"].batch_size, found["train"].losses) == (default["train"].batch_size, default["train"].losses)


def test_the_stages_are_those_that_there_are() -> None:
    assert {words[0] for words in (*RESUMABLE.values(), *OTHERS.values())} < set(stage_modules(ROOT))


def test_a_stage_whose_work_is_done_computes_nothing(tmp_path: Path) -> None:
    made = workspace(tmp_path / "now")
    words = ("toy", "--arm", "x")
    made.keep_done(words)
    assert made.json("said.json") == {"worked": True}
    for _ in range(2):
        ran = made.run_done(words)
        assert made.json("said.json") == {"worked": False}
    assert ran.seconds > 0 and ran.cpu_seconds > 0 and ran.peak_bytes > 1 << 20
    made.forget_states()
    made.run(*words)
    assert made.json("said.json") == {"worked": True}


def test_a_command_that_fails_is_said_with_its_last_lines(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"ended with 3: .*no luck"):
        timed([sys.executable, "-c", "print('no luck'); raise SystemExit(3)"], tmp_path, os.environ, tmp_path / "log")


def test_a_checkout_has_the_settings_and_the_embedded_data(tmp_path: Path) -> None:
    if not shutil.which("git") or subprocess.run(["git", "-C", ROOT, "rev-parse"], capture_output=True, check=False).returncode:
        pytest.skip("no git repository here")
    made = Workspace.make("rev", ROOT, "HEAD", tmp_path / "rev", {"train.epochs": 2})
    try:
        assert yaml.safe_load((made.folder / "params.yaml").read_text())["train"]["epochs"] == 2
        assert (made.folder / "data/relationships.json").is_file() and made.states.parent == made.folder / ".dvc"
        assert made.environment["PYTHONPATH"] == str(made.folder)
    finally:
        made.remove(ROOT)
    assert not made.folder.exists()


def test_an_unknown_part_is_refused() -> None:
    import typer

    app = typer.Typer()
    app.command()(main)
    done = CliRunner().invoke(app, ["--rev", "HEAD", "--only", "steps"])
    assert isinstance(done.exception, SgpipeError) and "steps" in str(done.exception)
