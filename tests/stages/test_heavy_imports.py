"""What every stage imports before it does anything: code that is in its closure, and no heavy library that it may not need."""

import json
import subprocess
import sys
from typing import Any

import pytest

from sgpipe.runs.closure import VIEWS, import_closure
from sgpipe.runs.code import stage_modules
from tests.stages.test_imports import DEFINITIONS, ROOT
from tests.stages.test_pipeline import environment

IMPORTED = """
import builtins, importlib, json, sys
from pathlib import Path

OURS = ("sgpipe", "stages")
plain, asked, found = builtins.__import__, set(), {}

def recording(name, globals=None, *rest, **more):
    if (globals or {}).get("__name__", "").split(".")[0] in OURS:
        asked.add(name.split(".")[0])
    return plain(name, globals, *rest, **more)

builtins.__import__ = recording
for stage in sys.argv[1:]:
    for name in [name for name in sys.modules if name.split(".")[0] in OURS]:
        del sys.modules[name]
    asked.clear()
    importlib.import_module(stage)
    modules = [module for name, module in sys.modules.items() if name.split(".")[0] in OURS]
    files = [str(Path(module.__file__).resolve().relative_to(Path.cwd())) for module in modules]
    found[stage] = {"files": files, "libraries": sorted(asked)}
print(json.dumps(found))
"""
"""Imports one stage after another, each with our modules anew: which of our files that reads, and which libraries they ask for."""
HEAVY = {
    "accelerate", "diffusers", "dvc", "matplotlib", "mlflow", "open_clip", "peft", "polars", "scipy", "sklearn", "torch",
    "torchvision", "transformers",
}  # fmt: skip
"""Libraries that take long to import, or much memory."""
DENOISING = {"accelerate", "diffusers", "torch"}
MAY_IMPORT: dict[str, set[str]] = {
    "ablation": {"polars", "scipy"},
    "cache_latents": DENOISING,
    "cache_prompts": DENOISING,
    "canonicalize": set(),
    "code": set(),
    "curate": {"polars"},
    "sample_images": DENOISING,
    "evaluate": {"polars", "scipy"},
    "graph_encoder": {*DENOISING, "open_clip", "polars", "scipy"},
    "headline": set(),
    "judge": {"accelerate", "torch"},
    "localise": {*DENOISING, "polars", "scipy"},
    "negatives": set(),
    "probe": {*DENOISING, "scipy", "sklearn"},
    "probe_table": {"matplotlib"},
    "probe_words": {*DENOISING, "scipy", "sklearn"},
    "report": {"matplotlib", "polars", "scipy"},
    "resolve": {"torch"},
    "saliency": DENOISING,
    "saliency_noised": DENOISING,
    "saliency_sheets": DENOISING | {"matplotlib"},
    "train_lora": DENOISING,
    "train_sgdiff": DENOISING,
}
"""What a stage may import of `HEAVY` before it does anything; what it needs only sometimes, it imports then."""


@pytest.fixture(scope="module")
def imported() -> dict[str, dict[str, list[str]]]:
    """Files and libraries by stage module, of its import alone."""
    done = subprocess.run(
        [sys.executable, "-c", IMPORTED, *stage_modules(ROOT)],
        cwd=ROOT, capture_output=True, text=True, env={**environment(), "PYTHONPATH": str(ROOT)}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_every_stage_imports_what_is_in_its_closure(imported: dict[str, Any]) -> None:
    views = tuple(f"{view.replace('.', '/')}{end}" for view in VIEWS for end in (".py", "/"))
    for name, found in imported.items():
        files = {file for file in found["files"] if not file.startswith(views)} - DEFINITIONS
        assert len(files) > 5 or name == "stages.code"
        assert files <= set(import_closure(name, ROOT).files), name


def test_no_stage_imports_a_heavy_library_that_it_may_not_need(imported: dict[str, Any]) -> None:
    assert imported.keys() == {f"stages.{name}" for name in MAY_IMPORT}
    for name, allowed in MAY_IMPORT.items():
        found = HEAVY & set(imported[f"stages.{name}"]["libraries"])
        assert found <= allowed, f"{name} imports {sorted(found - allowed)}"
