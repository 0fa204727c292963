"""The official code's vectors, and the formulas in float64."""

from itertools import pairwise

import pytest
import torch

from sgpipe.attention_maps.options import MapOptions
from sgpipe.attention_maps.stream import concept_stream
from tests.attention_maps import reference
from tests.attention_maps.conftest import GRID, Golden, batch, build

BY_LAYER = {"0": "0", "1": "1", "2": "2"}


@pytest.mark.parametrize(
    ("kind", "name"),
    [("none", "scores_raw"), ("concepts", "scores_softmax_over_concepts"), ("patches", "scores_softmax_over_patches")],
)
@torch.no_grad()
def test_every_layer_of_the_official_code(golden: Golden, kind: str, name: str) -> None:
    options = MapOptions(BY_LAYER, kind)
    with concept_stream(golden.model, golden.inputs["concept_embeds"], (8, 8), options) as stream:
        velocity = golden.model(**golden.arguments()).sample
    golden.check(velocity, "A.velocity")
    for layer, (saliency, cross) in stream.maps().items():
        golden.check(saliency.flatten(2), f"A.layer{layer}.{name}")
        per_head = golden.outputs[f"A.layer{layer}.cross_paper_imgq_conceptk_raw"]
        torch.testing.assert_close(cross.flatten(2), per_head.mean(1), atol=golden.atol, rtol=golden.rtol)


@torch.no_grad()
def test_concept_outputs_depend_on_the_whole_set(golden: Golden) -> None:
    concepts = golden.inputs["concept_embeds"][:, :2]
    with concept_stream(golden.model, concepts, (8, 8), MapOptions(BY_LAYER)) as stream:
        golden.model(**golden.arguments())
    for layer, (saliency, _) in stream.maps().items():
        concept_output = golden.outputs[f"A2.layer{layer}.concept_out_two_concepts"]
        expected = concept_output @ golden.outputs[f"A.layer{layer}.image_out"].mT
        torch.testing.assert_close(saliency.flatten(2), expected, atol=golden.atol, rtol=golden.rtol)


@pytest.mark.parametrize(("kind", "order"), [("none", "raw_mean"), ("concepts", "softmax_then_mean")])
@pytest.mark.parametrize(
    ("blocks", "steps", "subset"), [("all", None, "all"), ("1..2", None, "last2layers"), ("1..2", (2, 3), "last2layers_last2steps")]
)
@torch.no_grad()
def test_four_steps_of_the_official_code(
    golden: Golden, kind: str, order: str, blocks: str, steps: tuple[int, ...] | None, subset: str
) -> None:
    options = MapOptions({"group": blocks}, kind, steps)
    arguments = golden.arguments()
    times = golden.outputs["C.timesteps"]
    with concept_stream(golden.model, golden.inputs["concept_embeds"], (8, 8), options) as stream:
        for now, after in pairwise(times):
            velocity = golden.model(**arguments | {"timestep": now[None]}).sample
            arguments["hidden_states"] = arguments["hidden_states"] + (after - now) * velocity
    torch.testing.assert_close(arguments["hidden_states"], golden.outputs["C.latents"][-1], atol=golden.atol, rtol=golden.rtol)
    golden.check(stream.maps()["group"].saliency, f"C.heatmap_{order}.{subset}")


@pytest.mark.parametrize("guidance", [False, True])
@torch.no_grad()
def test_the_formulas_in_float64(guidance: bool) -> None:
    model = build(guidance).double()
    arguments, concepts = batch(2)
    arguments = {name: value.double() for name, value in arguments.items()}
    if not guidance:
        del arguments["guidance"]
    double, single = len(model.transformer_blocks), len(model.single_transformer_blocks)
    groups = {f"double {index}": {"blocks": index} for index in range(double)}
    groups |= {f"single {index}": {"single_blocks": index} for index in range(single)}
    options = MapOptions(groups)
    with concept_stream(model, concepts, GRID, options) as stream:
        model(**arguments)
    maps = stream.maps()
    for sample in range(2):
        own = {name: value if name.endswith("_ids") else value[sample] for name, value in arguments.items()}
        expected = reference.scores(model.state_dict(), dict(model.config), own, concepts[sample])
        for group, (saliency, cross) in zip(groups, expected, strict=True):
            for found, score in zip(maps[group], (saliency, cross), strict=True):
                found = found[sample].flatten(1).double()
                torch.testing.assert_close(found, score, atol=1e-5, rtol=1e-6)  # scores are in float32
