"""What a check has to say."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import Any, Self

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sgpipe.errors import SgpipeError


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

    @classmethod
    def of(cls, error: SgpipeError, area: str) -> Self:
        """What a stage would refuse, the remedy as its error states it."""
        what, _, remedy = str(error).rpartition("; ")
        return cls(Level.FAIL, area, what or str(error), remedy if what else "mend what the finding names")


ok, warn, fail = (partial(Finding, level) for level in (Level.OK, Level.WARN, Level.FAIL))


def refused(check: Callable[[], Any], area: str) -> list[Finding]:
    """The finding for what `check` refuses; nothing where it refuses nothing."""
    try:
        check()
    except SgpipeError as error:
        return [Finding.of(error, area)]
    return []


def show(findings: Iterable[Finding], console: Console) -> None:
    """Print findings as a table, in the order given."""
    style = {Level.OK: "green", Level.WARN: "yellow", Level.FAIL: "bold red"}
    table = Table("", "area")
    table.add_column("finding", overflow="fold")
    table.add_column("remedy", overflow="fold")
    for each in findings:
        level = f"[{style[each.level]}]{each.level.value}[/]"
        table.add_row(level, each.area, escape(each.what), escape(each.remedy))
    console.print(table)
