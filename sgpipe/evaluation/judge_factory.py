"""Judges as params.yaml names them, and what identifies them."""

from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

import torch

from sgpipe.backbones.open_clip_models import LOCAL, load_open_clip, open_clip_hash
from sgpipe.backbones.strict import OF_THE_MACHINE, check_report, why
from sgpipe.errors import ModelError, ParamsError, SgpipeError
from sgpipe.evaluation.config import BUILT_IN
from sgpipe.evaluation.config import Judge as Named
from sgpipe.evaluation.judges import BoxJudge, ContrastiveJudge, Judge, ZeroShotFinder
from sgpipe.params.load import to_builtins
from sgpipe.relations.boxes import RULES
from sgpipe.runs.state import file_hash

PLUGINS = "sgpipe.judges"
"""Entry point group of judges that other packages bring: a function from `torch.device` to a `Judge`."""


def judge_identity(name: str, named: Named) -> dict[str, Any]:
    """What a judge's scores depend on: its knobs, and the content of local weights. Raises `ModelError` if those are missing."""
    if named.kind not in BUILT_IN:
        brought = _plugin(name, named.kind).dist
        own = {"package": brought.name, "version": brought.version} if brought is not None else {}
        return {**to_builtins(named), **own}
    weights = None
    for value in (named.pretrained, named.model):
        path = Path((value or "").removeprefix(LOCAL))
        if value and value.startswith(LOCAL) and not path.is_dir():
            raise ModelError(
                f"judge.judges.{name}: {value}: no such folder; an open_clip folder with open_clip_config.json is needed: "
                "`dvc pull models.dvc` gets the embedded ones"
            )
        if weights is None and value and path.exists():
            weights = open_clip_hash(path) if path.is_dir() else file_hash(path)
    return {**to_builtins(named), "weights": weights}


def open_judge(name: str, named: Named, device: torch.device) -> Judge:
    """Load a judge. Raises `ModelError` saying what to do where its weights are missing or do not fit."""
    if named.kind not in BUILT_IN:
        return _plugin(name, named.kind).load()(device)
    try:
        if named.kind == "zero_shot_detector":
            return _detector(named, device)
        import open_clip

        if named.pretrained and "/" in named.pretrained and not Path(named.pretrained).exists():
            raise FileNotFoundError(f"{named.pretrained}: no such file")
        model, preprocess = load_open_clip(str(named.model), named.pretrained, torch.device("cpu"))
        return ContrastiveJudge(model, preprocess, open_clip.get_tokenizer(str(named.model)), device)
    except (SgpipeError, *OF_THE_MACHINE):
        raise
    except Exception as error:
        weights = f"{named.model} with {named.pretrained}" if named.pretrained else named.model
        expected = "open_clip's configuration and weights" if named.kind == "open_clip" else "a detector of transformers"
        raise ModelError(
            f"judge.judges.{name}: {weights} cannot be loaded ({why(error)}); expected: {expected}; give a local folder or "
            "checkpoint, or fetch it into the hub's cache where there is a network (`hf download`), or take the judge out"
        ) from error


def _plugin(name: str, kind: str) -> EntryPoint:
    there = entry_points(group=PLUGINS)
    if kind not in there.names:
        raise ParamsError(
            f"judge.judges.{name}.kind: got {kind!r}; valid: {', '.join((*BUILT_IN, *sorted(there.names)))}; other packages bring "
            f"judges by an entry point of the group {PLUGINS} (`pip install -e .` again where one was just added)"
        )
    return there[kind]


def _detector(named: Named, device: torch.device) -> Judge:
    from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor

    model, report = AutoModelForZeroShotObjectDetection.from_pretrained(
        named.model, revision=named.revision, use_safetensors=True, output_loading_info=True
    )
    check_report(model, report, str(named.model), "fetch the checkpoint again, or take the judge out")
    processor = AutoProcessor.from_pretrained(named.model, revision=named.revision)
    return BoxJudge(ZeroShotFinder(model, processor, named.box_threshold, device), RULES)
