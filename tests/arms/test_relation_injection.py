"""Kind `relation_injection`: which LoRA a batch trains, its masks and its contrast, and what sampling takes of it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxTransformer2DModel
from safetensors.torch import load_file, save_file

from sgpipe.arms.config import Arms
from sgpipe.arms.generation import GraphGenerator
from sgpipe.arms.kinds.base import Sections
from sgpipe.arms.kinds.relation_injection import box_mask, region_mean, relation_contrast
from sgpipe.arms.resolve import Arm, resolve
from sgpipe.errors import ParamsError
from sgpipe.graphs.scene_graph import SceneGraph
from sgpipe.optim.engine import Engine
from sgpipe.params.load import decode
from sgpipe.training.fit import fit
from sgpipe.training.loop import Training
from sgpipe.training.objective import Objective
from tests.tiny import SIDE
from tests.training.world import ALONE, LORA, TOKENS, World, files, tiny_train

DOG = SceneGraph.of("dog", "above", "cat")


def arm_of(world: World, **options: Any) -> Arm:
    arms = decode("arms", {"mine": {"kind": "relation_injection", **options}}, Arms, "params.yaml")
    train = tiny_train(epochs=1, keep_epochs=())
    return resolve("mine", arms["mine"], Sections(LORA, train, TOKENS, world.backbone))


def fitted(world: World, folder: Path, **options: Any) -> Training:
    return fit(arm_of(world, **options), world.denoiser(), world.backbone, world.data(), folder, ALONE, {})


def test_a_batch_trains_one_lora_and_says_which_by_its_number(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed: list[frozenset[str]] = []
    update: Callable[[Engine], None] = Engine.update

    def watched(engine: Engine) -> None:
        before = {name: weight.detach().clone() for name, weight in engine.weights.items()}
        update(engine)
        moved = {name.split(".")[0] for name, weight in engine.weights.items() if not torch.equal(weight, before[name])}
        changed.append(frozenset(moved))

    monkeypatch.setattr(Engine, "update", watched)
    training = fitted(world, tmp_path)
    assert set(changed) == {frozenset({"subject"}), frozenset({"lora", "tokens"})} and len(changed) == 5
    parts = training.history.steps[0]
    assert parts["masked"] > 0 and parts["contrast"] >= 0
    modules = {name.split(".lora_")[0].split(".attn.")[1] for name in training.model.adapter.parameters()["lora"]}
    assert modules == {"to_q", "to_k"}


def test_killed_it_goes_on_to_the_same_bytes(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    fitted(world, tmp_path / "whole")
    losses = Objective.__call__

    def dies(self: Objective, noised: Any, *said: Any) -> Any:
        if noised.number == 4:
            raise KeyboardInterrupt
        return losses(self, noised, *said)

    with monkeypatch.context() as patched:
        patched.setattr(Objective, "__call__", dies)
        with pytest.raises(KeyboardInterrupt):
            fitted(world, tmp_path / "killed")
    fitted(world, tmp_path / "killed")
    assert files(tmp_path / "killed/adapter") == files(tmp_path / "whole/adapter")


def test_sampling_takes_the_relation_lora_alone_and_a_pipeline_of_diffusers_reads_it(world: World, tmp_path: Path) -> None:
    fitted(world, tmp_path)
    given = (["a photo of dog and cat"] * 2, [DOG, None], [1, 1])
    folder = tmp_path / "adapter"
    samples = GraphGenerator.load(world.backbone.model, folder).sample(*given, steps=2, size=SIDE)
    base = GraphGenerator.load(world.backbone.model, None, backbone=world.backbone)
    assert np.array_equal(samples[1:], base.sample(["a photo of dog and cat"], [None], [1], steps=2, size=SIDE))
    assert not np.array_equal(samples[0], samples[1])

    path = folder / "subject/pytorch_lora_weights.safetensors"
    subject = load_file(path)
    assert {name.split(".")[-3] for name in subject} == {"to_v"} and all(weight.any() for weight in subject.values())
    save_file({name: weight + 1 for name, weight in subject.items()}, path)
    assert np.array_equal(GraphGenerator.load(world.backbone.model, folder).sample(*given, steps=2, size=SIDE), samples)

    plain = FluxTransformer2DModel.from_pretrained(Path(world.backbone.model) / "transformer")
    plain.load_lora_adapter(folder, prefix="transformer", weight_name="pytorch_lora_weights.safetensors")
    found = {name: w for name, w in plain.named_parameters() if ".lora_" in name}
    kept = load_file(folder / "pytorch_lora_weights.safetensors")
    assert len(found) == len(kept) == 8 and all(any(torch.equal(w, each) for each in kept.values()) for w in found.values())


def test_a_mask_is_the_cells_that_a_box_meets() -> None:
    assert box_mask((0.25, 0.5, 0.5, 0.25), 4, 4).nonzero().tolist() == [[2, 1], [2, 2]]
    assert box_mask((0.3, 0.0, 0.01, 1.0), 2, 4).nonzero().tolist() == [[0, 1], [1, 1]], "one column at least"
    assert box_mask((0.999, 0.999, 0.4, 0.4), 3, 3).nonzero().tolist() == [[2, 2]]
    assert box_mask(None, 2, 3).all()
    values = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert region_mean(values, box_mask((0.25, 0.5, 0.5, 0.25), 4, 4)[None]).item() == 9.5


def test_the_contrast_is_that_of_its_definition() -> None:
    random = torch.Generator().manual_seed(0)
    features, appearances = (torch.randn(count, 5, generator=random, dtype=torch.float64) for count in (4, 3))
    labels = ["a", "b", "a", "c"]
    found = relation_contrast(features, appearances, labels, 0.5)
    for row in range(4):

        def weight(other: torch.Tensor, row: int = row) -> float:
            return float(torch.exp(torch.cosine_similarity(features[row], other, dim=0) / 0.5))

        near = sum(weight(features[i]) for i in range(4) if i != row and labels[i] == labels[row])
        every = sum(weight(features[i]) for i in range(4) if i != row) + sum(map(weight, appearances))
        assert found[row].item() == pytest.approx(np.log(every / near) if near else 0.0)
    assert relation_contrast(features, appearances, ["a", "b", "c", "d"], 0.5).tolist() == [0.0] * 4
    features.requires_grad_(True)
    relation_contrast(features, appearances, labels, 0.5).sum().backward()
    assert features.grad is not None and features.grad.isfinite().all()


@pytest.mark.parametrize(
    "options, says",
    [
        ({"targets": ["to_v"]}, r"^arms\.mine\.targets: got to_v; kind relation_injection has its relation LoRA on to_q and to_k"),
        ({"blocks": "none"}, r"^arms\.mine: kind relation_injection trains LoRA, and lora\.blocks is none"),
        ({"subject_share": 1}, r"^params\.yaml: arms\.mine\.subject_share: "),
    ],
)
def test_what_is_not_the_idea_is_refused(world: World, options: dict[str, Any], says: str) -> None:
    with pytest.raises(ParamsError, match=says):
        arm_of(world, **options)
