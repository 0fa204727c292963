"""An adapter as a model of MLflow, loaded by `mlflow.pyfunc.load_model` wherever sgpipe is installed and the pipeline is there."""

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from sgpipe.arms.adapter import backbone_of, read_about
from sgpipe.arms.generation import GraphGenerator, backbone_for
from sgpipe.graphs.scene_graph import given_graph

if TYPE_CHECKING:
    import pandas as pd

REQUIRED: Final = ("diffusers", "numpy", "peft", "safetensors", "torch", "transformers")


class AdapterModel:
    """Images `[N, S, S, 3]`, 0–255, of rows with `prompt`, `graph` (as `sgpipe generate` takes it; empty: the base) and `seed`."""

    def __init__(self, generator: GraphGenerator, steps: int, size: int) -> None:
        self._generator, self._steps, self._size = generator, steps, size

    def predict(self, model_input: "pd.DataFrame", params: None = None) -> NDArray[np.uint8]:
        """Sample each row."""
        graphs = [given_graph(text) if text else None for text in model_input["graph"]]
        seeds = [int(seed) for seed in model_input["seed"]]
        return self._generator.sample(list(model_input["prompt"]), graphs, seeds, steps=self._steps, size=self._size)


def _load_pyfunc(path: str, model_config: Mapping[str, Any]) -> AdapterModel:
    """What MLflow calls with the adapter's folder and the settings of `write_mlflow_model`, which its caller may override."""
    folder, model = Path(path), model_config["model"]
    generator = GraphGenerator.load(model, folder, device=model_config["device"], backbone=backbone_for(model, folder))
    return AdapterModel(generator, model_config["steps"], model_config["size"])


def write_mlflow_model(adapter: Path, out: Path) -> None:
    """Write `out`, a model in MLflow's format: a copy of the adapter's folder, and settings that a caller of
    `load_model(…, model_config={…})` may override: `model`, the pipeline's folder or hub id, `device`, `steps`, `size`.
    """
    from mlflow import pyfunc

    trained = backbone_of(read_about(adapter), adapter)
    settings = {"model": trained.model, "device": "cpu", "steps": 4, "size": trained.resolution}
    needed = [f"{name}=={version(name)}" for name in REQUIRED]
    pyfunc.save_model(str(out), loader_module=__name__, data_path=str(adapter), pip_requirements=needed, model_config=settings)
