"""Judges as params.yaml names them, and what identifies them."""

from pathlib import Path
from typing import Any

import torch

from sgpipe.backbones.unreadable import OF_THE_MACHINE, why
from sgpipe.errors import ModelError, SgpipeError
from sgpipe.evaluation.boxes import RULES
from sgpipe.evaluation.finders import EmbeddedFinder, ZeroShotFinder
from sgpipe.evaluation.judges import BoxJudge, ContrastiveJudge, Judge
from sgpipe.miniature.arrangement import RULES as EMBEDDED_RULES
from sgpipe.params.judge import Judge as Named
from sgpipe.params.load import to_builtins
from sgpipe.runs.state import file_hash

_LOCAL = "local-dir:"


def _local(named: Named) -> Path | None:
    """The file or folder of a judge's weights, where they lie outside a hub's cache."""
    for value in (named.pretrained, named.model):
        if value and value.startswith(_LOCAL):
            return Path(value.removeprefix(_LOCAL))
        if value and Path(value).exists():
            return Path(value)
    return None


def judge_identity(named: Named) -> dict[str, Any]:
    """What a judge's scores depend on: its knobs, and the content of local weights. Raises `ModelError` if those are missing."""
    folder = _local(named)
    if named.model and named.model.startswith(_LOCAL) and not (folder and folder.is_dir()):
        raise ModelError(
            f"judge.judges: {named.model}: no such folder; an open_clip folder with open_clip_config.json is needed: "
            "`dvc pull` gets the embedded ones"
        )
    return {**to_builtins(named), "weights": file_hash(folder) if folder else None}


def open_judge(name: str, named: Named, device: torch.device) -> Judge:
    """Load a judge. Raises `ModelError` saying what to do where its weights are missing or do not fit."""
    if named.kind == "embedded_detector":
        return BoxJudge(EmbeddedFinder(), EMBEDDED_RULES)
    try:
        if named.pretrained and "/" in named.pretrained and not Path(named.pretrained).exists():
            raise FileNotFoundError(f"{named.pretrained}: no such file")
        return _contrastive(named, device) if named.kind == "open_clip" else _detector(named, device)
    except (SgpipeError, *OF_THE_MACHINE):
        raise
    except Exception as error:
        weights = f"{named.model} with {named.pretrained}" if named.pretrained else named.model
        expected = (
            "open_clip's configuration and weights"
            if named.kind == "open_clip"
            else "a detector of transformers"
        )
        raise ModelError(
            f"judge.judges.{name}: {weights} cannot be loaded ({why(error)}); expected: {expected}; give a local folder or "
            "checkpoint, or fetch it into the hub's cache where there is a network (`hf download`), or take the judge out"
        ) from error


def _contrastive(named: Named, device: torch.device) -> Judge:
    import open_clip

    assert named.model is not None
    if named.model.startswith(_LOCAL):
        weights = Path(named.model.removeprefix(_LOCAL)) / "open_clip_model.safetensors"
        if not weights.is_file():
            raise FileNotFoundError(f"{weights}: no such file")
    model, _, preprocess = open_clip.create_model_and_transforms(named.model, pretrained=named.pretrained)
    return ContrastiveJudge(model, preprocess, open_clip.get_tokenizer(named.model), device)


def _detector(named: Named, device: torch.device) -> Judge:
    from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor

    model = AutoModelForZeroShotObjectDetection.from_pretrained(
        named.model, revision=named.revision, use_safetensors=True
    )
    processor = AutoProcessor.from_pretrained(named.model, revision=named.revision)
    return BoxJudge(ZeroShotFinder(model, processor, named.box_threshold, device), RULES)
