"""What git says about the project's folder, which may be a subfolder of a larger repository: every path is relative to `root`."""

import hashlib
import subprocess
from pathlib import Path

from sgpipe.errors import SgpipeError
from sgpipe.runs.state import config_hash

CODE = ("sgpipe", "sgworld", "stages")
"""Folders whose files are the experiment's code."""


def git(root: Path, *arguments: str) -> str:
    """Standard output of git run in `root`. Raises `SgpipeError` where git fails or is not installed."""
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, encoding="utf-8", check=False)
    except FileNotFoundError:
        raise SgpipeError("git: not installed, or not on PATH; install it and run again") from None
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise SgpipeError(f"git {' '.join(arguments[:2])}: {said[0] if said else 'failed'}; run inside the repository")
    return done.stdout


def said(root: Path, *arguments: str) -> str:
    """Output of git in `root` without white space around it; empty outside a repository."""
    try:
        return git(root, *arguments).strip()
    except SgpipeError:
        return ""


def _blob(path: Path) -> str:
    """The id that git gives a file's content (of a symbolic link: its target's name)."""
    data = str(path.readlink()).encode() if path.is_symlink() else path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def code_hash(root: Path) -> str:
    """16 hex digits of the code in the working tree, uncommitted and untracked files included, ignored ones not."""
    listed = said(root, "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *CODE)
    paths = {name: root / name for name in listed.split("\0") if name}
    present = {name: path for name, path in paths.items() if path.is_symlink() or path.is_file()}
    return config_hash({name: _blob(path) for name, path in present.items()})


def code_hash_at(root: Path, commit: str) -> str:
    """The same of a commit: equal to `code_hash` of its clean checkout."""
    rows = (row.partition("\t") for row in git(root, "ls-tree", "-rz", commit, "--", *CODE).split("\0") if row)
    return config_hash({name: entry.split()[2] for entry, _, name in rows})
