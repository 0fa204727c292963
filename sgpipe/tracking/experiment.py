"""The parent run of an experiment and the runs of its stages: how they are named, found, continued and closed."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sgpipe.runs.state import config_hash
from sgpipe.tracking.alive import ended
from sgpipe.tracking.git import CODE, code_hash, said

PARENT = "mlflow.parentRunId"


def experiment_tags(root: Path, parameters: Mapping[str, Any]) -> dict[str, str]:
    """Tags that name the experiment a stage belongs to: commit it starts from, parameters, code (uncommitted edits included), name.

    The name is DVC's inside `dvc exp run`, else the commit's subject, with ` + edits` where parameters or code differ from it.
    """
    subject = said(root, "show", "-s", "--format=%s", "HEAD")[:100] or "no commit"
    edited = said(root, "status", "--porcelain", "--", "params.yaml", *CODE)
    return {
        "dvc.baseline_rev": os.environ.get("DVC_EXP_BASELINE_REV") or said(root, "rev-parse", "HEAD") or "no-commit",
        "dvc.exp_name": os.environ.get("DVC_EXP_NAME") or subject + (" + edits" if edited else ""),
        "sgpipe.config": config_hash(parameters),
        "sgpipe.code": code_hash(root),
    }


def find_parent(
    client: Any, experiment_id: str, tags: Mapping[str, str], name: str | None = None, joined: bool = False
) -> str | None:
    """Id of the newest parent run with these tags and, if given, this name; of those joined to a commit already, or of the others.

    Values of `tags` are put into MLflow's filter as they are (hashes); names, which may hold quotes, are compared here.
    """
    wanted = " and ".join(f"tags.`{k}` = '{v}'" for k, v in {**tags, "sgpipe.kind": "experiment"}.items())
    for run in client.search_runs([experiment_id], wanted):
        own = run.data.tags
        if ("dvc.exp_rev" in own) == joined and name in (None, own.get("dvc.exp_name")):
            return str(run.info.run_id)
    return None


def find_interrupted(client: Any, experiment_id: str, stage: str, fingerprint: str) -> Any:
    """The newest run of the stage with this fingerprint if it was killed or failed, else None: the same work, which now goes on."""
    runs = client.search_runs(
        [experiment_id],
        f"tags.`sgpipe.fingerprint` = '{fingerprint}' and tags.`sgpipe.kind` = 'stage'",
        order_by=["attributes.start_time DESC"],
    )
    newest = next((run for run in runs if run.data.tags.get("dvc.stage") == stage), None)
    return newest if newest and newest.info.status in ("KILLED", "FAILED") else None


def settle(client: Any, experiment_id: str, parent_id: str) -> None:
    """Set a parent's status from its stages.

    RUNNING while one runs, else FAILED or KILLED where the newest run of any stage is that, else FINISHED.
    """
    runs = client.search_runs([experiment_id], f"tags.`{PARENT}` = '{parent_id}'", order_by=["attributes.start_time DESC"])
    newest: dict[str, str] = {}
    for run in runs:
        newest.setdefault(run.data.tags["dvc.stage"], run.info.status)
    if any(run.info.status == "RUNNING" for run in runs):
        client.update_run(parent_id, status="RUNNING")
    else:
        client.set_terminated(parent_id, next((s for s in ("FAILED", "KILLED") if s in newest.values()), "FINISHED"))


def close_killed(client: Any, experiment_id: str, root: Path) -> int:
    """End the runs whose process is gone, KILLED or as the process left word; returns how many."""
    running = client.search_runs([experiment_id], "tags.`sgpipe.kind` = 'stage' and attributes.status = 'RUNNING'")
    closed = 0
    for run in running:
        with ended(root, run.data.tags.get("sgpipe.lock", "")) as status:
            if status is not None:
                client.set_terminated(run.info.run_id, status)
                settle(client, experiment_id, run.data.tags[PARENT])
                closed += 1
    return closed
