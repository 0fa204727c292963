"""The parameter reference: in step with the code, complete, and a table that Markdown can read."""

import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from sgpipe.arms.kinds import KINDS
from sgpipe.cli import app
from sgpipe.params.load import SECTIONS, to_builtins
from sgpipe.params.reference import reference
from sgpipe.params.show import load_all

CELL = re.compile(r"(?<!\\)\|")


def sections(text: str) -> dict[str, list[list[str]]]:
    """Rows of each section's table, split at the bars that are not escaped."""
    parts = re.split(r"^## (\w+)\n", text, flags=re.MULTILINE)[1:]
    return {
        name: [[cell.strip() for cell in CELL.split(line)[1:-1]] for line in body.splitlines() if line.startswith("| `")]
        for name, body in zip(parts[::2], parts[1::2], strict=True)
    }


@pytest.fixture(scope="module")
def text(repo_root: Path) -> str:
    return reference(repo_root / "params.yaml")


def test_the_committed_page_is_what_the_code_says(repo_root: Path, text: str) -> None:
    page = (repo_root / "docs" / "parameters.md").read_text(encoding="utf-8")
    assert page == text, "docs/parameters.md is out of step: run `sgpipe params reference > docs/parameters.md`"


def test_the_command_prints_it(repo_root: Path, text: str) -> None:
    done = CliRunner().invoke(app, ["params", "reference", "--params", str(repo_root / "params.yaml")])
    assert done.exit_code == 0
    assert done.stdout == text


def test_every_knob_has_a_row(repo_root: Path, text: str) -> None:
    """Dotted paths of all values, with `<name>` for names that the user gives, are the first cells and in that order."""

    def paths(section: Any, prefix: str) -> list[str]:
        found = []
        for name in section.__struct_fields__:
            value = getattr(section, name)
            found.append(f"{prefix}{name}")
            if hasattr(value, "__struct_fields__"):
                found += paths(value, f"{prefix}{name}.")
            elif isinstance(value, dict) and hasattr(next(iter(value.values())), "__struct_fields__"):
                found += paths(next(iter(value.values())), f"{prefix}{name}.<name>.")
        return found

    shown = sections(text)
    assert list(shown) == list(SECTIONS)
    for name, section in load_all(repo_root / "params.yaml").items():
        if name == "arms":
            kinds = [kind.options.__struct_fields__ for kind in KINDS.values()]
            knobs = [f"<name>.{knob}" for knobs in kinds for knob in knobs]
        else:
            knobs = paths(section, "")
        assert [row[0].strip("`") for row in shown[name]] == knobs


def test_every_row_has_all_cells(text: str) -> None:
    for name, rows in sections(text).items():
        for row in rows:
            assert len(row) == 5, (name, row)
            assert row[4], (name, row)


def test_values_are_those_of_the_file(repo_root: Path, text: str) -> None:
    shown = {name: {row[0].strip("`"): row for row in rows} for name, rows in sections(text).items()}
    lora = to_builtins(load_all(repo_root / "params.yaml")["lora"])
    assert shown["lora"]["blocks"][1:4] == [f"`{lora['blocks']}`", "required", "blocks"]
    train = to_builtins(load_all(repo_root / "params.yaml")["train"])
    assert shown["train"]["losses.margin.margin"][3] == "number > 0"
    assert shown["train"]["keep_epochs"][1:3] == [f"`{list(train['keep_epochs'])}`", "`[]`"]
    assert shown["train"]["guidance"][1:4] == ["`null`", "the same", "number ≥ 0, or null"]
    assert shown["backbone"]["resolution"][3] == "integer ≥ 16 and a multiple of 8"
    assert shown["judge"]["judges.<name>.kind"][2] == "required"


def test_choices_stand_in_the_order_that_their_description_has(text: str) -> None:
    targets = next(row for row in sections(text)["lora"] if row[0] == "`targets`")
    assert targets[3].startswith("list of at least 1: `to_q`, `to_k`, `to_v`, `to_out.0`, `add_q_proj`")
