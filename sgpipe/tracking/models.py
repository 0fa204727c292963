"""A folder as a model in MLflow's format, and as a logged model of a run."""

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

REQUIRED: Final = ("diffusers", "numpy", "peft", "safetensors", "torch", "transformers")
"""What the model's environment is said to need."""


def write_model(folder: Path, loader: str, settings: Mapping[str, Any], out: Path) -> None:
    """Write `out`: a copy of the folder, the module whose `_load_pyfunc` opens it, and settings that a caller may override."""
    from mlflow import pyfunc

    needed = [f"{name}=={version(name)}" for name in REQUIRED]
    pyfunc.save_model(str(out), loader_module=loader, data_path=str(folder), pip_requirements=needed, model_config=dict(settings))


def log_model(
    client: Any,
    run_id: str,
    folder: Path,
    loader: str,
    name: str,
    step: int,
    settings: Mapping[str, Any],
    params: Mapping[str, Any],
) -> None:
    """Store the folder as a logged model called `name`, which the run made at `step`; `params` are shown beside it."""
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus

    with TemporaryDirectory() as temporary:
        write_model(folder, loader, settings, Path(temporary) / "model")
        experiment_id = client.get_run(run_id).info.experiment_id
        told = {key: str(value) for key, value in params.items()}
        made = client.create_logged_model(experiment_id, name, source_run_id=run_id, params=told)
        client.log_model_artifacts(made.model_id, str(Path(temporary) / "model"))
        client.finalize_logged_model(made.model_id, LoggedModelStatus.READY)
        client.log_outputs(run_id, [LoggedModelOutput(made.model_id, step)])
