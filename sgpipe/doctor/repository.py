"""Is the DVC side in order: a remote to pull from, and every tracked file pulled and whole?"""

import os
from pathlib import Path
from typing import Any

import yaml

from sgpipe.doctor.findings import Finding, Level
from sgpipe.runs.state import beside_cache, user_dir

AREA = "dvc"


def tracked(root: Path) -> dict[Path, dict[str, Any]]:
    """Path and recorded hash, size and file count of every output of the .dvc files in `root`."""
    outs: dict[Path, dict[str, Any]] = {}
    for path in sorted(root.glob("*.dvc")):
        if path.is_file():
            for out in (yaml.safe_load(path.read_text(encoding="utf-8")) or {}).get("outs", []):
                if isinstance(out, dict) and "path" in out:
                    outs[path.parent / out["path"]] = out
    return outs


def _held(store: Path, md5: str) -> bool:
    """A DVC cache or local remote holds the object (layout of DVC 3: files/md5/ab/cdef…)."""
    return any((store / prefix / md5[:2] / md5[2:]).is_file() for prefix in ("files/md5", "."))


def _size(path: Path) -> tuple[int, int]:
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    return sum(p.stat().st_size for p in files), len(files)


def _state(path: Path, out: dict[str, Any], cache: Path, remote: Path | None) -> Finding:
    md5 = out.get("md5", "")
    recorded = (out.get("size"), out.get("nfiles", 1))
    if path.exists():
        found = _size(path)
        if recorded[0] is None or found == recorded:
            return Finding(Level.OK, AREA, f"{path}: pulled, {found[1]} files, {found[0] / 2**20:.1f} MiB")
        what = (
            f"{path}: {found[1]} files, {found[0]} bytes; its .dvc file says {recorded[1]} files, "
            f"{recorded[0]} bytes"
        )
        return Finding(Level.WARN, AREA, what, f"dvc status {path}.dvc; then `dvc checkout` or `dvc add` it")
    if _held(cache, md5):
        return Finding(
            Level.FAIL, AREA, f"{path}: in the cache, not in the workspace", f"dvc checkout {path}.dvc"
        )
    if remote is None or _held(remote, md5):
        return Finding(Level.FAIL, AREA, f"{path}: not pulled", f"dvc pull {path}.dvc")
    what = f"{path}: neither in the workspace nor in the cache nor in the remote {remote}"
    return Finding(
        Level.FAIL, AREA, what, "get the remote's files (`git lfs pull`, a full clone), or make it anew"
    )


def _state_findings(shared: Path) -> list[Finding]:
    """Whether long stages can keep their working state beside the DVC cache, which users may share, and MLflow its record."""
    findings = []
    for folder in (shared, shared / "stage-state"):
        if not folder.exists():
            continue
        if not os.access(folder, os.W_OK | os.X_OK):
            what = (
                f"{folder}: not writable by this user; working states and MLflow's record go to {user_dir(folder)}, where nobody "
                "else continues them"
            )
            remedy = f"have its owner run `chmod -R g+rwX {folder}`, or set another `dvc cache dir --local`"
            findings.append(Finding(Level.WARN, AREA, what, remedy))
        elif folder != shared:
            foreign = [p.name for p in sorted(folder.iterdir()) if not os.access(p, os.W_OK)]
            if foreign:
                what = f"{folder}: {len(foreign)} working states of another user (first: {foreign[0]}), which cannot be continued"
                remedy = f"have their owner run `chmod -R g+rwX {folder}`, or remove them"
                findings.append(Finding(Level.WARN, AREA, what, remedy))
    return findings


def check_dvc(root: Path) -> list[Finding]:
    """The repository's DVC configuration, its default remote, and each tracked file or folder."""
    from dvc.config import Config, ConfigError

    folder = root / ".dvc"
    if not folder.is_dir():
        what = f"{root.resolve()}: no DVC repository"
        return [Finding(Level.FAIL, AREA, what, "run from the repository's folder, or `git clone` it")]
    try:
        config = Config(str(folder))
    except ConfigError as error:
        return [Finding(Level.FAIL, AREA, f"{folder / 'config'}: {error}", "git checkout .dvc/config")]
    cache = Path(config["cache"].get("dir") or folder / "cache")
    name = config["core"].get("remote")
    if name is None or name not in config["remote"]:
        return [Finding(Level.FAIL, AREA, "no default remote is configured", "git checkout .dvc/config")]
    url = str(config["remote"][name]["url"])
    local = Path(url) if "://" not in url else None
    findings = _state_findings(beside_cache(root))
    if local is not None and not local.is_dir():
        what = f"remote {name}: {local} is not a folder"
        findings.append(Finding(Level.WARN, AREA, what, "clone the repository anew, or `dvc remote modify`"))
        local = None
    else:
        findings.append(Finding(Level.OK, AREA, f"remote {name}: {url}"))
    return findings + [_state(path, out, cache, local) for path, out in tracked(root).items()]
