"""A kind of arm is one file: a new one trains, is saved, comes back and samples through what there is; so do adapters of before."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
import torch
from msgspec import Struct
from safetensors.torch import load_file, save_file
from torch import nn

from sgpipe.arms.adapter import load_adapter, save_adapter
from sgpipe.arms.config import ArmOptions, Arms
from sgpipe.arms.generation import GraphGenerator
from sgpipe.arms.kinds import KINDS
from sgpipe.arms.kinds.base import Adapter, Base, Prompts, Sections
from sgpipe.arms.resolve import Arm, resolve
from sgpipe.backbones.base import TextCondition
from sgpipe.errors import ModelError, ParamsError
from sgpipe.graphs.scene_graph import SceneGraph
from sgpipe.params.load import decode
from sgpipe.runs.checkpoints import checkpoints, read_checkpoint
from sgpipe.training.config import Optimiser
from sgpipe.training.fit import fit
from tests.tiny import SIDE
from tests.training.world import ALONE, LORA, TOKENS, World, tiny_train

DOG = SceneGraph.of("dog", "above", "cat")


class ShiftOptions(ArmOptions, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How large the shift is at first."""

    size: float = 0.1


class ShiftSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """As the options."""

    size: float


class Shift(Adapter):
    """One vector, added to every row of a prompt that has a graph."""

    options = ShiftOptions
    settings = ShiftSettings
    mode = "prepend"

    def __init__(self, vector: nn.Parameter) -> None:
        self.vector = vector

    @classmethod
    def resolve(cls, key: str, options: ShiftOptions, sections: Sections) -> ShiftSettings:
        if options.size == 0:
            raise ParamsError(f"{key}.size: got 0; give a shift")
        return ShiftSettings(options.size)

    @classmethod
    def build(cls, settings: ShiftSettings, base: Base) -> Self:
        draw = torch.Generator().manual_seed(base.seed)
        return cls(nn.Parameter(settings.size * torch.randn(base.denoiser.layout.text_width, generator=draw)))

    def parameters(self) -> dict[str, dict[str, nn.Parameter]]:
        return {"shift": {"vector": self.vector}}

    def condition(self, prompts: Prompts) -> TextCondition:
        has = torch.tensor([bool(graph.triples) for graph in prompts.graphs])[:, None, None]
        return replace(prompts.text, states=prompts.text.states + has * self.vector)

    def save(self, folder: Path) -> None:
        save_file({"vector": self.vector.detach()}, folder / "shift.safetensors")

    @classmethod
    def load(cls, settings: ShiftSettings, base: Base, folder: Path) -> Self:
        return cls(nn.Parameter(load_file(folder / "shift.safetensors")["vector"]))


def arm_of(world: World, kind: type[Adapter], monkeypatch: pytest.MonkeyPatch, **options: Any) -> Arm:
    """An arm of a kind that is registered by one word."""
    monkeypatch.setitem(KINDS, "shift", kind)
    arms = decode("arms", {"mine": {"kind": "shift", **options}}, Arms, "params.yaml")
    train = tiny_train(epochs=1, keep_epochs=(), optimiser=Optimiser(learning_rate=0.1))
    return resolve("mine", arms["mine"], Sections(LORA, train, TOKENS, world.backbone))


def test_a_new_kind_is_one_class_and_one_word(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arm = arm_of(world, Shift, monkeypatch, size=0.2, seed=3)
    assert Arm.read(json.loads(json.dumps(arm.plain())), "x") == arm
    fitted = fit(arm, world.denoiser(), world.backbone, world.data(), tmp_path, ALONE, {})
    start = Shift.build(arm.settings, Base(world.denoiser(), world.backbone, 3, 1.0)).vector  # type: ignore[arg-type]
    assert fitted.steps == 5 and not torch.allclose(fitted.model.trainable()["shift.vector"], start)
    about = json.loads((tmp_path / "adapter" / "adapter.json").read_text())
    assert (about["kind"], about["settings"], about["train"]["seed"]) == ("shift", {"size": 0.2}, 3)
    assert (about["shift_parameters"], about["lora_parameters"], about["token_parameters"]) == (24, 0, 0)
    last = read_checkpoint(checkpoints(tmp_path)[-1])
    assert last is not None and set(last["tensors"]) == {"shift.vector"}

    generator = GraphGenerator.load(world.backbone.model, tmp_path / "adapter")
    given = (["a photo of dog and cat"] * 3, [None, SceneGraph(), DOG], [1, 1, 1])
    samples = generator.sample(*given, steps=2, size=SIDE)
    base = GraphGenerator.load(world.backbone.model, None, backbone=world.backbone)
    assert np.array_equal(samples[:1], base.sample(*(each[:1] for each in given), steps=2, size=SIDE))
    assert np.array_equal(samples[1], samples[0]) and not np.array_equal(samples[2], samples[0])
    inside = GraphGenerator(fitted.model.denoiser, generator.vae, generator.texts, fitted.model)
    prompts = given[0][:1]
    with torch.no_grad():
        found, wanted = (each.latents(prompts, [DOG], [1], 2, SIDE) for each in (generator, inside))
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


def test_what_a_new_kind_may_say_is_its_own(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        ParamsError, match=r"^params\.yaml: arms\.mine\.blocks: unknown key; valid: kind, learning_rate, seed, size, triples"
    ):
        arm_of(world, Shift, monkeypatch, blocks="1..2")
    with pytest.raises(ParamsError, match=r"^arms\.mine\.size: got 0"):
        arm_of(world, Shift, monkeypatch, size=0)


class Module(Shift):
    """Has a module that it forgets."""

    def __init__(self, vector: nn.Parameter) -> None:
        super().__init__(vector)
        self.gate = nn.Linear(2, 1)


class Table(Shift):
    """Has weights in a mapping that it forgets."""

    def __init__(self, vector: nn.Parameter) -> None:
        super().__init__(vector)
        self.more = {"first": [nn.Parameter(torch.zeros(2))]}


class Thawed(Shift):
    """Trains a part of the transformer, and forgets to say so."""

    @classmethod
    def build(cls, settings: ShiftSettings, base: Base) -> Self:
        base.denoiser.transformer.get_submodule("transformer_blocks.1.attn.to_q").requires_grad_(True)
        return super().build(settings, base)


@pytest.mark.parametrize(
    "kind, says",
    [
        (Module, r"train: Module\.gate\.weight, Module\.gate\.bias; give them in Module\.parameters, or freeze"),
        (Table, r"train: Table\.more\.first\[0\];"),
        (Thawed, r"train: transformer\.transformer_blocks\.1\.attn\.to_q\.weight, transformer\.\S+to_q\.bias;"),
    ],
)
def test_a_weight_that_a_kind_forgets_is_an_error(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[Adapter], says: str
) -> None:
    arm = arm_of(world, kind, monkeypatch)
    with pytest.raises(ModelError, match=says):
        fit(arm, world.denoiser(), world.backbone, world.data(), tmp_path, ALONE, {})
    assert checkpoints(tmp_path) == []


def test_no_kind_that_there_is_forgets_a_weight(world: World) -> None:
    for name in ("graph", "text_only", "projector_only"):
        model = world.model(tiny_train(), name=name)
        held = {id(weight) for weight in model.trainable().values()}
        every = [*model.denoiser.transformer.parameters(), *(w for m in model.adapter.modules() for w in m.parameters())]
        assert held == {id(weight) for weight in every if weight.requires_grad}


OLD = {
    "accumulation": 1, "acts": "trained", "alpha": 4.0, "arms": ["graph"], "attention": "native", "batch_size": 4,
    "blocks": "[1..2]", "checkpointing": False, "compile": False,
    "conditions": {"conflicting": 0.0, "dropped": 0.0, "neutral": 1.0, "relational": 0.0, "wrong": 0.0},
    "development": 0.0, "dropout": 0.0, "ema": 0.9, "epochs": 1, "guidance": None, "keep_epochs": [1],
    "losses": {
        "flow": 1.0, "margin": {"margin": 0.1, "weight": 0.5}, "preference": {"beta": 50.0, "weight": 0.1},
        "ranking": {"group": "middle", "margin": 1.0, "probe": None, "weight": 0.0},
        "saliency": {"group": "middle", "weight": 0.0},
    },
    "optimiser": {
        "clip": 1.0, "rate": 0.02, "schedule": "constant", "token_rate": 1.5, "warmup": 0, "weight_decay": 0.01,
    },
    "precision": "float32", "rank": 4, "save_every": 3, "seed": 0, "single_blocks": "none",
    "targets": ["to_k", "to_out.0", "to_q", "to_v"],
    "times": {"density": "uniform", "deviation": 1.0, "high": 1.0, "low": 0.6, "mean": 0.0, "steps": 4},
    "validation": {"bins": 3, "every": 1, "images": 0, "steps": 4, "triples": 0},
}  # fmt: skip
"""What `adapter.json` held under `lora` when arms were known by name."""


@pytest.mark.parametrize("name", ["graph", "text_only", "projector_only"])
def test_an_adapter_of_before_kinds_still_loads(world: World, tmp_path: Path, name: str) -> None:
    arm = world.arm(tiny_train(), name=name)
    model = world.model(tiny_train(seed=1), name=name)
    save_adapter(tmp_path, model, arm, world.backbone, {})
    about = json.loads((tmp_path / "adapter.json").read_text())
    for key in ("kind", "settings", "train"):
        del about[key]
    about["lora"] = OLD | ({"blocks": "none"} if name == "projector_only" else {})
    about["graph_tokens"] = None if name == "text_only" else arm.plain()["settings"]["graph_tokens"]
    (tmp_path / "adapter.json").write_text(json.dumps(about))
    loaded = load_adapter(tmp_path, world.denoiser(), world.backbone)
    assert loaded.times == (0.6, 1.0) and loaded.mode == ("text" if name == "text_only" else "prepend")
    kept = loaded.adapter.parameters()
    for group, weights in model.adapter.parameters().items():
        found = kept[group] if group == "lora" else dict(loaded.adapter.modules()[0].named_parameters())
        assert found.keys() == weights.keys() and len(found) > 0
        assert all(torch.equal(found[each], weight) for each, weight in weights.items())
