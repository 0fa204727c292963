"""Rebuild MLflow's experiment runs from git: every commit and every `refs/exps/*` that changed the lock or a metric.

Idempotent: a commit that already has its run is left alone, and a run recorded live during `dvc exp run` is joined to the commit
that DVC made of it afterwards.
"""

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sgpipe.errors import SgpipeError
from sgpipe.params.load import parse_yaml
from sgpipe.runs.state import config_hash
from sgpipe.tracking.run import BATCH, _chunks, find_parent, flatten, numbers
from sgpipe.tracking.store import open_store


@dataclass(frozen=True)
class Recorded:
    """A commit that holds results: a DVC experiment, or a commit of the history (no name; its baseline is its parent)."""

    commit: str
    name: str | None
    baseline: str
    seconds: int


@dataclass(frozen=True)
class Synced:
    """What a synchronisation did: runs created from git, live runs joined to a commit, commits already known."""

    created: int
    joined: int
    known: int


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SgpipeError(
            f"git {' '.join(arguments[:2])}: {done.stderr.strip() or 'failed'}; run inside the repository"
        )
    return done.stdout


def recorded_commits(root: Path) -> Iterator[Recorded]:
    """DVC's experiments, then the commits of HEAD's history that changed `dvc.lock` or `metrics/`."""
    for line in _git(root, "for-each-ref", "--format=%(refname) %(objectname)", "refs/exps/").splitlines():
        reference, commit = line.split()
        parts = reference.split("/")
        if len(parts) != 5 or len(parts[2]) != 2:
            continue
        seconds = int(_git(root, "show", "-s", "--format=%ct", commit))
        yield Recorded(commit, parts[4], parts[2] + parts[3], seconds)
    log = _git(root, "log", "--format=%H %ct %P", "HEAD", "--", "dvc.lock", "metrics")
    for line in log.splitlines():
        commit, committed, *parents = line.split()
        yield Recorded(commit, None, parents[0] if parents else commit, int(committed))


def at_commit(root: Path, commit: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """params.yaml and all metrics files as they are in `commit`."""
    names = _git(root, "ls-tree", "-r", "--name-only", commit, "params.yaml", "metrics/").splitlines()
    params: dict[str, Any] = {}
    metrics: dict[str, Any] = {}
    for name in names:
        text = _git(root, "show", f"{commit}:{name}")
        if name == "params.yaml":
            params = parse_yaml(text, f"{commit[:7]}:{name}")
        elif name.endswith(".json"):
            metrics[Path(name).stem] = json.loads(text)
    return params, metrics


def sync(root: Path, experiment: str) -> Synced:
    """Bring the store up to date with git. Returns what was done."""
    from mlflow.entities import Metric

    client, experiment_id = open_store(root, experiment)
    created = joined = known = 0
    for item in recorded_commits(root):
        if find_parent(client, experiment_id, {"dvc.exp_rev": item.commit}):
            known += 1
            continue
        params, metrics = at_commit(root, item.commit)
        identity = {"dvc.exp_name": item.name} if item.name else {"sgpipe.config": config_hash(params)}
        run_id = find_parent(client, experiment_id, {**identity, "dvc.baseline_rev": item.baseline})
        if run_id is None:
            name = item.name or item.commit[:7]
            tags = {
                "dvc.exp_name": name,
                "dvc.baseline_rev": item.baseline,
                "sgpipe.config": config_hash(params),
                "sgpipe.kind": "experiment",
            }
            run = client.create_run(experiment_id, start_time=item.seconds * 1000, run_name=name, tags=tags)
            run_id = run.info.run_id
            for batch in _chunks(flatten(params)):
                client.log_batch(run_id, params=batch)
            values = [Metric(k, v, item.seconds * 1000, 0) for k, v in numbers(metrics).items()]
            for start in range(0, len(values), BATCH):
                client.log_batch(run_id, metrics=values[start : start + BATCH])
            client.set_terminated(run_id, "FINISHED", end_time=item.seconds * 1000)
            created += 1
        else:
            joined += 1
        client.set_tag(run_id, "dvc.exp_rev", item.commit)
    return Synced(created, joined, known)
