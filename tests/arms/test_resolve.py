"""The resolved file of an arm holds what was asked for, to the last digit."""

from contextlib import chdir
from pathlib import Path

import pytest
import yaml

from sgpipe.arms.resolve import read_arm
from sgpipe.params.load import read_section
from sgpipe.training.config import Train
from stages.resolve import main


def resolved(repo_root: Path, folder: Path, rate: float) -> Path:
    params = yaml.safe_load((repo_root / "params.yaml").read_text(encoding="utf-8"))
    params["train"]["optimiser"] |= {"learning_rate": rate, "weight_decay": 1 / 3}
    folder.mkdir()
    (folder / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    with chdir(folder):
        main()
    return folder / "outputs"


def test_what_is_trained_is_what_was_asked_for(repo_root: Path, tmp_path: Path) -> None:
    folder = resolved(repo_root, tmp_path / "one", 0.00012345678)
    asked = read_section(folder.parent / "params.yaml", "train", Train)
    for arm in ("graph", "text_only"):
        trained = read_arm(folder / "resolved" / f"{arm}.json").train.optimiser
        assert (trained.learning_rate, trained.weight_decay) == (asked.optimiser.learning_rate, 1 / 3) == (0.00012345678, 1 / 3)


def test_rates_that_agree_in_six_digits_are_two_trainings(repo_root: Path, tmp_path: Path) -> None:
    one, other = (
        resolved(repo_root, tmp_path / str(rate), rate) / "resolved" / "graph.json" for rate in (0.00012345678, 0.00012345679)
    )
    assert one.read_bytes() != other.read_bytes()


@pytest.mark.parametrize("rate", [1e-2, 3.0])
def test_short_numbers_are_spelled_as_before(repo_root: Path, tmp_path: Path, rate: float) -> None:
    text = (resolved(repo_root, tmp_path / "one", rate) / "resolved" / "graph.json").read_text()
    assert f'"learning_rate": {rate!r}' in text
