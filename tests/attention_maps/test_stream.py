"""The stream changes nothing of the model, and its maps do not depend on how they were asked for."""

import gc

import pytest
import torch
from accelerate import cpu_offload
from diffusers import FluxTransformer2DModel
from torch import Tensor, nn

from sgpipe.attention_maps.options import MapOptions
from sgpipe.attention_maps.scores import GroupMaps
from sgpipe.attention_maps.stream import concept_stream
from sgpipe.backbones.base import TextCondition
from sgpipe.errors import ModelError, ParamsError
from tests.attention_maps.conftest import CONCEPTS, GRID, GROUPS, SINGLE, TEXT, batch, build, close, run, same, with_lora


def hooks(model: nn.Module) -> int:
    return sum(
        len(module._forward_hooks) + len(module._forward_pre_hooks) + len(module._forward_hooks_with_kwargs)
        for module in model.modules()
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_the_velocity_is_the_same_to_the_bit(model: FluxTransformer2DModel, dtype: torch.dtype) -> None:
    model.to(dtype)
    arguments, concepts = batch(3)
    arguments = {name: value if name.endswith("_ids") else value.to(dtype) for name, value in arguments.items()}
    plain = model(**arguments).sample
    with concept_stream(model, concepts.to(dtype), GRID, MapOptions(GROUPS)) as stream:
        riding = model(**arguments).sample
    assert riding.dtype == dtype
    assert torch.equal(plain, riding)
    assert all(map_.dtype == torch.float32 for maps in stream.maps().values() for map_ in maps)


@torch.no_grad()
def test_bfloat16_maps_are_those_of_float32_rounded(model: FluxTransformer2DModel) -> None:
    """At times and a guidance scale that bfloat16 holds exactly (the model multiplies them by 1000 in its own dtype)."""
    arguments, concepts = batch(2)
    arguments |= {"timestep": torch.tensor([0.25, 0.5]), "guidance": torch.full((2,), 4.0)}
    half = {name: value.bfloat16() for name, value in arguments.items() if not name.endswith("_ids")}
    with concept_stream(model, concepts, GRID, MapOptions(GROUPS)) as exact:
        model(**arguments)
    with torch.autocast("cpu", torch.bfloat16), concept_stream(model, concepts, GRID, MapOptions(GROUPS)) as mixed:
        model(**arguments)
    model.to(torch.bfloat16)
    with concept_stream(model, concepts, GRID, MapOptions(GROUPS)) as rounded:
        model(**arguments | half)
    for stream in (mixed, rounded):
        for name, maps in stream.maps().items():
            for found, expected in zip(maps, exact.maps()[name], strict=True):
                assert found.dtype == torch.float32
                within = 0.04 if name in ("single", "across") else 0.02
                assert (found - expected).norm() < within * expected.norm()


@torch.no_grad()
def test_a_batch_is_its_samples(model: FluxTransformer2DModel) -> None:
    arguments, concepts = batch(3)
    _, together = run(model, 3)
    for sample in range(3):
        own = {name: value if name.endswith("_ids") else value[sample : sample + 1] for name, value in arguments.items()}
        with concept_stream(model, concepts[sample : sample + 1], GRID, MapOptions(GROUPS)) as stream:
            model(**own)
        of_sample = {
            name: GroupMaps(maps.saliency[sample : sample + 1], maps.cross[sample : sample + 1]) for name, maps in together.items()
        }
        close(stream.maps(), of_sample, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("normalisation", ["none", "concepts", "patches"])
@torch.no_grad()
def test_groups_of_one_pass_are_those_of_separate_passes(model: FluxTransformer2DModel, normalisation: str) -> None:
    _, together = run(model, options=MapOptions(GROUPS, normalisation))
    apart = {}
    for name, blocks in GROUPS.items():
        apart |= run(model, options=MapOptions({name: blocks}, normalisation))[1]
    assert same(together, apart)
    early, late, everything = (together[name].cross for name in ("early", "late", "all"))
    torch.testing.assert_close(everything, (early + late) / 2)


@torch.no_grad()
def test_normalised_maps_are_shares(model: FluxTransformer2DModel) -> None:
    over_concepts = run(model, options=MapOptions(GROUPS, "concepts"))[1]["all"].saliency
    over_patches = run(model, options=MapOptions(GROUPS, "patches"))[1]["all"].saliency
    assert over_concepts.shape == (2, CONCEPTS, *GRID)
    torch.testing.assert_close(over_concepts.sum(1), torch.ones(2, *GRID))
    torch.testing.assert_close(over_patches.sum((2, 3)), torch.ones(2, CONCEPTS))


@torch.no_grad()
def test_the_mean_over_steps_is_the_mean_of_the_steps(model: FluxTransformer2DModel) -> None:
    arguments, concepts = batch(2)

    def at(step: int) -> dict[str, Tensor]:
        return arguments | {"timestep": torch.full((2,), 1 - step / 4)}

    def maps(steps: tuple[int, ...] | None) -> dict[str, GroupMaps]:
        with concept_stream(model, concepts, GRID, MapOptions(GROUPS, steps=steps)) as stream:
            for step in range(4):
                model(**at(step))
        assert stream.forwards == 4
        return stream.maps()

    single = [maps((step,)) for step in range(4)]
    with concept_stream(model, concepts, GRID, MapOptions(GROUPS)) as alone:
        model(**at(2))
    assert same(single[2], alone.maps())
    for steps in (None, (1, 3)):
        counted = [single[step] for step in steps or range(4)]
        mean = {
            name: GroupMaps(*(torch.stack(parts).mean(0) for parts in zip(*(each[name] for each in counted), strict=True)))
            for name in GROUPS
        }
        close(maps(steps), mean)


@torch.no_grad()
def test_concepts_do_not_see_the_prompt_but_one_another(model: FluxTransformer2DModel) -> None:
    """Prompt keys reach concepts only through the image: the first block's cross-attention and O_C do not know the prompt."""
    arguments, concepts = batch(1)
    options = MapOptions({"first": "0"})
    with concept_stream(model, concepts, GRID, options) as stream:
        model(**arguments)
    other = {"encoder_hidden_states": arguments["encoder_hidden_states"].flip(1)}
    with concept_stream(model, concepts, GRID, options) as reordered:
        model(**arguments | other)
    close(reordered.maps(), stream.maps(), atol=1e-5, rtol=1e-5)
    permuted = concepts[:, [2, 0, 1]]
    with concept_stream(model, permuted, GRID, options) as turned:
        model(**arguments)
    for found, expected in zip(turned.maps()["first"], stream.maps()["first"], strict=True):
        torch.testing.assert_close(found, expected[:, [2, 0, 1]], atol=1e-5, rtol=1e-5)
    with concept_stream(model, concepts[:, :2], GRID, options) as fewer:
        model(**arguments)
    change = fewer.maps()["first"].saliency - stream.maps()["first"].saliency[:, :2]
    assert change.abs().max() > 1e-3


def test_hooks_are_gone_after_the_end_and_after_an_error(model: FluxTransformer2DModel) -> None:
    before = hooks(model)
    arguments, concepts = batch(1)
    with concept_stream(model, concepts, GRID, MapOptions(GROUPS)):
        assert hooks(model) > before
    assert hooks(model) == before
    with pytest.raises(KeyboardInterrupt), concept_stream(model, concepts, GRID, MapOptions(GROUPS)):
        raise KeyboardInterrupt
    assert hooks(model) == before
    with pytest.raises(ValueError, match=r"H × W = 30"), concept_stream(model, concepts, (8, 8), MapOptions(GROUPS)):
        model(**arguments)
    assert hooks(model) == before


@torch.no_grad()
def test_a_forward_that_fails_half_way_leaves_nothing(model: FluxTransformer2DModel) -> None:
    arguments, concepts = batch(2)
    _, expected = run(model)

    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    with concept_stream(model, concepts, GRID, MapOptions(GROUPS)) as stream:
        handle = model.transformer_blocks[2].register_forward_hook(fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            model(**arguments)
        handle.remove()
        model(**arguments)
    assert stream.forwards == 1
    assert same(stream.maps(), expected)


@torch.no_grad()
def test_memory_does_not_grow_with_blocks_or_steps() -> None:
    """Bytes that live on between forwards: two sums per group, however many blocks and steps went into them."""

    def living() -> int:
        gc.collect()
        return sum(each.nbytes for each in gc.get_objects() if issubclass(type(each), Tensor))

    def held(blocks: int, steps: int) -> int:
        model = build(blocks=blocks)
        arguments, concepts = batch(2)
        with concept_stream(model, concepts, GRID, MapOptions({"all": "all"})) as stream:
            before = living()
            for _ in range(steps):
                model(**arguments)
            assert stream.forwards == steps
            return living() - before

    gc.collect()
    gc.freeze()  # what lives outside this test is not walked through
    try:
        sizes = {held(2, 1), held(6, 1), held(2, 5)}
    finally:
        gc.unfreeze()
    assert sizes == {2 * 2 * CONCEPTS * GRID[0] * GRID[1] * 4}


@torch.no_grad()
def test_lora_layers_take_part(model: FluxTransformer2DModel) -> None:
    _, base = run(model)
    with_lora(model)
    arguments, _ = batch(2)
    velocity, unmerged = run(model)
    assert torch.equal(velocity, model(**arguments).sample)
    model.fuse_lora()
    _, merged = run(model)
    close(unmerged, merged, atol=2e-5, rtol=2e-5)
    moved = (unmerged["all"].saliency - base["all"].saliency).abs().max()
    assert moved > 1e-2
    model.unfuse_lora()
    model.disable_adapters()
    close(run(model)[1], base, atol=2e-5, rtol=2e-5)


@torch.no_grad()
def test_fused_projections_give_the_same_maps(model: FluxTransformer2DModel) -> None:
    _, expected = run(model)
    for block in (*model.transformer_blocks, *model.single_transformer_blocks):
        block.attn.fuse_projections()
    close(run(model)[1], expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_offloaded_weights_give_the_same_maps(model: FluxTransformer2DModel) -> None:
    """Sequential offload keeps weights on the meta device but while a module runs."""
    velocity, expected = run(model)
    cpu_offload(model, execution_device=torch.device("cpu"))
    assert all(value.is_meta for value in model.parameters())
    again, maps = run(model)
    assert torch.equal(again, velocity)
    assert same(maps, expected)


@pytest.mark.parametrize("singles", [0, SINGLE])
@torch.no_grad()
def test_only_concept_rows_are_computed(model: FluxTransformer2DModel, singles: int) -> None:
    """No module sees image, prompt or joint rows more often with the stream than without; the last block projects no concept."""
    arguments, concepts = batch(1)
    image = GRID[0] * GRID[1]
    seen: dict[int, list[int]] = {rows: [] for rows in (image, TEXT, image + TEXT, CONCEPTS)}

    def count(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        if args and args[0].ndim == 3 and args[0].shape[1] in seen:
            seen[args[0].shape[1]].append(id(module))

    blocks = [*model.transformer_blocks, *model.single_transformer_blocks]
    linears = [module for block in blocks for module in block.modules() if isinstance(module, nn.Linear)]
    handles = [module.register_forward_pre_hook(count) for module in linears]
    model(**arguments)
    plain = {rows: len(modules) for rows, modules in seen.items()}
    groups = {"double": "all"} | ({"single": {"single_blocks": "all"}} if singles else {})
    with concept_stream(model, concepts, GRID, MapOptions(groups)):
        model(**arguments)
    for handle in handles:
        handle.remove()
    again = {rows: len(modules) - plain[rows] for rows, modules in seen.items()}
    assert {**again, CONCEPTS: 0} == {**plain, CONCEPTS: 0}
    double = len(model.transformer_blocks)
    assert again[CONCEPTS] == (3 + 3) * double + (3 + 2) * singles - (2 if singles else 3)


@torch.no_grad()
def test_masked_graph_tokens_among_the_text_do_not_move_the_image_rows(model: FluxTransformer2DModel) -> None:
    """Rows before the prompt that no query may attend to leave velocity and maps as they are without these rows."""
    arguments, concepts = batch(2)
    velocity, expected = run(model)
    tokens = torch.randn(2, 3, arguments["encoder_hidden_states"].shape[2], generator=torch.Generator().manual_seed(9))
    text = torch.cat([tokens, arguments["encoder_hidden_states"]], dim=1)
    mask = torch.ones(2, text.shape[1], dtype=torch.bool)
    mask[:, :3] = False
    given = TextCondition(text, None, mask).joint_attention(GRID[0] * GRID[1])
    longer = {"encoder_hidden_states": text, "txt_ids": torch.zeros(text.shape[1], 3), "joint_attention_kwargs": given}
    plain = model(**arguments | longer).sample
    with concept_stream(model, concepts, GRID, MapOptions(GROUPS)) as stream:
        riding = model(**arguments | longer).sample
    assert torch.equal(riding, plain)
    torch.testing.assert_close(riding, velocity, atol=1e-5, rtol=1e-5)
    close(stream.maps(), expected, atol=2e-5, rtol=2e-5)


def test_what_cannot_be_ridden_is_refused(model: FluxTransformer2DModel) -> None:
    arguments, concepts = batch(2)
    with pytest.raises(ModelError, match="unwrap it"), concept_stream(nn.Linear(1, 1), concepts, GRID, MapOptions(GROUPS)):
        pass
    with pytest.raises(ValueError, match=r"valid: \[B, K, d_T5\]"), concept_stream(model, concepts[0], GRID, MapOptions(GROUPS)):
        pass
    with (
        pytest.raises(ParamsError, match=r"groups.late: block 4 is out of range; valid: 0..3"),
        concept_stream(model, concepts, GRID, MapOptions({"late": "3..4"})),
    ):
        pass
    with (
        pytest.raises(ParamsError, match=r"groups.late.single_blocks: block 2 is out of range; valid: 0..1"),
        concept_stream(model, concepts, GRID, MapOptions({"late": {"single_blocks": "1..2"}})),
    ):
        pass
    with (
        pytest.raises(ParamsError, match=r"maps.variant: got official_sd3; valid for a FluxPipeline: ours$"),
        concept_stream(model, concepts, GRID, MapOptions(GROUPS, variant="official_sd3")),
    ):
        pass
    with (
        pytest.raises(ValueError, match="for 1 samples; the forward has 2"),
        concept_stream(model, concepts[:1], GRID, MapOptions(GROUPS)),
    ):
        model(**arguments)
    with concept_stream(model, concepts, GRID, MapOptions(GROUPS, steps=(1,))) as stream:
        model(**arguments)
        with pytest.raises(ModelError, match=r"1 forwards ended, and the steps that count are \(1,\)"):
            stream.maps()
    with torch.no_grad(), concept_stream(model, concepts, GRID, MapOptions(GROUPS)) as stream:
        blocks, model.transformer_blocks = model.transformer_blocks, model.transformer_blocks[:2]
        with pytest.raises(ModelError, match="rode in 2 of 6 blocks, up to single-stream block 1"):
            model(**arguments)
        model.transformer_blocks = blocks
