"""Which row of an encoder's tables stands for which name, in the JSON form of sg2im's and SGDiff's preprocessing."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Final, Self

import msgspec
import torch
from torch import Tensor

from sgpipe.errors import DataError
from sgpipe.graphs.scene_graph import suggestion
from sgpipe.relations.names import IMAGE, IN_IMAGE
from sgpipe.relations.predicates import phrase
from sgpipe.runs.atomic import write_json

GAP: Final = "NONE"
"""COCO-Stuff numbers its classes with gaps; its vocabulary fills them with this, and no object has this name."""


class _File(msgspec.Struct):
    """Other keys of the preprocessing's file (attributes, inverse tables) are not needed."""

    object_idx_to_name: list[str]
    pred_idx_to_name: list[str]


@dataclass(frozen=True)
class Vocabulary:
    """Names in row order; row 0 is `__image__` and `__in_image__`. Raises `DataError` if it is not so or a name stands twice."""

    objects: tuple[str, ...]
    predicates: tuple[str, ...]
    image_node: ClassVar[bool] = True
    """The image has a row, so graphs get its node."""

    def __post_init__(self) -> None:
        for what, names, first in (("object", self.objects, IMAGE), ("predicate", self.predicates, IN_IMAGE)):
            if names[:1] != (first,):
                raise DataError(
                    f"vocabulary: {what} 0 is {names[0]!r}, it must be {first!r}; rows in another order give wrong vectors"
                    if names
                    else f"vocabulary: it names no {what}; row 0 must be {first!r}"
                )
            named = [name for name in names if name != GAP]
            if len(set(named)) != len(named):
                twice = next(name for name in named if named.count(name) > 1)
                raise DataError(f"vocabulary: {what} {twice!r} has two rows; names are distinct")

    @classmethod
    def of(cls, objects: Sequence[str], predicates: Sequence[str]) -> Self:
        """A vocabulary of our own: the two reserved rows, then the names in the given order."""
        return cls((IMAGE, *objects), (IN_IMAGE, *predicates))

    @classmethod
    def read(cls, path: Path) -> Self:
        """From a JSON file with `object_idx_to_name` and `pred_idx_to_name`. Raises `DataError` naming the file."""
        if not path.is_file():
            raise DataError(
                f"{path}: no such vocabulary; weights do not say which row is which name, so the vocab.json of the "
                f"preprocessing that they were trained with is needed"
            )
        try:
            found = msgspec.json.decode(path.read_bytes(), type=_File)
            return cls(tuple(found.object_idx_to_name), tuple(found.pred_idx_to_name))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise DataError(f"{path}: not a JSON object with the lists object_idx_to_name and pred_idx_to_name: {error}") from None
        except DataError as error:
            raise DataError(f"{path}: {error}") from None

    def write(self, path: Path) -> None:
        """As a file that `read` takes."""
        write_json({"object_idx_to_name": list(self.objects), "pred_idx_to_name": list(self.predicates)}, path)

    @cached_property
    def _rows(self) -> tuple[dict[str, int], dict[str, int]]:
        objects = {name: row for row, name in enumerate(self.objects) if name != GAP}
        return objects, {name: row for row, name in enumerate(self.predicates)}

    def nodes(self, names: Sequence[str]) -> Tensor:
        """Row of each object name, `[O]`. Raises `DataError` with near matches for a name without a row."""
        rows = self._rows[0]
        for name in names:
            if name not in rows:
                raise DataError(
                    f"object {name!r} is not in the encoder's vocabulary of {len(rows) - 1} names; "
                    f"{suggestion(name, rows.keys() - {IMAGE})}; or set graph_encoder.kind to open_vocabulary, which takes any name"
                )
        return torch.tensor([rows[name] for name in names], dtype=torch.long)

    def edges(self, predicates: Sequence[str]) -> Tensor:
        """Row of each predicate, `[T]`; a class that is not named so is looked up by its phrase (`around/near` as `near`)."""
        rows = self._rows[1]
        for name in predicates:
            if name not in rows and phrase(name) not in rows:
                raise DataError(
                    f"predicate {name!r} is not in the encoder's table of {len(rows) - 1}; "
                    f"{suggestion(name, rows.keys() - {IN_IMAGE})}"
                )
        return torch.tensor([rows[name] if name in rows else rows[phrase(name)] for name in predicates], dtype=torch.long)
