"""The same tables however the files are cut, ordered and shared among processes, killed or not."""

import signal
import subprocess
import sys
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sgpipe.datasets.visual_genome.spans as spans_module
from sgpipe.datasets.canonicalize import canonicalize
from sgpipe.datasets.config import Canonicalize, Geometric
from sgpipe.datasets.visual_genome.columns import Columns
from sgpipe.datasets.visual_genome.data_set import VisualGenome
from sgpipe.datasets.visual_genome.passes import Spans, read_pass
from sgpipe.errors import SgpipeError
from tests.datasets.canonical import Folder, check_conservation, many, parts, rows


def test_same_bytes_however_it_is_run(folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, objects, relations = many(60)
    root = folder(image_data=images, objects=objects, relationships=relations)
    params = Canonicalize(geometric=Geometric(per_image=3, classes=("left of", "right of", "above", "below", "in")))
    first = canonicalize(VisualGenome(root), tmp_path / "a", params)
    assert first["geometric"]
    canonicalize(VisualGenome(root), tmp_path / "b", params)
    assert parts(tmp_path / "a") == parts(tmp_path / "b")
    monkeypatch.setattr("sgpipe.datasets.visual_genome.data_set._SMALL", 0)
    canonicalize(VisualGenome(root), tmp_path / "c", params, workers=2)
    assert parts(tmp_path / "a") == parts(tmp_path / "c")
    monkeypatch.setattr("sgpipe.datasets.visual_genome.passes.RUN", 3)
    for cut in ("guessed_spans", "exact_spans"):
        real = getattr(spans_module, cut)
        monkeypatch.setattr(f"sgpipe.datasets.visual_genome.passes.{cut}", lambda path, start, real=real: real(path, start, 300))
    assert canonicalize(VisualGenome(root), tmp_path / "d", params) == first
    assert parts(tmp_path / "a") == parts(tmp_path / "d")


def test_the_order_of_the_files_does_not_matter(folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither between files nor within one; lookups then span many parts."""
    images, objects, relations = many(40)
    canonicalize(VisualGenome(folder(image_data=images, objects=objects, relationships=relations)), tmp_path / "a", Canonicalize())
    order = np.random.default_rng(1).permutation(40)
    monkeypatch.setattr("sgpipe.datasets.visual_genome.passes.RUN", 2)
    monkeypatch.setattr(
        "sgpipe.datasets.visual_genome.passes.guessed_spans", lambda path, start: spans_module.guessed_spans(path, start, 2000)
    )
    shuffled = folder(image_data=images, objects=[objects[n] for n in order], relationships=relations[::-1])
    canonicalize(VisualGenome(shuffled), tmp_path / "b", Canonicalize())
    for name in ("objects", "relations"):
        key = "object_id" if name == "objects" else "relationship_id"
        a, b = (sorted(rows(tmp_path / out, name), key=lambda row: (row["image_id"], row[key])) for out in "ab")
        assert a == b


def test_wrong_guesses_are_noticed(folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Objects that begin like the record around them lead every guess astray; the exact cuts take over."""
    images, objects, relations = many(30)
    plain = folder(image_data=images, objects=objects, relationships=relations)
    canonicalize(VisualGenome(plain), tmp_path / "a", Canonicalize())
    for record in objects:
        record["objects"] = [{"image_id": 0, **item} for item in record["objects"]]
    monkeypatch.setattr(
        "sgpipe.datasets.visual_genome.passes.guessed_spans", lambda path, start: spans_module.guessed_spans(path, start, 700)
    )
    canonicalize(VisualGenome(folder(image_data=images, objects=objects, relationships=relations)), tmp_path / "b", Canonicalize())
    assert parts(tmp_path / "a") == parts(tmp_path / "b")


def test_a_repeated_image_record_is_rejected_across_spans(folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, objects, relations = many(10)
    root = folder(image_data=images, objects=[*objects, objects[0]], relationships=[*relations, relations[3]])
    whole = canonicalize(VisualGenome(root), tmp_path / "whole", Canonicalize())
    monkeypatch.setattr("sgpipe.datasets.visual_genome.passes.RUN", 2)
    monkeypatch.setattr(
        "sgpipe.datasets.visual_genome.passes.guessed_spans", lambda path, start: spans_module.guessed_spans(path, start, 10)
    )
    metrics = canonicalize(VisualGenome(root), tmp_path / "out", Canonicalize())
    assert (metrics, parts(tmp_path / "out")) == (whole, parts(tmp_path / "whole"))
    assert metrics["objects"]["by_reason"]["image repeated"] == 6
    assert metrics["by_reason"]["image repeated"] == 5
    check_conservation(tmp_path / "out", metrics)


def test_killed_and_started_again_the_folder_is_the_same(sample: Path, tmp_path: Path, made: tuple[Path, dict[str, Any]]) -> None:
    """SIGKILL while the tables are written leaves temporary files; the next run's folder holds the tables alone."""
    code = (
        "import os, signal, sys; from pathlib import Path; from sgpipe.datasets.config import Canonicalize\n"
        "from sgpipe.datasets.canonicalize import canonicalize\n"
        "from sgpipe.datasets.visual_genome.data_set import VisualGenome\n"
        "die = lambda path, done: path.stem == 'relationships' and os.kill(os.getpid(), signal.SIGKILL)\n"
        "canonicalize(VisualGenome(Path(sys.argv[1])), Path(sys.argv[2]), Canonicalize(), progress=die)"
    )
    done = subprocess.run([sys.executable, "-c", code, sample, tmp_path / "out"], check=False)
    assert done.returncode == -signal.SIGKILL
    assert not list((tmp_path / "out").glob("*.parquet")) and list((tmp_path / "out").iterdir())
    canonicalize(VisualGenome(sample), tmp_path / "out", Canonicalize())
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == {
        path.name: path.read_bytes() for path in made[0].iterdir()
    }


def test_a_killed_worker_is_one_line(sample: Path) -> None:
    def submit(spans: Spans) -> Future[Columns]:
        future: Future[Columns] = Future()
        future.set_exception(BrokenProcessPool("a child process terminated abruptly"))
        return future

    path = sample / "objects.json"
    with pytest.raises(SgpipeError, match=r"objects.json: a worker process was killed at byte 1, .*--workers"):
        list(read_pass(path, submit, 2, lambda spans, columns: pytest.fail("read"), lambda path, done: None))
