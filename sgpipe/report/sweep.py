"""The experiments of a sweep, read from DVC at their commits."""

import tempfile
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from sgpipe.arms.config import Arms
from sgpipe.errors import DataError, ParamsError
from sgpipe.evaluation.config import Evaluate, JudgeParams, Statistics
from sgpipe.evaluation.judged import read_judged
from sgpipe.evaluation.sampling_plan import BASE
from sgpipe.evaluation.sweep import Experiment
from sgpipe.params.load import decode
from sgpipe.params.moved import refuse_moved
from sgpipe.tracking.sync import Recorded, at_commit, recorded_commits
from sgpipe.training.config import Train

_READ = ("outputs/curated", "outputs/negatives", "outputs/judged")


def named_experiments(root: Path, patterns: Sequence[str]) -> list[Recorded]:
    """DVC's experiments with these names or shell patterns, newest of each name, in order of name.

    Raises `ParamsError` for one that names none.
    """
    known: dict[str, Recorded] = {}
    for item in recorded_commits(root):
        if item.name and (item.name not in known or item.seconds > known[item.name].seconds):
            known[item.name] = item
    found: dict[str, Recorded] = {}
    for pattern in patterns:
        matching = {name: item for name, item in known.items() if fnmatchcase(name, pattern)}
        if not matching:
            raise ParamsError(f"{pattern}: no experiment of that name; there are: {', '.join(sorted(known)) or 'none'}")
        found |= matching
    return [found[name] for name in sorted(found)]


def get_outputs(root: Path, item: Recorded, names: Sequence[str], folder: Path) -> None:
    """Copy outputs of an experiment, named relative to the project, from the DVC cache into `folder`, under their last names.

    Raises `DataError` for results that are no longer there. `DVCFileSystem(root, rev=…)` would begin at the root of the git
    repository and know no outputs of a project in a subfolder; a repository switched to the commit begins at the project.
    """
    from dvc.api import DVCFileSystem
    from dvc.repo import Repo

    with Repo(str(root)) as repo, repo.switch(item.commit):
        files = DVCFileSystem(repo)
        for name in names:
            try:
                files.get(name, str(folder / Path(name).name), recursive=True)
            except FileNotFoundError as error:
                raise DataError(f"{item.name}: {name} is not in the DVC cache ({error}); run the experiment again") from None


def read_experiment(root: Path, item: Recorded) -> Experiment:
    """An experiment with its verdicts, from git and from the DVC cache. Raises `DataError` for results that are no longer there."""
    params, metrics = at_commit(root, item.commit)
    source = f"{item.name}:params.yaml"
    refuse_moved(params, source)
    evaluate = decode("evaluate", params["evaluate"], Evaluate, source)
    judges = decode("judge", params["judge"], JudgeParams, source)
    statistics = decode("statistics", params["statistics"], Statistics, source)
    trained = decode("arms", params["arms"], Arms, source)
    with tempfile.TemporaryDirectory() as folder:
        at = Path(folder)
        get_outputs(root, item, _READ, at)
        verdicts, qualified = read_judged(
            at / "curated", at / "negatives/negatives.parquet", at / "judged", evaluate, judges, statistics,
            [BASE, *evaluate.adapters],
        )  # fmt: skip
    return Experiment(
        str(item.name),
        item.commit,
        decode("train", params["train"], Train, source).seed,
        metrics["lora"]["config"],
        verdicts,
        qualified,
        metrics["lora"]["arms"],
        {name: arm.seed for name, arm in trained.items() if arm.seed is not None},
    )
