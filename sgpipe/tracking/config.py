"""The sections of params.yaml that this package reads: where runs are recorded."""

from typing import Annotated

from msgspec import Meta, Struct


class Tracking(Struct, frozen=True, forbid_unknown_fields=True):
    """Section `tracking`. Where runs are recorded; a view of the results, so no stage reruns when it changes. MLflow."""

    enabled: Annotated[bool, Meta(description="record stages in MLflow")] = True
    experiment: Annotated[str, Meta(min_length=1, description="name of the MLflow experiment")] = "sgpipe"
