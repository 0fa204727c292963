"""Rebuild MLflow's experiment runs from git: every commit and every `refs/exps/*` that changed the lock or a metric.

Idempotent: a commit that already has its run is left alone, and a run recorded live during `dvc exp run` is joined to the commit
that DVC made of it afterwards, which completes it with the commit's figures. Runs whose process was killed are closed.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sgpipe.errors import SgpipeError, TrackingError
from sgpipe.params.load import parse_yaml
from sgpipe.runs.state import config_hash
from sgpipe.tracking import experiment
from sgpipe.tracking.git import code_hash_at, git
from sgpipe.tracking.run import flatten, log_values, numbers
from sgpipe.tracking.store import one_line, open_store, tracking_uri


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
    closed: int = 0


def recorded_commits(root: Path) -> Iterator[Recorded]:
    """DVC's experiments, then the commits of HEAD's history that changed `dvc.lock` or `metrics/`."""
    for line in git(root, "for-each-ref", "--format=%(refname) %(objectname)", "refs/exps/").splitlines():
        reference, commit = line.split()
        parts = reference.split("/")
        if len(parts) != 5 or len(parts[2]) != 2:
            continue
        seconds = int(git(root, "show", "-s", "--format=%ct", commit))
        yield Recorded(commit, parts[4], parts[2] + parts[3], seconds)
    log = git(root, "log", "--format=%H %ct %P", "HEAD", "--", "dvc.lock", "metrics")
    for line in log.splitlines():
        commit, committed, *parents = line.split()
        yield Recorded(commit, None, parents[0] if parents else commit, int(committed))


def at_commit(root: Path, commit: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """params.yaml and all metrics files as they are in `commit`. Raises `SgpipeError` for one that cannot be read."""
    listed = git(root, "ls-tree", "-rz", "--name-only", commit, "params.yaml", "metrics/")
    params: dict[str, Any] = {}
    metrics: dict[str, Any] = {}
    for name in filter(None, listed.split("\0")):
        text = git(root, "show", f"{commit}:./{name}")
        if name == "params.yaml":
            params = parse_yaml(text, f"{commit[:7]}:{name}")
        elif name.endswith(".json"):
            try:
                metrics[Path(name).stem] = json.loads(text)
            except ValueError as error:
                raise SgpipeError(f"{commit[:7]}:{name}: not JSON ({error})") from None
    return params, metrics


def _find_live(client: Any, experiment_id: str, root: Path, item: Recorded, params: dict[str, Any]) -> str | None:
    """The run that was recorded while what became this commit was made."""
    same = {"dvc.baseline_rev": item.baseline, "sgpipe.code": code_hash_at(root, item.commit)}
    if item.name is None:
        same["sgpipe.config"] = config_hash(params)
    found = experiment.find_parent(client, experiment_id, same, item.name)
    if found is None and item.name is not None:
        found = experiment.find_parent(client, experiment_id, {"dvc.baseline_rev": item.baseline}, item.name)
    return found


def _create(client: Any, experiment_id: str, root: Path, item: Recorded, params: dict[str, Any], name: str) -> str:
    tags = {
        "dvc.exp_name": name,
        "dvc.baseline_rev": item.baseline,
        "sgpipe.config": config_hash(params),
        "sgpipe.code": code_hash_at(root, item.commit),
        "sgpipe.kind": "experiment",
    }
    run = client.create_run(experiment_id, start_time=item.seconds * 1000, run_name=name, tags=tags)
    for batch in experiment.params(flatten(params)):
        client.log_batch(run.info.run_id, params=batch)
    client.set_terminated(run.info.run_id, "FINISHED", end_time=item.seconds * 1000)
    return str(run.info.run_id)


def _sync(root: Path, name: str) -> Synced:
    client, experiment_id = open_store(root, name)
    closed = experiment.close_killed(client, experiment_id, root)
    created = joined = known = 0
    for item in recorded_commits(root):
        if experiment.find_parent(client, experiment_id, {"dvc.exp_rev": item.commit}, joined=True):
            known += 1
            continue
        try:
            params, metrics = at_commit(root, item.commit)
        except SgpipeError as error:
            print(f"warning: {error}; this commit is left out", file=sys.stderr)
            continue
        title = item.name or git(root, "show", "-s", "--format=%s", item.commit).strip()[:100]
        run_id = _find_live(client, experiment_id, root, item, params)
        if run_id is None:
            run_id = _create(client, experiment_id, root, item, params, title)
            created += 1
        else:
            client.update_run(run_id, name=title)
            client.set_tag(run_id, "dvc.exp_name", title)
            joined += 1
        for stem, values in metrics.items():
            figures = {f"{stem}/{key}": value for key, value in numbers(values).items()}
            log_values(client, run_id, figures, item.seconds * 1000)
        client.set_tag(run_id, "dvc.exp_rev", item.commit)
    return Synced(created, joined, known, closed)


def sync(root: Path, experiment: str) -> Synced:
    """Bring the store up to date with git. Returns what was done; raises `TrackingError` where the store fails."""
    try:
        return _sync(root, experiment)
    except SgpipeError:
        raise
    except Exception as error:
        raise TrackingError(
            f"MLflow, {tracking_uri(root)}: {one_line(error)}; what was synchronised stays, run the same command again"
        ) from error
