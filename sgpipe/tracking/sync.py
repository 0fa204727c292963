"""Rebuild MLflow's experiment runs from git: every commit and every `refs/exps/*` that changed the lock or a metric.

Idempotent: a commit that already has its run is left alone, and a run recorded live during `dvc exp run` is joined to the commit
that DVC made of it afterwards, which completes it with the commit's figures. Runs whose process was killed are closed.
"""

import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sgpipe.errors import SgpipeError
from sgpipe.params.load import parse_yaml
from sgpipe.runs.progress import through
from sgpipe.runs.state import config_hash
from sgpipe.tracking import experiment
from sgpipe.tracking.git import code_hash_at, git
from sgpipe.tracking.run import log_params, log_values, numbers
from sgpipe.tracking.store import open_store, told_in_a_line


@dataclass(frozen=True)
class Recorded:
    """A commit that holds results: a DVC experiment, or a commit of the history (no name; its baseline is its parent)."""

    commit: str
    name: str | None
    baseline: str
    seconds: int


@dataclass(frozen=True)
class Synced:
    """Counts: runs created from git, live runs joined to a commit, commits known already, runs of killed stages closed."""

    created: int
    joined: int
    known: int
    closed: int


def recorded_commits(root: Path) -> Iterator[Recorded]:
    """DVC's experiments, then the commits of HEAD's history that changed `dvc.lock` or `metrics/`."""
    fields = "--format=%(refname) %(objectname) %(committerdate:unix)"
    for line in git(root, "for-each-ref", fields, "refs/exps/??/*/*").splitlines():
        reference, commit, committed = line.split()
        *_, first, rest, name = reference.split("/")
        yield Recorded(commit, name, first + rest, int(committed))
    for line in git(root, "log", "--format=%H %ct %P", "HEAD", "--", "dvc.lock", "metrics").splitlines():
        commit, committed, *parents = line.split()
        yield Recorded(commit, None, parents[0] if parents else commit, int(committed))


def at_commit(root: Path, commit: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """params.yaml and all metrics files as they are in `commit`, without the tables beside them.

    Raises `SgpipeError` for one that cannot be read.
    """
    listed = git(root, "ls-tree", "-rz", "--name-only", commit, "params.yaml", "metrics/")
    params: dict[str, Any] = {}
    metrics: dict[str, Any] = {}
    for name in (each for each in listed.split("\0") if each.endswith((".yaml", ".json"))):
        text = git(root, "show", f"{commit}:./{name}")
        if name == "params.yaml":
            params = parse_yaml(text, f"{commit[:7]}:{name}")
        elif name.endswith(".json"):
            try:
                metrics[Path(name).stem] = json.loads(text)
            except ValueError as error:
                raise SgpipeError(f"{commit[:7]}:{name}: not JSON ({error})") from None
    return params, metrics


def _find_live(client: Any, experiment_id: str, item: Recorded, tags: Mapping[str, str]) -> str | None:
    """The run that was recorded while what became this commit was made: of the same code, else of the same name."""
    wanted = [dict(tags)]
    if item.name is not None:
        wanted = [{name: tags[name] for name in names} for names in (("dvc.baseline_rev", "sgpipe.code"), ("dvc.baseline_rev",))]
    found = (experiment.find_parent(client, experiment_id, each, item.name) for each in wanted)
    return next((each for each in found if each is not None), None)


def sync(root: Path, name: str) -> Synced:
    """Bring experiment `name` of the store up to date with git. Returns what was done; raises `TrackingError` where it fails."""
    with told_in_a_line(root, "; what was synchronised stays, run the same command again"):
        client, experiment_id = open_store(root, name)
        closed = experiment.close_killed(client, experiment_id, root)
        commits = list(recorded_commits(root))
        done = Counter(_sync(client, experiment_id, root, item) for item in through(commits, "commits", "commit"))
    return Synced(done["created"], done["joined"], done["known"], closed)


def _sync(client: Any, experiment_id: str, root: Path, item: Recorded) -> str:
    """What was done for a commit: created, joined, known, or left out."""
    if experiment.find_parent(client, experiment_id, {"dvc.exp_rev": item.commit}, joined=True):
        return "known"
    try:
        params, metrics = at_commit(root, item.commit)
    except SgpipeError as error:
        print(f"warning: {error}; this commit is left out", file=sys.stderr)
        return "left out"
    title = item.name or git(root, "show", "-s", "--format=%s", item.commit).strip()[:100]
    milliseconds = item.seconds * 1000
    tags = {"dvc.baseline_rev": item.baseline, "sgpipe.config": config_hash(params), "sgpipe.code": code_hash_at(root, item.commit)}
    live = run_id = _find_live(client, experiment_id, item, tags)
    if run_id is None:
        tags |= {"dvc.exp_name": title, "sgpipe.kind": "experiment"}
        run_id = client.create_run(experiment_id, start_time=milliseconds, run_name=title, tags=tags).info.run_id
        log_params(client, run_id, params)
        client.set_terminated(run_id, "FINISHED", end_time=milliseconds)
    else:
        client.update_run(run_id, name=title)
        client.set_tag(run_id, "dvc.exp_name", title)
    figures = {f"{stem}/{key}": value for stem, values in metrics.items() for key, value in numbers(values).items()}
    log_values(client, run_id, figures, milliseconds)
    client.set_tag(run_id, "dvc.exp_rev", item.commit)
    return "joined" if live else "created"
