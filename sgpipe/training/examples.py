"""What is trained on and validated on: triples with their negatives, prompts by condition, and latents."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from sgpipe.arms.conditioning import name_table
from sgpipe.backbones.config import Backbone
from sgpipe.backbones.families import open_tokenizers
from sgpipe.backbones.latent_cache import LatentCache
from sgpipe.backbones.prompt_cache import PromptCache
from sgpipe.backbones.truncation import check_names_kept, warn
from sgpipe.datasets.tables import NEGATIVES, PROMPTS, TRIPLES, read_table
from sgpipe.errors import DataError
from sgpipe.graph_encoder.open_vocabulary import NameTable, texts_of
from sgpipe.graphs.scene_graph import SceneGraph
from sgpipe.relations.predicates import concepts


@dataclass(frozen=True)
class Example:
    """A triple's graph with its negative, which changes its triple number `changed`, and its prompts by condition."""

    triple_id: str
    graph: SceneGraph
    negative: SceneGraph
    prompts: Mapping[str, str]
    concepts: tuple[str, ...]
    changed: int = 0

    @property
    def predicate(self) -> str:
        """Class of the triple that the negative changes."""
        return self.graph.triples[self.changed][1]


@dataclass(frozen=True)
class Sources:
    """The folders that earlier stages wrote."""

    curated: Path = Path("outputs/curated")
    negatives: Path = Path("outputs/negatives")
    prompts: Path = Path("outputs/prompts")
    negative_prompts: Path = Path("outputs/negative_prompts")
    latents: Path = Path("outputs/latents")

    def paths(self) -> list[Path]:
        """All that training reads."""
        return [self.curated / "triples.parquet", self.negatives, self.prompts, self.negative_prompts, self.latents]


@dataclass(frozen=True)
class Data:
    """Triples to train on and to validate on, and the caches that hold what belongs to them."""

    train: tuple[Example, ...]
    held_out: tuple[Example, ...]
    latents: LatentCache
    prompts: PromptCache
    names: NameTable

    def only(self, triples: Sequence[str]) -> "Data":
        """The same with these train triples alone, repeated to as many as there are now. Raises `DataError` for any other id."""
        chosen = {each.triple_id: each for each in self.train}
        if missing := [name for name in triples if name not in chosen]:
            raise DataError(f"arms: triples: {missing[0]}: no train triple with latents has this id; outputs/curated lists them")
        repeats = -(-len(self.train) // len(triples))
        return replace(self, train=(tuple(chosen[name] for name in triples) * repeats)[: len(self.train)])

    @property
    def different(self) -> tuple[Example, ...]:
        """The train triples, each once."""
        return tuple({each.triple_id: each for each in self.train}.values())


def read_data(sources: Sources, backbone: Backbone) -> Data:
    """Train triples, and the val triples, which control losses are measured on.

    Triples whose latents were rejected are left out. Raises `DataError` for a cache that is missing or foreign, a triple without a
    negative, or a train triple whose relational prompt loses a name or its relation; what else is cut is a warning.
    """
    table = read_table(sources.curated / "triples.parquet", TRIPLES)
    train, held_out = (table.filter(pc.equal(table["split"], split)) for split in ("train", "val"))
    latents = LatentCache(sources.latents, backbone)
    prompts = PromptCache([sources.prompts, sources.negative_prompts], backbone)
    said: dict[str, dict[str, str]] = {}
    for folder in (sources.prompts, sources.negative_prompts):
        for row in read_table(folder / "prompts.parquet", PROMPTS, ["triple_id", "condition", "prompt"]).to_pylist():
            said.setdefault(row["triple_id"], {})[row["condition"]] = row["prompt"]
    negatives = {row["triple_id"]: row for row in read_table(sources.negatives / "negatives.parquet", NEGATIVES).to_pylist()}
    parts = [tuple(_example(row, said, negatives) for row in latents.available(part).to_pylist()) for part in (train, held_out)]
    tokenizers = open_tokenizers(backbone)
    trained = {each.prompts["relational"] for each in parts[0] if "relational" in each.prompts}
    check_names_kept(tokenizers.prompts(sorted(trained)), "relational prompts of train triples")
    every = {prompt for part in parts for each in part for prompt in each.prompts.values()}
    warn(tokenizers.prompts(sorted(every)), "prompts of train and val triples")
    if not parts[0]:
        raise DataError(f"{sources.curated}/triples.parquet: no train triples are left; run `dvc repro curate`")
    texts = texts_of([graph for part in parts for each in part for graph in (each.graph, each.negative)])
    return Data(parts[0], parts[1], latents, prompts, name_table(*prompts.concepts(texts), texts))


def _example(row: Mapping[str, Any], said: Mapping[str, Mapping[str, str]], negatives: Mapping[str, Mapping[str, Any]]) -> Example:
    name, graph = row["triple_id"], SceneGraph.of_row(row)
    if name not in negatives:
        raise DataError(f"triple {name} has no negative; run `dvc repro negatives`")
    false = negatives[name]
    negative = graph.negated(false["kind"], false["predicate"], false["changed"])
    return Example(name, graph, negative, said.get(name, {}), concepts(*graph.named[false["changed"]]), false["changed"])


def prompt_of(example: Example, condition: str) -> str:
    """The example's prompt. Raises `DataError` if it was not cached."""
    if condition not in example.prompts:
        raise DataError(
            f"triple {example.triple_id}: its {condition} prompt is not cached; add {condition} to cache_prompts.conditions "
            "(conflicting: run `dvc repro cache_negative_prompts`)"
        )
    return example.prompts[condition]


def check_prompts(data: Data, conditions: Sequence[str]) -> None:
    """Raise `DataError` unless every example's prompt of every condition is cached, text and encoding."""
    for example in (*data.train, *data.held_out):
        for condition in conditions:
            text = prompt_of(example, condition)
            if text not in data.prompts:
                raise DataError(
                    f"triple {example.triple_id}: the encoding of its {condition} prompt {text!r} is not cached; run "
                    f"`dvc repro {'cache_negative_prompts' if condition == 'conflicting' else 'cache_prompts'}`"
                )
