"""Retrieval, true against swapped, and direction: known cases at both ends."""

import pytest
import torch
from torch import Tensor

from sgpipe.graph_encoder.evaluate import direction_cosine, retrieval, true_above_swap
from sgpipe.graph_encoder.tokens import Tokens


def vectors(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_retrieval_of_equal_random_and_constant_vectors() -> None:
    x, same = vectors(200, 16), torch.eye(200, dtype=torch.bool)
    assert retrieval(x, 3 * x, same)["graph_to_image"] == {"r1": 1.0, "r5": 1.0, "r10": 1.0}
    chance = retrieval(x, vectors(200, 16, seed=1), same, (1, 100))
    assert abs(chance["image_to_graph"]["r100"] - 0.5) < 0.15 and chance["image_to_graph"]["r1"] < 0.05
    constant = retrieval(torch.ones(200, 16), x, same)
    assert constant["image_to_graph"] == {"r1": 0.0, "r5": 0.0, "r10": 0.0}


def test_retrieval_by_hand_in_each_direction() -> None:
    graph = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    image = torch.tensor([[1.0, 0.1], [1.0, 0.0], [0.9, 1.0]])
    found = retrieval(graph, image, torch.eye(3, dtype=torch.bool), (1, 2, 3))
    assert found["graph_to_image"] == {"r1": 1 / 3, "r2": 2 / 3, "r3": 1.0}
    assert found["image_to_graph"] == {"r1": 2 / 3, "r2": 2 / 3, "r3": 1.0}


def test_images_of_equal_graphs_answer_each_other() -> None:
    graph = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    image = torch.tensor([[1.0, 0.2], [1.0, 0.1], [0.0, 1.0]])
    same = torch.tensor([[True, True, False], [True, True, False], [False, False, True]])
    assert retrieval(graph, image, same, (1,)) == {"graph_to_image": {"r1": 1.0}, "image_to_graph": {"r1": 1.0}}


def test_true_above_swap_at_its_ends() -> None:
    image = vectors(50, 8)
    assert true_above_swap(image, image, -image) == 1.0 and true_above_swap(image, -image, image) == 0.0
    assert true_above_swap(image, image, image) == 0.0, "a tie is no success"


def test_direction_cosine_is_blind_to_order_and_scale() -> None:
    one = vectors(3, 4, 8)
    owner = torch.full((3, 4), -1)
    tokens = Tokens(one, (4, 4, 0), owner)
    assert direction_cosine(tokens, Tokens(2 * one.flip(1), (4, 4, 0), owner)) == pytest.approx({"mean": 1.0, "worst": 1.0})
    other = one.clone()
    other[0] = vectors(4, 8, seed=3)
    found = direction_cosine(tokens, Tokens(other, (4, 4, 0), owner))
    assert found["worst"] == pytest.approx(1.0) and found["mean"] < 0.9
    assert direction_cosine(Tokens(one, (0, 0, 0), owner), tokens) == {"mean": None, "worst": None}
