"""Every command that README and docs show exists with its options; the quick ones run. And what the command line promises."""

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

import sgpipe.cli
import sgworld.cli
from sgpipe.runs import progress
from sgpipe.runs.command import call
from sgpipe.runs.state import stage_state, state_folder
from tests.conftest import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
STARTS = ("sgpipe ", "sgworld ", "dvc ", "make ", "python -m benchmarks", "python -m stages", "python -m sgpipe")
FENCED = re.compile(r"^```\w*\n(.*?)^```$", re.DOTALL | re.MULTILINE)
QUICK = ("sgpipe dag", "sgpipe preset", "sgpipe preset flux-schnell-vg", "sgpipe preset flux-schnell-vg --settings")


def shown(text: str) -> Iterator[str]:
    """Commands in the code blocks of a page, continued lines joined, comments left out."""
    for block in FENCED.findall(text):
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith(STARTS) and not line.startswith("make sure"):
                yield shlex.join(shlex.split(line, comments=True))


def mentioned(text: str) -> Iterator[str]:
    """Commands in the running text, as `sgpipe dag`."""
    yield from re.findall(r"`((?:sgpipe|sgworld) [^`\n]+)`", FENCED.sub("", text))


COMMANDS = sorted({command for page in PAGES for command in shown(page.read_text(encoding="utf-8"))})
MENTIONS = sorted({command for page in PAGES for command in mentioned(page.read_text(encoding="utf-8"))})


def leaf(words: list[str]) -> tuple[Any, list[str]]:
    """The command of a typer application that words name, and the words that are left for it."""
    command = typer.main.get_command({"sgpipe": sgpipe.cli.app, "sgworld": sgworld.cli.app}[words[0]])
    rest = words[1:]
    while hasattr(command, "commands") and rest and not rest[0].startswith("-"):
        assert rest[0] in command.commands, f"{' '.join(words)}: no command {rest[0]}; valid: {', '.join(command.commands)}"
        command, rest = command.commands[rest[0]], rest[1:]
    return command, rest


@cache
def dvc_parser() -> Any:
    from dvc.cli.parser import get_main_parser

    return get_main_parser()


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_that_is_shown_is_parsed(command: str) -> None:
    words = shlex.split(command)
    if words[0] in ("sgpipe", "sgworld"):
        found, rest = leaf(words)
        found.make_context(words[0], rest)
    elif words[0] == "dvc":
        dvc_parser().parse_args(words[1:])
    elif words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    else:
        source = ROOT / f"{words[2].replace('.', '/')}.py"
        text = source.read_text(encoding="utf-8")
        for option in (word.partition("=")[0] for word in words[3:] if word.startswith("--")):
            assert option in text or option[2:].replace("-", "_") in text, f"{source}: has no {option}"


@pytest.mark.parametrize("command", MENTIONS)
def test_a_command_that_is_mentioned_exists_with_its_options(command: str) -> None:
    found, rest = leaf([word for word in command.split() if word != "…"])
    options = {option for param in found.params for option in param.opts} | {"--help", "--install-completion", "--show-completion"}
    assert {word.partition("=")[0] for word in rest if word.startswith("--")} <= options


def test_wrong_commands_would_be_found() -> None:
    with pytest.raises(AssertionError, match="no command draw"):
        leaf(["sgpipe", "draw"])
    found, rest = leaf(["sgpipe", "maps", "--prompt", "x", "--concept", "y"])
    with pytest.raises(Exception, match=r"[Nn]o such option"):
        found.make_context("sgpipe", rest)
    assert len(COMMANDS) > 40 and len(MENTIONS) > 10 and set(QUICK) <= set(COMMANDS)


@pytest.mark.parametrize("command", QUICK)
def test_a_quick_command_runs(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    ran = CliRunner().invoke(sgpipe.cli.app, shlex.split(command)[1:], catch_exceptions=False)
    assert ran.exit_code == 0 and ran.stdout.strip()


def test_help_imports_nothing_heavy() -> None:
    """Modules, not seconds, which depend on the machine: 0.13 s of CPU with these left out."""
    heavy = ("torch", "numpy", "msgspec", "dvc", "mlflow", "diffusers", "matplotlib", "rich", "filelock")
    code = f"import sys, sgpipe.cli; print([name for name in {heavy!r} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


@pytest.mark.parametrize("working", [False, True])
def test_stopped_by_the_keyboard_it_says_what_is_kept_and_how_to_go_on(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, working: bool
) -> None:
    """With a working state, where that lies; without one, that nothing is half-made."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(progress, "_how_to_go_on", progress.AGAIN)
    app = typer.Typer()

    @app.command()
    def long() -> None:
        with stage_state("ended", "0" * 16, Path()):
            pass
        with stage_state("toy", "0" * 16, Path()) if working else nullcontext():
            raise KeyboardInterrupt

    monkeypatch.setattr(sys, "argv", ["long"])
    with pytest.raises(SystemExit, match="130"):
        call(app)
    folder = state_folder("toy", "0" * 16, Path())
    kept = f"stopped; what was finished is kept in {folder}: run the same command again to go on from there"
    assert capsys.readouterr().err.strip() == (kept if working else progress.AGAIN)
    assert folder.exists() == working
