"""Arms that are told boxes: untrained the base to the bit, diffusers' samples with the exported folder, and what they are shown."""

import json
from collections.abc import Iterator, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    FluxControlNetModel,
    FluxControlNetPipeline,
    MultiAdapter,
    SD3ControlNetModel,
    StableDiffusion3ControlNetPipeline,
)
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from PIL import Image
from typer.testing import CliRunner

from sgpipe.arms.adapter import build, load_adapter, save_adapter
from sgpipe.arms.config import Arms
from sgpipe.arms.generation import GraphGenerator
from sgpipe.arms.kinds.base import Sections
from sgpipe.arms.model import ArmModel
from sgpipe.arms.resolve import Arm, resolve
from sgpipe.backbones.base import TextCondition
from sgpipe.backbones.families import open_text_encoders
from sgpipe.backbones.rectified_flow import noise
from sgpipe.cli import app
from sgpipe.errors import ModelError, ParamsError
from sgpipe.graph_encoder.open_vocabulary import NameTable
from sgpipe.graphs.layouts import layout_image, proposed
from sgpipe.graphs.scene_graph import SceneGraph
from sgpipe.training.fit import fit
from tests.tiny import DOUBLE, SIDE, backbone_of, write_pipeline, write_sd3_pipeline
from tests.training.world import ALONE, CPU, LORA, TOKENS, World, files, tiny_train

GRAPH = SceneGraph(("dog", "cat"), ((0, "left of", 1),), ((0.0, 0.25, 0.5, 0.5), (0.5, 0.25, 0.5, 0.5)))
UNPLACED = SceneGraph(GRAPH.objects, GRAPH.triples)
PROMPT = "a photo of dog and cat"
NAMES = NameTable({"": torch.zeros(1)})
KINDS = ("controlnet", "t2i_adapter")


def arm_of(world: World, kind: str, **options: Any) -> Arm:
    small = {"controlnet": {"blocks": 2}, "t2i_adapter": {"channels": 16}}[kind]
    arms = Arms.decode("arms", {"mine": {"kind": kind, **small, **options}}, "tests")
    train = tiny_train(epochs=1, keep_epochs=(), active_timesteps="always")
    return resolve("mine", arms["mine"], Sections(LORA, train, TOKENS, world.backbone))


@pytest.fixture(scope="module", params=["flux", "sd3"])
def backbone(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> World:
    """A tiny pipeline of each family; nothing but its models is there."""
    root = tmp_path_factory.mktemp(request.param)
    made = backbone_of(write_pipeline(root)) if request.param == "flux" else backbone_of(write_sd3_pipeline(root), single_blocks=0)
    return World(made, None)  # type: ignore[arg-type]


def model_of(world: World, kind: str, *, moved: bool = False, **options: Any) -> ArmModel:
    """An arm's model, untrained; with `moved` every weight of it is drawn anew, as if trained."""
    model = build(world.denoiser(), world.backbone, arm_of(world, kind, **options), 1.0)
    if moved:
        draw = torch.Generator().manual_seed(7)
        with torch.no_grad():
            for weight in model.trainable().values():
                weight.add_(0.2 * torch.randn(weight.shape, generator=draw))
    return model


def saved(world: World, kind: str, folder: Path, **options: Any) -> Path:
    model = model_of(world, kind, moved=True, **options)
    facts = {"trained_on": {"names": ["cat", "dog"], "predicates": ["left of"], "triples": 1}}
    save_adapter(folder, model, arm_of(world, kind, **options), world.backbone, facts)
    return folder


def text_of(world: World, count: int) -> TextCondition:
    return open_text_encoders(world.backbone, CPU).prompts([PROMPT] * count)


@torch.no_grad()
def velocity(model: ArmModel, graphs: Sequence[SceneGraph], text: TextCondition) -> torch.Tensor:
    count = len(graphs)
    latents = noise(range(count), model.denoiser.layout.latent_shape(SIDE))
    return model.velocity(latents, torch.full([count], 0.75), model.condition(graphs, [PROMPT] * count, text, NAMES))


@pytest.mark.parametrize("kind", KINDS)
def test_untrained_and_without_a_layout_it_is_the_base_to_the_bit(backbone: World, kind: str) -> None:
    graphs, text = [GRAPH, SceneGraph(), UNPLACED, SceneGraph(("dog",))], text_of(backbone, 4)
    base = backbone.base()
    wanted = velocity(base, graphs, text)
    assert torch.equal(velocity(model_of(backbone, kind), graphs, text), wanted)
    model = model_of(backbone, kind, moved=True)
    found = velocity(model, graphs, text)
    assert torch.equal(found[[1, 3]], wanted[[1, 3]]), "no layout in a batch of others"
    assert all((found[row] - wanted[row]).abs().max() > 1e-3 for row in (0, 2))
    assert model.condition([SceneGraph()] * 4, [PROMPT] * 4, text, NAMES).residuals is None
    condition = model.condition(graphs, [PROMPT] * 4, text, NAMES)
    for refused in (condition.rows, lambda: TextCondition.cat([condition])):
        with pytest.raises(ValueError, match="residuals"):
            refused()


@pytest.mark.parametrize("kind", KINDS)
def test_a_layout_in_a_batch_is_what_it_is_alone(backbone: World, kind: str) -> None:
    model, graphs = model_of(backbone, kind, moved=True, arrows=True), [GRAPH, GRAPH.reversed()]
    text = text_of(backbone, 2)
    together = velocity(model, graphs, text)
    latents = noise([1], model.denoiser.layout.latent_shape(SIDE))
    condition = model.condition(graphs[1:], [PROMPT], text.rows()[1], NAMES)
    with torch.no_grad():
        alone = model.velocity(latents, torch.tensor([0.75]), condition)
    torch.testing.assert_close(together[1:], alone, atol=1e-5, rtol=0)
    assert (together[0] - velocity(model, graphs[1:] * 2, text)[0]).abs().max() > 1e-3


def test_which_boxes_are_shown(backbone: World) -> None:
    """Ground truth in training; in sampling what `boxes` says, and proposals where a graph has none."""
    text = text_of(backbone, 1)
    for kind in KINDS:
        given, proposal = {}, {}
        for boxes in ("oracle", "proposed"):
            model = model_of(backbone, kind, moved=True, boxes=boxes)
            trained = velocity(model, [GRAPH], text)
            with model.evaluating():
                given[boxes], proposal[boxes] = velocity(model, [GRAPH], text), velocity(model, [UNPLACED], text)
            assert torch.equal(trained, given["oracle"])
        assert torch.equal(given["proposed"], proposal["oracle"]) and torch.equal(proposal["oracle"], proposal["proposed"])
        assert (given["oracle"] - given["proposed"]).abs().max() > 1e-4


@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_diffusers_samples_the_same_with_the_exported_folder(
    backbone: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scale: float
) -> None:
    """But for the posterior of the control image, which its pipelines draw from, and of which an arm takes the mode."""
    folder = saved(backbone, "controlnet", tmp_path)
    flux = backbone.backbone.single_blocks > 0
    guidance = None if flux else scale
    generator = GraphGenerator.load(backbone.backbone.model, folder, guidance=guidance)
    found = generator.latents([PROMPT] * 2, [GRAPH, UNPLACED], [3, 4], 3, SIDE)
    images = [Image.fromarray(layout_image(each, SIDE)) for each in (GRAPH, proposed(UNPLACED))]
    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mode())
    model, pipeline = (
        (FluxControlNetModel, FluxControlNetPipeline) if flux else (SD3ControlNetModel, StableDiffusion3ControlNetPipeline)
    )
    theirs = pipeline.from_pretrained(backbone.backbone.model, controlnet=model.from_pretrained(folder / "controlnet"))
    theirs.set_progress_bar_config(disable=True)
    text = generator.texts.prompts([PROMPT])
    start = noise([3, 4], generator.denoiser.layout.latent_shape(SIDE))
    with torch.no_grad():
        wanted = [
            theirs(
                prompt_embeds=text.states, pooled_prompt_embeds=text.pooled, control_image=image, height=SIDE, width=SIDE,
                num_inference_steps=3, guidance_scale=scale, output_type="latent",
                latents=generator.denoiser.family.image_input(start[row : row + 1]),
                **({} if flux else {"negative_prompt": "", "max_sequence_length": backbone.backbone.max_sequence_length}),
            ).images
            for row, image in enumerate(images)
        ]  # fmt: skip
    mine = generator.denoiser.family.image_input(found)
    torch.testing.assert_close(mine, torch.cat(wanted), atol=2e-5, rtol=0)
    plain = generator.denoiser.family.image_input(generator.latents([PROMPT] * 2, [None, None], [3, 4], 3, SIDE))
    assert (mine - plain).abs().max() > 1e-2


def test_a_controlnet_leaves_the_transformers_configuration_as_it_was(backbone: World) -> None:
    denoiser = backbone.denoiser()
    before: Any = deepcopy(dict(denoiser.transformer.config))  # type: ignore[arg-type]
    made = denoiser.family.controlnet(denoiser.transformer, 1, 0)
    assert dict(denoiser.transformer.config) == before and made.config.num_layers == 1  # type: ignore[arg-type]
    assert torch.equal(made.transformer_blocks[0].attn.to_q.weight, denoiser.transformer.transformer_blocks[0].attn.to_q.weight)  # type: ignore[index,union-attr]


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("kind", KINDS)
def test_killed_and_run_again_it_ends_with_the_same_bytes(world: World, tmp_path: Path, kind: str, one_thread: None) -> None:
    """On one thread; on two, weights of a ControlNet were seen to differ by rounding, 6e-8."""
    arm, given = arm_of(world, kind, learning_rate=0.01), (world.backbone, world.data())
    assert arm.train.optimiser.learning_rate == 0.01
    whole = fit(arm, world.denoiser(), *given, tmp_path / "whole", ALONE, {})
    first, last = (each["losses"] for each in (whole.history.controls[0], whole.history.controls[-1]))
    assert first["graph"] == first["base"] == first["empty"] == last["empty"] and last["graph"] != last["base"]

    def killed(model: ArmModel, step: int) -> None:
        if step:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(arm, world.denoiser(), *given, tmp_path / "cut", ALONE, {}, validated=killed)
    assert not (tmp_path / "cut" / "adapter").exists()
    fit(arm, world.denoiser(), *given, tmp_path / "cut", ALONE, {})
    assert files(tmp_path / "cut" / "adapter") == files(tmp_path / "whole" / "adapter")
    about = json.loads((tmp_path / "whole" / "adapter" / "adapter.json").read_text())
    loaded = load_adapter(tmp_path / "whole" / "adapter", world.denoiser(), world.backbone)
    assert about["kind"] == kind and about[f"{kind}_parameters"] == sum(w.numel() for w in whole.model.trainable().values())
    state, wanted = (each.adapter.parameters()[kind] for each in (loaded, whole.model))
    assert state.keys() == wanted.keys() and all(torch.equal(state[name], weight) for name, weight in wanted.items())


def test_a_person_gives_boxes_or_none(world: World, tmp_path: Path) -> None:
    runner, text = CliRunner(), json.dumps({"objects": GRAPH.objects, "triples": GRAPH.triples, "boxes": GRAPH.boxes})
    graphs = {"boxes": text, "none": "dog, left of, cat", "empty": '{"objects": ["dog", "cat"]}'}
    for boxes, warned in (("oracle", False), ("proposed", True)):
        folder, images = saved(world, "controlnet", tmp_path / boxes, boxes=boxes), {}
        for name, graph in graphs.items():
            out = tmp_path / f"{boxes}-{name}.png"
            done = runner.invoke(
                app,
                [
                    "generate",
                    "--adapter",
                    str(folder),
                    "--model",
                    world.backbone.model,
                    "--steps",
                    "2",
                    "--graph",
                    graph,
                    "--out",
                    str(out),
                ],
            )
            assert done.exit_code == 0, done.output
            assert ("the adapter proposes its own" in done.stderr) == (warned and name == "boxes")
            images[name] = np.asarray(Image.open(out))
        assert np.array_equal(images["boxes"], images["none"]) == warned
        base = GraphGenerator.load(world.backbone.model, None, backbone=world.backbone)
        prompt = "a photo of dog and cat on a plain background"
        assert np.array_equal(images["empty"], base.sample([prompt], [None], [0], steps=2, size=SIDE)[0])


def test_adapters_are_composed_by_weights(world: World, tmp_path: Path) -> None:
    """Residuals are the weighted sum; diffusers' `MultiAdapter` finds both networks."""
    folders = [
        saved(world, "t2i_adapter", tmp_path / "one", weight=0.5),
        saved(world, "t2i_adapter", tmp_path / "two", blocks="1", arrows=True),
    ]
    out = tmp_path / "both"
    done = CliRunner().invoke(app, ["compose", f"{folders[0]}=0.6", f"{folders[1]}=-2", "--out", str(out)])
    assert done.exit_code == 0, done.output
    latents, text = noise([0], world.denoiser().layout.latent_shape(SIDE)), text_of(world, 1)

    def residual(folder: Path) -> list[torch.Tensor]:
        model = load_adapter(folder, world.denoiser(), world.backbone)
        added = model.condition([GRAPH], [PROMPT], text, NAMES).residuals
        assert added is not None
        double, single = added(latents, {})
        assert single is None and double is not None and len(double) == DOUBLE
        return [each.expand(1, (SIDE // 4) ** 2, 32) for each in double]

    one, two, both = (residual(folder) for folder in (*folders, out))
    for rows in zip(one, two, both, strict=True):
        torch.testing.assert_close(rows[2], 0.6 * rows[0] - 2 * rows[1], atol=1e-5, rtol=1e-5)
    assert not two[0].any() and two[1].any() and one[0].any()
    assert len(MultiAdapter.from_pretrained(str(out / "t2i_adapter")).adapters) == 2
    other = saved(world, "controlnet", tmp_path / "other")
    for given, says in (
        ([f"{folders[0]}=1"], "two different"),
        ([f"{other}=1", f"{folders[0]}=1"], "of kind controlnet"),
        (["a=b"], "FOLDER=ω"),
    ):
        wrong = CliRunner().invoke(app, ["compose", *given, "--out", str(tmp_path / "no")])
        assert says in str(wrong.exception) and not (tmp_path / "no").exists()
    path = folders[1] / "adapter.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "relations": [{"name": "near"}]}))
    wrong = CliRunner().invoke(app, ["compose", f"{folders[0]}=1", f"{folders[1]}=1", "--out", str(tmp_path / "no")])
    assert "other relation classes than" in str(wrong.exception) and not (tmp_path / "no").exists()


def test_what_cannot_be_made_is_refused(backbone: World, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ParamsError, match=r"arms\.mine\.blocks: got 4; the transformer has 3 to copy"):
        arm_of(backbone, "controlnet", blocks=DOUBLE + 1)
    with pytest.raises(ParamsError, match=r"arms\.mine\.blocks: got none"):
        arm_of(backbone, "t2i_adapter", blocks="none")
    if backbone.backbone.single_blocks == 0:
        with pytest.raises(ParamsError, match=r"blocks: got \[2\]; nothing can be added behind block 2"):
            model_of(backbone, "t2i_adapter", blocks="2")
        with pytest.raises(ParamsError, match=r"has no transformer_blocks\.2\.\S+ to copy; name fewer"):
            model_of(backbone, "controlnet", blocks=DOUBLE)
    monkeypatch.setattr(type(backbone.denoiser().family), "residual_inputs", ())
    for kind in KINDS:
        with pytest.raises(ModelError, match="nothing can be added behind its blocks"):
            model_of(backbone, kind)
