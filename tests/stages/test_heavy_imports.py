"""What every stage loads before it does anything: code that is in its closure, and no heavy library that it may not need."""

import json
import subprocess
import sys
from collections.abc import Iterable
from typing import Any

import pytest

from sgpipe.runs.closure import VIEWS, import_closure
from sgpipe.runs.code import stage_modules
from tests.stages.test_imports import DEFINITIONS, ROOT
from tests.stages.test_pipeline import environment

LOADED = """
import importlib, json, os, sys
from pathlib import Path

before, heavy, *stages = sys.argv[1:]
for name in before.split():
    importlib.import_module(name)
found = {}
for stage in stages:
    reading, writing = os.pipe()
    if os.fork() == 0:
        importlib.import_module(stage)
        ours = [module for name, module in sys.modules.items() if name.split(".")[0] in ("sgpipe", "stages")]
        files = [str(Path(module.__file__).resolve().relative_to(Path.cwd())) for module in ours]
        said = {"files": files, "libraries": [name for name in heavy.split() if name in sys.modules]}
        os.write(writing, json.dumps(said).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as stream:
        found[stage] = json.loads(stream.read())
    os.wait()
print(json.dumps(found))
"""
"""Imports stages, each in a process of its own that has loaded nothing but `before`: which of our files that reads, and which
libraries it brings along, by whatever way. (A pipe holds 64 KiB, more than one of them says.)"""
HEAVY = {
    "accelerate", "diffusers", "dvc", "matplotlib", "mlflow", "open_clip", "peft", "polars", "scipy", "sklearn", "torch",
    "torch._dynamo", "torchmetrics", "torchvision", "transformers",
}  # fmt: skip
"""Libraries that take long to import, or much memory."""
COMPUTING = {"accelerate", "torch"}
MAY_LOAD: dict[str, set[str]] = {
    "ablation": {"polars", "scipy"},
    "cache_latents": COMPUTING,
    "cache_prompts": COMPUTING,
    "canonicalize": set(),
    "code": set(),
    "curate": {"polars"},
    "sample_images": COMPUTING,
    "evaluate": {"polars", "scipy"},
    "graph_encoder": {*COMPUTING, "polars", "scipy"},
    "headline": set(),
    "judge": COMPUTING,
    "localise": {*COMPUTING, "polars", "scipy"},
    "negatives": set(),
    "probe": {*COMPUTING, "scipy"},
    "probe_table": {"matplotlib"},
    "probe_words": {*COMPUTING, "scipy"},
    "report": {"matplotlib", "polars", "scipy"},
    "resolve": COMPUTING,
    "saliency": COMPUTING,
    "saliency_noised": COMPUTING,
    "saliency_sheets": {*COMPUTING, "matplotlib"},
    "train_lora": COMPUTING,
    "train_sgdiff": HEAVY - {"dvc", "matplotlib", "mlflow", "open_clip", "polars", "torchmetrics"},
    "study": {*COMPUTING, "matplotlib", "scipy"},
}
"""What a stage may load of `HEAVY` before it does anything: what it runs in any case. What it needs only where there is work, or
only sometimes, it imports then; a stage that finds its work done starts in little more time than PyTorch does."""


def loaded(before: Iterable[str], stages: Iterable[str]) -> dict[str, Any]:
    """Files and libraries by stage."""
    words = [sys.executable, "-c", LOADED, " ".join(before), " ".join(sorted(HEAVY)), *stages]
    done = subprocess.run(
        words, cwd=ROOT, capture_output=True, text=True, env={**environment(), "PYTHONPATH": str(ROOT)}, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def imported() -> dict[str, dict[str, list[str]]]:
    """Files and libraries by stage module, of its import alone; PyTorch is loaded once for all that may."""
    computing = [f"stages.{name}" for name, allowed in MAY_LOAD.items() if allowed >= COMPUTING]
    others = [name for name in stage_modules(ROOT) if name not in computing]
    return {**loaded(sorted(COMPUTING), computing), **loaded((), others)}


def test_every_stage_imports_what_is_in_its_closure(imported: dict[str, Any]) -> None:
    views = tuple(f"{view.replace('.', '/')}{end}" for view in VIEWS for end in (".py", "/"))
    for name, found in imported.items():
        files = {file for file in found["files"] if not file.startswith(views)} - DEFINITIONS
        assert len(files) > 5 or name == "stages.code"
        assert files <= set(import_closure(name, ROOT).files), name


def test_no_stage_loads_a_heavy_library_that_it_may_not_need(imported: dict[str, Any]) -> None:
    assert imported.keys() == {f"stages.{name}" for name in MAY_LOAD}
    for name, allowed in MAY_LOAD.items():
        found = set(imported[f"stages.{name}"]["libraries"])
        assert found <= allowed, f"{name} loads {sorted(found - allowed)}"
