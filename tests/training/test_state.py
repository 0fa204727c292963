"""Checkpoints that are damaged cost the steps since the one before, and never the training."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from sgpipe.errors import first_line
from sgpipe.graph_encoder.config import GraphTokens
from sgpipe.runs.checkpoints import checkpoints
from sgpipe.training.config import Losses, Preference
from tests.training.world import World, files, tiny_train, train


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
def test_deterministic_algorithms_train_and_give_the_same_bytes_again(world: World, tmp_path: Path, tokens: GraphTokens) -> None:
    """Every operation of a step has a deterministic form, scattered sums with their gradients included."""
    recipe = tiny_train(epochs=1, keep_epochs=(), losses=Losses(preference=Preference(0.1)))
    for name in ("one", "other"):
        train(world, tmp_path / name, recipe, tokens)
    assert files(tmp_path / "one" / "adapter") == files(tmp_path / "other" / "adapter")
