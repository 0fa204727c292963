"""Checkpoints that are damaged cost the steps since the one before, and never the training."""

import pickle
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from sgpipe.errors import StateError, first_line
from sgpipe.graph_encoder.config import GraphTokens
from sgpipe.runs.checkpoints import checkpoints
from sgpipe.training import state
from sgpipe.training.config import Losses, Preference
from tests.training.test_training import files, train
from tests.training.world import World, tiny_train


def archive(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as made:
        made.writestr("step/data.pkl", b"")


DAMAGES: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "cut off": lambda path: path.write_bytes(path.read_bytes()[:200]),
    "text": lambda path: path.write_text("no checkpoint"),
    "zeros": lambda path: path.write_bytes(bytes(4096)),
    "half a pickle": lambda path: path.write_bytes(b"\x80\x02}q\x00("),
    "an archive of nothing": archive,
    "a pickle of code": lambda path: path.write_bytes(pickle.dumps(Path())),
    "another mapping": lambda path: torch.save({"step": 3}, path),
    "a list": lambda path: torch.save([1], path),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_checkpoint_is_passed_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[Path], object]
) -> None:
    for step in (3, 6, 9):
        state.save(state.Checkpoint(step, {"a": torch.ones(1)}, None, {}, state.History()), tmp_path)
    damage(checkpoints(tmp_path)[-1])
    found = state.load_last(tmp_path)
    assert found is not None and found.step == 6
    said = capsys.readouterr().err
    assert re.search(r"step-00000009\.pt cannot be read \(.+\)", said) and len(said.splitlines()) == 1


def test_a_training_whose_checkpoints_are_all_damaged_starts_again_and_ends_with_the_same_bytes(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And what it saves from then on is not taken for older than the damaged ones, whose steps are later."""
    whole, damaged = tmp_path / "whole", tmp_path / "damaged"
    first = train(world, whole, tiny_train(ema_decay=0.9))
    damaged.mkdir()
    for step in (8, 12):
        (damaged / f"step-{step:08d}.pt").write_bytes(b"")
    again = train(world, damaged, tiny_train(ema_decay=0.9))
    assert "no checkpoint is whole" in capsys.readouterr().err
    assert files(damaged / "adapter") == files(whole / "adapter") and again.history == first.history
    assert [path.name for path in checkpoints(damaged)] == ["step-00000009.pt", "step-00000010.pt"]


def test_an_error_without_a_message_is_told_by_its_type() -> None:
    assert first_line(EOFError()) == "EOFError" and first_line(OSError("\n\n")) == "OSError"
    assert first_line(ValueError("\n one\ntwo")) == "one"


@pytest.fixture
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize(
    "tokens",
    [GraphTokens(layout="triple", relation="encoder", global_token=True), GraphTokens(injection="residual")],
    ids=["index_add of messages", "added to the prompt's tokens"],
)
def test_deterministic_algorithms_train_and_give_the_same_bytes_again(
    world: World, tmp_path: Path, tokens: GraphTokens
) -> None:
    """Every operation of a step has a deterministic form, scattered sums with their gradients included."""
    recipe = tiny_train(epochs=1, keep_epochs=(), losses=Losses(preference=Preference(0.1)))
    for name in ("one", "other"):
        train(world, tmp_path / name, recipe, tokens)
    assert files(tmp_path / "one" / "adapter") == files(tmp_path / "other" / "adapter")


def test_a_disk_that_does_not_answer_costs_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error of the file system is no damage: the training stops, and its checkpoints stay."""
    for step in (3, 6):
        state.save(state.Checkpoint(step, {"a": torch.ones(1)}, None, {}, state.History()), tmp_path)

    def fails(*args: object, **kwargs: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(torch, "load", fails)
    with pytest.raises(StateError, match=r"the disk does not give it .*nothing was removed"):
        state.load_last(tmp_path)
    assert len(checkpoints(tmp_path)) == 2
