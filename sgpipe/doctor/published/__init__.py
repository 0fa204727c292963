"""Published configurations of checkpoints: a gated one of tens of gigabytes is planned before a byte of it is there."""

import json
from pathlib import Path
from typing import Any, Final

PUBLISHED: Final[dict[str, dict[str, dict[str, Any]]]] = {
    path.stem.replace("--", "/"): json.loads(path.read_text(encoding="utf-8"))
    for path in sorted(Path(__file__).parent.glob("*.json"))
}
"""config.json by hub id and part."""
