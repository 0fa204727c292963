"""What libraries say while they load, as this project says it: nothing below `SHOWN_AFTER` seconds."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sgpipe.runs.progress import SHOWN_AFTER


def late_bars() -> None:
    """From now on transformers' bars ("Loading weights") appear after `SHOWN_AFTER` seconds, by its own `set_tqdm_hook`."""
    from transformers.utils import logging

    def late(bar: Callable[..., Any], given: Sequence[Any], named: Mapping[str, Any]) -> Any:
        return bar(*given, **{**named, "delay": SHOWN_AFTER})

    logging.set_tqdm_hook(late)
