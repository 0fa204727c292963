"""Forwards block by block: those of diffusers to the bit, graph tokens that join at any block, and prefixes that are shared."""

from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch
from diffusers import Flux2Transformer2DModel, FluxTransformer2DModel, SD3Transformer2DModel
from torch import Tensor

from sgpipe.backbones.base import TextCondition
from sgpipe.backbones.denoiser import Denoiser
from sgpipe.backbones.families import FAMILIES
from sgpipe.errors import ParamsError

TEXT, WORDS, GRAPH, BATCH = 10, 5, 3, 2
KINDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "FluxPipeline": (
        FluxTransformer2DModel,
        {"num_single_layers": 2, "axes_dims_rope": (2, 2, 4), "in_channels": 4, "guidance_embeds": True},
    ),
    "StableDiffusion3Pipeline": (
        SD3Transformer2DModel,
        {"in_channels": 1, "out_channels": 1, "caption_projection_dim": 16, "sample_size": 8, "dual_attention_layers": (0,)},
    ),
}


class Case(NamedTuple):
    denoiser: Denoiser
    latents: Tensor
    t: Tensor
    guidance: float | None
    condition: TextCondition
    """Of both samples, each with three rows before the prompt's, of which the second sample has but two."""

    def velocity(self, condition: TextCondition, latents: Tensor | None = None, t: Tensor | None = None) -> Tensor:
        return self.denoiser.velocity(
            self.latents if latents is None else latents, self.t if t is None else t, condition, self.guidance
        )


@pytest.fixture(scope="module", params=list(KINDS))
def case(request: pytest.FixtureRequest) -> Case:
    kind, own = KINDS[request.param]
    shared = {"num_layers": 3, "attention_head_dim": 8, "num_attention_heads": 2, "joint_attention_dim": TEXT}
    torch.manual_seed(0)
    model = kind(**shared, **own, pooled_projection_dim=6).eval().requires_grad_(False)
    family = FAMILIES[request.param]
    family.prepare(model)
    layout = family.layout({**model.config, "_class_name": kind.__name__}, {"latent_channels": 1, "block_out_channels": [1]})
    mask = torch.ones(BATCH, GRAPH + WORDS, dtype=torch.bool)
    mask[1, GRAPH - 1] = False
    states, pooled = torch.randn(BATCH, GRAPH + WORDS, TEXT), torch.randn(BATCH, 6)
    text = TextCondition(states, pooled, mask, GRAPH, 0, TextCondition(states[:, GRAPH:], pooled))
    denoiser = Denoiser(family, model, layout, {}, torch.device("cpu"))
    return Case(denoiser, torch.randn(BATCH, 1, 4, 6), torch.rand(BATCH), 3.5 if layout.guidance else None, text)


def by_hooks(case: Case, enter: int) -> Tensor:
    """What diffusers' own forward makes of the prompt alone, when rows are put before its text at block `enter` by hand."""
    denoiser, condition = case.denoiser, case.condition
    model: Any = denoiser.transformer
    graph = model.context_embedder(condition.states[:, :GRAPH])

    def joined(number: int, block: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        if number < enter:
            return None
        if number == enter:
            kwargs["encoder_hidden_states"] = torch.cat([graph, kwargs["encoder_hidden_states"]], dim=1)
        tokens = kwargs["hidden_states"].shape[1]
        image = torch.ones(BATCH, tokens, dtype=torch.bool)
        flux = "image_rotary_emb" in kwargs
        if flux:  # the rotation by angle 0 of three more rows
            cos, sin = kwargs["image_rotary_emb"]
            kwargs["image_rotary_emb"] = torch.cat([torch.ones_like(cos[:3]), cos]), torch.cat([torch.zeros_like(sin[:3]), sin])
        assert condition.mask is not None
        rows = [condition.mask, image] if flux else [image, condition.mask]
        kwargs["joint_attention_kwargs"] = {"attention_mask": torch.cat(rows, dim=1)[:, None, None]}
        return args, kwargs

    blocks = [*model.transformer_blocks, *getattr(model, "single_transformer_blocks", ())]
    hooks = [
        block.register_forward_pre_hook(lambda *given, n=n: joined(n, *given), with_kwargs=True) for n, block in enumerate(blocks)
    ]
    try:
        return case.velocity(condition.prompt)
    finally:
        for hook in hooks:
            hook.remove()


def test_block_by_block_is_the_forward_of_diffusers(case: Case) -> None:
    """To the bit for the prompt alone; with rows before it to rounding, since on some CPUs masked attention rounds by how its mask
    lies in memory (seen with AVX-512 and bfloat16 units).
    """
    blocks = case.denoiser.family.by_blocks(case.denoiser.transformer)
    for condition in (case.condition, case.condition.prompt):
        first = blocks.embedded(case.latents, case.t, condition, case.guidance)
        made = blocks.velocity(blocks.run(first, condition, len(blocks.blocks)))
        torch.testing.assert_close(made, case.velocity(condition), atol=1e-6, rtol=1e-6)
    assert torch.equal(made, case.velocity(case.condition.prompt))


@pytest.mark.parametrize("enter", [1, 2, 3])
def test_tokens_that_enter_at_a_block_are_a_forward_written_by_hand(case: Case, enter: int) -> None:
    """The third is FLUX.1's first single-stream block; SD3 has none."""
    if enter == case.denoiser.layout.double_blocks + case.denoiser.layout.single_blocks:
        return
    found = case.velocity(replace(case.condition, enter=enter))
    torch.testing.assert_close(found, by_hooks(case, enter), atol=1e-6, rtol=1e-6)
    assert (found - case.velocity(case.condition)).abs().max() > 1e-4
    assert (found - case.velocity(case.condition.prompt)).abs().max() > 1e-4


def test_blocks_before_the_entry_see_the_prompt_alone(case: Case) -> None:
    seen: list[int] = []
    blocks = case.denoiser.family.by_blocks(case.denoiser.transformer).blocks
    hooks = [block.register_forward_pre_hook(lambda block, args: seen.append(args[1].shape[1])) for block in blocks]
    case.velocity(replace(case.condition, enter=2))
    for hook in hooks:
        hook.remove()
    assert seen == [WORDS] * 2 + [GRAPH + WORDS] * (len(blocks) - 2)


def test_a_shared_prefix_gives_what_each_condition_gives_alone(case: Case) -> None:
    """Two graphs and none of each sample; the prefix runs once."""
    one = replace(case.condition, enter=2)
    other = replace(one, states=torch.cat([one.states[:, :GRAPH].flip(1), one.states[:, GRAPH:]], dim=1))
    both = case.velocity(TextCondition.cat([one, other]))
    alone = torch.cat([case.velocity(one), case.velocity(other)])
    torch.testing.assert_close(both, alone, atol=1e-6, rtol=1e-6)
    for stop in (1, 2):
        prefix = case.denoiser.prefix(case.latents, case.t, one, stop, case.guidance)
        assert torch.equal(case.denoiser.finished(prefix, TextCondition.cat([one, other])), both)
        assert torch.equal(case.denoiser.finished(prefix, one.prompt), case.velocity(one.prompt))
    with pytest.raises(ValueError, match="enter at block 2 cannot join a prefix of 3 blocks"):
        case.denoiser.finished(case.denoiser.prefix(case.latents, case.t, one, 3, case.guidance), one)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_prefix_has_no_gradient_and_every_token_does(case: Case, checkpointing: bool) -> None:
    states = case.condition.states.detach().clone().requires_grad_()
    model: Any = case.denoiser.transformer
    if checkpointing:
        model.enable_gradient_checkpointing()
    model.train(checkpointing)
    case.velocity(replace(case.condition, states=states, enter=2)).square().mean().backward()
    model.disable_gradient_checkpointing()
    model.eval()
    assert states.grad is not None and case.condition.mask is not None
    graph = states.grad[:, :GRAPH].abs().sum(-1) > 0
    assert torch.equal(graph, case.condition.mask[:, :GRAPH])


def test_other_families_refuse_in_one_sentence() -> None:
    model = Flux2Transformer2DModel(
        num_layers=1, num_single_layers=1, attention_head_dim=8, num_attention_heads=2, joint_attention_dim=TEXT,
        axes_dims_rope=(2, 2, 2, 2), in_channels=4,
    )  # fmt: skip
    with pytest.raises(
        ParamsError, match=r"graph_tokens\.enter: Flux2KleinPipeline takes graph tokens before its first block alone"
    ):
        FAMILIES["Flux2KleinPipeline"].by_blocks(model)
