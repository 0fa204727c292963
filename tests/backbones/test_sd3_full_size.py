"""SD3's published configurations without weights: what each release has where, LoRA on it, concepts in it, adapters into it.

The configurations are those of `sgpipe/doctor/published`. Their numbers of parameters are the published ones (2 B, 2.5 B with a
positional table of 0.2 B, 8.1 B); nothing here was compared with files of the hub.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from torch import nn

from sgpipe.arms.config import Lora, Target
from sgpipe.arms.lora import LORA_FILE, LoraLayers, attach, count, target_modules
from sgpipe.attention_maps.options import MapOptions
from sgpipe.attention_maps.stream import concept_stream
from sgpipe.backbones.base import Layout, TextCondition
from sgpipe.backbones.families.sd3 import StableDiffusion3
from sgpipe.doctor.memory import PUBLISHED, build
from sgpipe.errors import ParamsError
from sgpipe.params.blocks import Blocks

FAMILY = StableDiffusion3()
IMAGE: tuple[Target, ...] = ("to_q", "to_k", "to_v", "to_out.0")
TEXT: tuple[Target, ...] = ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
SECOND: tuple[Target, ...] = ("attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0")


@dataclass(frozen=True)
class Release:
    """A release of SD3, and what is known of it."""

    name: str
    blocks: int
    width: int
    parameters: int
    dual: int
    """Blocks with a second attention, from the first on."""
    normed: bool

    @property
    def layout(self) -> Layout:
        parts = PUBLISHED[self.name]
        return FAMILY.layout(parts["transformer"], parts["vae"])

    def transformer(self) -> Any:
        made = build(PUBLISHED[self.name]["transformer"])
        FAMILY.prepare(made)
        return made


RELEASES = (
    Release("stabilityai/stable-diffusion-3-medium-diffusers", 24, 1536, 2_028_328_000, 0, False),
    Release("stabilityai/stable-diffusion-3.5-medium", 24, 1536, 2_243_171_520, 13, True),
    Release("stabilityai/stable-diffusion-3.5-large", 38, 2432, 8_056_627_520, 0, True),
)
each_release = pytest.mark.parametrize("release", RELEASES, ids=["3.0-medium", "3.5-medium", "3.5-large"])


@each_release
def test_the_layout_names_every_attention_projection_and_no_other(release: Release) -> None:
    layout, transformer = release.layout, release.transformer()
    assert sum(weight.numel() for weight in transformer.parameters()) == release.parameters
    assert (layout.double_blocks, layout.single_blocks, layout.text_width) == (release.blocks, 0, 4096)
    assert (layout.latent_shape(1024), layout.grid(1024), layout.guidance) == ((16, 128, 128), 64, False)
    named = {
        f"{layout.double_block.format(index=index)}.{part}"
        for index in range(release.blocks)
        for part in layout.image_projections + layout.text_projections + layout.second_projections
    }
    linear = {name for name, module in transformer.named_modules() if isinstance(module, nn.Linear)}
    assert named - layout.lacking == {name for name in linear if ".attn" in name}
    assert len(named - layout.lacking) == 8 * release.blocks - 1 + 4 * release.dual
    assert layout.lacking <= named
    last = f"transformer_blocks.{release.blocks - 1}.attn.to_add_out"
    assert last in layout.lacking and len(layout.lacking) == 1 + (4 * (release.blocks - release.dual) if release.dual else 0)
    blocks = transformer.transformer_blocks
    assert [block.attn2 is not None for block in blocks] == [index < release.dual for index in range(release.blocks)]
    assert [block.context_pre_only for block in blocks] == [False] * (release.blocks - 1) + [True]
    assert {block.attn.norm_q is not None for block in blocks} == {release.normed}
    assert blocks[0].attn.heads * 64 == release.width


@each_release
def test_lora_sits_on_what_targets_name(release: Release) -> None:
    """Rank 16 on all blocks: 4 image projections each, 4 of text but for the last block's output, 4 more where there is a second
    attention; every one is hidden × hidden."""
    layout, blocks = release.layout, Blocks.parse("all")
    targets = IMAGE + TEXT + (SECOND if release.dual else ())
    lora, transformer = Lora(blocks, targets=targets), release.transformer()
    names = target_modules(layout, lora)
    assert len(names) == len(set(names)) == 8 * release.blocks - 1 + 4 * release.dual
    weights = attach(transformer, names, lora, seed=0)
    assert count(weights) == len(names) * 16 * 2 * release.width
    assert {name.partition(".lora_")[0] for name in weights} == set(names)
    assert {name for name, value in transformer.named_parameters() if value.requires_grad} == set(weights)
    middle = target_modules(layout, Lora(Blocks.parse("7..12"), targets=IMAGE))
    assert middle == [f"transformer_blocks.{index}.attn.{part}" for index in range(7, 13) for part in IMAGE]


def test_a_second_attention_is_a_target_where_there_is_one() -> None:
    """13 blocks of 3.5-medium: named together with blocks that lack it it is on those that have it, and refused elsewhere."""
    _, medium, large = (release.layout for release in RELEASES)
    both = target_modules(medium, Lora(Blocks.parse("11..14"), targets=("to_q", "attn2.to_q")))
    assert both == [
        "transformer_blocks.11.attn.to_q", "transformer_blocks.11.attn2.to_q", "transformer_blocks.12.attn.to_q",
        "transformer_blocks.12.attn2.to_q", "transformer_blocks.13.attn.to_q", "transformer_blocks.14.attn.to_q",
    ]  # fmt: skip
    with pytest.raises(ParamsError, match=r"lora\.targets: attn2\.to_q: none of lora\.blocks \[13\.\.23\] has it"):
        target_modules(medium, Lora(Blocks.parse("13..23"), targets=("to_q", "attn2.to_q")))
    with pytest.raises(ParamsError, match=r"lora\.targets: attn2\.to_q: none of .* valid there: to_q, .*to_add_out; drop it"):
        target_modules(large, Lora(Blocks.parse("0..3"), targets=("to_q", "attn2.to_q")))


@each_release
def test_concepts_ride_in_every_block(release: Release) -> None:
    """At 1024 px, 4096 image tokens, with LoRA on both streams and a graph's rows masked in one sample; q and k are read behind
    their norms where there are any, and the second attention is passed by."""
    layout, transformer = release.layout, release.transformer()
    lora = Lora(Blocks.parse("all"), targets=IMAGE + TEXT + (SECOND if release.dual else ()), rank=2)
    attach(transformer, target_modules(layout, lora), lora, seed=0)
    with torch.device("meta"):
        latents, states, pooled = torch.empty(2, 16, 128, 128), torch.empty(2, 340, 4096), torch.empty(2, 2048)
        condition = TextCondition(states, pooled, torch.ones(2, 340, dtype=torch.bool))
        concepts, t = torch.empty(2, 3, 4096), torch.empty(2)
    taps = FAMILY.taps(transformer)
    assert len(taps.blocks) == release.blocks
    attentions = [(tap, tap.block.attn) for tap in taps.blocks]
    assert all(tap.query is (attn.norm_q if release.normed else attn.to_q) for tap, attn in attentions)
    assert all(tap.key is (attn.norm_k if release.normed else attn.to_k) for tap, attn in attentions)
    with torch.no_grad(), concept_stream(transformer, concepts, (64, 64), MapOptions({"first": "0", "all": "all"})) as stream:
        velocity = FAMILY.velocity(transformer, latents, t, condition, None)
        maps = stream.maps()
    assert velocity.shape == latents.shape
    assert {tuple(each.shape) for kinds in maps.values() for each in kinds} == {(2, 3, 64, 64)}


@each_release
def test_the_adapter_goes_into_the_pipeline_as_it_is(release: Release, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """`load_lora_weights` finds a place for every tensor of the file and has no other left, at the strength it was trained with."""
    lora = Lora(Blocks.parse("all"), targets=IMAGE + TEXT + (SECOND if release.dual else ()), rank=2, alpha=4.0)
    names, transformer = target_modules(release.layout, lora), release.transformer()
    shapes = {name: value.shape for name, value in attach(transformer, names, lora, seed=0).items()}
    weights = {name: nn.Parameter(torch.zeros(shape)) for name, shape in shapes.items()}
    LoraLayers(transformer, lora, tuple(names), weights).save(tmp_path)
    assert (tmp_path / LORA_FILE).stat().st_size == pytest.approx(len(names) * 2 * 2 * release.width * 4, rel=0.05)
    fresh = build(PUBLISHED[release.name]["transformer"])
    assert isinstance(fresh, SD3Transformer2DModel)
    pipeline = StableDiffusion3Pipeline(
        transformer=fresh, scheduler=FlowMatchEulerDiscreteScheduler(), vae=None, text_encoder=None, tokenizer=None,
        text_encoder_2=None, tokenizer_2=None, text_encoder_3=None, tokenizer_3=None,
    )  # fmt: skip
    pipeline.load_lora_weights(tmp_path, adapter_name="default")
    loaded = {name: value.shape for name, value in fresh.named_parameters() if ".lora_" in name}
    assert loaded == shapes and len(loaded) == 2 * (8 * release.blocks - 1 + 4 * release.dual)
    assert not [each for each in caplog.messages if "led to" in each]
    assert {fresh.get_submodule(name).scaling["default"] for name in names} == {2.0}
