"""Concept embeddings of one and of several tokens, and maps at another side."""

import pytest
import torch
from torch.nn.functional import interpolate

from sgpipe.attention_maps.options import concept_embeddings
from sgpipe.attention_maps.scores import resize_maps

OWN = torch.tensor([[True] * 3 + [False] * 2, [True] + [False] * 4])
"""Each concept's own tokens."""


def test_first_is_token_0_and_mean_the_words_own_tokens() -> None:
    states = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(concept_embeddings(states, OWN), states[:, 0])
    mean = concept_embeddings(states, OWN, "mean")
    torch.testing.assert_close(mean, torch.stack([states[0, :3].mean(0), states[1, 0]]))
    assert concept_embeddings(states.bfloat16(), OWN, "mean").dtype == torch.bfloat16


def test_concepts_without_tokens_are_refused() -> None:
    states = torch.zeros(2, 5, 4)
    mask = torch.tensor([[True] + [False] * 4, [False] * 5])
    with pytest.raises(ValueError, match=r"concepts \[1\] have no tokens"):
        concept_embeddings(states, mask)
    with pytest.raises(ValueError, match=r"need \[2, 5\]"):
        concept_embeddings(states, mask[:, :3])
    with pytest.raises(ValueError, match="valid: first, mean"):
        concept_embeddings(states, mask[:1].expand(2, 5), "last")  # type: ignore[arg-type]


def test_resizing() -> None:
    maps = torch.randn(2, 3, 12, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(resize_maps(maps[..., :8, :], 8), maps[..., :8, :])
    for side in (1, 4, 5, 7):
        torch.testing.assert_close(resize_maps(maps, side).mean((-2, -1)), maps.mean((-2, -1)))
    torch.testing.assert_close(resize_maps(maps, 4), interpolate(maps, (4, 4), mode="area"))
    torch.testing.assert_close(resize_maps(maps, 16), interpolate(maps, (16, 16), mode="bilinear"))
    flat = torch.full((2, 3, 12, 8), 0.7)
    torch.testing.assert_close(resize_maps(flat, 10), torch.full((2, 3, 10, 10), 0.7))
    assert resize_maps(maps[0, 0].bfloat16(), 10).dtype == torch.float32
    with pytest.raises(ValueError, match="side: got 0"):
        resize_maps(maps, 0)


def test_resizing_is_differentiable() -> None:
    maps = torch.randn(3, 6, 4, dtype=torch.float32, requires_grad=True)
    resize_maps(maps, 5).sum().backward()
    assert maps.grad is not None and (maps.grad > 0).all()
