"""FLUX.2, dev and klein, through the seam: the pipelines' own results, and the whole way from caches to an adapter they load."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import Flux2KleinPipeline, Flux2Pipeline
from msgspec.structs import replace
from PIL import Image
from safetensors.torch import load_file

from sgpipe.arms.adapter import build
from sgpipe.arms.generation import GraphGenerator, add_names, read_backbone
from sgpipe.arms.kinds.base import Sections
from sgpipe.arms.lora import LORA_FILE
from sgpipe.arms.resolve import resolve
from sgpipe.backbones.base import TextCondition
from sgpipe.backbones.chat import ChatTokenizer
from sgpipe.backbones.config import Backbone
from sgpipe.backbones.denoiser import Denoiser
from sgpipe.backbones.families import family_of, layout_of, open_text_encoders
from sgpipe.backbones.families.flux2 import text_ids
from sgpipe.backbones.images import decode, encode
from sgpipe.backbones.latent_cache import LatentCache
from sgpipe.backbones.loading import load_module
from sgpipe.backbones.rectified_flow import noise
from sgpipe.errors import ModelError
from sgpipe.graph_encoder.config import GraphTokens
from sgpipe.graph_encoder.open_vocabulary import NameTable
from sgpipe.graphs.scene_graph import SceneGraph
from sgpipe.params.blocks import Blocks
from sgpipe.training.fit import fit
from tests.tiny import SIDE, backbone_of, edit_json
from tests.tiny_flux2 import CHAT_TOKENS, write_flux2_pipeline
from tests.training.world import ALONE, ARMS, LORA, World, files, tiny_train, write_world

CPU = torch.device("cpu")
TEXTS, SEEDS = ["a photo of dog above cat on a plain background", "", "a photo of ball"], [3, 1, 2]


@pytest.fixture(scope="module", params=["klein", "dev"])
def backbone(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    folder = tmp_path_factory.mktemp("flux2") / "tiny"
    return backbone_of(write_flux2_pipeline(folder, dev=request.param == "dev"), max_sequence_length=CHAT_TOKENS)


def open_pipeline(backbone: Backbone, dtype: torch.dtype = torch.float32, **parts: None) -> Any:
    kind = {"Flux2Pipeline": Flux2Pipeline, "Flux2KleinPipeline": Flux2KleinPipeline}[family_of(Path(backbone.model)).pipeline]
    made = kind.from_pretrained(backbone.model, torch_dtype=dtype, **parts)
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="module")
def pipeline(backbone: Backbone) -> Any:
    return open_pipeline(backbone)


@pytest.fixture(scope="module")
def denoiser(backbone: Backbone) -> Denoiser:
    """For tests that leave it as it is."""
    return Denoiser.load(backbone, CPU)


@pytest.fixture(scope="module")
def text(backbone: Backbone) -> TextCondition:
    """The encoding of `TEXTS`."""
    return open_text_encoders(backbone, CPU).prompts(TEXTS)


def scale_of(denoiser: Denoiser) -> float | None:
    return 4.0 if denoiser.layout.guidance else None


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Within 1e-5 of the largest value."""
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize(("dtype", "offload"), [("float32", "none"), ("float32", "sequential"), ("bfloat16", "model")])
def test_prompts_are_encoded_as_by_the_pipeline(backbone: Backbone, dtype: str, offload: str) -> None:
    found = open_text_encoders(replace(backbone, dtype=dtype), CPU, offload).prompts(TEXTS)
    alone = open_pipeline(backbone, getattr(torch, dtype), transformer=None, vae=None)
    with torch.no_grad():
        states, _ = alone.encode_prompt(TEXTS, max_sequence_length=CHAT_TOKENS)
    assert torch.equal(found.states, states) and found.pooled is None and found.mask is None


def test_the_velocity_is_that_of_the_transformer_itself(denoiser: Denoiser, text: TextCondition, pipeline: Any) -> None:
    latents, t = noise(SEEDS, denoiser.layout.latent_shape(SIDE))[..., :6], torch.tensor([0.3, 0.998, 0.5])
    assert latents.shape == (3, 16, 8, 6)
    guidance = scale_of(denoiser)
    theirs = pipeline.transformer(
        hidden_states=pipeline._pack_latents(latents),
        encoder_hidden_states=text.states,
        timestep=t * 1000 / 1000,
        guidance=None if guidance is None else torch.full([3], guidance),
        img_ids=pipeline._prepare_latent_ids(latents),
        txt_ids=pipeline._prepare_text_ids(text.states),
        return_dict=False,
    )[0]
    mine = denoiser.velocity(latents, t, text, guidance)
    assert torch.equal(pipeline._pack_latents(mine), theirs)


def test_a_guidance_distilled_transformer_needs_its_scale_and_others_take_none(denoiser: Denoiser, text: TextCondition) -> None:
    given = noise(SEEDS, denoiser.layout.latent_shape(SIDE)), torch.tensor([0.3, 0.9, 0.5]), text
    wrong, says = (
        (None, r"needs a guidance scale .*FLUX\.2-dev: 4")
        if denoiser.layout.guidance
        else (4.0, "needs the condition of the empty prompt")
    )
    with pytest.raises(ModelError, match=says):
        denoiser.velocity(*given, wrong)
    if denoiser.layout.guidance:
        assert (denoiser.velocity(*given, 4.0) - denoiser.velocity(*given, 2.0)).abs().max() > 1e-3


@pytest.mark.parametrize(("steps", "dtype"), [(4, "float32"), (7, "float32"), (5, "bfloat16")])
def test_a_whole_sampling_gives_the_images_of_the_pipeline(backbone: Backbone, steps: int, dtype: str) -> None:
    """From the noise of a seed to pixels."""
    backbone = replace(backbone, dtype=dtype)
    denoiser, pipeline = Denoiser.load(backbone, CPU), open_pipeline(backbone, getattr(torch, dtype))
    given = {
        "prompt": TEXTS, "height": SIDE, "width": SIDE, "num_inference_steps": steps, "max_sequence_length": CHAT_TOKENS,
        "guidance_scale": scale_of(denoiser) or 1.0,
    }  # fmt: skip
    states: list[torch.Tensor] = []

    def keep(pipeline: Any, step: int, t: Any, values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        states.append(values["latents"])
        return {}

    # the pipelines draw noise in the precision of the prompt; a seed means the same here in all
    start = noise(SEEDS, denoiser.layout.latent_shape(SIDE)).to(denoiser.dtype)
    theirs = pipeline(**given, latents=start, output_type="np", callback_on_step_end=keep).images
    text = open_text_encoders(backbone, CPU).prompts(TEXTS)
    mine = denoiser.sample(text, SEEDS, SIDE, steps, scale_of(denoiser))
    assert torch.equal(pipeline._pack_latents(mine), states[-1]) and len(states) == steps
    images = decode(denoiser.family, load_module(backbone, "vae"), mine)
    assert np.array_equal(images, (theirs * 255).round().astype(np.uint8))
    if dtype == "float32":
        seeded = pipeline(**given, generator=[torch.Generator().manual_seed(seed) for seed in SEEDS], output_type="np").images
        assert np.array_equal(seeded, theirs)


def test_prompts_of_unequal_length_give_each_sample_what_it_gets_alone(backbone: Backbone, denoiser: Denoiser) -> None:
    encoders = open_text_encoders(backbone, CPU)
    latents, t = noise(SEEDS, denoiser.layout.latent_shape(SIDE)), torch.tensor([0.3, 0.9, 0.5])
    text = encoders.prompts(TEXTS)
    together = denoiser.velocity(latents, t, text, scale_of(denoiser))
    for row, said in enumerate(TEXTS):
        alone = encoders.prompts([said])
        close(text.rows()[row].states, alone.states)
        close(together[row : row + 1], denoiser.velocity(latents[row : row + 1], t[row : row + 1], alone, scale_of(denoiser)))


def test_images_become_latents_as_in_the_pipeline(backbone: Backbone, pipeline: Any) -> None:
    """By the batch norm's statistics; the numbers that a manifest holds are theirs to the bit."""
    family, vae = family_of(Path(backbone.model)), load_module(backbone, "vae")
    pixels = [np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8) for seed in range(2)]
    inputs = pipeline.image_processor.preprocess([Image.fromarray(image) for image in pixels])
    with torch.no_grad():
        theirs = pipeline._encode_vae_image(inputs, None)
    mean, _ = encode(family, vae, pixels)
    statistics = family.statistics(vae)
    mine = family.normalised(statistics, mean)
    assert torch.equal(mine, theirs) and mine.shape[1:] == layout_of(Path(backbone.model)).latent_shape(SIDE)
    torch.testing.assert_close(family.denormalised(statistics, mine), mean)
    assert torch.equal(torch.tensor(statistics["mean"]), pipeline.vae.bn.running_mean)


def test_the_layout_names_every_projection(denoiser: Denoiser) -> None:
    layout, linear = denoiser.layout, torch.nn.Linear
    named = {
        f"{block.format(index=0)}.{part}"
        for block, parts in (
            (layout.double_block, layout.image_projections + layout.text_projections),
            (layout.single_block, tuple(layout.single_projections.values())),
        )
        for part in parts
    }
    there = {
        name
        for name, module in denoiser.transformer.named_modules()
        if isinstance(module, linear) and "transformer_blocks.0.attn" in name
    }
    assert named == there and layout.pixels_per_token == 4


@pytest.mark.parametrize(
    ("part", "changes", "says"),
    [
        ("vae", {"_class_name": "AutoencoderKL"}, "16 input channels and patch size 1 on a AutoencoderKL of 4 channels"),
        ("vae", {"latent_channels": 5}, r"5 × 2 × 2 = 20 channels"),
        ("vae", {"patch_size": [1, 1]}, "a Flux2Transformer2DModel of patch size 1"),
        ("transformer", {"num_layers": 0}, "num_layers 0: a whole number from 1"),
    ],
)
def test_parts_that_do_not_fit_are_refused(tmp_path: Path, part: str, changes: dict[str, Any], says: str) -> None:
    folder = write_flux2_pipeline(tmp_path / "tiny")
    edit_json(folder / part / "config.json", **changes)
    with pytest.raises(ModelError, match=says):
        layout_of(folder)


def test_rows_before_the_prompt_take_the_next_positions() -> None:
    assert text_ids(5, 0).tolist() == [[0, 0, 0, place] for place in range(5)]
    assert text_ids(5, 2)[:, 3].tolist() == [3, 4, 0, 1, 2]


def test_a_batch_is_of_conditions_with_equally_many_rows_before_the_prompt() -> None:
    some, none = TextCondition(torch.zeros(2, 3, 4), prepended=1), TextCondition(torch.zeros(1, 3, 4))
    assert TextCondition.cat(some.rows()).prepended == 1 == some.to(CPU).prepended
    with pytest.raises(ValueError, match="0 rows that enter at block 0, 1 rows that enter at block 0"):
        TextCondition.cat([some, none])


GRAPHS = [SceneGraph.of("dog", "above", "cat"), SceneGraph(("dog", "cat", "tree"), ((0, "on", 1), (1, "left of", 2))), SceneGraph()]


@pytest.fixture(scope="module")
def trained(backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> tuple[World, list[Path]]:
    """The same training twice: LoRA of strength 2 in both kinds of blocks, and graph tokens."""
    root = tmp_path_factory.mktemp("trained")
    world = write_world(root, train=8, val=4, backbone=backbone)
    guidance = 4.0 if layout_of(Path(backbone.model)).guidance else None
    recipe = tiny_train(epochs=1, keep_epochs=(), active_timesteps="always", guidance=guidance)
    targets = ("to_q", "to_out.0", "add_k_proj", "to_qkv_mlp_proj", "to_out")
    lora = replace(LORA, single_blocks=Blocks.parse("all"), targets=targets, alpha=8.0)
    for folder in ("first", "second"):
        fit(world.arm(recipe, lora=lora), world.denoiser(), backbone, world.data(), root / folder, ALONE, {})
    return world, [root / folder / "adapter" for folder in ("first", "second")]


def test_the_latent_cache_gives_what_the_transformer_sees(trained: tuple[World, list[Path]], backbone: Backbone) -> None:
    world, _ = trained
    cache, name = LatentCache(world.sources.latents, backbone), world.data().train[0].triple_id
    mean, _ = cache.get([name])
    family = family_of(Path(backbone.model))
    expected = family.normalised(family.statistics(load_module(backbone, "vae")), mean.float())
    assert torch.equal(cache.latents([name]), expected) and expected.shape == (1, 16, SIDE // 4, SIDE // 4)
    assert not torch.equal(cache.latents([name], seed=0), expected)


def test_the_same_training_gives_the_same_bytes(trained: tuple[World, list[Path]]) -> None:
    first, second = map(files, trained[1])
    assert first == second and LORA_FILE in first
    weights = load_file(trained[1][0] / LORA_FILE)
    blocks = Counter(name.split(".")[1] for name in weights)
    assert blocks == {"transformer_blocks": 2 * 3 * 2, "single_transformer_blocks": 2 * 2}
    assert all(weight.any() for name, weight in weights.items() if "lora_B" in name)


def test_the_adapter_acts_in_the_pipeline_as_here(trained: tuple[World, list[Path]], backbone: Backbone) -> None:
    """Graphs of different sizes in one batch give what each gives alone. In the pipeline graph tokens follow the prompt's rows."""
    layout = layout_of(Path(backbone.model))
    generator = GraphGenerator.load(backbone.model, trained[1][0])
    prompts = ["a photo of dog and cat"] * 3
    encoded = generator.texts.prompts(prompts)
    pipeline = open_pipeline(backbone)
    pipeline.load_lora_weights(trained[1][0])
    given = {"height": SIDE, "width": SIDE, "num_inference_steps": 3, "guidance_scale": 4.0 if layout.guidance else 1.0}
    together = generator.latents(prompts, GRAPHS, [5, 6, 7], 3, SIDE)
    family, statistics = generator.denoiser.family, generator.denoiser.family.statistics(pipeline.vae)
    assert generator.adapter is not None
    for row, graph in enumerate(GRAPHS):
        alone = generator.latents(prompts[:1], [graph], [5 + row], 3, SIDE)
        close(together[row : row + 1], alone)
        text = generator.adapter.condition(
            [graph], prompts[:1], encoded.rows()[0], add_names({}, generator.texts.concepts, [graph])
        )
        last = text.states.roll(-text.prepended, dims=1)
        assert text.prepended == len({name for s, _, o in graph.triples for name in (s, o)})
        seed = torch.Generator().manual_seed(5 + row)
        theirs = pipeline(prompt_embeds=last, generator=[seed], output_type="latent", **given).images
        mine = pipeline._pack_latents(alone) if layout.guidance else family.denormalised(statistics, alone)
        close(mine, theirs)
    pipeline.set_adapters("default_0", 0.5)
    seed = torch.Generator().manual_seed(7)
    weaker = pipeline(prompt_embeds=encoded.states[:1], generator=[seed], output_type="latent", **given).images
    assert (weaker - theirs).abs().max() > 1e-3


def test_residual_tokens_are_added_at_the_words_of_the_chat_model(backbone: Backbone) -> None:
    """Template and padding, on either side, keep their bits; "cat" in "category" is no mention."""
    denoiser = Denoiser.load(backbone, CPU)
    tokens = GraphTokens(injection="residual", layout="objects", relation="table")
    train = tiny_train(guidance=4.0 if denoiser.layout.guidance else None)
    arm = resolve("graph", ARMS["graph"], Sections(LORA, train, tokens, backbone))
    model = build(denoiser, backbone, arm, 1.0)
    model.adapter.parameters()["tokens"]["residual.gate"].data.fill_(0.5)
    prompt, graph = "dog and category of cat", SceneGraph.of("dog", "left of", "cat")
    plain = open_text_encoders(backbone, CPU).prompts([prompt])
    with torch.no_grad():
        found = model.condition([graph], [prompt], plain, NameTable({"": torch.zeros(24)}))
    changed = (found.states != plain.states).any(-1)[0]
    tokenizers = denoiser.family.tokenizers(backbone)
    assert isinstance(tokenizers, ChatTokenizer)
    ids = tokenizers([prompt]).input_ids[0][changed]
    assert "".join(tokenizers.tokenizer.convert_ids_to_tokens(ids)) == "dogĠcat" and found.prepended == 0


def test_a_backbone_is_read_off_the_folder(backbone: Backbone) -> None:
    found = read_backbone(backbone.model)
    assert (found.double_blocks, found.single_blocks, found.max_sequence_length, found.resolution) == (3, 1, 512, 4)
