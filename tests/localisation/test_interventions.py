"""Identities of patching and ablation, and a transformer whose circuit is known."""

from typing import Any

import pytest
import torch
from torch import Tensor

from sgpipe.errors import DataError, ParamsError
from sgpipe.evaluation.sampling_plan import EvaluationTriple
from sgpipe.localisation.ablation import ablated_samples, adding, means
from sgpipe.localisation.heads import attributions, patched_heads
from sgpipe.localisation.pairs import items_of
from sgpipe.localisation.patching import AtStep, Place, effects, patched_samples, walk
from sgpipe.localisation.runs import Runs, sample_of
from tests.localisation.conftest import Make, Open

EVERYTHING = Place("denoising", ("image", "text"))
TOLD_IN_WORDS = Place("denoising", ("image", "text", "pooled"))


def walked(runs: Runs) -> tuple[list[AtStep], Tensor]:
    *steps, end = walk(runs, ["negative", "positive"])
    return steps, end.latents


def samples(runs: Runs, steps: list[AtStep], block: int, places: list[Place]) -> Tensor:
    """`[places, items, C, h, w]`."""
    first = effects(runs, steps[0], block, places)[1]
    return patched_samples(runs, steps[0].latents, block, places, first).unflatten(0, (len(places), -1))


def test_all_rows_give_the_donors_sample_and_own_rows_the_own(runs: Open) -> None:
    made, _ = runs()
    steps, ends = walked(made)
    positive, negative = (ends[sample_of(made, run)] for run in ("positive", "negative"))
    assert not torch.equal(positive, negative)
    backwards = Place("noising", ("image", "text"))
    for block in range(made.count):
        donors, null, back = samples(made, steps, block, [EVERYTHING, Place("null", ("image", "text")), backwards])
        assert torch.equal(donors, positive) and torch.equal(null, negative) and torch.equal(back, negative)
        for at in (each for each in steps if each.records):
            moved, _ = effects(made, at, block, [EVERYTHING, Place("null", ("text",)), backwards])
            assert torch.equal(moved.projected[0], moved.squared[0]) and torch.equal(moved.projected[2], moved.squared[2])
            assert (moved.squared > 0).all() and not moved.projected[1].any()


def test_prompts_differ_in_the_pooled_vector_too(runs: Open) -> None:
    """With it all rows of any block give the donor's sample, and without it they do not: it modulates what comes after."""
    made, _ = runs(None)
    steps, ends = walked(made)
    for block in range(made.count):
        whole, rows, null = samples(made, steps, block, [TOLD_IN_WORDS, EVERYTHING, Place("null", ("image", "text", "pooled"))])
        assert torch.equal(whole, ends[sample_of(made, "positive")]) and not torch.equal(rows, whole)
        assert torch.equal(null, ends[sample_of(made, "negative")])


def test_parts_of_the_rows_add_up(runs: Open) -> None:
    """Prompt and graph tokens are the text; no rows are the recipient's own."""
    made, _ = runs()
    steps, ends = walked(made)
    places = [Place("denoising", rows) for rows in (("text",), ("prompt", "graph"), ("image", "graph", "prompt"), ("graph",), ())]
    for block in range(made.count - 1):
        text, parts, whole, graph, nothing = samples(made, steps, block, places)
        assert torch.equal(text, parts) and torch.equal(whole, ends[sample_of(made, "positive")])
        assert torch.equal(nothing, ends[sample_of(made, "negative")]) and not torch.equal(graph, text)


def test_a_relation_that_one_block_reads_is_found_there(generator: Make, runs: Open) -> None:
    """Image rows read nothing that tells text rows apart but in block 1: before it the text carries all, from it on the image."""
    made = generator("graph")
    transformer: Any = made.denoiser.transformer
    for index, block in enumerate(transformer.transformer_blocks):
        for part in (block.attn.add_k_proj, block.attn.add_v_proj) if index != 1 else ():
            part.weight.data.zero_()
    for block in transformer.single_transformer_blocks:
        block.proj_out.weight.data.zero_()
    opened, _ = runs(made=made)
    at = next(walk(opened, ["negative"]))
    for index in range(opened.count):
        moved, _ = effects(opened, at, index, [Place("denoising", ("text",)), Place("denoising", ("image",))])
        text, image = (moved.projected.sum(1) / moved.squared.sum(1)).tolist()
        assert (text, image) == (pytest.approx(float(index < 1), abs=1e-5), pytest.approx(float(index >= 1), abs=1e-5))


def test_ablation_of_nothing_is_nothing(runs: Open) -> None:
    made, _ = runs()
    steps, ends = walked(made)
    own = sample_of(made, "positive")
    averages = [means(made, at.latents[own], at.step, own) for at in steps]
    for kind in ("skip", "text", "graph", "mean"):
        assert torch.equal(ablated_samples(made, [], kind, averages), ends[own])
        assert not torch.equal(ablated_samples(made, [1], kind, averages), ends[own])
    one = own[:1]
    alone = Runs(made.generator, made.conditions, made.seeds, made.resolution, 1, 1)
    latents = alone.start(one)
    mean = means(alone, latents, 0, one)
    v = alone.velocity(latents, 0, one, {block: adding(mean[block]) for block in range(alone.count)})
    torch.testing.assert_close(v, alone.velocity(latents, 0, one))  # the mean over one sample is its own


def test_words_of_the_base_and_what_runs_do_not_have(runs: Open, cases: list[EvaluationTriple]) -> None:
    """Told in words, a relation and its inverse stand in the same rows, and nothing else of the prompts differs."""
    made, items = runs(None)
    told = made.conditions
    assert made.active == [0, 1, 2] and told.told.prepended == 0
    for item, predicate in enumerate(each.case.predicate for each in items):
        differs = (told.told.states[item] != told.told.states[item + len(items)]).any(-1).nonzero().flatten().tolist()
        relation = told.places("relation")[item]
        assert len(relation) == len(predicate.split()) and set(relation) <= set(differs)
    assert [len(rows) for rows in told.places("subject")] == [1] * len(told.told.states)
    with pytest.raises(ParamsError, match=r"localise\.rows: got graph; the runs have no graph tokens"):
        told.places("graph")
    with pytest.raises(ParamsError, match=r"localise\.rows: got relation; not every prompt says it"):
        runs()[0].conditions.places("relation")
    with pytest.raises(DataError, match=r"localise\.pairs: got 9; there are 6 val triples whose negative swaps the roles"):
        items_of(cases, 9, (0,))
    chosen = items_of(cases, 4, (0, 1))
    assert [each.case.predicate for each in chosen[::4]] == [each.case.predicate for each in chosen[1::4]]
    assert all(each.case.predicate == each.other.predicate and each.case is not each.other for each in chosen)


def test_heads_of_all_blocks_are_the_donors_attention(runs: Open) -> None:
    """No head is nothing, and in the only block that reads the text all heads together are the block."""
    made, _ = runs()
    at = next(walk(made, ["negative"]))
    found, squared = attributions(made, at)
    heads = sorted(found)
    assert heads == [(block, head) for block in range(made.count) for head in range(2)]
    own, aim = at.records["negative"].velocity, at.records["negative"].velocity
    base, donor = own[sample_of(made, "negative")], aim[sample_of(made, "positive")]
    torch.testing.assert_close(squared, (donor - base).square().flatten(1).sum(1))
    small: dict[str, list[tuple[int, int]]] = {f"{head}": [head] for head in heads}
    patched = patched_heads(made, at, small)
    # a tiny random model is nearly linear in what one head changes
    exact = torch.stack([patched[f"{head}"][0] for head in heads])
    estimate = torch.stack([found[head] for head in heads])
    torch.testing.assert_close(exact, estimate, rtol=0.2, atol=0.02 * float(exact.abs().max()))


def test_heads_of_the_block_that_reads_the_relation_are_found(generator: Make, runs: Open) -> None:
    """In a transformer whose image rows read the text in block 1 alone, no head elsewhere has an attribution before it, and the
    heads of block 1 together have the effect of its image rows."""
    made = generator("graph")
    transformer: Any = made.denoiser.transformer
    for index, block in enumerate(transformer.transformer_blocks):
        for part in (block.attn.add_k_proj, block.attn.add_v_proj) if index != 1 else ():
            part.weight.data.zero_()
    for block in transformer.single_transformer_blocks:
        block.proj_out.weight.data.zero_()
    opened, _ = runs(made=made)
    at = next(walk(opened, ["negative"]))
    found, squared = attributions(opened, at)
    assert all(not found[0, head].any() for head in range(2)) and all(found[1, head].any() for head in range(2))
    whole = patched_heads(opened, at, {"both": [(1, 0), (1, 1)]})["both"]
    torch.testing.assert_close(whole[0], squared)
