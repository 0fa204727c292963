"""SD3 through the seam: the pipeline's own results, and the whole way from caches to an adapter that its pipeline loads."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline
from msgspec.structs import replace
from safetensors.torch import load_file

from sgpipe.arms.adapter import build
from sgpipe.arms.config import Lora
from sgpipe.arms.generation import GraphGenerator, add_names
from sgpipe.arms.kinds.base import Sections
from sgpipe.arms.lora import target_modules
from sgpipe.arms.resolve import resolve
from sgpipe.attention_maps.config import Maps, Variant
from sgpipe.attention_maps.extract import Observer
from sgpipe.attention_maps.options import MapOptions
from sgpipe.attention_maps.scores import GroupMaps
from sgpipe.attention_maps.stream import concept_stream
from sgpipe.backbones.base import TextCondition
from sgpipe.backbones.config import Backbone
from sgpipe.backbones.denoiser import Denoiser
from sgpipe.backbones.families import open_text_encoders
from sgpipe.backbones.loading import load_plain
from sgpipe.backbones.prompt_cache import PromptCache
from sgpipe.backbones.rectified_flow import interpolate, noise
from sgpipe.errors import DataError, ParamsError
from sgpipe.graph_encoder.config import GraphTokens
from sgpipe.graph_encoder.open_vocabulary import NameTable
from sgpipe.graphs.scene_graph import SceneGraph
from sgpipe.params.blocks import Blocks, LayerGroup
from sgpipe.training.config import Losses, Times, Weighted
from sgpipe.training.fit import fit
from sgpipe.training.timesteps import sampler_times
from tests.attention_maps.reference import Stream, attention
from tests.backbones.test_caches import make_prompts
from tests.tiny import DOUBLE, SIDE, TOKENS, backbone_of, write_sd3_pipeline
from tests.training.world import ALONE, ARMS, LORA, World, tiny_train, write_world

CPU = torch.device("cpu")
TEXTS, SEEDS = ["a photo of dog above cat on a plain background", "", "a photo of ball"], [3, 1, 2]


@pytest.fixture(scope="module", params=["rms_norm", None], ids=["sd3.5", "sd3.0"])
def backbone(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    folder = tmp_path_factory.mktemp("sd3") / "tiny"
    return backbone_of(write_sd3_pipeline(folder, qk_norm=request.param), single_blocks=0)


@pytest.fixture(scope="module")
def pipeline(backbone: Backbone) -> StableDiffusion3Pipeline:
    made = StableDiffusion3Pipeline.from_pretrained(backbone.model)
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="module")
def denoiser(backbone: Backbone) -> Denoiser:
    """For tests that leave it as it is."""
    return Denoiser.load(backbone, CPU)


@pytest.fixture(scope="module")
def text(backbone: Backbone) -> TextCondition:
    """The encoding of `TEXTS`."""
    return open_text_encoders(backbone, CPU).prompts(TEXTS)


def test_prompts_are_encoded_as_by_the_pipeline(text: TextCondition, pipeline: StableDiffusion3Pipeline) -> None:
    found = text
    with torch.no_grad():  # as the pipeline's own call does; with gradients another attention kernel rounds otherwise
        states, _, pooled, _ = pipeline.encode_prompt(
            TEXTS, None, None, do_classifier_free_guidance=False, max_sequence_length=TOKENS
        )
    assert torch.equal(found.states, states) and torch.equal(found.pooled, pooled) and found.mask is None


def test_the_velocity_is_that_of_the_transformer_itself(
    denoiser: Denoiser, text: TextCondition, pipeline: StableDiffusion3Pipeline
) -> None:
    latents = noise(SEEDS, denoiser.layout.latent_shape(SIDE))
    t = torch.tensor([0.3, 0.998, 0.5])
    theirs = pipeline.transformer(latents, text.states, text.pooled, t * 1000, return_dict=False)[0]
    assert torch.equal(denoiser.velocity(latents, t, text), theirs)


@pytest.mark.parametrize("steps", [4, 7])
def test_sampling_equals_the_pipeline(
    denoiser: Denoiser, text: TextCondition, pipeline: StableDiffusion3Pipeline, steps: int
) -> None:
    mine = denoiser.sample(text, SEEDS, SIDE, steps)
    theirs = pipeline(
        TEXTS, height=SIDE, width=SIDE, num_inference_steps=steps, guidance_scale=1.0, max_sequence_length=TOKENS,
        latents=noise(SEEDS, denoiser.layout.latent_shape(SIDE)), output_type="latent",
    ).images  # fmt: skip
    assert torch.equal(mine, theirs)


def test_only_the_last_block_lacks_a_text_output_and_all_but_the_first_a_second_attention(denoiser: Denoiser) -> None:
    layout, transformer = denoiser.layout, denoiser.transformer
    names = [
        f"{layout.double_block.format(index=index)}.{part}"
        for index in range(DOUBLE)
        for part in layout.image_projections + layout.text_projections + layout.second_projections
    ]
    there = {name for name, module in transformer.named_modules() if isinstance(module, torch.nn.Linear)}
    assert {name for name in names if name not in there} == layout.lacking
    assert {name for name in layout.lacking if ".attn." in name} == {f"transformer_blocks.{DOUBLE - 1}.attn.to_add_out"}
    assert len(layout.lacking) == 1 + 4 * (DOUBLE - 1)


def maps_of(
    denoiser: Denoiser, groups: dict[str, str], concepts: torch.Tensor, given: tuple[Any, ...], variant: Variant = "ours"
) -> tuple[Any, Any]:
    latents, t, text = given
    grid = denoiser.layout.grid(SIDE)
    with concept_stream(denoiser.transformer, concepts, (grid, grid), MapOptions(groups, variant=variant)) as stream:
        velocity = denoiser.velocity(latents, t, text)
    return velocity, stream.maps()


@pytest.mark.parametrize("variant", ["ours", "official_sd3"])
def test_concepts_ride_along_without_changing_a_bit(denoiser: Denoiser, text: TextCondition, variant: Variant) -> None:
    given = noise(SEEDS, denoiser.layout.latent_shape(SIDE)), torch.tensor([0.3, 0.9, 0.5]), text
    concepts = torch.randn(3, 2, 48, generator=torch.Generator().manual_seed(1))
    velocity, together = maps_of(denoiser, {"first": "0..1", "last": str(DOUBLE - 1), "all": "all"}, concepts, given, variant)
    assert torch.equal(velocity, denoiser.velocity(*given))
    for name, blocks in {"first": "0..1", "last": str(DOUBLE - 1)}.items():
        _, apart = maps_of(denoiser, {name: blocks}, concepts, given, variant)
        assert all(torch.equal(a, b) for a, b in zip(together[name], apart[name], strict=True))
    mean = GroupMaps(*((2 * a + b) / 3 for a, b in zip(together["first"], together["last"], strict=True)))
    torch.testing.assert_close(together["all"], mean, atol=1e-5, rtol=1e-5)
    _, alone = maps_of(denoiser, {"all": "all"}, concepts[1:2], (given[0][1:2], given[1][1:2], text.rows()[1]), variant)
    torch.testing.assert_close(alone["all"][0], together["all"][0][1:2], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("variant", ["ours", "official_sd3"])
def test_maps_are_those_of_the_formulas(tmp_path: Path, variant: Variant) -> None:
    """Blocks before the last, in float64, on the joint attention alone: no rotary embedding, no second attention.

    In the official port concepts have the prompt's pooled vector, and their maps the image's output beside them, not beside the
    prompt.
    """
    backbone = backbone_of(write_sd3_pipeline(tmp_path / "tiny"), single_blocks=0)
    denoiser = Denoiser.load(backbone, CPU)
    transformer: Any = denoiser.transformer
    assert isinstance(transformer, SD3Transformer2DModel)
    text = open_text_encoders(backbone, CPU).prompts(TEXTS[:1])
    latents, t = noise([5], denoiser.layout.latent_shape(SIDE)), torch.tensor([0.6])
    concepts = torch.randn(1, 2, 48, generator=torch.Generator().manual_seed(1))
    groups = {str(index): str(index) for index in range(1, DOUBLE - 1)}
    enter: list[tuple[torch.Tensor, torch.Tensor]] = []
    hook = transformer.transformer_blocks[1].register_forward_pre_hook(
        lambda module, args, kwargs: enter.append(
            (kwargs["hidden_states"][0].double(), kwargs["encoder_hidden_states"][0].double())
        ),
        with_kwargs=True,
    )
    rows: list[torch.Tensor] = []
    _, found = maps_of(denoiser, {"0": "0", **groups}, concepts, (latents, t, text), variant)
    hook.remove()
    weights = {name: value.double() for name, value in transformer.state_dict().items()}
    timed = transformer.time_text_embed
    prompt = timed(t * 1000, text.pooled)[0].double()
    concept = prompt if variant == "official_sd3" else timed(t * 1000, torch.zeros_like(text.pooled))[0].double()
    rows.append(transformer.context_embedder(concepts)[0].double())
    # concept rows after block 0, whose image side has a second attention that they do not see
    first = transformer.pos_embed(latents)[0].double()
    c = Stream(weights, "transformer_blocks.0", True, 2, rows[0], concept)
    norm = "transformer_blocks.0.norm1.linear"
    joint = {f"{norm}.{name}": weights[f"{norm}.{name}"][: 6 * 32] for name in ("weight", "bias")}
    x = Stream({**weights, **joint}, "transformer_blocks.0", False, 2, first, prompt)
    output = attention(c.query, torch.cat([c.key, x.key]), torch.cat([c.value, x.value]))
    rows.append(c.updated(output))
    x1 = Stream(weights, "transformer_blocks.1", False, 2, enter[0][0], prompt)
    p1 = Stream(weights, "transformer_blocks.1", True, 2, enter[0][1], prompt)
    c1 = Stream(weights, "transformer_blocks.1", True, 2, rows[1], concept)
    beside = c1 if variant == "official_sd3" else p1
    image = attention(x1.query, torch.cat([x1.key, beside.key]), torch.cat([x1.value, beside.value]))
    concept_out = attention(c1.query, torch.cat([c1.key, x1.key]), torch.cat([c1.value, x1.value]))
    wanted = concept_out @ image.T
    torch.testing.assert_close(found["1"].saliency[0].flatten(1).double(), wanted, atol=2e-4, rtol=1e-4)
    cross = torch.einsum("nhd,khd->hkn", x1.query, c1.key).mean(0)
    torch.testing.assert_close(found["1"].cross[0].flatten(1).double(), cross, atol=2e-4, rtol=1e-4)


def test_gradients_of_the_official_maps_are_those_under_checkpointing(tmp_path: Path) -> None:
    denoiser = Denoiser.load(backbone_of(write_sd3_pipeline(tmp_path / "tiny"), single_blocks=0), CPU)
    transformer: Any = denoiser.transformer.requires_grad_(True)
    text = TextCondition(torch.randn(1, 9, 48, generator=torch.Generator().manual_seed(2)), torch.ones(1, 42))
    given = noise([5], denoiser.layout.latent_shape(SIDE)), torch.tensor([0.6]), text
    concepts = torch.randn(1, 2, 48, generator=torch.Generator().manual_seed(1)).requires_grad_()
    leaves = [concepts, *transformer.transformer_blocks[0].attn.parameters(), *transformer.time_text_embed.parameters()]
    found = []
    for _ in range(2):
        grid = denoiser.layout.grid(SIDE)
        with concept_stream(transformer, concepts, (grid, grid), MapOptions({"all": "all"}, variant="official_sd3")) as stream:
            denoiser.velocity(*given)
            found.append(torch.autograd.grad(stream.maps()["all"].saliency.tanh().square().sum(), leaves))
        transformer.enable_gradient_checkpointing()
    torch.testing.assert_close(found[0], found[1])
    assert all(gradient.abs().max() > 0 for gradient in found[0])


def test_an_observer_of_the_official_maps_reads_concepts_in_the_text_of_all(tmp_path: Path) -> None:
    """The maps of a row are those of vectors taken from one encoding of "dog in front of cat", at each concept's first token."""
    backbone = backbone_of(write_sd3_pipeline(tmp_path / "tiny"), single_blocks=0)
    told, prompt = ["dog", "in front of", "cat"], "a photo of dog in front of cat"
    folder = make_prompts(backbone, tmp_path / "state", tmp_path / "cache", [prompt], [*told, "dog in front of cat"])
    denoiser, encoders = Denoiser.load(backbone, CPU), open_text_encoders(backbone, CPU)
    items = pa.table({"concepts": [told], "prompt": [prompt], "seed": [3], "t": [0.6]})
    clean = torch.randn(1, *denoiser.layout.latent_shape(SIDE), generator=torch.Generator().manual_seed(4))
    (whole,) = encoders.concepts(["dog in front of cat"])
    assert len(whole) == 5
    t = torch.tensor([0.6])
    given = interpolate(clean, noise([3], tuple(clean.shape[1:])), t), t, encoders.prompts([prompt])
    vectors: dict[Variant, torch.Tensor] = {
        "ours": torch.stack([row[0] for row in encoders.concepts(told)]), "official_sd3": whole[[0, 1, 4]],
    }  # fmt: skip
    for variant, own in vectors.items():
        options = MapOptions({"all": "all"}, variant=variant)
        seen = Observer(denoiser, PromptCache([folder], backbone), options, "first", SIDE).of_noised(items, clean).maps
        with torch.no_grad():
            _, wanted = maps_of(denoiser, {"all": "all"}, own[None], given, variant)
        torch.testing.assert_close(tuple(seen["all"]), tuple(wanted["all"]), atol=1e-4, rtol=1e-4)


def test_from_caches_to_an_adapter_that_the_pipeline_loads(tmp_path: Path) -> None:
    """The same caches, training and sampling as FLUX; the adapter, on the first block's second attention too, acts in the pipeline
    as it does here."""
    backbone = backbone_of(write_sd3_pipeline(tmp_path / "models" / "tiny", shift=1.0), single_blocks=0)
    world: World = write_world(tmp_path, backbone=backbone)
    recipe = tiny_train(epochs=1, keep_epochs=(), active_timesteps="always")
    arm = world.arm(recipe, lora=replace(LORA, blocks=Blocks.parse("all"), targets=(*LORA.targets, "attn2.to_q")))
    fitted = fit(arm, world.denoiser(), backbone, world.data(), tmp_path / "state", ALONE, {})
    assert fitted.history.controls[-1]["losses"]["graph"] != fitted.history.controls[-1]["losses"]["empty"]
    weights = load_file(tmp_path / "state" / "adapter" / "pytorch_lora_weights.safetensors")
    assert len(weights) == 2 * (4 * DOUBLE + 1)
    assert weights["transformer.transformer_blocks.0.attn2.to_q.lora_B.weight"].abs().max() > 0
    assert all(name.startswith("transformer.transformer_blocks.") for name in weights)

    weighed = tiny_train(losses=Losses(saliency=Weighted(weight=1.0, group="all")))
    maps = Maps({"all": LayerGroup.parse("all")}, variant="official_sd3")
    official = resolve("text_only", ARMS["text_only"], Sections(LORA, weighed, GraphTokens(), backbone, maps))
    with pytest.raises(DataError, match=r"is not cached.*cache_prompts\.joined_concepts"):
        fit(official, world.denoiser(), backbone, world.data(), tmp_path / "official", ALONE, {})

    generator = GraphGenerator.load(backbone.model, tmp_path / "state" / "adapter")
    graphs = [
        SceneGraph.of("dog", "above", "cat"),
        SceneGraph(("dog", "cat", "tree"), ((0, "on", 1), (1, "left of", 2))),
        SceneGraph(),
    ]
    prompts = ["a photo of dog and cat"] * 3
    together = generator.latents(prompts, graphs, [5, 6, 7], 3, SIDE)
    for row, graph in enumerate(graphs):
        alone = generator.latents(prompts[:1], [graph], [5 + row], 3, SIDE)
        torch.testing.assert_close(together[row : row + 1], alone, atol=1e-5, rtol=0)

    assert generator.adapter is not None
    encoded = generator.texts.prompts(prompts[:1])
    text = generator.adapter.condition(graphs[:1], prompts[:1], encoded, add_names({}, generator.texts.concepts, graphs[:1]))
    pipeline = StableDiffusion3Pipeline.from_pretrained(backbone.model)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.load_lora_weights(tmp_path / "state" / "adapter")
    theirs = pipeline(
        prompt_embeds=text.states, pooled_prompt_embeds=text.pooled, height=SIDE, width=SIDE, num_inference_steps=3,
        guidance_scale=1.0, generator=[torch.Generator().manual_seed(5)], output_type="latent",
    ).images  # fmt: skip
    torch.testing.assert_close(together[:1], theirs, atol=1e-5, rtol=0)


def test_a_target_that_no_block_has_is_refused(backbone: Backbone, denoiser: Denoiser) -> None:
    layout = denoiser.layout
    last = Lora(Blocks.parse(str(DOUBLE - 1)), targets=("to_add_out",))
    with pytest.raises(ParamsError, match=r"to_add_out: none of lora\.blocks \[2\] has it; valid there: to_q, .*; drop it"):
        target_modules(layout, last)
    both = Lora(Blocks.parse(f"{DOUBLE - 2}..{DOUBLE - 1}"), targets=("to_add_out",))
    assert target_modules(layout, both) == [f"transformer_blocks.{DOUBLE - 2}.attn.to_add_out"]
    with pytest.raises(ParamsError, match="single_blocks"):
        World(backbone, None).arm(tiny_train(), lora=replace(LORA, single_blocks=Blocks.parse("0")))  # type: ignore[arg-type]


def test_training_at_a_samplers_times_is_at_those_of_sampling(denoiser: Denoiser, text: TextCondition) -> None:
    """Four steps of shift 3 evaluate at 1, .858, .602 and .009, where evenly spaced sigmas would be shifted to .9 and .75."""
    text = text.rows()[0]
    sampled: list[float] = []

    def velocity(latents: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        sampled.append(at.item())
        return denoiser.velocity(latents, at, text)

    denoiser.sample(text, [1], SIDE, 4, velocity=velocity)
    sigmas = denoiser.family.sigmas(4, denoiser.layout, SIDE, denoiser.scheduler)
    found = sampler_times(Times(density="sampler", low=0.5, high=1.0, steps=4), sigmas)
    assert found.tolist() == sorted(t for t in sampled if t >= 0.5) and len(found) == 3


def test_residual_tokens_are_added_at_the_words_of_t5(backbone: Backbone) -> None:
    """T5's rows are the last ones of a condition; CLIP's rows before them keep their bits."""
    denoiser = Denoiser.load(backbone, CPU)
    tokens = GraphTokens(injection="residual", layout="objects", relation="table")
    arm = resolve("graph", ARMS["graph"], Sections(LORA, tiny_train(), tokens, backbone))
    model = build(denoiser, backbone, arm, 1.0)
    model.adapter.parameters()["tokens"]["residual.gate"].data.fill_(0.5)
    prompt, graph = "a photo of dog and cat", SceneGraph.of("dog", "left of", "cat")
    plain = open_text_encoders(backbone, CPU).prompts([prompt])
    with torch.no_grad():
        found = model.condition([graph], [prompt], plain, NameTable({"": torch.zeros(48)}))
    changed = (found.states != plain.states).any(-1)[0].nonzero().flatten().tolist()
    ids = load_plain(backbone, "tokenizer_3")(prompt).input_ids
    first = plain.states.shape[1] - TOKENS
    words = [load_plain(backbone, "tokenizer_3")(name).input_ids[0] for name in ("dog", "cat")]
    assert changed == [first + ids.index(word) for word in words]


def test_conditions_with_and_without_a_mask_are_one_batch() -> None:
    """No mask means that all rows are attended to; with a pooled vector and without one is no batch."""
    masked = TextCondition(torch.zeros(1, 2, 3), None, torch.tensor([[False, True]]))
    both = TextCondition.cat([masked, TextCondition(torch.ones(1, 2, 3))])
    assert both.mask is not None and both.mask.tolist() == [[False, True], [True, True]]
    with pytest.raises(ValueError, match="with and without a pooled vector"):
        TextCondition.cat([masked, TextCondition(torch.ones(1, 2, 3), torch.ones(1, 4))])
