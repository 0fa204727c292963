"""The optimiser takes every trainable weight, or says which it would not."""

import pytest
import torch
from torch import nn

from sgpipe.errors import ModelError
from sgpipe.training.config import Optimiser
from sgpipe.training.optimise import adamw


def weights(*names: str) -> dict[str, nn.Parameter]:
    return {name: nn.Parameter(torch.ones(2)) for name in names}


def test_weights_are_grouped_by_their_prefix_each_with_its_rate() -> None:
    made = weights("lora.a", "tokens.b", "lora.c")
    groups = adamw(made, Optimiser(rate=0.1, token_rate=3.0)).param_groups
    assert [group["params"] for group in groups] == [[made["lora.a"], made["lora.c"]], [made["tokens.b"]]]
    assert [group["peak"] for group in groups] == pytest.approx([0.1, 0.3])


def test_a_weight_of_no_group_is_an_error_that_names_it() -> None:
    with pytest.raises(ModelError, match=r"never be trained: encoder\.x, loras\.y; .*lora\..*tokens\."):
        adamw(weights("lora.a", "encoder.x", "loras.y"), Optimiser())
