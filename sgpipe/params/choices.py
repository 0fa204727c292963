"""Choices that both params.yaml and the library name."""

from typing import Literal

Normalisation = Literal["none", "concepts", "patches"]
Pooling = Literal["first", "mean"]
