"""Z-Image through the seam: the pipeline's own results, and the whole way from caches to an adapter that its pipeline loads."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import ZImagePipeline, ZImageTransformer2DModel
from msgspec.structs import replace
from safetensors.torch import load_file

from sgpipe.arms.adapter import build
from sgpipe.arms.config import Lora
from sgpipe.arms.generation import GraphGenerator, add_names, read_backbone
from sgpipe.arms.kinds.base import Sections
from sgpipe.arms.lora import attach, count, target_modules
from sgpipe.arms.model import ArmModel
from sgpipe.arms.resolve import resolve
from sgpipe.backbones.base import TextCondition
from sgpipe.backbones.config import Backbone
from sgpipe.backbones.denoiser import Denoiser
from sgpipe.backbones.families import open_text_encoders, open_tokenizers
from sgpipe.backbones.families.z_image import ZImage, captions
from sgpipe.backbones.images import decode
from sgpipe.backbones.rectified_flow import noise
from sgpipe.errors import ModelError, ParamsError
from sgpipe.graph_encoder.config import GraphTokens
from sgpipe.graph_encoder.open_vocabulary import NameTable
from sgpipe.graphs.scene_graph import SceneGraph
from sgpipe.params.blocks import Blocks
from sgpipe.training.fit import fit
from tests.backbones.contract import adds_residual_tokens_at_words, compiles_for_texts_of_any_length
from tests.tiny import SIDE, backbone_of, edit_json
from tests.tiny_z_image import LAYERS, LENGTH, write_z_image_pipeline
from tests.training.world import ALONE, ARMS, LORA, files, tiny_train, write_world

CPU = torch.device("cpu")
TEXTS = ["a photo of dog above cat on a plain background", "", "a photo of ball" + " near tree" * 11]
ROWS, SEEDS = [18, 8, 34], [3, 1, 2]
"""Tokens of `TEXTS` with their template: the last is padded to 64 rows, the others to 32."""
GRAPHS = [SceneGraph.of("dog", "above", "cat"), SceneGraph(("dog", "cat", "tree"), ((0, "on", 1), (1, "left of", 2))), SceneGraph()]


def backbone_in(folder: Path, **changes: Any) -> Backbone:
    return backbone_of(folder, **{"double_blocks": 0, "single_blocks": LAYERS, "max_sequence_length": LENGTH, **changes})


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return backbone_in(write_z_image_pipeline(tmp_path_factory.mktemp("z_image") / "tiny"))


def opened(folder: str, **how: Any) -> ZImagePipeline:
    made = ZImagePipeline.from_pretrained(folder, **how)
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="module")
def pipeline(backbone: Backbone) -> ZImagePipeline:
    return opened(backbone.model)


@pytest.fixture(scope="module")
def denoiser(backbone: Backbone) -> Denoiser:
    """For tests that leave it as it is."""
    return Denoiser.load(backbone, CPU)


@pytest.fixture(scope="module")
def text(backbone: Backbone) -> TextCondition:
    return open_text_encoders(backbone, CPU).prompts(TEXTS)


def start(denoiser: Denoiser, side: int = SIDE) -> torch.Tensor:
    return noise(SEEDS, denoiser.layout.latent_shape(side))


def call(pipeline: ZImagePipeline, texts: list[str] = TEXTS, seeds: list[int] = SEEDS, **how: Any) -> Any:
    """Images of the pipeline, which writes its templates into the list of prompts that it is given."""
    given = {"height": SIDE, "width": SIDE, "guidance_scale": 0.0, "max_sequence_length": LENGTH, "output_type": "latent"}
    drawn = [torch.Generator().manual_seed(seed) for seed in seeds]
    return pipeline(list(texts), **{**given, "generator": drawn, **how}).images


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_prompts_are_encoded_as_by_the_pipeline(backbone: Backbone, dtype: str) -> None:
    encoders = open_text_encoders(replace(backbone, dtype=dtype), CPU)
    pipeline = opened(backbone.model, transformer=None, vae=None, torch_dtype=getattr(torch, dtype))
    for texts, rows in ((TEXTS, ROWS), (["a photo of dog" + " on a cat" * 40], [LENGTH])):
        found = encoders.prompts(texts)
        with torch.no_grad():
            states, _ = pipeline.encode_prompt(list(texts), CPU, do_classifier_free_guidance=False, max_sequence_length=LENGTH)
        assert found.states.dtype == getattr(torch, dtype) and found.pooled is None
        assert found.attended.sum(dim=1).tolist() == rows and (found.mask is None) == (len(texts) == 1)
        for own, theirs in zip(captions(found), states, strict=True):
            assert torch.equal(own, theirs)


def test_concepts_are_the_tokens_of_a_texts_own_words(backbone: Backbone) -> None:
    """In the template, whose first three tokens stand before them; an empty text has the token after them."""
    encoders, texts = open_text_encoders(backbone, CPU), ["dog", "in front of", ""]
    for states, row, words in zip(encoders.concepts(texts), encoders.prompts(texts).states, (2, 3, 1), strict=True):
        assert torch.equal(states, row[3 : 3 + words])


def test_what_a_prompt_loses_is_told(backbone: Backbone) -> None:
    whole, cut = open_tokenizers(backbone).prompts(["a photo of dog on cat" + " on" * more for more in (50, 51)])
    assert (whole.tokens, whole.truncated, cut.tokens, cut.truncated) == (LENGTH, False, LENGTH + 1, True)


def test_a_tokenizer_that_pads_on_the_left_is_refused(tmp_path: Path) -> None:
    backbone = backbone_in(write_z_image_pipeline(tmp_path / "tiny"))
    edit_json(tmp_path / "tiny" / "tokenizer" / "tokenizer_config.json", padding_side="left")
    with pytest.raises(ModelError, match=r"tokenizer: padding_side is 'left'; .*: set it to right"):
        open_tokenizers(backbone)


@pytest.mark.parametrize("side", [SIDE, 24])
def test_the_velocity_is_that_of_the_pipelines_own_calls(
    denoiser: Denoiser, text: TextCondition, pipeline: ZImagePipeline, side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the pipeline hands to its transformer at each step and what it makes of it; an image of 36 tokens is padded to 64."""
    calls: list[tuple[list[torch.Tensor], torch.Tensor, list[torch.Tensor]]] = []
    steps: list[torch.Tensor] = []
    forward, step = pipeline.transformer.forward, pipeline.scheduler.step

    def watched(latents: list[torch.Tensor], t: torch.Tensor, prompts: list[torch.Tensor], **how: Any) -> Any:
        calls.append((list(latents), t, prompts))
        return forward(latents, t, prompts, **how)

    def stepped(velocity: torch.Tensor, *given: Any, **how: Any) -> Any:
        steps.append(velocity)
        return step(velocity, *given, **how)

    monkeypatch.setattr(pipeline.transformer, "forward", watched)
    monkeypatch.setattr(pipeline.scheduler, "step", stepped)
    call(pipeline, num_inference_steps=3, height=side, width=side)
    times = denoiser.family.sigmas(3, denoiser.layout, side, denoiser.scheduler)
    assert len(calls) == len(steps) == 3
    for (latents, _, prompts), velocity, at in zip(calls, steps, times.tolist(), strict=False):
        given = torch.cat([each.transpose(0, 1) for each in latents])
        assert torch.equal(denoiser.velocity(given, torch.full([3], at), text), velocity)
        assert all(torch.equal(*pair) for pair in zip(captions(text), prompts, strict=True))


@pytest.mark.parametrize("side", [SIDE, 24])
def test_each_prompt_of_a_batch_gets_what_it_gets_alone(denoiser: Denoiser, text: TextCondition, side: int) -> None:
    """Though the image of the longest stands at another frame, and rows of the others' are masked."""
    latents, t = start(denoiser, side), torch.tensor([0.3, 0.998, 0.5])
    together = denoiser.velocity(latents, t, text)
    for row, condition in enumerate(text.rows()):
        one = latents[row : row + 1], t[row : row + 1]
        alone = denoiser.velocity(*one, TextCondition.cat([condition]))
        torch.testing.assert_close(together[row : row + 1], alone, atol=1e-5 * alone.abs().max().item(), rtol=0)
    assert not torch.allclose(denoiser.velocity(latents, t, TextCondition(text.states)), together, atol=1e-3)


@pytest.mark.parametrize(("steps", "side", "dynamic"), [(4, SIDE, False), (7, 24, False), (5, 24, True)])
def test_sampling_equals_the_pipeline(backbone: Backbone, tmp_path: Path, steps: int, side: int, dynamic: bool) -> None:
    """Latents and images, to the bit."""
    folder = write_z_image_pipeline(tmp_path / "tiny", use_dynamic_shifting=dynamic)
    made, pipeline = backbone_in(folder), opened(str(folder))
    denoiser, text = Denoiser.load(made, CPU), open_text_encoders(made, CPU).prompts(TEXTS)
    mine = denoiser.sample(text, SEEDS, side, steps)
    how = {"num_inference_steps": steps, "height": side, "width": side}
    assert torch.equal(mine, call(pipeline, **how))
    images = call(pipeline, output_type="np", **how)
    assert np.array_equal(decode(denoiser.family, pipeline.vae, mine), (images * 255).round())


def test_in_bfloat16_latents_stay_in_float32_between_steps(backbone: Backbone) -> None:
    made = replace(backbone, dtype="bfloat16")
    mine = Denoiser.load(made, CPU).sample(open_text_encoders(made, CPU).prompts(TEXTS), SEEDS, SIDE, 4)
    theirs = call(opened(backbone.model, torch_dtype=torch.bfloat16), num_inference_steps=4)
    assert mine.dtype == theirs.dtype == torch.float32 and torch.equal(mine, theirs)
    assert not torch.equal(mine, mine.bfloat16().float())


def test_guidance_is_that_of_the_pipeline(denoiser: Denoiser, backbone: Backbone, pipeline: ZImagePipeline) -> None:
    """Its `guidance_scale` is the scale less 1: 4 there is 5 here, and 0 there is none.

    The pipeline runs both sides as one batch, which rounds otherwise with several threads, and the scale multiplies that.
    """
    encoders = open_text_encoders(backbone, CPU)
    text, empty = encoders.prompts(TEXTS), encoders.prompts([""])
    mine = denoiser.sample(text, SEEDS, SIDE, 4, 5.0, unconditional=empty)
    theirs = call(pipeline, num_inference_steps=4, guidance_scale=4.0)
    torch.testing.assert_close(mine, theirs, atol=5e-5 * theirs.abs().max().item(), rtol=0)
    assert (denoiser.sample(text, SEEDS, SIDE, 4) - theirs).abs().max() > 1e-2


def tokens_model(backbone: Backbone, name: str = "projector_only", **tokens: str) -> ArmModel:
    lora = replace(LORA, blocks=Blocks(()), single_blocks=Blocks.parse("all"))
    arm = resolve(name, ARMS[name], Sections(lora, tiny_train(), GraphTokens(**tokens), backbone))  # type: ignore[arg-type]
    return build(Denoiser.load(backbone, CPU), backbone, arm, 1.0)


def names() -> NameTable:
    draw = torch.Generator().manual_seed(4)
    return NameTable({name: torch.randn(24, generator=draw) for name in ("", "dog", "cat", "tree")})


def test_graph_tokens_follow_each_prompts_own_rows(backbone: Backbone, denoiser: Denoiser, text: TextCondition) -> None:
    """The prompt keeps its positions, and each sample gets what it gets alone, an empty graph the base."""
    model, t = tokens_model(backbone), torch.tensor([0.3, 0.998, 0.5])
    with torch.no_grad():
        made = model.condition(GRAPHS, TEXTS, text, names())
        assert (made.prepended, made.attended.sum(dim=1).tolist()) == (3, [18 + 2, 8 + 3, 34])
        together = denoiser.velocity(start(denoiser), t, made)
        for row, (graph, own) in enumerate(zip(GRAPHS, text.rows(), strict=True)):
            plain, at = TextCondition.cat([own]), slice(row, row + 1)
            alone = model.condition([graph], [TEXTS[row]], plain, names())
            count = alone.states.shape[1] - plain.states.shape[1]
            assert alone.mask is None and count == alone.prepended == (2, 3, 0)[row]
            assert torch.equal(captions(alone)[0], torch.cat([plain.states[0], alone.states[0, :count]]))
            torch.testing.assert_close(captions(made)[row], captions(alone)[0])
            velocity = denoiser.velocity(start(denoiser)[at], t[at], alone)
            torch.testing.assert_close(together[at], velocity, atol=1e-5 * velocity.abs().max().item(), rtol=0)
        assert torch.equal(alone.states, plain.states)


@pytest.mark.parametrize(("rows", "tokens", "frame", "padding"), [(18, 0, 33, 14), (18, 3, 33, 11), (30, 3, 65, 31)])
def test_graph_tokens_take_the_places_of_padding_and_move_the_image_at_32(
    denoiser: Denoiser, rows: int, tokens: int, frame: int, padding: int
) -> None:
    """What the first shared layer is given: the image's frame, by the angle of its first rotation, and rows of padded text."""
    draw, seen = torch.Generator().manual_seed(0), []
    states = torch.randn(1, tokens + rows, 24, generator=draw)
    text: Any = denoiser.transformer
    hooks = [
        text.context_refiner[0].register_forward_pre_hook(lambda module, args: seen.append(args[0])),
        text.layers[0].register_forward_pre_hook(lambda module, args: seen.append(args[2])),
    ]
    denoiser.velocity(start(denoiser)[:1], torch.tensor([0.5]), TextCondition(states, prepended=tokens))
    for hook in hooks:
        hook.remove()
    turn = torch.polar(torch.ones(1), torch.tensor([float(frame)]))
    torch.testing.assert_close(seen[1][0, :64, 0], turn.expand(64))
    assert (seen[0][0] == text.cap_pad_token).all(dim=1).tolist() == [False] * (rows + tokens) + [True] * padding


def test_compiled_blocks_take_texts_of_any_length(backbone: Backbone) -> None:
    compiles_for_texts_of_any_length(backbone, replace(LORA, blocks=Blocks(()), single_blocks=Blocks.parse("all")))


def test_residual_tokens_are_added_at_the_words(backbone: Backbone) -> None:
    model = tokens_model(backbone, "graph", injection="residual", layout="objects", relation="table")
    adds_residual_tokens_at_words(model, backbone, GRAPHS[0], names(), {"a photo of dog and cat": [6, 9], "cat on dog": [3, 4, 6]})


def test_from_caches_to_an_adapter_that_the_pipeline_loads(tmp_path: Path) -> None:
    """The same caches, training and sampling as FLUX; the adapter acts in the pipeline as it does here, with its strength."""
    backbone = backbone_in(write_z_image_pipeline(tmp_path / "models" / "tiny"))
    assert read_backbone(backbone.model).single_blocks == LAYERS
    world = write_world(tmp_path, backbone=backbone)
    recipe = tiny_train(epochs=1, keep_epochs=(), active_timesteps="always")
    lora = replace(LORA, blocks=Blocks(()), single_blocks=Blocks.parse("0..1"), alpha=12.0)
    arm = world.arm(recipe, lora=lora)
    folders = [tmp_path / name for name in ("once", "again")]
    for folder in folders:
        folder.mkdir()
        fitted = fit(arm, world.denoiser(), backbone, world.data(), folder, ALONE, {})
    assert fitted.history.controls[-1]["losses"]["graph"] != fitted.history.controls[-1]["losses"]["empty"]
    adapter = folders[0] / "adapter"
    assert files(adapter) == files(folders[1] / "adapter")
    weights = load_file(adapter / "pytorch_lora_weights.safetensors")
    assert {name.rsplit(".lora_", 1)[0] for name in weights} == {
        f"transformer.layers.{layer}.attention.{part}" for layer in (0, 1) for part in ("to_q", "to_k", "to_v", "to_out.0")
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
    pipeline = opened(backbone.model)
    given = {
        "prompt_embeds": captions(text),
        "height": SIDE,
        "width": SIDE,
        "num_inference_steps": 3,
        "guidance_scale": 0.0,
        "output_type": "latent",
    }
    plain = pipeline(**given, generator=[torch.Generator().manual_seed(5)]).images
    pipeline.load_lora_weights(adapter)
    theirs = pipeline(**given, generator=[torch.Generator().manual_seed(5)]).images
    torch.testing.assert_close(together[:1], theirs, atol=1e-5 * theirs.abs().max().item(), rtol=0)
    assert (plain - theirs).abs().max() > 1e-2
    assert {module.scaling["default_0"] for module in pipeline.transformer.modules() if hasattr(module, "scaling")} == {3.0}


def test_modules_and_counts_at_the_real_size() -> None:
    """LoRA of rank 16 on to_q, to_k, to_v and to_out.0 of layers 10–19; the refiners' same-named modules are no targets."""
    with torch.device("meta"):
        transformer = ZImageTransformer2DModel()
    assert sum(weight.numel() for weight in transformer.parameters()) == 6_154_908_736
    vae = {"latent_channels": 16, "block_out_channels": [128, 256, 512, 512]}
    layout = ZImage().layout({**transformer.config, "_class_name": "ZImageTransformer2DModel"}, vae)
    assert (layout.double_blocks, layout.single_blocks, layout.text_width, layout.pixels_per_token) == (0, 30, 2560, 16)
    every = Lora(Blocks(()), Blocks.parse("all"))
    there = {name for name, module in transformer.named_modules() if isinstance(module, torch.nn.Linear) and ".attention." in name}
    assert set(target_modules(layout, every)) == {name for name in there if name.startswith("layers.")}
    assert len(there) == (30 + 2 + 2) * 4
    lora = Lora(Blocks(()), Blocks.parse("10..19"), rank=16)
    chosen = target_modules(layout, lora)
    assert chosen == [f"layers.{i}.attention.{part}" for i in range(10, 20) for part in lora.targets]
    assert count(attach(transformer, chosen, lora, seed=0)) == 10 * 4 * 16 * (3840 + 3840) == 4_915_200


@pytest.mark.parametrize(
    ("lora", "says"),
    [
        (Lora(Blocks.parse("0")), r"lora\.blocks: block 0 is out of range; valid: none"),
        (Lora(Blocks(()), Blocks.parse("3")), r"lora\.single_blocks: block 3 is out of range; valid: 0\.\.2"),
        (
            Lora(Blocks(()), Blocks.parse("all"), targets=("to_q", "add_k_proj")),
            r"add_k_proj: none of lora\.single_blocks all has it; the same is done there by to_k; valid there: to_q, to_k, to_v, "
            r"to_out\.0",
        ),
    ],
)
def test_lora_where_there_is_nothing_is_refused(denoiser: Denoiser, lora: Lora, says: str) -> None:
    with pytest.raises(ParamsError, match=says):
        target_modules(denoiser.layout, lora)


@pytest.mark.parametrize(
    ("transformer", "vae", "says"),
    [
        ({"siglip_feat_dim": 1152}, {}, r"reads images by siglip_feat_dim, on a VAE of 16"),
        ({"all_patch_size": [2, 4], "all_f_patch_size": [1, 1]}, {}, r"patch sizes \[2, 4\] and frame patch sizes \[1, 1\]"),
        ({"in_channels": 32}, {}, "of 32 input channels"),
        ({}, {"latent_channels": 4}, "on a VAE of 4 channels"),
        ({"n_layers": 0}, {}, "n_layers 0"),
    ],
)
def test_other_transformers_of_its_class_are_refused(transformer: dict, vae: dict, says: str) -> None:
    sound: dict[str, Any] = {"_class_name": "ZImageTransformer2DModel", "n_layers": 30, "n_heads": 30, "dim": 3840}
    sound |= {"cap_feat_dim": 2560, "in_channels": 16, "all_patch_size": [2], "all_f_patch_size": [1]}
    parts = {"latent_channels": 16, "block_out_channels": [128, 256, 512, 512]}
    assert ZImage().layout(sound, parts).vae_factor == 8
    with pytest.raises(ModelError, match=says):
        ZImage().layout({**sound, **transformer}, {**parts, **vae})
