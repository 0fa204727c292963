"""Krea 2 through the seam: the pipeline's own results, and the whole way from caches to an adapter that its pipeline loads."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import Krea2Pipeline
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
from sgpipe.backbones.base import Layout, TextCondition
from sgpipe.backbones.config import Backbone
from sgpipe.backbones.denoiser import Denoiser
from sgpipe.backbones.families import FAMILIES, family_of, open_text_encoders, open_tokenizers
from sgpipe.backbones.families.flux import pack
from sgpipe.backbones.families.krea2 import Krea2
from sgpipe.backbones.images import decode, encode
from sgpipe.backbones.loading import load_module
from sgpipe.backbones.prompt_cache import prompt_identity
from sgpipe.backbones.rectified_flow import noise
from sgpipe.backbones.truncation import describe
from sgpipe.doctor.memory import build as on_meta
from sgpipe.doctor.published import PUBLISHED
from sgpipe.errors import ModelError, ParamsError
from sgpipe.graph_encoder.config import GraphTokens
from sgpipe.graph_encoder.open_vocabulary import NameTable
from sgpipe.graphs.scene_graph import SceneGraph
from sgpipe.params.blocks import Blocks
from sgpipe.training.fit import fit
from tests.backbones.contract import adds_residual_tokens_at_words, compiles_for_texts_of_any_length
from tests.tiny import SIDE, backbone_of, edit_json
from tests.tiny_krea2 import BLOCKS, LAYERS, WIDTH, write_krea2_pipeline
from tests.training.world import ALONE, ARMS, files, tiny_train, write_world

CPU = torch.device("cpu")
TEXTS, SEEDS = ["a photo of dog above cat on a plain background", "", "a photo of ball"], [3, 1, 2]
TIMES = torch.tensor([0.3, 0.998, 0.5])
LENGTH = 16
GRAPHS = [SceneGraph.of("dog", "above", "cat"), SceneGraph(("dog", "cat", "tree"), ((0, "on", 1), (1, "left of", 2))), SceneGraph()]
LORA = Lora(Blocks(()), Blocks.parse("1..2"), rank=4, alpha=4.0)
HUB = "krea/Krea-2-Raw"


def section(folder: Path, **changes: Any) -> Backbone:
    return backbone_of(folder, **{"double_blocks": 0, "single_blocks": BLOCKS, "max_sequence_length": LENGTH, **changes})


def opened(backbone: Backbone) -> Krea2Pipeline:
    """With frozen weights, as ours: whether they require gradients chooses `text_fusion.projector`'s kernel, even without any."""
    made = Krea2Pipeline.from_pretrained(backbone.model)
    made.transformer.requires_grad_(False)
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return section(write_krea2_pipeline(tmp_path_factory.mktemp("krea") / "tiny"))


@pytest.fixture(scope="module")
def pipeline(backbone: Backbone) -> Krea2Pipeline:
    return opened(backbone)


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


def seeded() -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in SEEDS]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_prompts_are_encoded_as_by_the_pipeline(backbone: Backbone, dtype: str) -> None:
    """All that its mask lets through, to the bit, twelve layers side by side; a prompt is cut before the template's end."""
    encoders = open_text_encoders(replace(backbone, dtype=dtype), CPU)
    pipeline = Krea2Pipeline.from_pretrained(backbone.model, transformer=None, vae=None, torch_dtype=getattr(torch, dtype))
    for texts, rows in ((TEXTS, [15, 5, 9]), (["a photo of dog on a cat in front of ball near tree"], [LENGTH])):
        found = encoders.prompts(texts)
        with torch.no_grad():
            states, mask = pipeline.encode_prompt(texts, max_sequence_length=LENGTH)
        assert found.attended.sum(dim=1).tolist() == rows and states.shape[1:] == (LENGTH, LAYERS, WIDTH)
        assert found.states.dtype == getattr(torch, dtype) and found.pooled is None
        for mine, kept, theirs, attended in zip(found.states, found.attended, states, mask, strict=True):
            assert torch.equal(mine[kept], theirs[attended].flatten(1)) and not mine[~kept].any()


def test_the_layers_are_those_that_the_pipeline_names(tmp_path: Path, backbone: Backbone) -> None:
    """In model_index.json; other layers are other encodings, and as many as the transformer takes are needed."""
    layers = tuple(range(3, 3 + LAYERS))
    other = section(write_krea2_pipeline(tmp_path / "tiny", layers=layers))
    made, usual = (
        open_text_encoders(each, CPU).prompts(TEXTS[2:]).states.unflatten(-1, (LAYERS, -1)) for each in (other, backbone)
    )
    assert torch.equal(made[:, :, layers.index(5)], usual[:, :, 1]) and not torch.equal(made, usual)
    assert prompt_identity(other)["layers"] == list(layers) != prompt_identity(backbone)["layers"]
    for changes, says in (
        ({"text_encoder_select_layers": [1, 2]}, r"12 text layers on a VAE .*, and of 2 text layers"),
        ({"text_encoder_select_layers": [1, -2]}, r"text_encoder_select_layers \[1, -2\]"),
        ({"text_encoder_select_layers": None, "patch_size": 1}, "patch_size 1: "),
        ({"patch_size": 2, "is_distilled": "yes"}, "is_distilled 'yes'"),
    ):
        edit_json(Path(other.model) / "model_index.json", **changes)
        with pytest.raises(ModelError, match=says):
            Denoiser.load(other, CPU)
    edit_json(Path(other.model) / "model_index.json", is_distilled=False, text_encoder_select_layers=[*range(25, 36), 37])
    with pytest.raises(ModelError, match=r"text_encoder: has 36 layers; the states of layers 25, .*, 37 are needed"):
        open_text_encoders(other, CPU)


def test_concepts_are_the_tokens_of_a_prompt_of_their_own(backbone: Backbone) -> None:
    """Without the template's five rows behind them; a text without tokens keeps its first row, a long one what is left."""
    encoders, texts = open_text_encoders(backbone, CPU), ["dog", "in front of", "", "dog" + " and cat" * 9]
    whole, concepts = encoders.prompts(texts).states, encoders.concepts(texts)
    assert [len(states) for states in concepts] == [1, 3, 1, LENGTH - 5]
    for states, row in zip(concepts, whole, strict=True):
        assert torch.equal(states, row[: len(states)])


def test_an_encoding_that_is_not_finite_names_its_text(backbone: Backbone) -> None:
    encoders = open_text_encoders(backbone, CPU)
    encoders._encoder.language_model.layers[3].mlp.down_proj.weight.data.fill_(float("inf"))  # type: ignore[attr-defined]
    with pytest.raises(ModelError, match="text_encoder: its result for 'ball' is not finite"):
        encoders.prompts(["ball"])


def test_what_a_prompt_loses_is_told(backbone: Backbone) -> None:
    """Eleven tokens are left beside the template's end, whose five stand in what is told: the length that would do is right."""
    texts = ["a photo of dog on cat" + " and" * more for more in (5, 6)]
    whole, cut = open_tokenizers(backbone).prompts(texts)
    assert (whole.tokens, whole.truncated, whole.encoder) == (LENGTH, False, "Qwen3-VL") and cut.truncated
    assert texts[1][cut.kept :] == " and"
    assert "raise backbone.max_sequence_length to 17" in str(describe([cut]))
    for length, rows in ((17, 17), (LENGTH, LENGTH)):
        made = open_text_encoders(replace(backbone, max_sequence_length=length), CPU).prompts(texts[1:])
        assert made.states.shape[1] == rows
    with pytest.raises(ParamsError, match=r"max_sequence_length: got 5; .* valid: 6\.\.512"):
        open_text_encoders(replace(backbone, max_sequence_length=5), CPU)


@torch.no_grad()
def test_the_velocity_is_that_of_the_transformer_itself(denoiser: Denoiser, text: TextCondition, pipeline: Krea2Pipeline) -> None:
    for condition, part in ((text, slice(None)), (TextCondition.cat(text.rows()[2:]), slice(2, 3))):
        latents = start(denoiser)[part]
        theirs = pipeline.transformer(
            pipeline._pack_latents(latents, len(latents), 4, 16, 16),
            condition.states.unflatten(-1, (LAYERS, WIDTH)),
            TIMES[part] * 1000 / 1000,
            pipeline.prepare_position_ids(condition.states.shape[1], 8, 8, CPU),
            condition.mask,
            return_dict=False,
        )[0]
        assert torch.equal(pack(denoiser.velocity(latents, TIMES[part], condition)), theirs)
    assert condition.mask is None
    with pytest.raises(ModelError, match="needs the condition of the empty prompt"):
        denoiser.velocity(latents, TIMES[part], condition, 3.5)


def test_padding_within_the_template_changes_nothing(denoiser: Denoiser, text: TextCondition, pipeline: Krea2Pipeline) -> None:
    """The pipeline's own rows, padding between a prompt and the template's end, against those without."""
    with torch.no_grad():
        states, mask = pipeline.encode_prompt(TEXTS, max_sequence_length=40)
    padded = TextCondition(states.flatten(2), mask=mask)
    assert not mask[:, 34].any() and mask[:, 35:].all()
    wanted = denoiser.velocity(start(denoiser), TIMES, padded)
    found = denoiser.velocity(start(denoiser), TIMES, text)
    torch.testing.assert_close(found, wanted, atol=1e-5 * wanted.abs().max().item(), rtol=0)


def test_each_prompt_of_a_batch_gets_what_it_gets_alone(denoiser: Denoiser, text: TextCondition) -> None:
    latents, together = start(denoiser), denoiser.velocity(start(denoiser), TIMES, text)
    for row, condition in enumerate(text.rows()):
        alone = denoiser.velocity(latents[row : row + 1], TIMES[row : row + 1], TextCondition.cat([condition]))
        torch.testing.assert_close(together[row : row + 1], alone, atol=1e-5 * alone.abs().max().item(), rtol=0)
    assert not torch.allclose(denoiser.velocity(latents, TIMES, TextCondition(text.states)), together, atol=1e-3)


@pytest.mark.parametrize(("distilled", "dynamic"), [(False, True), (True, True), (False, False)])
def test_sampling_equals_the_pipeline(tmp_path: Path, distilled: bool, dynamic: bool) -> None:
    """Latents and images, of a shift by resolution, of Turbo's fixed one, and of a scheduler's own."""
    folder = write_krea2_pipeline(tmp_path / "tiny", distilled=distilled, use_dynamic_shifting=dynamic, shift=2.0)
    backbone = section(folder)
    denoiser, pipeline, text = Denoiser.load(backbone, CPU), opened(backbone), open_text_encoders(backbone, CPU).prompts(TEXTS)
    mine = denoiser.sample(text, SEEDS, SIDE, 4)
    given = {"height": SIDE, "width": SIDE, "num_inference_steps": 4, "max_sequence_length": LENGTH, "guidance_scale": 0.0}
    theirs = pipeline(TEXTS, output_type="latent", generator=seeded(), **given).images
    torch.testing.assert_close(pack(mine), theirs, atol=1e-5 * theirs.abs().max().item(), rtol=0)
    times = denoiser.family.sigmas(4, denoiser.layout, SIDE, denoiser.scheduler)
    assert np.array_equal(times, pipeline.scheduler.sigmas.numpy())
    images = pipeline(TEXTS, output_type="np", generator=seeded(), **given).images
    assert np.abs(decode(denoiser.family, pipeline.vae, mine) / 255 - images).max() <= 0.5 / 255 + 1e-5


def test_guidance_equals_the_pipeline(denoiser: Denoiser, backbone: Backbone, pipeline: Krea2Pipeline) -> None:
    """The pipeline's 4.5 is 5.5 here, by a second forward under the empty prompt, and 1 is none."""
    encoders = open_text_encoders(backbone, CPU)
    wanted, against = encoders.prompts(TEXTS), encoders.prompts([""])
    given = {"height": SIDE, "width": SIDE, "num_inference_steps": 3, "max_sequence_length": LENGTH, "output_type": "latent"}
    theirs = pipeline(TEXTS, guidance_scale=4.5, generator=seeded(), **given).images
    mine = denoiser.sample(wanted, SEEDS, SIDE, 3, guidance=5.5, unconditional=against)
    torch.testing.assert_close(pack(mine), theirs, atol=1e-5 * theirs.abs().max().item(), rtol=0)
    plain = denoiser.sample(wanted, SEEDS, SIDE, 3)
    assert torch.equal(denoiser.sample(wanted, SEEDS, SIDE, 3, guidance=1.0), plain)
    assert (pack(plain) - theirs).abs().max() > 1e-2


def test_images_go_through_the_vae_as_in_the_pipeline(backbone: Backbone, pipeline: Krea2Pipeline) -> None:
    images = np.random.default_rng(1).integers(0, 256, (2, SIDE, SIDE, 3), dtype=np.uint8)
    vae, family = load_module(backbone, "vae"), FAMILIES["Krea2Pipeline"]
    mean, std = encode(family, vae, list(images))
    with torch.no_grad():
        inputs = pipeline.image_processor.preprocess([Image.fromarray(image) for image in images])
        posterior = pipeline.vae.encode(inputs[:, :, None]).latent_dist
    assert torch.equal(mean, posterior.mean[:, :, 0]) and torch.equal(std, posterior.std[:, :, 0])
    shift, divisor = (torch.tensor(values).view(1, 4, 1, 1) for values in (vae.config.latents_mean, vae.config.latents_std))
    statistics = family.statistics(vae)
    assert torch.equal(family.normalised(statistics, mean), (mean - shift) * (1.0 / divisor))
    assert torch.equal(family.denormalised(statistics, mean), mean / (1.0 / divisor) + shift)


def tokens_model(backbone: Backbone, name: str = "projector_only", **tokens: str) -> ArmModel:
    arm = resolve(name, ARMS[name], Sections(LORA, tiny_train(), GraphTokens(**tokens), backbone))  # type: ignore[arg-type]
    return build(Denoiser.load(backbone, CPU), backbone, arm, 1.0)


def names() -> NameTable:
    draw = torch.Generator().manual_seed(4)
    return NameTable({name: torch.randn(LAYERS * WIDTH, generator=draw) for name in ("", "dog", "cat", "tree")})


def test_graph_tokens_stand_among_the_text_rows(backbone: Backbone, denoiser: Denoiser, text: TextCondition) -> None:
    """Text is a set of rows: each sample gets what it gets alone, wherever its tokens stand, and an empty graph the base."""
    model = tokens_model(backbone)
    with torch.no_grad():
        made = model.condition(GRAPHS, TEXTS, text, names())
        assert (made.prepended, made.attended.sum(dim=1).tolist()) == (3, [15 + 2, 5 + 3, 9])
        together = denoiser.velocity(start(denoiser), TIMES, made)
        for row, (graph, own) in enumerate(zip(GRAPHS, text.rows(), strict=True)):
            plain, at = TextCondition.cat([own]), slice(row, row + 1)
            alone = model.condition([graph], [TEXTS[row]], plain, names())
            assert alone.mask is None and alone.states.shape[1] - plain.states.shape[1] == (2, 3, 0)[row]
            velocity = denoiser.velocity(start(denoiser)[at], TIMES[at], alone)
            torch.testing.assert_close(together[at], velocity, atol=1e-5 * velocity.abs().max().item(), rtol=0)
            without = denoiser.velocity(start(denoiser)[at], TIMES[at], plain)
            assert torch.equal(velocity, without) == (not graph.triples)
            turned = denoiser.velocity(start(denoiser)[at], TIMES[at], TextCondition(alone.states.flip(1)))
            torch.testing.assert_close(turned, velocity, atol=1e-5 * velocity.abs().max().item(), rtol=0)


def test_compiled_blocks_take_texts_of_any_length(backbone: Backbone) -> None:
    compiles_for_texts_of_any_length(backbone, LORA)


def test_residual_tokens_are_added_at_the_words(backbone: Backbone) -> None:
    model = tokens_model(backbone, "graph", injection="residual", layout="objects", relation="table")
    adds_residual_tokens_at_words(model, backbone, GRAPHS[0], names(), {"a photo of dog and cat": [3, 5], "cat on dog": [0, 2]})


def test_from_caches_to_an_adapter_that_the_pipeline_loads(tmp_path: Path) -> None:
    """The same caches, training and sampling as FLUX; the adapter acts in the pipeline as it does here, with its strength."""
    backbone = section(write_krea2_pipeline(tmp_path / "models" / "tiny"))
    world = write_world(tmp_path, backbone=backbone)
    recipe = tiny_train(epochs=1, keep_epochs=(), active_timesteps="always")
    lora = replace(LORA, alpha=12.0, targets=("to_q", "to_k", "to_v", "to_gate", "to_out.0"))
    folders = [tmp_path / name for name in ("once", "again")]
    for folder in folders:
        folder.mkdir()
        fitted = fit(world.arm(recipe, lora=lora), world.denoiser(), backbone, world.data(), folder, ALONE, {})
    assert fitted.history.controls[-1]["losses"]["graph"] != fitted.history.controls[-1]["losses"]["empty"]
    adapter = folders[0] / "adapter"
    assert files(adapter) == files(folders[1] / "adapter")
    weights = load_file(adapter / "pytorch_lora_weights.safetensors")
    assert {name.partition(".lora_")[0] for name in weights} == {
        f"transformer.transformer_blocks.{index}.attn.{target}" for index in (1, 2) for target in lora.targets
    }

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
    pipeline = opened(backbone)
    given = {
        "prompt_embeds": text.states.unflatten(-1, (LAYERS, WIDTH)), "prompt_embeds_mask": text.attended, "height": SIDE,
        "width": SIDE, "num_inference_steps": 3, "guidance_scale": 0.0, "output_type": "latent",
    }  # fmt: skip
    plain = pipeline(**given, generator=[torch.Generator().manual_seed(5)]).images
    pipeline.load_lora_weights(adapter)
    theirs = pipeline(**given, generator=[torch.Generator().manual_seed(5)]).images
    torch.testing.assert_close(pack(together[:1]), theirs, atol=1e-5 * theirs.abs().max().item(), rtol=0)
    assert (plain - theirs).abs().max() > 1e-2
    assert {module.scaling["default_0"] for module in pipeline.transformer.modules() if hasattr(module, "scaling")} == {3.0}


def real_layout() -> Layout:
    parts = PUBLISHED[HUB]
    return Krea2().layout(parts["transformer"], parts["vae"])


def test_modules_and_counts_at_the_real_size() -> None:
    """LoRA of rank 16 on blocks 10–18: 6144 + 6144 for queries and output, 6144 + 1536 for keys and values."""
    transformer: Any = on_meta(PUBLISHED[HUB]["transformer"])
    layout = real_layout()
    assert (layout.double_blocks, layout.single_blocks, layout.text_width, layout.pixels_per_token) == (0, 28, 12 * 2560, 16)
    every = Lora(Blocks(()), Blocks.parse("all"), targets=("to_q", "to_k", "to_v", "to_gate", "to_out.0"))
    there = {
        name
        for name, module in transformer.named_modules()
        if isinstance(module, torch.nn.Linear) and ".attn." in name and not name.startswith("text_fusion.")
    }
    assert set(target_modules(layout, every)) == there and len(there) == 28 * 5
    lora = Lora(Blocks(()), Blocks.parse("10..18"), rank=16)
    chosen = target_modules(layout, lora)
    assert chosen == [f"transformer_blocks.{i}.attn.{part}" for i in range(10, 19) for part in lora.targets]
    assert count(attach(transformer, chosen, lora, seed=0)) == 9 * 16 * (2 * 12288 + 2 * 7680) == 5_750_784


@pytest.mark.parametrize(
    ("blocks", "single", "targets", "says"),
    [
        ("0", "0", ("to_q",), r"lora\.blocks: block 0 is out of range; valid: none \(the model has no such blocks\)"),
        ("none", "0..28", ("to_q",), r"lora\.single_blocks: block 28 is out of range; valid: 0\.\.27"),
        ("none", "0", ("to_q", "to_add_out"), r"to_add_out: none of lora\.single_blocks \[0\] has it; .* there by to_out\.0"),
        ("none", "0", ("to_qkv_mlp_proj",), r"to_qkv_mlp_proj: none of .*; valid there: to_q, to_k, to_v, to_gate, to_out\.0"),
    ],
)
def test_what_is_not_there_is_refused(blocks: str, single: str, targets: Any, says: str) -> None:
    with pytest.raises(ParamsError, match=says):
        target_modules(real_layout(), Lora(Blocks.parse(blocks), Blocks.parse(single), targets=targets))


def test_fused_projections_are_modules_that_nothing_runs(denoiser: Denoiser, text: TextCondition, pipeline: Krea2Pipeline) -> None:
    """diffusers adds a `to_qkv` beside `to_q`, `to_k` and `to_v`, which goes on to be what counts; no target is called so."""
    fused = Denoiser.load(section(Path(pipeline.config._name_or_path)), CPU)
    fused.transformer.fuse_qkv_projections()  # type: ignore[operator]
    made = {name for name, _ in fused.transformer.named_modules()} - {name for name, _ in denoiser.transformer.named_modules()}
    assert {name.rpartition(".")[2] for name in made} == {"to_qkv"}
    for name in made:
        fused.transformer.get_submodule(name).weight.data.fill_(float("nan"))  # type: ignore[union-attr, operator]
    wanted = denoiser.velocity(start(denoiser), TIMES, text)
    assert torch.equal(fused.velocity(start(denoiser), TIMES, text), wanted)
    assert not any("to_qkv" in name for name in target_modules(denoiser.layout, replace(LORA, single_blocks=Blocks(None))))


@pytest.mark.parametrize(
    ("transformer", "vae", "says"),
    [
        ({"_class_name": "QwenImageTransformer2DModel"}, {}, "QwenImageTransformer2DModel of 64 input channels"),
        ({"in_channels": 32}, {}, r"of 32 input channels .* 16 × 2 × 2 = 64 channels"),
        ({"num_text_layers": 11}, {}, "11 text layers on a VAE .*, and of 12 text layers"),
        ({"num_layers": 0}, {}, "num_layers 0"),
        ({}, {"latents_std": [1.0]}, "latents_mean and latents_std of 16 numbers"),
    ],
)
def test_other_transformers_are_refused(transformer: dict, vae: dict, says: str) -> None:
    parts = PUBLISHED[HUB]
    with pytest.raises(ModelError, match=says):
        Krea2().layout({**parts["transformer"], **transformer}, {**parts["vae"], **vae})


def test_the_family_of_a_folder_has_its_settings(tmp_path: Path, backbone: Backbone) -> None:
    turbo = family_of(write_krea2_pipeline(tmp_path / "turbo", distilled=True))
    assert turbo == Krea2(distilled=True) != family_of(Path(backbone.model)) == FAMILIES["Krea2Pipeline"]
