"""Pipelines that no family takes are refused with the reason, or told where a family of theirs would start."""

import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from sgpipe.backbones.families import family_of
from sgpipe.errors import ModelError

SMALL: dict[str, dict[str, Any]] = {
    "AuraFlowTransformer2DModel": {"num_mmdit_layers": 1, "num_single_dit_layers": 1},
    "HunyuanImageTransformer2DModel": {"num_layers": 1, "num_single_layers": 1, "num_refiner_layers": 1},
    "Flux2Transformer2DModel": {"num_layers": 1, "num_single_layers": 1},
    "GlmImageTransformer2DModel": {"num_layers": 1},
}


def write(folder: Path, transformer: str, config: dict[str, Any] | None) -> str:
    """A folder of a pipeline of another class; the message that `family_of` has for it."""
    index = {"_class_name": "OtherPipeline", "transformer": ["diffusers", transformer]}
    (folder / "model_index.json").write_text(json.dumps(index))
    if config is not None:
        (folder / "transformer").mkdir()
        (folder / "transformer" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError) as caught:
        family_of(folder)
    said = str(caught.value)
    assert "\n" not in said and f"{folder} is a OtherPipeline; valid: FluxPipeline, StableDiffusion3Pipeline, " in said
    return said


@pytest.mark.parametrize(
    "transformer",
    [
        "QwenImage21Transformer2DModel", "Kandinsky5Transformer3DModel", "Kandinsky6Transformer3DModel",
        "PRXTransformer2DModel", "NucleusMoEImageTransformer2DModel", "BriaFibo2Transformer2DModel",
    ],
)  # fmt: skip
def test_where_text_never_attends_to_the_image_the_reason_is_said(tmp_path: Path, transformer: str) -> None:
    """Those are classes of this diffusers, and none of them has queries of the text beside the image's."""
    with torch.device("meta"):
        names = [name for name, _ in getattr(diffusers, transformer)().named_modules()]
    assert not any("add_q" in name or "txt_q" in name for name in names)
    said = write(tmp_path, transformer, None)
    assert (
        f"a {transformer} is not supported: its " in said
        and "text never attends to the image, and concept maps mean nothing" in said
    )


@pytest.mark.parametrize(
    ("transformer", "says"),
    [
        (
            "AuraFlowTransformer2DModel",
            r"starting from sgpipe/backbones/families/flux.py (packed latents, rotary positions) or sd3.py",
        ),
        (
            "HunyuanImageTransformer2DModel",
            r"flux.py (packed latents, rotary positions) or sd3.py (latents as images), whose double",
        ),
        ("Flux2Transformer2DModel", "the text's modulation, which a tap of its own must make (JointBlockTap.modulated)"),
        ("GlmImageTransformer2DModel", "no queries of the text's own: see first whether text attends to the image"),
    ],
)
def test_another_pipeline_is_told_where_to_start_by_its_blocks(tmp_path: Path, transformer: str, says: str) -> None:
    with torch.device("meta"):
        config = dict(getattr(diffusers, transformer)(**SMALL[transformer]).config)
    assert says in write(tmp_path, transformer, config)


@pytest.mark.parametrize("transformer", ["NoSuchTransformer", "AuraFlowTransformer2DModel"])
def test_without_blocks_to_read_the_first_family_is_named(tmp_path: Path, transformer: str) -> None:
    assert write(tmp_path, transformer, None).endswith("a family is added, starting from sgpipe/backbones/families/flux.py)")
