"""An adapter as MLflow loads it: `mlflow.pyfunc.load_model` wherever sgpipe is installed and the pipeline is there.

No stage imports this: `train_lora` names it to MLflow, so that an edit here trains nothing.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sgpipe.arms.generation import GraphGenerator, backbone_for
from sgpipe.graphs.scene_graph import given_graph


class AdapterModel:
    """Images `[N, S, S, 3]`, 0–255, of rows with `prompt`, `graph` (as `sgpipe generate` takes it; empty: the base) and `seed`."""

    def __init__(self, generator: GraphGenerator, steps: int, size: int) -> None:
        self._generator, self._steps, self._size = generator, steps, size

    def predict(self, model_input: Mapping[str, Iterable[Any]], params: None = None) -> NDArray[np.uint8]:
        """Sample each row of a data frame, or of any mapping of columns."""
        graphs = [given_graph(text) if text else None for text in model_input["graph"]]
        seeds = [int(seed) for seed in model_input["seed"]]
        return self._generator.sample(list(model_input["prompt"]), graphs, seeds, steps=self._steps, size=self._size)


def _load_pyfunc(path: str, model_config: Mapping[str, Any]) -> AdapterModel:
    """What MLflow calls with the adapter's folder and the settings: `model`, the pipeline's folder or hub id, `device`, `steps`
    and `size`.
    """
    folder, model = Path(path), model_config["model"]
    generator = GraphGenerator.load(model, folder, device=model_config["device"], backbone=backbone_for(model, folder))
    return AdapterModel(generator, model_config["steps"], model_config["size"])
