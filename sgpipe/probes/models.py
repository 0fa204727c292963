"""The predecessor's three classifiers of maps: SimpleMLP, TinyCNN and WideResNet (Zagoruyko & Komodakis 2016)."""

from torch import Tensor, nn

from sgpipe.probes.config import Kind

SMALLEST_SIDE = 4
"""Of a map: TinyCNN halves it twice, WRN-28 as well."""


class SimpleMLP(nn.Sequential):
    """Flatten → 512 → 256 → classes, with ReLU and dropout 0.3 after the first two."""

    def __init__(self, channels: int, side: tuple[int, int], classes: int) -> None:
        super().__init__(
            nn.Flatten(),
            nn.Linear(channels * side[0] * side[1], 512),
            nn.ReLU(),
            nn.Dropout(0.3),
            nn.Linear(512, 256),
            nn.ReLU(),
            nn.Dropout(0.3),
            nn.Linear(256, classes),
        )


class TinyCNN(nn.Sequential):
    """3 × 3 convolutions to 32, 64 and 128 channels with BN and ReLU, halved after the second and third; global average; linear."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__(
            *_conv_bn_relu(channels, 32),
            *_conv_bn_relu(32, 64),
            nn.MaxPool2d(2),
            *_conv_bn_relu(64, 128),
            nn.MaxPool2d(2),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(128, classes),
        )


def _conv3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)


def _conv_bn_relu(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    return _conv3(inputs, outputs), nn.BatchNorm2d(outputs), nn.ReLU()


class BasicBlock(nn.Module):
    """BN → ReLU → conv → BN → ReLU → conv, plus a shortcut: 1 × 1 from the activated input where the width changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), _conv3(inputs, outputs, stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(outputs), _conv3(outputs, outputs)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        active = self.bn1(x).relu()
        residual = x if self.shortcut is None else self.shortcut(active)
        return residual + self.conv2(self.bn2(self.conv1(active)).relu())


class WideResNet(nn.Sequential):
    """WRN-28-w: a convolution to 16 channels, three groups of four pre-activation blocks of 16w, 32w and 64w channels, strides
    1, 2 and 2; BN, ReLU, average over all places, linear. At 32 × 32 the average is the paper's 8 × 8 pool."""

    def __init__(self, channels: int, classes: int, width: int) -> None:
        blocks: list[nn.Module] = [_conv3(channels, 16)]
        inputs = 16
        for outputs, stride in ((16 * width, 1), (32 * width, 2), (64 * width, 2)):
            for index in range(4):
                blocks.append(BasicBlock(inputs, outputs, stride if index == 0 else 1))
                inputs = outputs
        super().__init__(
            *blocks, nn.BatchNorm2d(inputs), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes)
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def build(kind: Kind, channels: int, side: tuple[int, int], classes: int, width: int) -> nn.Module:
    """A classifier of maps `[B, channels, H, W]` with random weights. Raises `ValueError` for maps that are too small."""
    if min(side) < SMALLEST_SIDE:
        raise ValueError(f"maps are {side[0]} × {side[1]}; probes need a side of at least {SMALLEST_SIDE}")
    if kind == "mlp":
        return SimpleMLP(channels, side, classes)
    return TinyCNN(channels, classes) if kind == "cnn" else WideResNet(channels, classes, width)
