"""Every command that README and docs show exists with its options, and runs in a test unless it is long. And what the command line
promises."""

import ast
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer

from sgpipe.runs import progress
from sgpipe.runs.command import call
from sgpipe.runs.state import stage_state, state_folder
from tests.commands import test_benchmarks, test_models, test_pipeline, test_reading, test_stages, test_study
from tests.conftest import ROOT
from tests.documented import APPS, COMMANDS, MENTIONS, application, parts, shown, split_program
from tests.stages import test_own_images

RUN = (
    *test_reading.RUN, *test_models.RUN, *test_benchmarks.RUN, *test_study.RUN, *test_stages.RUN, *test_pipeline.RUN,
    *sorted(set(shown(test_own_images.PAGE.read_text(encoding="utf-8")))),
)  # fmt: skip
"""What tests run, word by word."""

LONG: Mapping[str, tuple[str, str | None]] = {
    "make bench": ("measures for an hour", "benchmarks/test_against.py::test_the_stages_are_those_that_there_are"),
    "make check": ("this test is one of its own", None),
    "make placement": ("trains for hours", "localisation/test_placement.py::test_a_killed_run_goes_on_and_gives_the_same_table"),
    "make repro": ("makes an environment, then half an hour", "commands/test_pipeline.py::test_the_pipeline_and_its_experiments"),
    "make sweep": (
        "trains for 70 minutes", "stages/test_experiments.py::test_a_knob_runs_what_reads_it_and_a_queue_stands_side_by_side",
    ),
    "make sweep LAYOUT=1": ("trains for hours", "commands/test_pipeline.py::test_the_pipeline_and_its_experiments"),
    "make test": ("this test is one of its own", None),
    "python -m benchmarks.families --check": ("minutes at the real size", "benchmarks/test_families.py::test_a_missed_bar_fails"),
    "python -m benchmarks.flux_full_size": (
        "minutes at the real size", "benchmarks/test_flux_full_size.py::test_without_a_gpu_full_size_says_what_was_not_run",
    ),
    "python -m benchmarks.flux_full_size --preset flux-dev-vg": (
        "minutes at the real size", "benchmarks/test_flux_full_size.py::test_without_a_gpu_full_size_says_what_was_not_run",
    ),
    "python -m sgworld.world certify": (
        "draws and reads 2,400 images", "sgworld/world/test_reader.py::test_ground_truth_clean_and_softened",
    ),
    "python -m sgworld.world render --out outputs/world": (
        "draws 16,000 images", "sgworld/world/test_reader.py::test_data_set_is_reproducible_and_has_one_to_four_triples",
    ),
    "python -m sgworld.world train --start world_start --part flux --out outputs/world_models": (
        "trains for hours", "sgworld/world/test_recipe.py::test_a_generator_is_taught_to_read_on_and_then_to_draw",
    ),
    "sgpipe fetch visual-genome": ("needs the network", "fetch/test_archives.py::test_command_asks_the_official_homes"),
    "sgpipe fetch visual-genome --annotations-only": (
        "needs the network", "fetch/test_archives.py::test_command_asks_the_official_homes",
    ),
    "sgpipe fetch visual-genome --triples outputs/curated/triples.parquet --triples outputs/curated/map_triples.parquet": (
        "needs the network", "fetch/test_images.py::test_command_reports_rejects_by_exit_code_and_continues",
    ),
    "sgpipe placement --epochs 2 --seeds 0,1,2,3 --enter 0,3,7,10,13,16": (
        "trains for hours", "localisation/test_placement.py::test_images_are_those_of_the_trained_adapters",
    ),
    "sgpipe playground": ("serves until interrupted", "playground/test_browser.py::test_an_edited_graph_gives_another_image"),
    "sgpipe report sweep 'arms*' --beside 'predecessor=predecessor*' --seeds 0,1,2": (
        "needs the experiments of a sweep", "evaluation/test_sweep.py::test_the_command_asks_for_its_seeds",
    ),
    "sgpipe sgdiff import vg.ckpt --vocabulary vocab.json --out models/sgdiff": (
        "needs published weights", "sgdiff/test_model.py::test_commands_import_and_sample",
    ),
    "sgpipe sgdiff sample --model models/sgdiff --graph 'man, riding, horse; horse, on, grass' --count 4 --out horse.png": (
        "needs published weights", "sgdiff/test_model.py::test_commands_import_and_sample",
    ),
    "sgpipe tracking ui": (
        "serves until interrupted", "tracking/test_names.py::test_the_page_of_the_runs_is_that_for_model_training",
    ),
    "sgworld measure": (
        "minutes of samples, written into the model cards", "sgworld/test_cards.py::test_cards_state_figures_steps_and_misses",
    ),
    "sgworld render": ("draws 6,600 images", "sgworld/test_world.py::test_the_data_set_says_what_its_pictures_show"),
    "sgworld train": ("trains for five hours", "sgworld/test_training.py::test_every_checkpoint_is_in_its_standard_format"),
    "sgworld train-on --steps 950 --decay 750": (
        "trains for hours", "sgworld/test_training.py::test_every_checkpoint_is_in_its_standard_format",
    ),
}  # fmt: skip
"""What no test runs: why, and a test that takes the same steps at a small size."""


def leaf(name: str, given: list[str]) -> tuple[Any, list[str]]:
    """The command of a typer application that words name, and the words that are left for it."""
    command, rest = application(name), list(given)
    while hasattr(command, "commands") and rest and not rest[0].startswith("-"):
        assert rest[0] in command.commands, f"{name} {shlex.join(given)}: no {rest[0]}; valid: {', '.join(command.commands)}"
        command, rest = command.commands[rest[0]], rest[1:]
    return command, rest


@cache
def dvc_parser() -> Any:
    from dvc.cli.parser import get_main_parser

    return get_main_parser()


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_that_is_shown_is_parsed(command: str) -> None:
    for words in parts(command):
        name, given = split_program(words)
        if name in APPS:
            found, rest = leaf(name, given)
            found.make_context(name, rest)
        elif name == "dvc":
            dvc_parser().parse_args(given)
        elif name == "make":
            subprocess.run(["make", "--dry-run", *given], cwd=ROOT, capture_output=True, check=True)
        elif name != "git":  # git parses what it runs, and all of it is run
            source = ROOT / f"{name.replace('.', '/')}.py"
            text = source.read_text(encoding="utf-8")
            for option in (word.partition("=")[0] for word in given if word.startswith("--")):
                assert option in text or option[2:].replace("-", "_") in text, f"{source}: has no {option}"


@pytest.mark.parametrize("command", MENTIONS)
def test_a_command_that_is_mentioned_exists_with_its_options(command: str) -> None:
    found, rest = leaf(*split_program([word for word in command.split() if word != "…"]))
    options = {option for param in found.params for option in param.opts} | {"--help", "--install-completion", "--show-completion"}
    assert {word.partition("=")[0] for word in rest if word.startswith("--")} <= options


def test_wrong_commands_would_be_found() -> None:
    with pytest.raises(AssertionError, match="no draw"):
        leaf("sgpipe", ["draw"])
    found, rest = leaf("sgpipe", ["maps", "--prompt", "x", "--concept", "y"])
    with pytest.raises(Exception, match=r"[Nn]o such option"):
        found.make_context("sgpipe", rest)
    assert len(COMMANDS) > 100 and len(MENTIONS) > 10


def test_every_command_is_run_or_long() -> None:
    """Each in one table, and none that no page shows."""
    tables = Counter([*RUN, *LONG])
    assert sorted(tables.elements()) == COMMANDS, f"not in a table: {sorted(set(COMMANDS) - set(tables))}"


def test_what_stands_in_for_a_long_command_is_a_test() -> None:
    for command, (reason, test) in LONG.items():
        assert reason
        if test is not None:
            file, _, name = test.partition("::")
            tree = ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8"))
            assert name in {each.name for each in tree.body if isinstance(each, ast.FunctionDef)}, f"{command}: no {test}"


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
