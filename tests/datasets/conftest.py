"""Samples of Visual Genome: a made-up one that is always there, and writers of small data folders."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

FILES = ("image_data", "objects", "relationships")


@pytest.fixture(scope="session")
def sample(repo_root: Path) -> Path:
    """The made-up sample in layout v1.4."""
    return repo_root / "tests/data/visual_genome/v1_4"


@pytest.fixture(scope="session")
def sample_v1_0(repo_root: Path) -> Path:
    """The same sample in layout v1.0."""
    return repo_root / "tests/data/visual_genome/v1_0"


@pytest.fixture
def folder(tmp_path: Path, sample: Path) -> Callable[..., Path]:
    """Writes a data folder: the sample, with files replaced by given text, bytes or JSON values."""

    def write(**files: Any) -> Path:
        root = tmp_path / "data"
        root.mkdir(exist_ok=True)
        for name in FILES:
            content = files.get(name, (sample / f"{name}.json").read_bytes())
            if not isinstance(content, bytes | str):
                content = json.dumps(content, ensure_ascii=False)
            (root / f"{name}.json").write_bytes(content.encode() if isinstance(content, str) else content)
        return root

    return write
