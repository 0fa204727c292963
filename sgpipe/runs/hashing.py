"""Seeded choice that depends on what is chosen from and not on its order: ranks and fractions from a hash of ids."""

import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray


def _mix(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Finaliser of SplitMix64 (Steele, Lea and Flood 2014)."""
    value = value + np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def hashed(seed: int, purpose: str, *columns: ArrayLike) -> NDArray[np.uint64]:
    """64-bit hash of each row of integer columns; `purpose` keeps the choices made with one seed independent."""
    with np.errstate(over="ignore"):
        state = _mix(np.array([(seed << 32) ^ zlib.crc32(purpose.encode())], dtype=np.uint64))
        for column in columns:
            state = _mix(state ^ np.asarray(column).astype(np.int64).view(np.uint64))
    return state


def fraction(seed: int, purpose: str, *columns: ArrayLike) -> NDArray[np.float64]:
    """Uniform number in [0, 1) for each row of integer columns."""
    return (hashed(seed, purpose, *columns) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def text_ids(texts: Sequence[str]) -> NDArray[np.int64]:
    """An integer for each string, the same on every machine and in every order (CRC-32 of the text and of its reverse)."""
    known = {text: (zlib.crc32(text.encode()) << 31) ^ zlib.crc32(text.encode()[::-1]) for text in set(texts)}
    return np.array([known[text] for text in texts], dtype=np.int64)
