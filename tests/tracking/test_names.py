"""How runs are called and joined, and what they show first."""

from pathlib import Path

import pytest

from sgpipe.tracking.git import code_hash, code_hash_at
from sgpipe.tracking.run import track
from sgpipe.tracking.store import runs_page
from sgpipe.tracking.sync import at_commit, sync
from tests.tracking.repositories import run, runs


@pytest.fixture
def project(stored: Path) -> Path:
    """A git repository with code, parameters and a metric, around an empty store."""
    for name, text in {
        "stages/own.py": "a = 1\n",
        "sgpipe/ä b.py": "",
        "metrics/toy.json": '{"score": 1, "by": {"left of": 0.5}}',
        ".gitignore": ".dvc\n__pycache__\n",
    }.items():
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(text)
    run(stored, "git", "init", "-q")
    run(stored, "git", "config", "user.email", "a@example.org")
    run(stored, "git", "config", "user.name", "a")
    commit(stored, 'It\'s the "first" try')
    return stored


def commit(root: Path, subject: str) -> str:
    run(root, "git", "add", "-A")
    run(root, "git", "commit", "-qm", subject)
    return run(root, "git", "rev-parse", "HEAD").strip()


def record(stage: str = "toy") -> str:
    """Name of the experiment that a stage is recorded in."""
    with track(stage, {}):
        pass
    newest = runs(Path(), "stage")[0]
    (parent,) = (each for each in runs(Path(), "experiment") if each.info.run_id == newest.data.tags["mlflow.parentRunId"])
    assert parent.info.run_name == parent.data.tags["dvc.exp_name"]
    return parent.info.run_name


def test_an_experiment_is_called_as_dvc_or_the_commit_calls_it(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert record() == 'It\'s the "first" try'
    assert record("other") == 'It\'s the "first" try'
    assert len(runs(project, "experiment")) == 1
    Path("stages/own.py").write_text("a = 2\n")
    assert record() == 'It\'s the "first" try + edits'
    monkeypatch.setenv("DVC_EXP_NAME", "it's-early")
    assert record() == record("other") == "it's-early"
    assert len(runs(project, "experiment")) == 3


def test_the_code_of_a_clean_checkout_is_that_of_its_commit(project: Path) -> None:
    head = run(project, "git", "rev-parse", "HEAD").strip()
    assert code_hash(project) == code_hash_at(project, head)
    Path("stages/__pycache__").mkdir()
    Path("stages/__pycache__/own.pyc").write_text("")
    Path("metrics/toy.json").write_text("{}")
    assert code_hash(project) == code_hash_at(project, head)
    Path("stages/new.py").write_text("")
    assert code_hash(project) != code_hash_at(project, head)
    Path("stages/new.py").unlink()
    Path("sgpipe/ä b.py").write_text("# other\n")
    assert code_hash(project) != code_hash_at(project, head)


def test_a_commit_is_joined_to_the_run_with_its_code(project: Path) -> None:
    """Of two runs that differ in uncommitted code, the one whose code was committed is completed from git and renamed."""
    Path("stages/own.py").write_text("a = 2\n")
    record()
    Path("stages/own.py").write_text("a = 3\n")
    record()
    Path("stages/own.py").write_text("a = 2\n")
    Path("metrics/toy.json").write_text('{"score": 7}')
    head = commit(project, "Second")
    done = sync(project, "trial")
    assert (done.created, done.joined) == (1, 1)
    assert (sync(project, "trial").known, len(runs(project, "experiment"))) == (2, 3)
    found = {each.data.tags.get("dvc.exp_rev"): each for each in runs(project, "experiment")}
    assert found[head].info.run_name == "Second"
    assert found[head].data.metrics["toy/score"] == 7
    assert found[None].info.run_name == 'It\'s the "first" try + edits'


def test_a_committed_experiment_and_its_commit_are_two_runs(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`dvc exp apply` and a commit: the commit does not take the experiment's run away at each synchronisation."""
    head = run(project, "git", "rev-parse", "HEAD").strip()
    monkeypatch.setenv("DVC_EXP_NAME", "early")
    record()
    monkeypatch.delenv("DVC_EXP_NAME")
    Path("metrics/toy.json").write_text('{"score": 7}')
    found = commit(project, "Kept")
    run(project, "git", "update-ref", f"refs/exps/{head[:2]}/{head[2:]}/early", found)
    sync(project, "trial")
    for _ in range(2):
        assert sync(project, "trial").created == sync(project, "trial").joined == 0


def test_a_commit_that_cannot_be_read_is_said_and_left_out(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("metrics/toy.json").write_text("<<<<<<< HEAD\n")
    broken = commit(project, "Conflict")
    assert sync(project, "trial").created == 1
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and f"{broken[:7]}:metrics/toy.json" in said[0]


def test_a_table_among_the_metrics_is_no_figure(project: Path) -> None:
    """As metrics/sweep.parquet, which is no text."""
    Path("metrics/toy.parquet").write_bytes(b"PAR1\x15\x04\x15\xa0\x00")
    _, metrics = at_commit(project, commit(project, "Samples"))
    assert metrics == {"toy": {"score": 1, "by": {"left of": 0.5}}}


def test_constants_are_parameters_and_final_values_do_not_join_curves(stored: Path) -> None:
    with track("train_lora@graph", {}) as recorded:
        recorded.log_step(5, {"loss/val_graph": 0.5})
        recorded.log_params({"lora_modules": 24, "steps": 5})
        recorded.log_metrics({"val_loss_graph": 0.5, "by": {"left of": 1.0}})
    (child,), (parent,) = runs(stored, "stage"), runs(stored, "experiment")
    assert child.data.params == {"lora_modules": "24", "steps": "5"}
    assert set(child.data.metrics) == {"loss/val_graph", "val_loss_graph", "by.left of"}
    assert parent.data.metrics == {"train_lora.graph/val_loss_graph": 0.5, "train_lora.graph/by.left of": 1.0}


def test_the_page_of_the_runs_is_that_for_model_training() -> None:
    assert runs_page("http://127.0.0.1:5000/", "3") == ("http://127.0.0.1:5000/#/experiments/3/runs?workflowType=machine_learning")
