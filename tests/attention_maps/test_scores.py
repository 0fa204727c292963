"""Scores keep float32 whatever the model's precision, and softmax runs over the axis it names."""

import pytest
import torch

from sgpipe.attention_maps.scores import cross_scores, normalise, saliency_scores

B, K, N, H, WIDTH = 2, 3, 10, 4, 8


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_scores_are_exact_products(dtype: torch.dtype, autocast: bool) -> None:
    draw = torch.Generator().manual_seed(0)
    rows = torch.randn(B, K, H * WIDTH, generator=draw).to(dtype)
    patches = torch.randn(B, N, H * WIDTH, generator=draw).to(dtype)
    exact = torch.einsum("bkd,bnd->bkn", rows.double(), patches.double())
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        saliency = saliency_scores(rows, patches)
        cross = cross_scores(patches.unflatten(2, (H, WIDTH)), rows.unflatten(2, (H, WIDTH)))
    torch.testing.assert_close(saliency, exact.float(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(cross, exact.float() / H, atol=1e-5, rtol=1e-5)


def test_normalisation_names_its_axis() -> None:
    scores = torch.randn(B, K, N, generator=torch.Generator().manual_seed(0))
    assert normalise(scores, "none") is scores
    torch.testing.assert_close(normalise(scores, "concepts"), torch.softmax(scores, dim=1))
    torch.testing.assert_close(normalise(scores, "patches"), torch.softmax(scores, dim=2))
    assert torch.equal(normalise(scores, "concepts").argmax(1), scores.argmax(1))
