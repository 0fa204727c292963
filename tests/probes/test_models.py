"""The three classifiers have the parameters of their description, and fusion is what its name says."""

import pytest
import torch

from sgpipe.probes.data import KINDS_OF, PARTS, fuse
from sgpipe.probes.models import SimpleMLP, TinyCNN, WideResNet, build
from sgpipe.probes.probe import Probe, ProbeConfig


def parameters(module: torch.nn.Module) -> int:
    return sum(value.numel() for value in module.parameters())


def wide_resnet_parameters(channels: int, classes: int, width: int) -> int:
    """Convolutions 9·i·o, shortcuts i·o where the width changes, 2 per BN channel, and the linear head."""
    total, inputs = 9 * channels * 16, 16
    for outputs in (16 * width, 32 * width, 64 * width):
        first = 9 * inputs * outputs + 9 * outputs**2 + 2 * inputs + 2 * outputs
        total += first + (inputs * outputs if inputs != outputs else 0) + 3 * (18 * outputs**2 + 4 * outputs)
        inputs = outputs
    return total + 2 * inputs + (inputs + 1) * classes


@pytest.mark.parametrize(("channels", "side"), [(3, 32), (9, 8)])
def test_parameter_counts(channels: int, side: int) -> None:
    assert parameters(SimpleMLP(channels, (side, side), 24)) == ((channels * side**2 + 1) * 512 + 513 * 256 + 257 * 24)
    convolutions = 9 * (channels * 32 + 32 * 64 + 64 * 128)
    assert parameters(TinyCNN(channels, 24)) == convolutions + 2 * (32 + 64 + 128) + 129 * 24
    for width in (1, 2):
        assert parameters(WideResNet(channels, 24, width)) == wide_resnet_parameters(channels, 24, width)


def test_wide_resnets_of_the_literature() -> None:
    """WRN-28-10 and WRN-28-2 for CIFAR-10 have 36.5 and 1.5 million parameters, to the last one."""
    assert wide_resnet_parameters(3, 10, 10) == 36_479_194
    assert parameters(WideResNet(3, 10, 2)) == 1_467_610


def test_wrn_halves_twice_and_averages() -> None:
    """At 32 × 32 the last stage is 8 × 8, as in the paper; the same weights take 8 × 8 maps."""
    net, seen = WideResNet(3, 24, 1).eval(), []
    net[-3].register_forward_hook(lambda module, args, output: seen.append(args[0].shape[-1]))
    for side in (32, 8):
        assert net(torch.zeros(2, 3, side, side)).shape == (2, 24)
    assert seen == [8, 2]


def test_small_maps_are_refused() -> None:
    with pytest.raises(ValueError, match="2 × 8; probes need a side of at least 4"):
        build("cnn", 3, (2, 8), 24, 1)


def test_fusion_is_what_its_name_says() -> None:
    saliency, cross = torch.randn(2, 5, 3, 4, 4)
    both = torch.cat([saliency, cross], dim=1)
    assert fuse(saliency, "saliency") is saliency and fuse(both, "concat") is both
    assert torch.equal(fuse(both, "triple"), torch.cat([saliency, cross, saliency * cross], dim=1))
    assert torch.equal(fuse(both, "diff"), torch.cat([saliency, cross - saliency], dim=1))
    for feature, kinds in KINDS_OF.items():
        maps = torch.randn(2, 3 * len(kinds), 4, 4)
        assert fuse(maps, feature).shape[1] == 3 * PARTS[feature]


def test_a_probe_does_not_see_the_scale_of_its_maps() -> None:
    """Other units of one kind of map, with the scale taken on them, give the same logits, whatever the fusion."""
    torch.manual_seed(0)
    maps = torch.randn(6, 6, 4, 4)
    units = torch.tensor([1.0, 1, 1, 50, 50, 50])[:, None, None]
    for feature in ("concat", "triple", "diff"):
        probe = Probe(ProbeConfig("mlp", feature, ("on", "in"), (3, 4, 4))).eval()
        found = []
        for values in (maps, maps * units + 3):
            flat = values.transpose(0, 1).flatten(1)
            probe.set_scale(flat.mean(dim=1), flat.std(dim=1))
            found.append(probe(values))
        assert torch.allclose(*found, atol=1e-5)


def test_maps_of_another_shape_are_refused() -> None:
    probe = Probe(ProbeConfig("mlp", "concat", ("on", "in"), (3, 4, 4), timed=True))
    with pytest.raises(ValueError, match=r"\[2, 6, 4, 4\]; this probe takes \[B, 7, 4, 4\]"):
        probe(torch.zeros(2, 6, 4, 4))
