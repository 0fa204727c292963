"""The engine: killed = not killed, one line per interval, what stops it, and steps that are what they are said to be."""

import json
import math
import pickle
import re
import zipfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sgpipe.errors import ModelError, StateError
from sgpipe.optim.engine import Engine
from sgpipe.optim.log import LOG, publish_log
from sgpipe.optim.weights import Average, tensors_of
from sgpipe.runs.checkpoints import checkpoints

STEPS = 11


def samples(step: int, pass_: int = 0, count: int = 4) -> Tensor:
    return torch.randn(count, 3, generator=torch.Generator().manual_seed(100 * step + pass_))


class Killed(Exception):
    """Stands for a kill: nothing after it runs."""


def engine(folder: Path | None = None, kill: int | None = None, **options: Any) -> Engine:
    """A regression with two optimisers, an average, a buffer that moves and values of its own; killed at a step."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    extra: dict[str, Any] = {"seen": []}

    def losses(step: int, pass_: int) -> tuple[Tensor, dict[str, Tensor]]:
        if step == kill:
            raise Killed
        x = samples(step, pass_)
        error = (model(x) - x.sum(1, keepdim=True)).square().mean()
        return error + 0.1, {"error": error}

    given: dict[str, Any] = {
        "tensors": tensors_of(model),
        "optimisers": [
            torch.optim.AdamW([*model[0].parameters(), *model[1].parameters()], 0.05),
            torch.optim.SGD(model[2].parameters(), 0.1, momentum=0.9),
        ],
        "losses": losses,
        "schedule": lambda step: 1 - step / STEPS,
        "steps": STEPS,
        "samples": 4,
        "advice": "lower the rate",
        "clip": 1.0,
        "average": Average(dict(model.named_parameters()), 0.5),
        "folder": folder,
        "save_every": 4,
        "log_every": 3,
        "after": lambda step: extra["seen"].append(step),
        "extra": extra,
    }
    return Engine(**{**given, **options})


def trained(folder: Path | None = None, **options: Any) -> Engine:
    made = engine(folder, **options)
    made.resume()
    made.run()
    return made


def result(made: Engine) -> dict[str, Tensor]:
    assert made.average is not None
    return {**made.tensors, **{f"average.{name}": value for name, value in made.average.values.items()}}


def same(one: Engine, other: Engine) -> bool:
    first, second = result(one), result(other)
    return all(torch.equal(first[name], second[name]) for name in first | second) and one.extra == other.extra


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / LOG).read_text().splitlines()]


def untimed(folder: Path) -> list[dict[str, Any]]:
    timed = ("samples_per_second", "peak_memory_bytes")
    return [{name: value for name, value in line.items() if name not in timed} for line in lines(folder)]


@pytest.mark.parametrize("step", [0, 3, 4, 5, 7, 8, 10])
def test_killed_and_continued_is_not_killed(tmp_path: Path, step: int) -> None:
    """Before, at and after checkpoints (every fourth step), at the end of an interval (every third) and within one."""
    whole = trained(tmp_path / "whole")
    with pytest.raises(Killed):
        trained(tmp_path / "killed", kill=step)
    again = trained(tmp_path / "killed")
    assert same(again, whole) and again.extra["seen"] == list(range(1, STEPS + 1))
    assert again.taken == STEPS - step // 4 * 4 and whole.taken == STEPS
    assert untimed(tmp_path / "killed") == untimed(tmp_path / "whole")
    assert [line["step"] for line in lines(tmp_path / "killed")] == [3, 6, 9, 11]


def test_a_log_that_was_cut_or_went_further_ends_where_the_checkpoint_does(tmp_path: Path) -> None:
    trained(tmp_path / "whole")
    for damage in (b'{"step": 9, "lo', b'{"step": 9}\n{"step": 9}\n', None):
        folder = tmp_path / repr(damage)
        with pytest.raises(Killed):
            trained(folder, kill=8)
        log = folder / LOG
        assert [line["step"] for line in lines(folder)] == [3, 6]
        log.unlink() if damage is None else log.write_bytes(log.read_bytes() + damage)
        trained(folder)
        assert untimed(folder) == untimed(tmp_path / "whole")
        trained(folder)  # one that is over already
        assert untimed(folder) == untimed(tmp_path / "whole")


def test_a_line_has_the_means_of_its_interval(tmp_path: Path) -> None:
    seen: list[float] = []
    made = engine(tmp_path)
    losses = made.losses

    def watched(step: int, pass_: int) -> Any:
        loss, parts = losses(step, pass_)
        seen.append(loss.item())
        return loss, parts

    made.losses = watched
    made.run()
    found = lines(tmp_path)
    for line, steps in zip(found, (range(3), range(3, 6), range(6, 9), range(9, 11)), strict=True):
        assert list(line) == [
            "step", "loss", "error", "gradient_norm", "learning_rate", "samples_per_second", "peak_memory_bytes",
        ]  # fmt: skip
        mean = sum(seen[step] for step in steps) / len(steps)
        assert line["loss"] == pytest.approx(mean, rel=1e-5)
        assert line["loss"] - line["error"] == pytest.approx(0.1, abs=1e-4)
        assert line["learning_rate"] == pytest.approx(0.05 * (1 - (line["step"] - 1) / STEPS), rel=1e-5)
        assert line["gradient_norm"] > 0 and line["peak_memory_bytes"] > 1 << 20
    speeds = sum(4 * each.steps / each.seconds for each in made.intervals) / len(found)
    assert sum(line["samples_per_second"] for line in found) / len(found) == pytest.approx(speeds, rel=1e-4)
    assert sum(each.seconds for each in made.intervals) == pytest.approx(made.seconds)


def test_steps_that_are_looked_at_together_are_logged_as_alone(tmp_path: Path) -> None:
    alone, together = trained(tmp_path / "alone"), trained(tmp_path / "together", check_every=3)
    assert same(alone, together) and untimed(tmp_path / "alone") == untimed(tmp_path / "together")


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
    "other tensors": lambda path: torch.save({**torch.load(path), "tensors": {"a": torch.ones(1)}}, path),
    "other averages": lambda path: torch.save({**torch.load(path), "average": {}}, path),
    "one optimiser": lambda path: torch.save({**torch.load(path), "optimisers": torch.load(path)["optimisers"][:1]}, path),
    "another optimiser": lambda path: torch.save({**torch.load(path), "optimisers": torch.load(path)["optimisers"][::-1]}, path),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_checkpoint_is_passed_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[Path], object]
) -> None:
    """For the one before; where none is whole the training starts from its first step, as if there had been none."""
    whole = trained(tmp_path / "whole")
    for paths in (slice(1, 2), slice(0, 2)):
        folder = tmp_path / f"damaged {paths.start}"
        with pytest.raises(Killed):
            trained(folder, kill=9)
        assert [path.name for path in checkpoints(folder)] == ["step-00000004.pt", "step-00000008.pt"]
        capsys.readouterr()
        for path in checkpoints(folder)[paths]:
            damage(path)
        again = trained(folder)
        assert again.taken == (STEPS - 4 if paths.start else STEPS)
        assert same(again, whole) and untimed(folder) == untimed(tmp_path / "whole")
        said = capsys.readouterr().err
        assert re.search(r"step-00000008\.pt cannot be read \(.+\)", said)
        assert len(said.splitlines()) == (1 if paths.start else 3)


def test_a_folder_in_place_of_a_checkpoint_is_passed_over(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        trained(tmp_path, kill=9)
    newest = checkpoints(tmp_path)[-1]
    newest.unlink()
    newest.mkdir()
    again = engine(tmp_path)
    again.resume()
    assert again.step == 4


def test_a_disk_that_does_not_answer_costs_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of the file system is no damage: the training stops, and its checkpoints stay."""
    trained(tmp_path)

    def fails(*args: object, **kwargs: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(torch, "load", fails)
    with pytest.raises(StateError, match=r"the disk does not give it .*nothing was removed"):
        trained(tmp_path)
    assert len(checkpoints(tmp_path)) == 2


@pytest.mark.parametrize(("check_every", "steps"), [(1, 6), (3, 8)])
def test_a_loss_that_is_not_finite_stops_with_what_to_do(tmp_path: Path, check_every: int, steps: int) -> None:
    """Before the optimiser has used it where each step is looked at, and else by the end of an interval."""
    made = engine(tmp_path, check_every=check_every, clip=None)
    losses = made.losses
    made.losses = lambda step, pass_: (losses(step, pass_)[0] * (math.nan if step == 6 else 1), {"other": 1.5})
    message = r"step 6: the loss is not finite \(loss nan, other 1\.5\); .*step-00000004\.pt; lower the rate, and run again"
    with pytest.raises(StateError, match=message):
        made.run()
    assert made.step == steps
    assert all(weight.isfinite().all() for weight in made.weights.values()) == (check_every == 1)


def test_a_gradient_that_is_not_finite_stops_though_the_loss_is(tmp_path: Path) -> None:
    weight = nn.Parameter(torch.zeros(1))
    made = Engine(
        {"a": weight}, [torch.optim.SGD([weight], 0.1)], lambda *_: (weight.abs().sqrt().sum(), {}), lambda _: 1.0,
        steps=2, samples=1, advice="lower the rate", clip=1.0,
    )  # fmt: skip
    with pytest.raises(StateError, match=r"step 0: .*\(loss 0, gradient_norm nan\); lower the rate"):
        made.run()
    assert weight.item() == 0


def test_accumulated_passes_are_one_larger_batch() -> None:
    weight, other = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))

    def loss(weights: nn.Parameter, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return (x @ weights).square().mean(), {}

    def whole(step: int, _: int) -> tuple[Tensor, dict[str, Tensor]]:
        return loss(other, torch.cat([samples(step, pass_) for pass_ in range(3)]))

    means = []
    for own, losses, passes in ((weight, lambda step, pass_: loss(weight, samples(step, pass_)), 3), (other, whole, 1)):
        made = Engine(
            {"a": own}, [torch.optim.SGD([own], 0.05)], losses, lambda _: 1.0,
            steps=4, samples=12, advice="", accumulation=passes, clip=0.5, log_every=2,
        )  # fmt: skip
        made.run()
        means.append([each.means for each in made.intervals])
    torch.testing.assert_close(weight, other)
    assert (weight - 1).abs().max() > 0.01
    for one, two in zip(*means, strict=True):
        assert one == pytest.approx(two, rel=1e-5)


def test_a_step_is_of_the_scheduled_rate_and_at_most_the_clipped_gradient() -> None:
    """Plain descent on a slope of norm 5 moves by learning rate × 0.5; the log holds the norm before."""
    weight = nn.Parameter(torch.zeros(2))
    moved = [0.0]
    made = Engine(
        {"a": weight}, [torch.optim.SGD([weight], 0.1)], lambda *_: (weight @ torch.tensor([3.0, 4.0]), {}),
        lambda step: 1 / (1 + step), steps=3, samples=1, advice="", clip=0.5, log_every=1,
        after=lambda _: moved.append(float(weight.detach().norm())),
    )  # fmt: skip
    made.run()
    assert [b - a for a, b in pairwise(moved)] == pytest.approx([0.05, 0.025, 0.05 / 3], rel=1e-4)
    assert [each.means["gradient_norm"] for each in made.intervals] == pytest.approx([5.0] * 3)


def test_within_averaged_the_weights_are_the_averaged_ones(tmp_path: Path) -> None:
    made = trained()
    assert made.average is not None
    own = {name: value.clone() for name, value in made.tensors.items()}
    with pytest.raises(ZeroDivisionError), made.averaged():
        assert all(torch.equal(w, made.average.values[n]) for n, w in made.weights.items())
        for other in (own, engine().weights):
            assert not torch.equal(made.weights["0.weight"], other["0.weight"])
        raise ZeroDivisionError
    assert all(torch.equal(value, own[name]) for name, value in made.tensors.items())
    plain = trained(average=None)
    with plain.averaged():
        assert all(torch.equal(value, own[name]) for name, value in plain.tensors.items())


def test_what_follows_a_step_may_end_the_training(tmp_path: Path) -> None:
    made = trained(tmp_path, after=lambda step: step == 5)
    assert made.step == 5
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000004.pt", "step-00000005.pt"]
    assert [line["step"] for line in lines(tmp_path)] == [3, 5]
    again = trained(tmp_path)
    assert (again.step, again.taken) == (5, 0) and [line["step"] for line in lines(tmp_path)] == [3, 5]


def test_checkpoints_by_time(tmp_path: Path) -> None:
    trained(tmp_path / "always", save_every=None, save_seconds=0.0, steps=3)
    trained(tmp_path / "never", save_every=None, save_seconds=1e6, steps=3)
    names = [[path.name for path in checkpoints(tmp_path / name)] for name in ("always", "never")]
    assert names == [["step-00000002.pt", "step-00000003.pt"], ["step-00000003.pt"]]


def test_without_a_folder_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert same(trained(), trained(tmp_path / "kept"))
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_a_log_is_published_under_the_name_of_its_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    trained(tmp_path / "state")
    publish_log(tmp_path / "state", "train_it")
    made = tmp_path / "outputs/timings/train_it.jsonl"
    assert made.read_bytes() == (tmp_path / "state" / LOG).read_bytes()


def test_a_trainable_weight_of_no_optimiser_is_an_error_that_names_it() -> None:
    one, frozen, other = (nn.Parameter(torch.ones(1), requires_grad=on) for on in (True, False, True))
    with pytest.raises(ModelError, match=r"never be trained: other; give them to an optimiser"):
        engine(tensors={"one": one, "frozen": frozen, "other": other}, optimisers=[torch.optim.SGD([one], 0.1)])
