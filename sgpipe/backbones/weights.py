"""Files of a part of a pipeline: which of them are read, and what is wrong with them, judged by headers alone."""

import hashlib
import json
import struct
from collections.abc import Iterable
from pathlib import Path

from sgpipe.runs.state import file_hash

_VOCABULARIES = (("tokenizer.json",), ("vocab.json", "merges.txt"), ("spiece.model",))
"""Any one of these is a tokenizer's vocabulary. Without one transformers makes a tokenizer of special tokens alone."""
_PLAIN = (
    "config.json",
    "scheduler_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "processor_config.json",
    "preprocessor_config.json",
    *(name for names in _VOCABULARIES for name in names),
)
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
    """The safetensors files of one part that its library reads, with the index that names them, if there is one.

    Raises `ValueError`, `KeyError` or `OSError` for an index or a configuration that cannot be read.
    """
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if not isinstance(config, dict):
        raise ValueError(f"{path}: a JSON object is needed, got {type(config).__name__}")
    diffusers = "_class_name" in config
    single = folder / ("diffusion_pytorch_model.safetensors" if diffusers else "model.safetensors")
    index = single.with_name(f"{single.name}.index.json")
    if index.is_file() and (diffusers or not single.is_file()):
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        return [index, *(folder / name for name in sorted(names))]
    return [single] if single.is_file() else []


def loaded_files(folder: Path) -> list[Path]:
    """The files of one part (or of a detector's folder) that a loader reads, in order; what else lies there has no effect."""
    plain = [path for path in (folder / name for name in _PLAIN) if path.is_file()]
    return sorted({*plain, *weight_files(folder)})


def loaded_hash(folder: Path, files: Iterable[Path]) -> str:
    """SHA-256 of the sorted names and hashes of these files of a folder: `file_hash` of a folder that holds no others."""
    lines = [f"{path.relative_to(folder).as_posix()} {file_hash(path)}" for path in sorted(files)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def part_problem(folder: Path) -> str | None:
    """What is wrong with the files of one part, with weights or a tokenizer; None where nothing is."""
    if (folder / "config.json").is_file():
        return weights_problem(folder)
    if (folder / "tokenizer_config.json").is_file() and not any(
        all((folder / name).is_file() for name in names) for names in _VOCABULARIES
    ):
        listed = ", or ".join(" with ".join(names) for names in _VOCABULARIES)
        return f"{folder.name}: no vocabulary ({listed})"
    return None


def weights_problem(folder: Path) -> str | None:
    """What is wrong with the weights of one part; None where nothing is."""
    try:
        files = weight_files(folder)
    except (ValueError, KeyError, OSError) as error:
        return f"{folder.name}: its configuration or index cannot be read ({error})"
    if not files:
        return f"{folder.name}: no .safetensors file of the name that its library reads"
    for path in (path for path in files if path.suffix == ".safetensors"):
        try:
            tensors(path)
        except FileNotFoundError:
            return f"{folder.name}: {path.name} is missing"
        except ValueError as error:
            return f"{folder.name}: {path.name}: {error}"
    return None
