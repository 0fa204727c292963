"""Qwen-Image through the seam: the pipeline's own results, and the whole way from caches to an adapter that its pipeline loads."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import QwenImagePipeline, QwenImageTransformer2DModel
from msgspec.structs import replace
from PIL import Image
from safetensors.torch import load_file

from sgpipe.arms.adapter import build
from sgpipe.arms.config import Lora
from sgpipe.arms.generation import GraphGenerator, add_names
from sgpipe.arms.kinds.base import Sections
from sgpipe.arms.lora import attach, count, target_modules
from sgpipe.arms.model import ArmModel
from sgpipe.arms.resolve import resolve
from sgpipe.backbones.base import TextCondition
from sgpipe.backbones.config import Backbone
from sgpipe.backbones.denoiser import Denoiser
from sgpipe.backbones.families import FAMILIES, open_text_encoders, open_tokenizers
from sgpipe.backbones.families.flux import pack
from sgpipe.backbones.families.qwen_image import QwenImage, in_order
from sgpipe.backbones.images import decode, encode
from sgpipe.backbones.loading import load_module
from sgpipe.backbones.rectified_flow import noise
from sgpipe.errors import ModelError
from sgpipe.graph_encoder.config import GraphTokens
from sgpipe.graph_encoder.open_vocabulary import NameTable
from sgpipe.graphs.scene_graph import SceneGraph
from sgpipe.params.blocks import Blocks
from sgpipe.training.fit import fit
from tests.backbones.contract import adds_residual_tokens_at_words, compiles_for_texts_of_any_length
from tests.tiny import DOUBLE, SIDE, backbone_of, edit_json
from tests.tiny_qwen_image import write_qwen_image_pipeline
from tests.training.world import ALONE, ARMS, LORA, files, tiny_train, write_world

CPU = torch.device("cpu")
TEXTS, SEEDS = ["a photo of dog above cat on a plain background", "", "a photo of ball"], [3, 1, 2]
LENGTH = 16
GRAPHS = [SceneGraph.of("dog", "above", "cat"), SceneGraph(("dog", "cat", "tree"), ((0, "on", 1), (1, "left of", 2))), SceneGraph()]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    folder = tmp_path_factory.mktemp("qwen") / "tiny"
    return backbone_of(write_qwen_image_pipeline(folder), single_blocks=0, max_sequence_length=LENGTH)


@pytest.fixture(scope="module")
def pipeline(backbone: Backbone) -> QwenImagePipeline:
    made = QwenImagePipeline.from_pretrained(backbone.model)
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="module")
def denoiser(backbone: Backbone) -> Denoiser:
    """For tests that leave it as it is."""
    return Denoiser.load(backbone, CPU)


@pytest.fixture(scope="module")
def text(backbone: Backbone) -> TextCondition:
    """The encoding of `TEXTS`, which have 15, 5 and 9 rows."""
    return open_text_encoders(backbone, CPU).prompts(TEXTS)


def start(denoiser: Denoiser) -> torch.Tensor:
    return noise(SEEDS, denoiser.layout.latent_shape(SIDE))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_prompts_are_encoded_as_by_the_pipeline(backbone: Backbone, dtype: str) -> None:
    encoders = open_text_encoders(replace(backbone, dtype=dtype), CPU)
    pipeline = QwenImagePipeline.from_pretrained(backbone.model, transformer=None, vae=None, torch_dtype=getattr(torch, dtype))
    for texts, rows in ((TEXTS, [15, 5, 9]), (["a photo of dog on a cat in front of ball near tree"], [LENGTH])):
        found = encoders.prompts(texts)
        with torch.no_grad():
            states, mask = pipeline.encode_prompt(texts, max_sequence_length=LENGTH)
        assert torch.equal(found.states, states) and found.states.dtype == getattr(torch, dtype) and found.pooled is None
        assert found.attended.sum(dim=1).tolist() == rows
        assert (found.mask is None) == (mask is None) and (mask is None or torch.equal(found.mask, mask.bool()))


def test_concepts_are_the_tokens_of_a_prompt_of_their_own(backbone: Backbone) -> None:
    """Without the template's five rows behind them; a text without tokens keeps its first row."""
    encoders, texts = open_text_encoders(backbone, CPU), ["dog", "in front of", ""]
    whole, concepts = encoders.prompts(texts).states, encoders.concepts(texts)
    assert [len(states) for states in concepts] == [1, 3, 1]
    for states, row in zip(concepts, whole, strict=True):
        assert torch.equal(states, row[: len(states)])


def test_an_encoding_that_is_not_finite_names_its_text(backbone: Backbone) -> None:
    encoders = open_text_encoders(backbone, CPU)
    encoders._encoder.model.language_model.norm.weight.data.fill_(float("inf"))  # type: ignore[attr-defined]
    with pytest.raises(ModelError, match="text_encoder: its result for 'ball' is not finite"):
        encoders.prompts(["ball"])


def test_prompts_of_unequal_length_go_into_one_batch_and_out_again(text: TextCondition) -> None:
    rows = text.rows()
    assert torch.equal(TextCondition.cat(rows).states, text.states) and torch.equal(TextCondition.cat(rows).mask, text.mask)
    short = TextCondition.cat(rows[1:])
    assert short.states.shape[1] == 9 and short.mask is not None and short.mask.sum(dim=1).tolist() == [5, 9]
    alone = TextCondition.cat(rows[2:])
    assert alone.mask is None and torch.equal(alone.states, text.states[2:, :9])
    back = TextCondition.cat([alone, short])
    assert torch.equal(back.attended.sum(dim=1), torch.tensor([9, 5, 9])) and torch.equal(back.states[0], back.states[2])


def test_what_a_prompt_loses_is_told(backbone: Backbone) -> None:
    """Five rows are the template's: a prompt of 16 tokens loses no word at 16 rows, one of 17 does."""
    tokenizers = open_tokenizers(backbone)
    whole, cut = tokenizers.prompts(["a photo of dog on cat" + " and" * more for more in (10, 11)])
    assert (whole.tokens, whole.truncated, whole.encoder) == (16, False, "Qwen2.5-VL") and (cut.tokens, cut.truncated) == (17, True)


def test_the_velocity_is_that_of_the_transformer_itself(
    denoiser: Denoiser, text: TextCondition, pipeline: QwenImagePipeline
) -> None:
    latents, t = start(denoiser), torch.tensor([0.3, 0.998, 0.5])
    for condition, part in ((text, slice(None)), (TextCondition.cat(text.rows()[2:]), slice(2, 3))):
        tokens = pipeline._pack_latents(latents[part], len(latents[part]), 4, 16, 16)
        theirs = pipeline.transformer(
            tokens, condition.states, condition.mask, t[part] * 1000 / 1000, [[(1, 8, 8)]] * len(tokens), return_dict=False
        )[0]
        assert torch.equal(pack(denoiser.velocity(latents[part], t[part], condition)), theirs)
    with pytest.raises(ModelError, match="needs the condition of the empty prompt"):
        denoiser.velocity(latents, t, text, 3.5)


def test_a_void_entry_of_the_published_configuration_is_no_obstacle(backbone: Backbone, tmp_path: Path) -> None:
    """Qwen/Qwen-Image was saved by a development version of diffusers, whose class took a width that it never used."""
    copy = shutil.copytree(backbone.model, tmp_path / "copy")
    edit_json(copy / "transformer" / "config.json", pooled_projection_dim=768)
    made = replace(backbone, model=str(copy), files=str(copy))
    assert Denoiser.load(made, CPU).layout.double_blocks == DOUBLE
    edit_json(copy / "transformer" / "config.json", pooled_dim=768)
    with pytest.raises(ModelError, match=r"config\.json: pooled_dim: unknown to this diffusers' QwenImageTransformer2DModel"):
        Denoiser.load(made, CPU)


def test_each_prompt_of_a_batch_gets_what_it_gets_alone(denoiser: Denoiser, text: TextCondition) -> None:
    latents, t = start(denoiser), torch.tensor([0.3, 0.998, 0.5])
    together = denoiser.velocity(latents, t, text)
    for row, condition in enumerate(text.rows()):
        one = latents[row : row + 1], t[row : row + 1]
        alone = denoiser.velocity(*one, TextCondition.cat([condition]))
        torch.testing.assert_close(together[row : row + 1], alone, atol=1e-5 * alone.abs().max().item(), rtol=0)
    assert not torch.allclose(denoiser.velocity(latents, t, TextCondition(text.states)), together, atol=1e-3)


@pytest.mark.parametrize("steps", [4, 7])
def test_sampling_equals_the_pipeline(denoiser: Denoiser, text: TextCondition, pipeline: QwenImagePipeline, steps: int) -> None:
    """Latents and images; the last time but one is `shift_terminal`."""
    mine, seeded = denoiser.sample(text, SEEDS, SIDE, steps), [torch.Generator().manual_seed(seed) for seed in SEEDS]
    given = {"height": SIDE, "width": SIDE, "num_inference_steps": steps, "max_sequence_length": LENGTH, "generator": seeded}
    theirs = pipeline(TEXTS, output_type="latent", **given).images
    assert torch.equal(pack(mine), theirs)
    assert denoiser.family.sigmas(steps, denoiser.layout, SIDE, denoiser.scheduler)[-2] == pytest.approx(0.02)
    seeded[:] = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    images = pipeline(TEXTS, output_type="np", **given).images
    assert np.array_equal(decode(denoiser.family, pipeline.vae, mine), (images * 255).round())


def test_true_guidance_equals_the_pipeline(denoiser: Denoiser, backbone: Backbone, pipeline: QwenImagePipeline) -> None:
    """Two velocities a step, combined at the conditional one's norm, against `true_cfg_scale` with the negative prompt " "."""
    family, scale = denoiser.family, 4.0
    assert isinstance(family, QwenImage)
    encoders = open_text_encoders(backbone, CPU)
    wanted, against = encoders.prompts(TEXTS), encoders.prompts([" "] * len(TEXTS))

    def velocity(latents: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        pair = [denoiser.velocity(latents, at, each) for each in (wanted, against)]
        made = family.guided(*pair, scale)
        torch.testing.assert_close(pack(made).norm(dim=-1), pack(pair[0]).norm(dim=-1))
        return made

    mine = denoiser.sample(wanted, SEEDS, SIDE, 4, velocity=velocity)
    theirs = pipeline(
        TEXTS, negative_prompt=[" "] * len(TEXTS), true_cfg_scale=scale, height=SIDE, width=SIDE, num_inference_steps=4,
        generator=[torch.Generator().manual_seed(seed) for seed in SEEDS], output_type="latent", max_sequence_length=LENGTH,
    ).images  # fmt: skip
    torch.testing.assert_close(pack(mine), theirs, atol=1e-5 * theirs.abs().max().item(), rtol=0)
    assert (pack(denoiser.sample(wanted, SEEDS, SIDE, 4)) - theirs).abs().max() > 1e-2


def test_images_go_through_the_vae_as_in_the_pipeline(backbone: Backbone, pipeline: QwenImagePipeline) -> None:
    """A frame axis for the VAE, and (z − mean) / deviation by channel, in the operations of diffusers' image-to-image pipeline."""
    images = np.random.default_rng(1).integers(0, 256, (2, SIDE, SIDE, 3), dtype=np.uint8)
    vae = load_module(backbone, "vae")
    family, config = FAMILIES["QwenImagePipeline"], vae.config
    mean, std = encode(family, vae, list(images))
    with torch.no_grad():
        inputs = pipeline.image_processor.preprocess([Image.fromarray(image) for image in images])
        posterior = pipeline.vae.encode(inputs[:, :, None]).latent_dist
    assert torch.equal(mean, posterior.mean[:, :, 0]) and torch.equal(std, posterior.std[:, :, 0])
    assert mean.shape == (2, 4, SIDE // 2, SIDE // 2)
    shift, divisor = (torch.tensor(values).view(1, 4, 1, 1) for values in (config.latents_mean, config.latents_std))
    statistics = json.loads(json.dumps(family.statistics(vae)))
    assert torch.equal(family.normalised(statistics, mean), (mean - shift) * (1.0 / divisor))
    assert torch.equal(family.denormalised(statistics, mean), mean / (1.0 / divisor) + shift)


def tokens_model(backbone: Backbone, name: str = "projector_only", **tokens: str) -> ArmModel:
    arm = resolve(name, ARMS[name], Sections(LORA, tiny_train(), GraphTokens(**tokens), backbone))  # type: ignore[arg-type]
    return build(Denoiser.load(backbone, CPU), backbone, arm, 1.0)


def names() -> NameTable:
    draw = torch.Generator().manual_seed(4)
    return NameTable({name: torch.randn(24, generator=draw) for name in ("", "dog", "cat", "tree")})


def test_graph_tokens_follow_each_prompts_own_rows(backbone: Backbone, denoiser: Denoiser, text: TextCondition) -> None:
    """Rows of text have positions: the prompt keeps its own, and each sample gets what it gets alone, an empty graph the base."""
    model, t = tokens_model(backbone), torch.tensor([0.3, 0.998, 0.5])
    with torch.no_grad():
        made = model.condition(GRAPHS, TEXTS, text, names())
        assert (made.prepended, made.attended.sum(dim=1).tolist()) == (3, [15 + 2, 5 + 3, 9])
        together = denoiser.velocity(start(denoiser), t, made)
        for row, (graph, own) in enumerate(zip(GRAPHS, text.rows(), strict=True)):
            plain = TextCondition.cat([own])
            alone = model.condition([graph], [TEXTS[row]], plain, names())
            ordered, count, at = in_order(alone), alone.states.shape[1] - plain.states.shape[1], slice(row, row + 1)
            assert alone.mask is None and ordered.mask is None and count == alone.prepended == (2, 3, 0)[row]
            assert torch.equal(ordered.states, torch.cat([plain.states, alone.states[:, :count]], dim=1))
            found = in_order(made)
            assert found.attended[row, : ordered.states.shape[1]].all() and not found.attended[row, ordered.states.shape[1] :].any()
            torch.testing.assert_close(found.states[at, : ordered.states.shape[1]], ordered.states)
            velocity = denoiser.velocity(start(denoiser)[at], t[at], alone)
            torch.testing.assert_close(together[at], velocity, atol=1e-5 * velocity.abs().max().item(), rtol=0)
        assert torch.equal(alone.states, plain.states)


def test_compiled_blocks_take_texts_of_any_length(backbone: Backbone) -> None:
    compiles_for_texts_of_any_length(backbone, LORA)


def test_residual_tokens_are_added_at_the_words(backbone: Backbone) -> None:
    model = tokens_model(backbone, "graph", injection="residual", layout="objects", relation="table")
    adds_residual_tokens_at_words(model, backbone, GRAPHS[0], names(), {"a photo of dog and cat": [3, 5], "cat on dog": [0, 2]})


def test_from_caches_to_an_adapter_that_the_pipeline_loads(tmp_path: Path) -> None:
    """The same caches, training and sampling as FLUX; the adapter acts in the pipeline as it does here, with its strength."""
    backbone = backbone_of(write_qwen_image_pipeline(tmp_path / "models" / "tiny"), single_blocks=0, max_sequence_length=LENGTH)
    world = write_world(tmp_path, backbone=backbone)
    recipe = tiny_train(epochs=1, keep_epochs=(), active_timesteps="always")
    arm = world.arm(recipe, lora=replace(LORA, blocks=Blocks.parse("all"), alpha=12.0))
    folders = [tmp_path / name for name in ("once", "again")]
    for folder in folders:
        folder.mkdir()
        fitted = fit(arm, world.denoiser(), backbone, world.data(), folder, ALONE, {})
    assert fitted.history.controls[-1]["losses"]["graph"] != fitted.history.controls[-1]["losses"]["empty"]
    adapter = folders[0] / "adapter"
    assert files(adapter) == files(folders[1] / "adapter")
    weights = load_file(adapter / "pytorch_lora_weights.safetensors")
    assert len(weights) == 2 * 4 * DOUBLE and all(name.startswith("transformer.transformer_blocks.") for name in weights)

    generator = GraphGenerator.load(backbone.model, adapter)
    prompts = ["a photo of dog and cat", "a photo of dog on cat left of tree", "a photo of ball"]
    together = generator.latents(prompts, GRAPHS, [5, 6, 7], 3, SIDE)
    for row, graph in enumerate(GRAPHS):
        alone = generator.latents(prompts[row : row + 1], [graph], [5 + row], 3, SIDE)
        torch.testing.assert_close(together[row : row + 1], alone, atol=1e-5 * alone.abs().max().item(), rtol=0)

    assert generator.adapter is not None
    text = generator.adapter.condition(
        GRAPHS[:1], prompts[:1], generator.texts.prompts(prompts[:1]), add_names({}, generator.texts.concepts, GRAPHS[:1])
    )
    pipeline = QwenImagePipeline.from_pretrained(backbone.model)
    pipeline.set_progress_bar_config(disable=True)
    given = {
        "prompt_embeds": in_order(text).states,
        "height": SIDE,
        "width": SIDE,
        "num_inference_steps": 3,
        "output_type": "latent",
    }
    plain = pipeline(**given, generator=[torch.Generator().manual_seed(5)]).images
    pipeline.load_lora_weights(adapter)
    theirs = pipeline(**given, generator=[torch.Generator().manual_seed(5)]).images
    torch.testing.assert_close(pack(together[:1]), theirs, atol=1e-5 * theirs.abs().max().item(), rtol=0)
    assert (plain - theirs).abs().max() > 1e-2
    assert {module.scaling["default_0"] for module in pipeline.transformer.modules() if hasattr(module, "scaling")} == {3.0}


def test_modules_and_counts_at_the_real_size() -> None:
    """20,430,401,088 parameters; LoRA of rank 16 on to_q, to_k, to_v and to_out.0 of blocks 20–39: 7,864,320."""
    with torch.device("meta"):
        transformer = QwenImageTransformer2DModel()
    assert sum(weight.numel() for weight in transformer.parameters()) == 20_430_401_088
    vae = {"z_dim": 16, "temperal_downsample": [False, True, True], "latents_mean": [0.0] * 16, "latents_std": [1.0] * 16}
    layout = QwenImage().layout({**transformer.config, "_class_name": "QwenImageTransformer2DModel"}, vae)
    assert (layout.double_blocks, layout.single_blocks, layout.text_width, layout.pixels_per_token) == (60, 0, 3584, 16)
    every = Lora(
        Blocks.parse("all"), targets=tuple(p.removeprefix("attn.") for p in layout.image_projections + layout.text_projections)
    )
    there = {name for name, module in transformer.named_modules() if isinstance(module, torch.nn.Linear) and ".attn." in name}
    assert set(target_modules(layout, every)) == there and len(there) == 60 * 8
    lora = Lora(Blocks.parse("20..39"), rank=16)
    chosen = target_modules(layout, lora)
    assert chosen == [f"transformer_blocks.{i}.attn.{part}" for i in range(20, 40) for part in lora.targets]
    assert count(attach(transformer, chosen, lora, seed=0)) == 20 * 4 * 16 * (3072 + 3072) == 7_864_320


@pytest.mark.parametrize(
    ("transformer", "vae", "says"),
    [
        ({"zero_cond_t": True}, {}, "with zero_cond_t on a VAE"),
        ({"guidance_embeds": True}, {}, "with guidance_embeds"),
        ({"in_channels": 32}, {}, "of 32 input and 16 output channels"),
        ({"out_channels": None}, {}, "64 input and 64 output"),
        ({"num_layers": 0}, {}, "num_layers 0"),
        ({}, {"latents_std": [1.0]}, "latents_mean and latents_std of 16 numbers"),
    ],
)
def test_other_transformers_of_its_class_are_refused(transformer: dict, vae: dict, says: str) -> None:
    sound = {"_class_name": "QwenImageTransformer2DModel", "num_layers": 60, "num_attention_heads": 24, "attention_head_dim": 128}
    sound |= {"joint_attention_dim": 3584, "in_channels": 64, "out_channels": 16, "patch_size": 2}
    parts = {"z_dim": 16, "temperal_downsample": [False, True, True], "latents_mean": [0.0] * 16, "latents_std": [1.0] * 16}
    assert QwenImage().layout(sound, parts).vae_factor == 8
    with pytest.raises(ModelError, match=says):
        QwenImage().layout({**sound, **transformer}, {**parts, **vae})
