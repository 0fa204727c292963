"""The repository's own DVC remote holds what it says: DVC itself does not look when it pulls from a folder.

A replacement over all text files of the repository once changed four model cards in the remote; what was pulled then differed from
what `models.dvc` names, and `dvc status` said so on one machine and not on another.
"""

import hashlib
import json
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
REMOTE = ROOT / "dvc-remote" / "files" / "md5"


def _named(md5: str) -> Path:
    return REMOTE / md5[:2] / md5[2:]


def test_every_object_of_the_remote_has_the_hash_that_it_is_named_by() -> None:
    objects = [path for path in REMOTE.glob("*/*") if path.is_file()]
    assert len(objects) > 20
    other = [str(path) for path in objects if hashlib.md5(path.read_bytes()).hexdigest() != path.parent.name + path.name[:30]]
    assert not other


def test_the_remote_has_all_that_data_and_models_name() -> None:
    for name in ("data.dvc", "models.dvc", "world_start.dvc"):
        (out,) = yaml.safe_load((ROOT / name).read_text())["outs"]
        files = json.loads(_named(out["md5"]).read_text())
        assert len(files) == out["nfiles"] and all(_named(each["md5"]).is_file() for each in files)
