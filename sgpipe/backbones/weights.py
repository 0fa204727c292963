"""Weight files of a part of a pipeline, judged by their headers alone."""

import json
import struct
from pathlib import Path

_POINTER = b"version https://git-lfs"


def tensors(path: Path) -> int:
    """Number of tensors in a safetensors file, from its header and length alone. Raises `ValueError` saying
    what is wrong.

    The format: 8 bytes of header length, the JSON header with each tensor's offsets, then the data.
    """
    size = path.stat().st_size
    with path.open("rb") as stream:
        start = stream.read(len(_POINTER))
        if start == _POINTER:
            raise ValueError("a Git LFS pointer, not the file; run `git lfs pull`")
        if size < 8:
            raise ValueError(f"{size} bytes, too few for a safetensors file")
        length = struct.unpack("<Q", start[:8])[0]
        if 8 + length > size:
            raise ValueError(f"cut off: its header alone needs {8 + length} bytes, there are {size}")
        stream.seek(8)
        try:
            header = json.loads(stream.read(length))
            entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
            end = 8 + length + max((entry["data_offsets"][1] for entry in entries.values()), default=0)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a safetensors header ({error})") from None
    if end != size:
        raise ValueError(f"its tensors need {end} bytes, there are {size}")
    return len(entries)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of one part: those that its index names, else all there are."""
    indices = sorted(folder.glob("*.safetensors.index.json"))
    if indices:
        names = set(json.loads(indices[0].read_text(encoding="utf-8"))["weight_map"].values())
        return [folder / name for name in sorted(names)]
    return sorted(folder.glob("*.safetensors"))


def weights_problem(folder: Path) -> str | None:
    """What is wrong with the weights of one part; None where nothing is."""
    try:
        files = weight_files(folder)
    except (ValueError, KeyError, OSError) as error:
        return f"{folder.name}: its index cannot be read ({error})"
    if not files:
        return f"{folder.name}: no .safetensors file"
    for path in files:
        try:
            tensors(path)
        except FileNotFoundError:
            return f"{folder.name}: {path.name} is missing"
        except ValueError as error:
            return f"{folder.name}: {path.name}: {error}"
    return None
