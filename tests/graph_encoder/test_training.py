"""The pre-training: a kill that changes nothing, damage that costs little, a loss that is not finite."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from sgpipe.errors import DataError, StateError
from sgpipe.graph_encoder import training
from sgpipe.graph_encoder.config import GraphEncoder
from sgpipe.graph_encoder.examples import Examples
from sgpipe.graph_encoder.features import Features
from sgpipe.graph_encoder.pretraining import ImageHead
from sgpipe.graph_encoder.training import learning_rate, pretrain
from sgpipe.relations.predicates import DIRECTIONAL
from sgpipe.runs.checkpoints import checkpoints, read_checkpoint
from tests.graph_encoder.world import learner, lesson


def test_a_head_tells_which_is_left_where_the_mean_cannot() -> None:
    """Two things at two of nine places: their order is in the places alone."""
    torch.manual_seed(0)
    things = torch.randn(6, 12)

    def images(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        draw = np.random.default_rng(seed)
        patches, leftmost = torch.zeros(count, 9, 12), torch.zeros(count, dtype=torch.long)
        for n in range(count):
            (a, b), (left, right) = draw.choice(6, 2, replace=False), np.sort(draw.choice(3, 2, False))
            patches[n, 3 * draw.integers(3) + left], patches[n, 3 * draw.integers(3) + right] = (things[a], things[b])
            leftmost[n] = int(a)
        return patches, leftmost

    head = ImageHead(12, 9, 6, queries=2, width=32, heads=2)
    optimizer = torch.optim.AdamW(head.parameters(), 5e-3)
    for step in range(150):
        patches, target = images(64, step)
        loss = torch.nn.functional.cross_entropy(head(patches), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    patches, target = images(300, 999)
    assert (head(patches).argmax(1) == target).float().mean() > 0.9


@pytest.mark.parametrize("content", [b"", b"junk", b"PK\x03\x04 half an archive", b"\x80\x02cos\nsystem\n."])
def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes) -> None:
    """An unpickling error and an empty file, too; what is whole comes back."""
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(content)
    assert read_checkpoint(path) is None
    said = capsys.readouterr().err
    assert said.startswith(f"warning: {path} cannot be read (") and said.count("\n") == 1
    torch.save({"step": 3, "weight": torch.arange(2)}, path)
    found = read_checkpoint(path)
    assert found is not None and found["step"] == 3 and found["weight"].tolist() == [0, 1]
    assert read_checkpoint(tmp_path / "none.pt") is None and capsys.readouterr().err == ""


def test_killed_and_continued_the_weights_are_the_same(
    examples: Examples, features: Features, params: GraphEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "SAVE_SECONDS", 0.0)
    lessons = lesson(examples, features)
    whole = learner(lessons, features, params)
    fresh = {name: value.clone() for name, value in whole.state_dict().items()}
    (tmp_path / "whole").mkdir()
    pretrain(whole, lessons, params, tmp_path / "whole", lambda *_: None)
    assert all(
        not torch.equal(value, fresh[name])
        for name, value in whole.state_dict().items()
        if value.ndim >= 2 and "embeddings" not in name
    )

    original = training._losses
    calls = []

    def dying(*arguments: Any) -> Mapping[str, torch.Tensor]:
        calls.append(arguments[3])
        if len(calls) == 4:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(training, "_losses", dying)
    (tmp_path / "killed").mkdir()
    with pytest.raises(KeyboardInterrupt):
        pretrain(learner(lessons, features, params), lessons, params, tmp_path / "killed", lambda *_: None)
    again = learner(lessons, features, params)
    pretrain(again, lessons, params, tmp_path / "killed", lambda *_: None)
    assert calls == [0, 1, 2, 3, 3, 4, 5]
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name

    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "training.pt").write_bytes(b"")
    fresh_start = learner(lessons, features, params)
    pretrain(fresh_start, lessons, params, tmp_path / "damaged", lambda *_: None)
    assert calls[7:] == list(range(6))
    assert all(torch.equal(value, fresh_start.state_dict()[name]) for name, value in whole.state_dict().items())


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def other_content(path: Path) -> None:
    torch.save({"step": 1, "learner": {}}, path)


@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(b""), cut_short, other_content])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    examples: Examples,
    features: Features,
    params: GraphEncoder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path], None],
) -> None:
    monkeypatch.setattr(training, "SAVE_SECONDS", 0.0)
    short = msgspec.structs.replace(params, steps=4)
    lessons = lesson(examples, features)
    whole = learner(lessons, features, short)
    pretrain(whole, lessons, short, tmp_path, lambda *_: None)
    kept = [path.name for path in checkpoints(tmp_path)]
    assert len(kept) == 2
    steps: list[int] = []
    original = training._losses

    def counted(*arguments: Any) -> Mapping[str, torch.Tensor]:
        steps.append(arguments[3])
        return original(*arguments)

    monkeypatch.setattr(training, "_losses", counted)
    for damaged, first in ((kept[1:], 3), (kept, 0)):
        for name in damaged:
            damage(tmp_path / name)
        again = learner(lessons, features, short)
        steps.clear()
        pretrain(again, lessons, short, tmp_path, lambda *_: None)
        assert steps == list(range(first, 4))
        said = capsys.readouterr().err
        assert said.count("cannot be read") == len(damaged) and all(name in said for name in damaged)
        for name, value in whole.state_dict().items():
            assert torch.equal(value, again.state_dict()[name]), name


def test_a_checkpoint_that_cannot_be_written_is_named(
    examples: Examples, features: Features, params: GraphEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise RuntimeError("")

    monkeypatch.setattr(training, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(training.torch, "save", full)
    lessons = lesson(examples, features)
    with pytest.raises(StateError, match=r"step 1: .*step-00000001\.pt cannot be written \(RuntimeError\)"):
        pretrain(learner(lessons, features, params), lessons, params, tmp_path, lambda *_: None)


def test_a_loss_that_is_not_finite_ends_the_training_with_what_to_do(
    examples: Examples, features: Features, params: GraphEncoder, tmp_path: Path
) -> None:
    lessons = lesson(examples, features)
    broken = learner(lessons, features, params)
    broken.head.queries.data.fill_(torch.nan)
    with pytest.raises(StateError, match=r"step 0: the loss is not finite \(loss nan.*; lower graph_encoder\.rate"):
        pretrain(broken, lessons, params, tmp_path, lambda *_: None)


def test_the_rate_rises_stays_and_falls() -> None:
    rates = [learning_rate(step, 1000) for step in range(1000)]
    assert rates[0] == pytest.approx(1 / 50) and rates[49] == rates[600] == 1
    assert all(a > b > 0 for a, b in pairwise(rates[600:]))


def test_a_step_holds_the_share_of_directional_graphs_that_was_asked_for(
    examples: Examples, features: Features, params: GraphEncoder
) -> None:
    lessons = lesson(examples, features)
    for share, wanted in ((0.75, 12), (0.0, 0), (1.0, 16)):
        drawn = lessons.draw(np.random.default_rng(0), msgspec.structs.replace(params, directional=share))
        stated = examples.frame["predicate"].is_in(list(DIRECTIONAL)).to_numpy()[drawn]
        assert stated.sum() == wanted and len(drawn) == 16 and set(drawn) <= set(lessons.rows.tolist())
    few = replace(lessons, rows=lessons.rows[:0])
    with pytest.raises(DataError, match="set it to null"):
        few.draw(np.random.default_rng(0), msgspec.structs.replace(params, directional=0.5))
