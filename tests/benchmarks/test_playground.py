"""The committed times of the playground are within what its benchmark asks."""

import json
from pathlib import Path

from benchmarks.playground import CHANGE_SECONDS, FIRST_SECONDS


def test_committed_times_meet_the_bars(repo_root: Path) -> None:
    found = json.loads((repo_root / "metrics/playground.json").read_text(encoding="utf-8"))
    assert 0 < found["first_image_seconds"] <= FIRST_SECONDS and 0 < found["change_seconds_highest"] <= CHANGE_SECONDS
