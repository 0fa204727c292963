"""A model of MLflow that multiplies by what its folder says."""

from pathlib import Path


class Factor:
    def __init__(self, factor: int) -> None:
        self.factor = factor

    def predict(self, model_input: list[int], params: None = None) -> list[int]:
        return [self.factor * each for each in model_input]


def _load_pyfunc(path: str) -> Factor:
    return Factor(int((Path(path) / "factor.txt").read_text()))
