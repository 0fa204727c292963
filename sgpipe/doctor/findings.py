"""What a check has to say."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from rich.console import Console
from rich.table import Table


class Level(Enum):
    """Whether a run would work: as it is, differently than one might expect, or not at all."""

    OK = "ok"
    WARN = "warning"
    FAIL = "missing"


@dataclass(frozen=True)
class Finding:
    """One line of the table; `remedy` is a command or a deed, and empty only where nothing needs doing."""

    level: Level
    area: str
    what: str
    remedy: str = ""


_STYLE = {Level.OK: "green", Level.WARN: "yellow", Level.FAIL: "bold red"}


def show(findings: Iterable[Finding], console: Console) -> None:
    """Print findings as a table, in the order given."""
    table = Table("", "area")
    table.add_column("finding", overflow="fold")
    table.add_column("remedy", overflow="fold")
    for finding in findings:
        style = _STYLE[finding.level]
        table.add_row(f"[{style}]{finding.level.value}[/]", finding.area, finding.what, finding.remedy)
    console.print(table)
