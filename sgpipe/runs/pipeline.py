"""The pipeline as DVC knows it: its stages and who waits for whom, and what changed since one of them ran."""

import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sgpipe.errors import ParamsError
from sgpipe.params.load import read_yaml
from sgpipe.runs.code import FOLDER, code_of, read_code

CODE = "code"
"""The stage on which all others depend."""


@contextmanager
def _opened(root: Path) -> Iterator[Any]:
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    if not (root / "dvc.yaml").is_file():
        raise ParamsError("dvc.yaml: no such file; run from the repository root")
    try:
        with Repo(str(root)) as repo:
            yield repo
    except DvcException as error:
        raise ParamsError(f"dvc.yaml: {' '.join(str(error).split())}") from None


def _knobs(key: str, before: Any, after: Any) -> Iterator[str]:
    """The knobs within `key` that differ, with both values."""
    if isinstance(before, dict) and isinstance(after, dict):
        for name in dict.fromkeys([*before, *after]):
            yield from _knobs(f"{key}.{name}", before.get(name), after.get(name))
    elif before != after:
        yield f"params: {key} {before} -> {after}"


def _code_changes(repo: Any, entry: dict[str, Any], root: Path) -> list[str]:
    """What changed in the code of a stage since the run that `entry` of dvc.lock records."""
    dep = next((each for each in entry.get("deps", []) if Path(each["path"]).parent == FOLDER), None)
    if dep is None:
        return []
    before = Path(repo.cache.local.oid_to_path(dep["md5"]))
    if not before.is_file():
        return [f"code: {dep['path']} of that run is no longer in the DVC cache"]
    now = code_of(f"stages.{Path(dep['path']).stem}", root)
    return [f"code: {change}" for change in read_code(before.read_text(encoding="utf-8")).changes(now)]


def _changes(repo: Any, stage: str, status: list[Any], entry: dict[str, Any] | None, root: Path) -> list[str]:
    """Lines that say what changed since `stage` ran; `status` is what DVC says of it."""
    if entry is None:
        return ["never ran"]
    found = [] if stage == CODE else _code_changes(repo, entry, root)
    params = read_yaml(root / "params.yaml")
    for part in status:
        if not isinstance(part, dict):
            found.append(str(part))
            continue
        for path, change in part.get("changed deps", {}).items():
            if isinstance(change, dict):
                old = entry.get("params", {}).get(path, {})
                for key in change:
                    now: Any = params
                    for name in key.split("."):
                        now = now.get(name) if isinstance(now, dict) else None
                    found += _knobs(key, old.get(key), now)
            elif Path(path).parent != FOLDER:
                found.append(f"input: {path} {change}")
        found += [f"output: {path} {change}" for path, change in part.get("changed outs", {}).items()]
    return found


def why(name: str, root: Path) -> dict[str, list[str]]:
    """By stage what changed since stage `name` ran, each of a matrix by itself, and then what changed in the stages before it.

    Modules, libraries, knobs with both values, inputs, outputs. Raises `ParamsError` for a stage that there is not.
    """
    from dvc.dvcfile import LOCK_FILE

    changes: dict[str, list[str]] = {}
    with _opened(root) as repo:
        known = [stage.addressing for stage in repo.index.stages if stage.is_data_source is False]
        chosen = [each for each in known if name in (each, each.partition("@")[0])]
        if not chosen:
            valid = ", ".join(dict.fromkeys(each.partition("@")[0] for each in known))
            raise ParamsError(f"stage: got {name!r}; valid: {valid}")
        recorded = read_yaml(root / LOCK_FILE).get("stages", {}) if (root / LOCK_FILE).is_file() else {}
        status = repo.status(targets=chosen, with_deps=True)
        before = [each for each in known if each in status and each not in chosen]
        for each in chosen + before:
            found = _changes(repo, each, status.get(each, []), recorded.get(each), root)
            if each == CODE and found:
                found = ["files edited; the stages that they concern say which"]
            if found or each in chosen:
                changes[each] = found
    return changes


def dag(root: Path, width: int = 110) -> list[str]:
    """A line per stage, in the order of dvc.yaml, with the stages that it waits for; those that another of them waits for are left
    out, and so is `code`. A stage that is several is followed by their number."""
    counts: dict[str, int] = {}
    needs: dict[str, set[str]] = {}
    with _opened(root) as repo:
        for stage in repo.index.stages:
            own, *others = (
                each.addressing.partition("@")[0].removesuffix(".dvc") for each in (stage, *repo.index.graph.successors(stage))
            )
            if own != CODE:
                counts[own] = counts.get(own, 0) + 1
                needs.setdefault(own, set()).update(set(others) - {CODE})

    def behind(name: str) -> set[str]:
        return needs[name].union(*map(behind, needs[name]))

    titles = {name: f"{name} ×{count}" if count > 1 else name for name, count in counts.items()}
    indent = max(map(len, titles.values())) + 2
    sources = {name for name in counts if (root / f"{name}.dvc").is_file()}
    lines = []
    for name in (each for each in counts if each not in sources):
        direct = needs[name].difference(*map(behind, needs[name]))
        text = ", ".join(each for each in counts if each in direct) or "params.yaml alone"
        for i, line in enumerate(textwrap.wrap(text, width - indent - 2)):
            lines.append(f"{titles[name] if i == 0 else '':<{indent}}{'← ' if i == 0 else '  '}{line}")
    return lines
