"""Pre-training: losses against their definitions and the official code's numbers, masks, negatives, and a small run that learns."""

import math
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sgpipe.errors import DataError
from sgpipe.graph_encoder.batches import GraphEncoding, batch_graphs
from sgpipe.graph_encoder.cgip import Cgip, CgipConfig
from sgpipe.graph_encoder.evaluate import true_above_swap
from sgpipe.graph_encoder.features import hidden_patches, hidden_pixels
from sgpipe.graph_encoder.open_vocabulary import NameTable, OpenVocabularyConfig, OpenVocabularyEncoder
from sgpipe.graph_encoder.pretraining import (
    ImageFeatures,
    Reconstruction,
    clamp_logit_scale,
    contrastive_loss,
    hard_negatives,
    masked_loss,
    pretraining_losses,
    restated,
    same_graph,
)
from sgpipe.graph_encoder.vocabulary import Vocabulary
from sgpipe.graphs.scene_graph import SceneGraph
from sgpipe.relations.predicates import DIRECTIONAL, INVERSE, PREDICATES, SYMMETRIC, may_hold
from tests.graph_encoder.golden import golden


def unit(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1)


def test_contrastive_loss_is_the_official_one(reference_dir: Path) -> None:
    tensors = golden(reference_dir)
    graph, image = (tensors[f"clip_loss/in64/{name}_features"] for name in ("graph", "image"))
    for scale in ("init", "max"):
        found = contrastive_loss(graph, image, tensors[f"clip_loss/in64/scale_{scale}"])
        assert abs(found - tensors[f"clip_loss/out64/{scale}"].squeeze()) < 1e-12


def test_contrastive_loss_with_twins_and_hard_negatives_by_hand() -> None:
    graph, image, hard = unit(3, 4), unit(3, 4, seed=1), unit(3, 2, 4, seed=2)
    present = torch.tensor([[True, False], [True, True], [False, False]])
    same = torch.eye(3, dtype=torch.bool)
    same[0, 2] = same[2, 0] = True
    wanted = 0.0
    for n in range(3):
        others = [m for m in range(3) if m == n or not same[n, m]]
        row = [math.exp(5 * float(image[n] @ graph[m])) for m in others]
        row += [math.exp(5 * float(image[n] @ hard[n, k])) for k in range(2) if present[n, k]]
        column = [math.exp(5 * float(image[m] @ graph[n])) for m in others]
        true = math.exp(5 * float(image[n] @ graph[n]))
        wanted -= (math.log(true / sum(row)) + math.log(true / sum(column))) / 6
    found = contrastive_loss(graph, image, torch.tensor(5.0), same, hard, present)
    assert float(found) == pytest.approx(wanted, abs=1e-12)
    none = torch.zeros_like(present)
    plain = contrastive_loss(graph, image, torch.tensor(5.0))
    assert torch.equal(plain, contrastive_loss(graph, image, torch.tensor(5.0), hard=hard, present=none))


@pytest.mark.parametrize("predicate", PREDICATES)
def test_hard_negatives_are_false(predicate: str) -> None:
    graph = SceneGraph(("dog", "cat", "tree"), ((0, predicate, 1), (2, "around/near", 1)))
    for seed in range(8):
        swapped, replaced = hard_negatives(graph, np.random.default_rng(seed))
        if predicate in SYMMETRIC:
            assert swapped is None
        else:
            assert swapped == SceneGraph(graph.objects, ((1, predicate, 0), graph.triples[1]))
        assert replaced is not None and replaced.objects == graph.objects
        changed = [(a, b) for a, b in zip(graph.triples, replaced.triples, strict=True) if a != b]
        assert len(changed) == 1 and changed[0][0][::2] == changed[0][1][::2]
        before, after = changed[0][0][1], changed[0][1][1]
        assert after == INVERSE[before] if before in DIRECTIONAL else not may_hold(after, before)


def test_what_a_graph_states_is_no_negative_of_it() -> None:
    both = SceneGraph(("dog", "cat"), ((0, "holding", 1), (1, "holding", 0)))
    assert hard_negatives(both, np.random.default_rng(0))[0] is None
    turned = SceneGraph(("dog", "cat"), ((0, "left of", 1), (1, "right of", 0)))
    for seed in range(4):
        swapped, replaced = hard_negatives(turned, np.random.default_rng(seed))
        assert swapped is not None and replaced is not None
    assert hard_negatives(SceneGraph(("dog",)), np.random.default_rng(0)) == (None, None)
    with pytest.raises(DataError, match="'beside' is not in the predicate table"):
        hard_negatives(SceneGraph.of("dog", "beside", "cat"), np.random.default_rng(0))


def test_graphs_that_say_the_same_are_twins() -> None:
    graphs = [
        SceneGraph.of("dog", "left of", "cat"),
        SceneGraph.of("cat", "right of", "dog"),
        SceneGraph.of("cat", "left of", "dog"),
        SceneGraph.of("dog", "touching", "cat"),
        SceneGraph.of("cat", "touching", "dog"),
        SceneGraph(("cat", "dog")),
    ]
    kinds = torch.tensor([0, 0, 1, 2, 2, 3])
    assert torch.equal(same_graph(graphs), kinds[:, None] == kinds)


def test_a_restated_graph_says_the_same() -> None:
    graphs = [SceneGraph.of("dog", predicate, "cat") for predicate in PREDICATES]
    seen = set()
    for seed in range(8):
        turned = [restated(graph, np.random.default_rng((seed, n))) for n, graph in enumerate(graphs)]
        assert same_graph([*graphs, *turned])[: len(graphs), len(graphs) :].diagonal().all()
        seen |= {graph.triples[0][1] for graph, each in zip(graphs, turned, strict=True) if graph != each}
    assert seen == DIRECTIONAL


def test_mask_hides_what_the_official_one_hides_but_for_its_two_faults(reference_dir: Path) -> None:
    """Where the full-image box was drawn theirs hides all, and it falls to -1; ours hides the drawn object's box."""
    tensors = golden(reference_dir)
    boxes, image, draw = (tensors[f"box_mask/in/{name}"] for name in ("boxes", "obj_to_img", "uniform_draw"))
    official = tensors["box_mask/out/mask"][:, 0]
    whole = (boxes == torch.tensor([0.0, 0.0, 1.0, 1.0])).all(1)
    drawn = draw > 0.2
    each = hidden_pixels(boxes, (32, 32))
    ours = torch.stack([each[~whole & drawn & (image == n)].any(0) for n in range(3)])
    once = official - 1 + torch.tensor([bool(whole[drawn & (image == n)].any()) for n in range(3)])[:, None, None]
    assert (once[ours] == -1).all() and official.min() == -1
    grown = F.max_pool2d(ours.float()[:, None], 3, 1, 1)[:, 0] > 0
    assert grown[once < 0].all() and ours.any() and not ours[2].any()


def test_a_box_hides_the_pixels_in_it_and_patches_follow() -> None:
    boxes = torch.tensor([[0.0, 0.0, 0.5, 0.5], [0.25, 0.25, 0.75, 0.75], [0.0, 0.0, 1.0, 1.0], [0.5, 0.5, 0.5, 0.5]])
    each = hidden_pixels(boxes, (8, 8))
    assert each[2].all() and not each[3].any()
    hidden = torch.stack([each[:2].any(0), each[3]])
    wanted = torch.zeros(2, 8, 8, dtype=torch.bool)
    wanted[0, :4, :4] = wanted[0, 2:6, 2:6] = True
    assert torch.equal(hidden, wanted)
    assert hidden_patches(hidden, 4).tolist() == [[True] * 4, [False] * 4]
    assert hidden_patches(hidden, 2)[0].reshape(4, 4).sum(1).tolist() == [2, 3, 2, 0]


def encoding(local: Tensor, rows: list[int]) -> GraphEncoding:
    row = torch.arange(local.shape[1]) < torch.tensor(rows)[:, None]
    return GraphEncoding(local * row[..., None], local[:, 0], row, row, torch.zeros(len(rows)))


def test_reconstruction_sees_nothing_of_the_hidden_part_and_no_padding() -> None:
    torch.manual_seed(0)
    block = Reconstruction(features=6, rows=9, patches=4, width=16, heads=2).eval()
    features, local = torch.randn(3, 4, 6), torch.randn(3, 5, 9)
    region = torch.tensor([[True, False, False, True]] * 3)
    graph = encoding(local, [2, 0, 5])
    found = block(features, region, graph)
    assert torch.equal(found, block(torch.where(region[..., None], 9.0, features), region, graph))
    padded = GraphEncoding(torch.where(graph.row[..., None], graph.local, 9.0), *list(vars(graph).values())[1:])
    assert torch.allclose(found, block(features, region, padded), atol=1e-6)
    assert torch.isfinite(found).all(), "a graph without rows can be read"
    other = encoding(local.flip(0), [2, 0, 5])
    assert (found[0] - block(features, region, other)[0]).abs().max() > 1e-4


def test_masked_loss_counts_hidden_patches_alone() -> None:
    predicted, features = torch.zeros(2, 3, 4), torch.ones(2, 3, 4)
    features[0, 1] = 3.0
    region = torch.tensor([[True, True, False], [False, False, False]])
    assert float(masked_loss(predicted, features, region)) == (1 + 9) / 2
    assert float(masked_loss(predicted, features, torch.zeros(2, 3, dtype=torch.bool))) == 0


@pytest.mark.parametrize("kind", ["cgip", "open_vocabulary"])
def test_both_losses_train_an_encoder_that_tells_directions_apart(kind: str) -> None:
    """Images whose features are a random function of (left thing, right thing): learnt only by who stands where."""
    things = ["dog", "cat", "tree"]
    graphs = [SceneGraph.of(a, p, b) for a, b in product(things, things) if a != b for p in ("left of", "right of")]
    generator = torch.Generator().manual_seed(0)
    table = {key: torch.randn(8, generator=generator) for key in product(things, things)}

    def left_right(graph: SceneGraph) -> tuple[str, str]:
        first, last = graph.objects
        return (first, last) if graph.triples[0][1] == "left of" else (last, first)

    pooled = torch.stack([table[left_right(graph)] for graph in graphs])
    patches = torch.stack([torch.stack([table[left_right(g)], -table[left_right(g)]]) for g in graphs])
    region = torch.tensor([[True, False]]).expand(len(graphs), -1)
    images = ImageFeatures(pooled, patches, torch.zeros_like(patches), region)
    torch.manual_seed(0)
    encoder: Cgip | OpenVocabularyEncoder
    names: Vocabulary | NameTable
    if kind == "cgip":
        names = Vocabulary.of(things, list(PREDICATES))
        encoder = Cgip(CgipConfig(len(names.objects), len(names.predicates), width=32, embed=8, layers=1))
    else:
        words = [*things, *PREDICATES, "near"]
        names = NameTable({word: torch.randn(12, generator=generator) for word in words})
        encoder = OpenVocabularyEncoder(OpenVocabularyConfig(12, width=32, embed=8, layers=1))
    block = Reconstruction(features=8, rows=24, patches=2, width=16, heads=2)
    optimizer = torch.optim.AdamW([*encoder.parameters(), *block.parameters()], lr=5e-3)
    losses = []
    for step in range(60):
        rng = np.random.default_rng(step)
        false = [hard_negatives(graph, rng) for graph in graphs]
        parts = pretraining_losses(encoder, block, graphs, false, names, images)
        optimizer.zero_grad()
        (parts["contrastive"] + parts["masked"]).backward()
        if step == 0:
            assert all(p.grad is not None for p in block.parameters()), "the block is trained too"
        optimizer.step()
        clamp_logit_scale(encoder)
        losses.append({name: float(value.detach()) for name, value in parts.items()})
    assert all(losses[-1][name] < 0.5 * losses[0][name] for name in losses[0])
    assert encoder.logit_scale <= math.log(100) + 1e-6
    with torch.no_grad():
        true, swapped = (encoder(batch_graphs(each, names)).pooled for each in (graphs, [g.reversed() for g in graphs]))
    assert true_above_swap(pooled, true, swapped) > 0.95


def test_clamp_keeps_the_scale_below_a_hundred() -> None:
    encoder = Cgip(CgipConfig(2, 2, 4, 4, 0))
    assert encoder.logit_scale.exp().item() == pytest.approx(1 / 0.07)
    encoder.logit_scale.data.fill_(9.0)
    clamp_logit_scale(encoder)
    assert encoder.logit_scale.exp().item() == pytest.approx(100)
