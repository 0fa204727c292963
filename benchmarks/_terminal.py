"""A picture of a terminal: commands run by bash, and what they really print, as an SVG without remote fonts or links."""

import os
import re
import subprocess
from collections.abc import Mapping
from io import StringIO
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.text import Text

from sgpipe.runs.atomic import atomic_path

FORMAT = re.sub(r"<!-- .*? -->|@font-face \{\{.*?\}\}", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL).replace(
    "Fira Code, monospace", "ui-monospace, Menlo, Consolas, 'DejaVu Sans Mono', monospace"
)
"""rich's own, without its fonts from elsewhere and its advertisement."""


def terminal(commands: str, out: Path, width: int = 100, cwd: Path | None = None, hidden: Mapping[str, str] | None = None) -> None:
    """Run each line of `commands` in `cwd` and write an SVG of the lines and their output, `width` characters wide.

    `hidden` gives what stands in the picture for folders of this machine. Nothing else of the output is changed; a
    line that should be cut says so itself (`| head -n 20`). Of a line that is written over the last state is
    shown. A failing command is shown as it fails.
    """
    console = Console(
        record=True, width=width, file=StringIO(), force_terminal=True, color_system="truecolor", legacy_windows=False
    )
    environment = os.environ | {"COLUMNS": str(width), "FORCE_COLOR": "1", "TERM": "xterm-256color", "TTY_INTERACTIVE": "0"}
    environment.pop("NO_COLOR", None)
    for command in commands.splitlines():
        done = subprocess.run(
            ["bash", "-c", command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=cwd, env=environment, check=False
        )
        printed = "\n".join(line.rstrip("\r").rpartition("\r")[2] for line in done.stdout.decode().split("\n"))
        for folder, name in (hidden or {}).items():
            fill = " " * (len(folder) - len(name))
            printed = re.sub(rf"{re.escape(folder)}([^│\n]*)│", rf"{name}\1{fill}│", printed).replace(folder, name)
        console.print(Text("$ ", style="bold green") + Text(command, style="bold"))
        if printed.strip():
            console.print(Text.from_ansi(printed.rstrip("\n")))
    svg = console.export_svg(title=out.stem.replace("_", " "), code_format=FORMAT, unique_id=out.stem)
    with atomic_path(out) as temporary:
        temporary.write_text(svg, encoding="utf-8")
