"""What has been changed in a module since a moment, and how to undo exactly that."""

from collections.abc import MutableMapping
from typing import Any, Final

from torch import nn

_ABSENT: Final = object()


def _holders(module: nn.Module) -> list[MutableMapping[str, Any]]:
    """The module's attributes, and its dicts of submodules, weights and hooks."""
    own = vars(module)
    return [own, *(value for value in own.values() if isinstance(value, MutableMapping))]


class Footprint:
    """Attributes, submodules, hooks and gradient flags of `module` and all in it, as they were when this was made.

    Modules that are replaced or added later need no record: their parent's is put back. The values of weights are not recorded.
    """

    def __init__(self, module: nn.Module) -> None:
        self._before = [(holder, dict(holder)) for part in module.modules() for holder in _holders(part)]
        self._trained = [(weight, weight.requires_grad) for weight in module.parameters()]
        self._changed: list[tuple[MutableMapping[str, Any], str, Any]] = []

    def close(self) -> None:
        """End the record: what changes from now on is someone else's."""
        for holder, before in self._before:
            for key in {**before, **holder}:
                old = before.get(key, _ABSENT)
                if holder.get(key, _ABSENT) is not old:
                    self._changed.append((holder, key, old))
        self._before = []

    def revert(self) -> None:
        """Put back what changed between making this and `close`."""
        for holder, key, old in reversed(self._changed):
            if old is _ABSENT:
                holder.pop(key, None)
            else:
                holder[key] = old
        for weight, trained in self._trained:
            weight.requires_grad_(trained)
        self._changed = []
