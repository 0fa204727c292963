"""Classifier-free guidance through the seam: the pipelines' own results, with adapters and under maps."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline, StableDiffusion3Pipeline
from PIL import Image
from typer.testing import CliRunner

from sgpipe.arms.adapter import build
from sgpipe.arms.config import Arms
from sgpipe.arms.generation import GraphGenerator, add_names
from sgpipe.arms.kinds.base import Sections
from sgpipe.arms.resolve import resolve
from sgpipe.attention_maps.extract import Observer, map_items
from sgpipe.attention_maps.options import MapOptions
from sgpipe.attention_maps.scores import GroupMaps
from sgpipe.attention_maps.stream import concept_stream
from sgpipe.backbones.base import TextCondition
from sgpipe.backbones.config import Backbone
from sgpipe.backbones.denoiser import Denoiser
from sgpipe.backbones.families import open_text_encoders
from sgpipe.backbones.families.flux import pack
from sgpipe.backbones.prompt_cache import PromptCache
from sgpipe.backbones.rectified_flow import noise
from sgpipe.cli import app
from sgpipe.datasets.tables import PROMPTS, TRIPLES, read_table
from sgpipe.errors import ModelError, ParamsError
from sgpipe.graph_encoder.config import GraphTokens
from sgpipe.graphs.scene_graph import SceneGraph
from sgpipe.training.fit import fit
from tests.tiny import SIDE, TOKENS, backbone_of, write_sd3_pipeline
from tests.training.world import ALONE, LORA, World, tiny_train, write_world

CPU = torch.device("cpu")
TEXTS, SEEDS, SCALE = ["a photo of dog above cat on a plain background", "", "a photo of ball"], [3, 1, 2], 4.5


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A tiny SD3.5 with its caches."""
    root = tmp_path_factory.mktemp("sd3")
    backbone = backbone_of(write_sd3_pipeline(root / "models" / "tiny", shift=1.0), single_blocks=0)
    return write_world(root, backbone=backbone)


@pytest.fixture(scope="module")
def encoded(world: World) -> tuple[TextCondition, TextCondition]:
    """`TEXTS`, and the empty prompt alone."""
    encoders = open_text_encoders(world.backbone, CPU)
    return encoders.prompts(TEXTS), encoders.prompts([""])


@pytest.fixture
def forwards(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The batch of each forward of any family's transformer, while the test runs."""
    found: list[int] = []
    for kind in ("flux.Flux", "sd3.StableDiffusion3"):
        module, name = kind.split(".")
        family = getattr(__import__(f"sgpipe.backbones.families.{module}", fromlist=[name]), name)
        original = family.velocity

        def counted(self: Any, transformer: Any, latents: torch.Tensor, *rest: Any, original: Any = original) -> torch.Tensor:
            found.append(len(latents))
            return original(self, transformer, latents, *rest)

        monkeypatch.setattr(family, "velocity", counted)
    return found


def opened(backbone: Backbone) -> StableDiffusion3Pipeline:
    pipeline = StableDiffusion3Pipeline.from_pretrained(backbone.model)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def sampled(pipeline: StableDiffusion3Pipeline, seeds: list[int], **given: Any) -> torch.Tensor:
    """Latents of the pipeline at `SCALE`, from the noise of `seeds`."""
    asked = {"height": SIDE, "width": SIDE, "guidance_scale": SCALE, "output_type": "latent", **given}
    return pipeline(**asked, latents=noise(seeds, (4, SIDE // 2, SIDE // 2))).images


@pytest.mark.parametrize("steps", [1, 5])
def test_guided_sampling_equals_stable_diffusion_3(
    world: World, encoded: tuple[TextCondition, TextCondition], steps: int, forwards: list[int]
) -> None:
    mine = world.denoiser().sample(encoded[0], SEEDS, SIDE, steps, SCALE, unconditional=encoded[1])
    assert forwards == [3] * 2 * steps
    theirs = sampled(opened(world.backbone), SEEDS, prompt=TEXTS, num_inference_steps=steps, max_sequence_length=TOKENS)
    torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=0)


def test_guided_sampling_equals_flux_with_true_guidance(schnell: Path) -> None:
    """A transformer that takes no scale is guided so, whatever its family; `FluxPipeline` runs two forwards, too."""
    backbone = backbone_of(schnell)
    encoders = open_text_encoders(backbone, CPU)
    denoiser = Denoiser.load(backbone, CPU)
    mine = denoiser.sample(encoders.prompts(TEXTS), SEEDS, SIDE, 3, SCALE, unconditional=encoders.prompts([""]))
    pipeline = FluxPipeline.from_pretrained(schnell)
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        TEXTS, negative_prompt=[""] * 3, true_cfg_scale=SCALE, height=SIDE, width=SIDE, num_inference_steps=3,
        max_sequence_length=TOKENS, latents=pack(noise(SEEDS, denoiser.layout.latent_shape(SIDE))), output_type="latent",
    ).images  # fmt: skip
    torch.testing.assert_close(pack(mine), theirs, atol=1e-6, rtol=0)


@pytest.mark.parametrize("scale", [None, 1, 1.0])
def test_without_a_scale_it_is_one_forward_with_the_same_bits(
    world: World, encoded: tuple[TextCondition, TextCondition], scale: float | None, forwards: list[int]
) -> None:
    denoiser, (prompts, empty) = world.denoiser(), encoded
    plain = denoiser.sample(prompts, SEEDS, SIDE, 3)
    assert torch.equal(denoiser.sample(prompts, SEEDS, SIDE, 3, scale, unconditional=empty), plain)
    assert forwards == [3] * 6
    assert not torch.equal(denoiser.sample(prompts, SEEDS, SIDE, 3, 1.5, unconditional=empty), plain)


def test_guided_too_a_sample_does_not_depend_on_its_batch(world: World, encoded: tuple[TextCondition, TextCondition]) -> None:
    denoiser, (prompts, empty) = world.denoiser(), encoded
    together = denoiser.sample(prompts, SEEDS, SIDE, 3, SCALE, unconditional=empty)
    for row, (text, seed) in enumerate(zip(prompts.rows(), SEEDS, strict=True)):
        alone = denoiser.sample(text, [seed], SIDE, 3, SCALE, unconditional=empty)
        torch.testing.assert_close(together[row : row + 1], alone, rtol=0, atol=2e-5)
    unguided = denoiser.sample(prompts, SEEDS, SIDE, 3)
    torch.testing.assert_close(together[1:2], unguided[1:2], rtol=0, atol=2e-5)  # the empty prompt is its own other side


def test_scales_that_make_no_sense_are_refused(world: World, encoded: tuple[TextCondition, TextCondition]) -> None:
    denoiser, (prompts, empty) = world.denoiser(), encoded
    for scale in (0.0, 0.5):
        with pytest.raises(ModelError, match=rf"guidance: got {scale:g}; this transformer takes no scale .* above 1, or to null"):
            denoiser.sample(prompts, SEEDS, SIDE, 1, scale, unconditional=empty)
    with pytest.raises(ModelError, match=r"guidance: got 4\.5; .* needs the condition of the empty prompt"):
        denoiser.sample(prompts, SEEDS, SIDE, 1, SCALE)


def test_training_takes_no_scale(world: World) -> None:
    with pytest.raises(ParamsError, match=r"train\.guidance: got 4\.5; .* conditional velocities: set it to null"):
        world.model(tiny_train(guidance=SCALE))


def test_training_of_a_distilled_transformer_needs_one(dev: Path) -> None:
    world = World(backbone_of(dev), None)  # type: ignore[arg-type]
    with pytest.raises(ParamsError, match=r"train\.guidance: got null; .* takes the scale as an input"):
        world.model(tiny_train())
    assert world.model(tiny_train(guidance=3.5)).guidance == 3.5


class Kept:
    """The cache's prompts, with the other side of the guidance that is asked for."""

    def __init__(self, cache: PromptCache) -> None:
        self.cache, self.asked = cache, list[list[str]]()

    def get(self, prompts: list[str]) -> TextCondition:
        self.asked.append(list(prompts))
        return self.cache.get(prompts)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.cache, name)


def test_maps_are_of_the_conditional_forwards_alone(world: World) -> None:
    """As those of single forwards at the states that guided sampling passes through; the steps that count are numbered alike."""
    curated = read_table(world.sources.curated / "triples.parquet", TRIPLES).slice(0, 3)
    said = read_table(world.sources.prompts / "prompts.parquet", PROMPTS)
    items = map_items(curated, said, ["relational"], [None], 0)
    cache = PromptCache([world.sources.prompts], world.backbone)
    denoiser, groups = world.denoiser(), {"first": "0", "all": "all"}
    seen, kept = {}, Kept(cache)
    for counted in (None, (1,)):
        options = MapOptions(groups, "concepts", counted, detach=True)
        observer = Observer(denoiser, kept, options, "first", SIDE, SCALE)  # type: ignore[arg-type]
        seen[counted] = observer.along_sampling(items, 3)
    prompts = cache.get(items["prompt"].to_pylist())
    assert [""] in kept.asked

    states: list[tuple[torch.Tensor, torch.Tensor]] = []

    def velocity(latents: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        states.append((latents, t))
        return denoiser.velocity(latents, t, prompts, SCALE, cache.get([""]))

    latents = denoiser.sample(prompts, items["seed"].to_pylist(), SIDE, 3, velocity=velocity)
    for each in seen.values():
        assert each.latents is not None and torch.equal(each.latents, latents)
    singles: list[dict[str, GroupMaps]] = []
    grid = denoiser.layout.grid(SIDE)
    for latents, t in states:
        options = MapOptions(groups, "concepts")
        concepts = Observer(denoiser, cache, options, "first", SIDE).concepts(items)
        with torch.no_grad(), concept_stream(denoiser.transformer, concepts, (grid, grid), options) as stream:
            denoiser.velocity(latents, t, prompts)
        singles.append(stream.maps())
    for name in groups:
        assert all(torch.equal(a, b) for a, b in zip(seen[(1,)].maps[name], singles[1][name], strict=True))
        mean = [torch.stack(parts).mean(0) for parts in zip(*(maps[name] for maps in singles), strict=True)]
        for found, expected in zip(seen[None].maps[name], mean, strict=True):
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_a_paused_stream_neither_counts_nor_minds_the_batch(world: World, encoded: tuple[TextCondition, TextCondition]) -> None:
    denoiser, (prompts, empty) = world.denoiser(), encoded
    concepts, at = torch.randn(3, 2, 48), torch.tensor([0.5])
    latents, grid = noise(SEEDS, denoiser.layout.latent_shape(SIDE)), denoiser.layout.grid(SIDE)
    with torch.no_grad(), concept_stream(denoiser.transformer, concepts, (grid, grid), MapOptions({"all": "all"})) as stream:
        with stream.paused():
            denoiser.velocity(latents[:1], at, empty)
        assert stream.forwards == 0
        with pytest.raises(ModelError, match="no maps yet: 0 forwards"):
            stream.maps()
        denoiser.velocity(latents, at.repeat(3), prompts)
        alone = stream.maps()["all"]
        with pytest.raises(RuntimeError, match="stop"), stream.paused():
            raise RuntimeError("stop")
        with pytest.raises(ValueError, match="for 3 samples"):
            denoiser.velocity(latents[:1], at, empty)
    assert stream.forwards == 1
    assert all(torch.equal(a, b) for a, b in zip(stream.maps()["all"], alone, strict=True))


@pytest.fixture(scope="module", params=["prepend", "residual", "text"])
def adapted(request: pytest.FixtureRequest, world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GraphGenerator]:
    """A generator at `SCALE` with an adapter of few steps, at all times."""
    folder, recipe = tmp_path_factory.mktemp(request.param), tiny_train(epochs=1, keep_epochs=(), active_timesteps="always")
    name = "text_only" if request.param == "text" else "graph"
    tokens = GraphTokens() if request.param == "text" else GraphTokens(injection=request.param)
    fit(world.arm(recipe, tokens, name), world.denoiser(), world.backbone, world.data(), folder, ALONE, {})
    yield GraphGenerator.load(world.backbone.model, folder / "adapter", guidance=SCALE)


def test_an_adapters_images_are_those_of_the_pipeline_that_loads_it(world: World, adapted: GraphGenerator, request: Any) -> None:
    """LoRA is on under the empty prompt, too, and no graph is. The pipeline takes both conditions in equally many rows alone; so
    prepended tokens, which add rows, are compared with its transformer and scheduler, called by hand."""
    graphs = [SceneGraph.of("dog", "above", "cat"), SceneGraph.of("cat", "left of", "tree")]
    prompts = ["a photo of dog and cat on a plain background", "a photo of cat and tree on a plain background"]
    mine = adapted.latents(prompts, graphs, [5, 6], 3, SIDE)
    plain = GraphGenerator(adapted.denoiser, adapted.vae, adapted.texts, guidance=SCALE)
    assert adapted.adapter is not None
    with adapted.adapter.off():
        assert not torch.equal(plain.latents(prompts, [None, None], [5, 6], 3, SIDE), mine)
    encoded, empty = adapted.texts.prompts(prompts), adapted.texts.prompts([""])
    with torch.no_grad():
        text = adapted.adapter.condition(graphs, prompts, encoded, add_names({}, adapted.texts.concepts, graphs))
        nothing = adapted.adapter.condition([SceneGraph()], [""], empty, add_names({}, adapted.texts.concepts, [SceneGraph()]))
    assert torch.equal(nothing.states, empty.states)
    pipeline = opened(world.backbone)
    pipeline.load_lora_weights(weights_of(adapted, request))
    if text.states.shape == encoded.states.shape:
        theirs = sampled(
            pipeline, [5, 6], prompt_embeds=text.states, pooled_prompt_embeds=text.pooled, num_inference_steps=3,
            negative_prompt_embeds=empty.states.repeat(2, 1, 1), negative_pooled_prompt_embeds=empty.pooled.repeat(2, 1),
        )  # fmt: skip
    else:
        theirs = by_hand(pipeline, text, TextCondition.cat([empty, empty]), [5, 6], 3)
    torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=0)


def weights_of(generator: GraphGenerator, request: Any) -> Path:
    """A folder with the LoRA file of a generator's adapter."""
    folder = request.getfixturevalue("tmp_path")
    assert generator.adapter is not None
    generator.adapter.adapter.save(folder)
    return folder


@torch.no_grad()
def by_hand(
    pipeline: StableDiffusion3Pipeline, text: TextCondition, empty: TextCondition, seeds: list[int], steps: int
) -> torch.Tensor:
    """The denoising loop of `StableDiffusion3Pipeline`, its batch of 2B in two."""
    pipeline.scheduler.set_timesteps(steps)
    latents = noise(seeds, (4, SIDE // 2, SIDE // 2))
    for t in pipeline.scheduler.timesteps:
        made = [
            pipeline.transformer(latents, each.states, each.pooled, t.expand(len(latents)), return_dict=False)[0]
            for each in (empty, text)
        ]
        latents = pipeline.scheduler.step(made[0] + SCALE * (made[1] - made[0]), t, latents, return_dict=False)[0]
    return latents


def test_guided_graphs_of_any_size_go_together(adapted: GraphGenerator) -> None:
    graphs = [
        SceneGraph.of("dog", "above", "cat"), SceneGraph(("dog", "cat"), ((0, "on", 1), (1, "left of", 0))), SceneGraph(),
    ]  # fmt: skip
    prompts = ["a photo of dog and cat on a plain background"] * 3
    together = adapted.latents(prompts, graphs, [5, 6, 7], 3, SIDE)
    for row, graph in enumerate(graphs):
        alone = adapted.latents(prompts[:1], [graph], [5 + row], 3, SIDE)
        torch.testing.assert_close(together[row : row + 1], alone, atol=2e-5, rtol=0)


def test_encoded_ahead_the_empty_prompt_is_there(world: World, forwards: list[int]) -> None:
    prompts, model = ["a photo of dog and cat"], world.backbone.model
    images = {}
    for scale in (None, SCALE):
        given = {"guidance": scale, "backbone": world.backbone}
        generator = GraphGenerator.load(model, None, ahead=(prompts, [None]), **given)
        images[scale] = generator.latents(prompts, [None], [1], 2, SIDE)
        assert torch.equal(images[scale], GraphGenerator.load(model, None, **given).latents(prompts, [None], [1], 2, SIDE))
    assert not torch.equal(images[None], images[SCALE])
    assert forwards == [1] * 2 * 2 + [1] * 2 * 4
    generator = GraphGenerator.load(model, None, ahead=(prompts, [None]), backbone=world.backbone)
    generator.guidance = SCALE
    with pytest.raises(ModelError, match="'' was not encoded"):
        generator.latents(prompts, [None], [1], 2, SIDE)
    with pytest.raises(ModelError, match=r"guidance: got 0\.5"):
        GraphGenerator.load(model, None, ahead=(prompts, [None]), backbone=world.backbone, guidance=0.5)


def test_a_person_guides_an_image(world: World, tmp_path: Path) -> None:
    call = ["generate", "--model", world.backbone.model, "--prompt", TEXTS[0], "--size", str(SIDE), "--steps", "2", "--seed", "3"]
    done = CliRunner().invoke(app, [*call, "--guidance", str(SCALE), "--out", str(tmp_path / "one.png")])
    assert done.exit_code == 0, done.output
    wanted = {}
    for scale in (None, SCALE):
        generator = GraphGenerator.load(world.backbone.model, None, guidance=scale)
        wanted[scale] = generator.sample(TEXTS[:1], [None], [3], steps=2, size=SIDE)[0]
    with Image.open(tmp_path / "one.png") as image:
        found = np.asarray(image).astype(int)
    assert np.abs(found - wanted[SCALE]).max() <= 1 < np.abs(found - wanted[None]).max()


def test_where_an_adapter_is_off_the_base_is_guided(world: World, forwards: list[int]) -> None:
    """Trained from t = 0.7: the first of three steps has LoRA and tokens in its conditional forward, the others have neither."""
    arms = Arms.decode("arms", {"graph": {"kind": "graph_lora"}}, "tests")
    sections = Sections(LORA, tiny_train(active_timesteps="trained"), GraphTokens(), world.backbone)
    model = build(world.denoiser(), world.backbone, resolve("graph", arms["graph"], sections), 0.7)
    for weight in model.adapter.parameters()["lora"].values():
        weight.data.normal_(0, 0.3, generator=torch.Generator().manual_seed(1))
    encoders = open_text_encoders(world.backbone, CPU)
    plain, empty = encoders.prompts(["a photo of dog and cat"]), encoders.prompts([""])
    rows = torch.cat([torch.ones(1, 2, 48), plain.states], dim=1)
    condition = TextCondition(rows, plain.pooled)
    mine = model.sample(condition, plain, [4], SIDE, 3, SCALE, empty)
    assert forwards == [1] * 6

    def velocity(latents: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        if t.item() > 0.7:
            on, off = (model.denoiser.velocity(latents, t, each) for each in (condition, empty))
        else:
            with model.off():
                on, off = (model.denoiser.velocity(latents, t, each) for each in (plain, empty))
        return off + SCALE * (on - off)

    assert torch.equal(mine, model.denoiser.sample(plain, [4], SIDE, 3, velocity=velocity))
