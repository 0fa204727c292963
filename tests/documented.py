"""Commands and Python blocks that README and docs show, and how a test runs one of the commands as a reader would."""

import io
import logging
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import chdir, redirect_stderr, redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import Any

import typer
from typer.testing import CliRunner

from tests.conftest import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
STARTS = (
    "sgpipe ", "sgworld ", "dvc ", "git ", "make ", "python -m benchmarks", "python -m stages", "python -m sgpipe",
    "python -m sgworld",
)  # fmt: skip
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
APPS = {"sgpipe": "sgpipe.cli", "sgworld": "sgworld.cli", "sgworld.world": "sgworld.world.__main__"}
"""Where the typer application of a command is, by the command's name or its module's."""


def shown(text: str) -> Iterator[str]:
    """Commands in the code blocks of a page, continued lines joined, comments left out."""
    for _, block in FENCED.findall(text):
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith(STARTS) and not line.startswith("make sure"):
                yield shlex.join(shlex.split(line, comments=True)).replace("'&&'", "&&")


def mentioned(text: str) -> Iterator[str]:
    """Commands in the running text, as `sgpipe dag`."""
    yield from re.findall(r"`((?:sgpipe|sgworld|python -m sgworld\.world) [^`\n]+)`", FENCED.sub("", text))


def _of_all(found: Any) -> list[str]:
    return sorted({command for page in PAGES for command in found(page.read_text(encoding="utf-8"))})


COMMANDS = _of_all(shown)
MENTIONS = _of_all(mentioned)
PYTHON = {
    f"{page.relative_to(ROOT)}:{number}": block
    for page in PAGES
    for number, block in enumerate(
        (block for language, block in FENCED.findall(page.read_text(encoding="utf-8")) if language == "python"), 1
    )
}
"""Blocks of Python by page and number."""


def parts(command: str) -> list[list[str]]:
    """The words of a line's commands, which `&&` joins."""
    return [shlex.split(each) for each in command.split(" && ")]


def split_program(words: list[str]) -> tuple[str, list[str]]:
    """The program's or the module's name, and what is given to it."""
    return (words[2], words[3:]) if words[:2] == ["python", "-m"] else (words[0], words[1:])


def application(name: str) -> Any:
    """The click command of a typer application of `APPS`."""
    return typer.main.get_command(import_module(APPS[name]).app)


def ran(command: str, root: Path, code: int = 0) -> str:
    """What a command prints that runs in folder `root` and ends with `code`: in this process, as far as it is Python's."""
    said = ""
    with chdir(root):
        for words in parts(command):
            ended, printed = _run(*split_program(words))
            assert ended == code, f"{command}: ended with {ended}\n{printed}"
            said += printed
    return said


def _run(name: str, given: list[str]) -> tuple[int, str]:
    if name == "dvc":
        return dvc(given)
    if name == "git":
        done = subprocess.run([name, *given], capture_output=True, text=True, check=False)
        return done.returncode, done.stdout + done.stderr
    if name in APPS:
        app = import_module(APPS[name]).app
    else:
        app = typer.Typer()
        app.command()(import_module(name).main)
    invoked = CliRunner().invoke(app, given, catch_exceptions=False)
    return invoked.exit_code, invoked.output


def dvc(given: list[str]) -> tuple[int, str]:
    """DVC without the start of another Python, which takes longer than most of its commands; it logs what it says of stages."""
    from dvc.cli import main

    out, path = io.StringIO(), os.environ["PATH"]
    handlers = [each for each in logging.getLogger("dvc").handlers if isinstance(each, logging.StreamHandler)]
    before = [each.setStream(out) for each in handlers]
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{path}"  # a stage starts `python`
    try:
        with redirect_stdout(out), redirect_stderr(out):
            code = main(given)
    finally:
        os.environ["PATH"] = path
        for handler, stream in zip(handlers, before, strict=True):
            handler.setStream(stream)
    return code, out.getvalue()


def copied(target: Path, *names: str) -> None:
    """Put these files and folders of the working tree, but nothing that git ignores, into `target`."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *names],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (target / name).write_bytes((ROOT / name).read_bytes())


def project(target: Path, *names: str) -> Path:
    """A fresh repository with these files and folders of the working tree, committed."""
    copied(target, *names)
    git(target, "init", "--quiet")
    git(target, "config", "user.name", "a")
    git(target, "config", "user.email", "a@example.org")
    commit(target, "start")
    return target


def git(root: Path, *words: str) -> str:
    return subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=True).stdout


def commit(root: Path, message: str) -> None:
    """All that is there."""
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--allow-empty", "-m", message)
