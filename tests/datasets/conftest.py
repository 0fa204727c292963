"""Samples of Visual Genome: a made-up one that is always there, and writers of small data folders."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sgpipe.datasets.canonicalize import canonicalize
from sgpipe.datasets.config import Canonicalize
from sgpipe.datasets.visual_genome.data_set import VisualGenome

FILES = ("image_data", "objects", "relationships")


@pytest.fixture(scope="package", autouse=True)
def no_waiting_for_the_disk() -> Iterator[None]:
    """Files are renamed into place without being synced first: a power failure is not tested."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("os.fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session")
def sample(repo_root: Path) -> Path:
    """The made-up sample in layout v1.4."""
    return repo_root / "tests/data/visual_genome/v1_4"


@pytest.fixture(scope="session")
def sample_v1_0(repo_root: Path) -> Path:
    """The same sample in layout v1.0."""
    return repo_root / "tests/data/visual_genome/v1_0"


@pytest.fixture(scope="session")
def made(sample: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Tables and metrics of the made-up sample; to be read only."""
    out = tmp_path_factory.mktemp("canonical")
    return out, canonicalize(VisualGenome(sample), out, Canonicalize())


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
