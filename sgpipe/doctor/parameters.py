"""Would the stages accept these parameters? Their own checks, on files that are there, without loading a weight."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from sgpipe.doctor.findings import Finding, Level
from sgpipe.errors import SgpipeError

AREA = "parameters"


def refused(check: Callable[[], Any], area: str) -> list[Finding]:
    """The finding for what `check` refuses, its remedy as the error states it; nothing where it refuses nothing."""
    try:
        check()
    except SgpipeError as error:
        what, _, remedy = str(error).rpartition("; ")
        return [
            Finding(Level.FAIL, area, what or str(error), remedy if what else "mend what the finding names")
        ]
    return []


def check_parameters(params: Path) -> list[Finding]:
    """Every section by itself, block sets against the backbone, every arm, and the models of judges and tower."""
    from sgpipe.arms.resolve import resolve
    from sgpipe.evaluation.judge_factory import judge_identity
    from sgpipe.graph_encoder.tower import tower_identity
    from sgpipe.params.show import load_all, spelled_out

    if findings := refused(lambda: spelled_out(load_all(params)), AREA):
        return findings
    sections = load_all(params)
    lora, tokens, backbone, maps = (sections[name] for name in ("lora", "graph_tokens", "backbone", "maps"))
    checks: list[Callable[[], Any]] = [
        *(partial(resolve, arm, lora, tokens, backbone, maps) for arm in lora.arms),
        *(partial(judge_identity, *named) for named in sections["judge"].judges.items()),
        partial(tower_identity, sections["graph_encoder"]),
    ]
    findings = [finding for check in checks for finding in refused(check, AREA)]
    return findings or [Finding(Level.OK, AREA, f"{params}: {len(sections)} sections, {len(lora.arms)} arms")]
