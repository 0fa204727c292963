"""Encoded prompts and concepts on disk: written once by the text encoders, read by every stage that holds a transformer."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from sgpipe.backbones.base import TextCondition, TextEncoders
from sgpipe.backbones.cache_files import open_tensors, read_manifest, write_manifest
from sgpipe.backbones.config import Backbone
from sgpipe.backbones.families import family_of_backbone
from sgpipe.backbones.source import identity
from sgpipe.backbones.strict import write_tensors
from sgpipe.datasets.tables import PROMPT_INDEX, read_table, write_table
from sgpipe.errors import DataError
from sgpipe.runs.shards import Make, Shard, Tick, cut, link
from sgpipe.runs.state import config_hash

KIND, STAGE = "prompts", "cache_prompts"
_FILE = "tensors.safetensors"


def prompt_identity(backbone: Backbone) -> dict[str, Any]:
    """What encodings of texts depend on."""
    return identity(backbone, family_of_backbone(backbone).text_parts, max_sequence_length=backbone.max_sequence_length)


def prompt_shards(prompts: Sequence[str], concepts: Sequence[str], size: int) -> list[Shard]:
    """The shards of a cache: prompts, then concepts."""
    return cut("prompts", len(prompts), size) + cut("concepts", len(concepts), size)


def prompt_maker(encoders: TextEncoders, prompts: Sequence[str], concepts: Sequence[str], batch_size: int, encoder: str) -> Make:
    """What fills a shard: the parts of the prompts' conditions, or `states` of all tokens of concepts and their `counts`."""

    def make(shard: Shard, folder: Path, tick: Tick) -> None:
        if shard.name.startswith("prompts"):
            parts: list[TextCondition] = []
            for batch in shard.batches(batch_size):
                parts.append(encoders.prompts(prompts[batch]))
                tick(batch.stop - batch.start)
            whole = vars(TextCondition.cat(parts))
            tensors = {name: tensor for name, tensor in whole.items() if tensor is not None}
        else:
            rows: list[Tensor] = []
            for batch in shard.batches(batch_size):
                rows += encoders.concepts(concepts[batch])
                tick(batch.stop - batch.start)
            counts = torch.tensor([len(row) for row in rows], dtype=torch.int64)
            tensors = {"states": torch.cat(rows), "counts": counts}
        write_tensors(tensors, folder / _FILE, {"encoder": encoder})

    return make


def merge_prompts(
    shards: Sequence[Shard], made: Path, out: Path, prompts: Sequence[str], concepts: Sequence[str], who: Mapping[str, Any]
) -> dict[str, int]:
    """Make the cache `out` of the finished shards in `made`, whose encoder is `who`.

    Returns the number of prompts, concepts and concept tokens.
    """
    rows: dict[str, list[Any]] = {name: [] for name in PROMPT_INDEX.names}
    for shard in shards:
        link(made / shard.name / _FILE, out / f"{shard.name}.safetensors")
        count = shard.stop - shard.start
        kind, texts, counts = "prompt", prompts, np.ones(count, dtype=np.int64)
        if not shard.name.startswith("prompts"):
            kind, texts = "concept", concepts
            counts = open_tensors(made / shard.name / _FILE, config_hash(who))["counts"].numpy()
        rows["kind"] += [kind] * count
        rows["text"] += texts[shard.start : shard.stop]
        rows["shard"] += [shard.name] * count
        rows["start"] += (np.cumsum(counts) - counts).tolist()
        rows["count"] += counts.tolist()
    index = pa.table(rows, schema=PROMPT_INDEX)
    write_table(index, out / "index.parquet")
    write_manifest(out, KIND, who)
    tokens = sum(n for kind, n in zip(rows["kind"], rows["count"], strict=True) if kind == "concept")
    return {"prompts": len(prompts), "concepts": len(concepts), "concept_tokens": tokens}


class PromptCache:
    """Encodings by text, out of one or more cache folders; shards are mapped into memory and opened on first use.

    Raises `DataError` if a folder is missing or was made by other encoders than those of `backbone`.
    """

    def __init__(self, folders: Sequence[Path], backbone: Backbone) -> None:
        who = prompt_identity(backbone)
        self._encoder = config_hash(who)
        self._open: dict[Path, dict[str, Tensor]] = {}
        self._places: dict[str, dict[str, tuple[Path, int, int]]] = {"prompt": {}, "concept": {}}
        self._folders = list(folders)
        for folder in folders:
            read_manifest(folder, KIND, who, STAGE)
            table = read_table(folder / "index.parquet", PROMPT_INDEX)
            columns = (table[name].to_pylist() for name in PROMPT_INDEX.names)
            for kind, text, shard, start, count in zip(*columns, strict=True):
                self._places[kind].setdefault(text, (folder / f"{shard}.safetensors", start, count))

    def __contains__(self, prompt: str) -> bool:
        return prompt in self._places["prompt"]

    def get(self, prompts: Sequence[str]) -> TextCondition:
        """Encodings of a batch of prompts, in their order, in the encoders' precision, on the CPU."""
        rows = [
            TextCondition(**{name: tensor[start : start + 1] for name, tensor in self._shard(path).items()})
            for path, start, _ in map(self._place("prompt"), prompts)
        ]
        return TextCondition.cat(rows)

    def concepts(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """States `[K, N, text width]` of the tokens of K concepts, zero after each one's own, and the mask `[K, N]` of its own.

        Token 0 is what ConceptAttention publishes with; the mean over the mask takes the whole name.
        """
        rows = [self._shard(path)["states"][start : start + count] for path, start, count in map(self._place("concept"), texts)]
        states = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        counts = torch.tensor([len(row) for row in rows])
        return states, torch.arange(states.shape[1]) < counts[:, None]

    def _place(self, kind: str) -> Any:
        places = self._places[kind]

        def find(text: str) -> tuple[Path, int, int]:
            if text not in places:
                raise DataError(
                    f"{', '.join(map(str, self._folders))}: {kind} {text!r} is not cached; add its condition to "
                    f"cache_prompts.conditions, or run `dvc repro {STAGE}`"
                )
            return places[text]

        return find

    def _shard(self, path: Path) -> dict[str, Tensor]:
        if path not in self._open:
            self._open[path] = open_tensors(path, self._encoder)
        return self._open[path]
