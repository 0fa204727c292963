"""The optimiser's groups: every weight in one, each with its learning rate."""

import pytest
import torch
from torch import nn

from sgpipe.training.config import Optimiser
from sgpipe.training.optimise import adamw


def weights(*names: str) -> dict[str, nn.Parameter]:
    return {name: nn.Parameter(torch.ones(2)) for name in names}


def test_weights_are_grouped_by_their_prefix_each_with_its_rate() -> None:
    made = weights("lora.a", "tokens.b", "lora.c")
    groups = adamw(made, Optimiser(learning_rate=0.1, token_lr_multiplier=3.0)).param_groups
    assert [group["params"] for group in groups] == [[made["lora.a"], made["lora.c"]], [made["tokens.b"]]]
    assert [group["peak"] for group in groups] == pytest.approx([0.1, 0.3])


def test_a_group_of_another_name_has_the_learning_rate() -> None:
    made = weights("control.a", "tokens.b")
    peaks = {id(group["params"][0]): group["peak"] for group in adamw(made, Optimiser(0.1, 3.0)).param_groups}
    assert peaks == pytest.approx({id(made["control.a"]): 0.1, id(made["tokens.b"]): 0.3})
