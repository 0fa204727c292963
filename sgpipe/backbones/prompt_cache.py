"""Encoded prompts and concepts on disk: written once by the text encoders, read by every stage that holds a transformer."""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from sgpipe.backbones.base import TextCondition, TextEncoders
from sgpipe.backbones.cache_files import open_tensors, read_manifest, shard_reader, write_manifest
from sgpipe.backbones.config import Backbone
from sgpipe.backbones.families import family_of_backbone
from sgpipe.backbones.source import identity
from sgpipe.backbones.strict import write_tensors
from sgpipe.datasets.tables import PROMPT_INDEX, read_table, write_table
from sgpipe.errors import DataError
from sgpipe.graphs.prompts import joined_text
from sgpipe.runs.atomic import link
from sgpipe.runs.shards import Make, Shard, Tick, cut
from sgpipe.runs.state import config_hash

KIND, STAGE = "prompts", "cache_prompts"
_FILE = "tensors.safetensors"


def prompt_identity(backbone: Backbone) -> dict[str, Any]:
    """What encodings of texts depend on."""
    family = family_of_backbone(backbone)
    return identity(backbone, family.text_parts, max_sequence_length=backbone.max_sequence_length, **family.prompt_settings())


def prompt_shards(prompts: Sequence[str], concepts: Sequence[str], size: int) -> list[Shard]:
    """The shards of a cache: prompts, then concepts."""
    return cut("prompts", len(prompts), size) + cut("concepts", len(concepts), size)


def prompt_maker(encoders: TextEncoders, prompts: Sequence[str], concepts: Sequence[str], batch_size: int, encoder: str) -> Make:
    """What fills a shard: the parts of the prompts' conditions, or `states` of all tokens of concepts and their `counts`."""

    def make(shard: Shard, folder: Path, tick: Tick) -> None:
        conditions: list[TextCondition] = []
        rows: list[Tensor] = []
        for batch in shard.batches(batch_size):
            if shard.name.startswith("prompts"):
                conditions.append(encoders.prompts(prompts[batch]))
            else:
                rows += encoders.concepts(concepts[batch])
            tick(batch.stop - batch.start)
        if conditions:
            tensors = {name: value for name, value in vars(TextCondition.cat(conditions)).items() if isinstance(value, Tensor)}
        else:
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
    index: list[dict[str, Any]] = []
    for shard in shards:
        link(made / shard.name / _FILE, out / f"{shard.name}.safetensors")
        kind, texts, counts = "prompt", prompts, [1] * (shard.stop - shard.start)
        if not shard.name.startswith("prompts"):
            kind, texts = "concept", concepts
            counts = open_tensors(made / shard.name / _FILE, config_hash(who))["counts"].tolist()
        starts = accumulate(counts[:-1], initial=0)
        index += [
            {"kind": kind, "text": text, "shard": shard.name, "start": start, "count": count}
            for text, start, count in zip(texts[shard.start : shard.stop], starts, counts, strict=True)
        ]
    write_table(pa.Table.from_pylist(index, schema=PROMPT_INDEX), out / "index.parquet")
    write_manifest(out, KIND, who)
    tokens = sum(row["count"] for row in index if row["kind"] == "concept")
    return {"prompts": len(prompts), "concepts": len(concepts), "concept_tokens": tokens}


class PromptCache:
    """Encodings by text, out of one or more cache folders; shards are mapped into memory and opened on first use.

    Raises `DataError` if a folder is missing or was made by other encoders than those of `backbone`.
    """

    def __init__(self, folders: Sequence[Path], backbone: Backbone) -> None:
        who = prompt_identity(backbone)
        self._folders, self._shard = list(folders), shard_reader(who)
        self._places: dict[tuple[str, str], tuple[Path, slice]] = {}
        for folder in folders:
            read_manifest(folder, KIND, who, STAGE)
            for row in read_table(folder / "index.parquet", PROMPT_INDEX).to_pylist():
                place = folder / f"{row['shard']}.safetensors", slice(row["start"], row["start"] + row["count"])
                self._places.setdefault((row["kind"], row["text"]), place)

    def __contains__(self, prompt: str) -> bool:
        return ("prompt", prompt) in self._places

    def get(self, prompts: Sequence[str]) -> TextCondition:
        """Encodings of a batch of prompts, in their order, in the encoders' precision, on the CPU."""
        return TextCondition.cat([TextCondition(**self._rows("prompt", text)) for text in prompts])

    def concepts(self, texts: Sequence[str], joined: bool = False) -> tuple[Tensor, Tensor]:
        """States `[K, N, text width]` of the tokens of K concepts, zero after each one's own, and the mask `[K, N]` of its own.

        Each is encoded alone, or with `joined` all as one text, in the order given. Token 0 is what ConceptAttention publishes
        with; the mean over the mask takes the whole name. Raises `DataError` for a text that was not cached.
        """
        rows = [self._rows("concept", text)["states"] for text in texts]
        if joined:
            lengths, text = [len(row) for row in rows], joined_text(texts)
            together = self._rows("concept", text)["states"]
            if len(together) != sum(lengths):
                raise DataError(
                    f"concepts {text!r}: {len(together)} tokens as one text, {' + '.join(map(str, lengths))} one by one; raise "
                    "backbone.max_sequence_length if they were cut, else set maps.variant to ours"
                )
            rows = list(together.split(lengths))
        states = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        counts = torch.tensor([len(row) for row in rows])
        return states, torch.arange(states.shape[1]) < counts[:, None]

    def _rows(self, kind: str, text: str) -> dict[str, Any]:
        if (kind, text) not in self._places:
            raise DataError(
                f"{', '.join(map(str, self._folders))}: {kind} {text!r} is not cached; add its condition to "
                f"cache_prompts.conditions (several concepts as one: set cache_prompts.joined_concepts), or run `dvc repro {STAGE}`"
            )
        path, rows = self._places[kind, text]
        return {name: tensor[rows] for name, tensor in self._shard(path).items() if kind == "prompt" or name == "states"}
