"""What the name of an object or of a predicate may be, in tables and in graphs alike."""

from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

IMAGE: Final = "__image__"
IN_IMAGE: Final = "__in_image__"
"""The node that stands for the whole image, and the predicate of the edge that every object has to it (SGDiff's data)."""
LONGEST: Final = 60
RULE: Final = f"a name has 1 to {LONGEST} printable characters, some letter or digit, and single spaces between words"


def name_fault(name: str) -> str | None:
    """Why a string cannot name an object or a predicate; None if it can.

    Commas and semicolons are part of names: that graphs written as text separate by them concerns their parser alone.
    """
    odd = sorted({character for character in name if not character.isprintable()})
    if name in (IMAGE, IN_IMAGE):
        return "it is reserved: it is added where an encoder needs it"
    if not name.strip():
        return "it is empty"
    if odd:
        return f"it has {', '.join(map(repr, odd))}"
    if len(name) > LONGEST:
        return f"it has {len(name)} characters"
    if name != " ".join(name.split()):
        return "its words are not separated by single spaces"
    if not any(map(str.isalnum, name)):
        return "it has no letter and no digit"
    return None


def faulty_names(names: pa.Array) -> NDArray[np.bool_]:
    """Which of `names` `[N]` have a `name_fault`."""
    encoded = names.dictionary_encode()
    faulty = np.array([name_fault(name) is not None for name in encoded.dictionary.to_pylist()], dtype=bool)
    return faulty[encoded.indices.to_numpy()]
