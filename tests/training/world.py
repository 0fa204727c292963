"""A tiny world: a pipeline of random weights, curated triples with negatives, and the caches that training reads."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from msgspec.structs import replace

from sgpipe.arms.adapter import build
from sgpipe.arms.config import Arms, Lora
from sgpipe.arms.kinds.base import Sections
from sgpipe.arms.kinds.text_lora import TextLora
from sgpipe.arms.lora import LoraLayers
from sgpipe.arms.model import ArmModel
from sgpipe.arms.resolve import Arm, resolve
from sgpipe.backbones.config import Backbone
from sgpipe.backbones.denoiser import Denoiser
from sgpipe.backbones.families import family_of_backbone, open_text_encoders
from sgpipe.backbones.latent_cache import Crops, latent_identity, latent_maker, merge_latents
from sgpipe.backbones.loading import load_module
from sgpipe.backbones.prompt_cache import merge_prompts, prompt_identity, prompt_maker, prompt_shards
from sgpipe.datasets.images import ImageStore
from sgpipe.datasets.tables import NEGATIVES, write_table
from sgpipe.datasets.visual_genome.images import VisualGenomeImages
from sgpipe.graph_encoder.config import GraphTokens
from sgpipe.graphs.config import Negatives
from sgpipe.graphs.negatives import negatives
from sgpipe.graphs.prompts import conflicting_prompts, curated_prompts, unique_concepts, unique_texts
from sgpipe.params.blocks import Blocks
from sgpipe.runs.processes import Processes
from sgpipe.runs.shards import cut, run_shards
from sgpipe.runs.state import config_hash
from sgpipe.training.config import Optimiser, Train, Validation
from sgpipe.training.examples import Data, Sources, read_data
from sgpipe.training.fit import fit
from sgpipe.training.loop import Training
from tests.tiny import SIDE, backbone_of, curated_triples, write_curated, write_images, write_pipeline

CPU = torch.device("cpu")
ALONE = Processes(0, 1, CPU)
TOKENS = GraphTokens()


LORA = Lora(Blocks.parse("1..2"), rank=4, alpha=4.0)
"""Of a model of three blocks."""
ARMS = Arms.decode(
    "arms",
    {
        "graph": {"kind": "graph_lora"},
        "text_only": {"kind": "text_lora"},
        "projector_only": {"kind": "graph_tokens"},
        "random_blocks": {"kind": "graph_lora", "blocks": "random"},
    },
    "tests",
)


def tiny_train(**changes: Any) -> Train:
    """A section `train` of seconds."""
    train = Train(
        epochs=2,
        batch_size=4,
        precision="float32",
        optimiser=Optimiser(learning_rate=1e-2),
        validation=Validation(every=1, images=0),
        keep_epochs=(1,),
        save_every=3,
    )
    return replace(train, **changes)


@cache
def _loaded(backbone: Backbone) -> Denoiser:
    return Denoiser.load(backbone, CPU)


@dataclass(frozen=True)
class World:
    """Where everything lies, and how to make a model of it."""

    backbone: Backbone
    sources: Sources

    @cache  # noqa: B019
    def data(self) -> Data:
        return read_data(self.sources, self.backbone)

    def denoiser(self) -> Denoiser:
        """A fresh one, a copy of what was read once."""
        return deepcopy(_loaded(self.backbone))

    def arm(self, train: Train, tokens: GraphTokens = TOKENS, name: str = "graph", lora: Lora = LORA) -> Arm:
        return resolve(name, ARMS[name], Sections(lora, train, tokens, self.backbone))

    def model(self, train: Train, tokens: GraphTokens = TOKENS, name: str = "graph", lora: Lora = LORA) -> ArmModel:
        return build(self.denoiser(), self.backbone, self.arm(train, tokens, name, lora), 0.7)

    def base(self) -> ArmModel:
        """The base model as an arm that adds nothing."""
        denoiser = self.denoiser()
        nothing = LoraLayers(denoiser.transformer, Lora(Blocks(())), (), {})
        denoiser.transformer.requires_grad_(False)
        return ArmModel(denoiser, TextLora(nothing))


def _prompt_cache(backbone: Backbone, table: pa.Table, concepts: list[str], out: Path, state: Path) -> None:
    who, texts = prompt_identity(backbone), unique_texts(table)
    shards = prompt_shards(texts, concepts, 64)
    for folder in (out, state):
        folder.mkdir(parents=True)
    run_shards(
        shards, state, ALONE,
        lambda: prompt_maker(open_text_encoders(backbone, CPU), texts, concepts, 16, config_hash(who)), "text",
    )  # fmt: skip
    merge_prompts(shards, state, out, texts, concepts, who)
    write_table(table, out / "prompts.parquet")


def write_world(
    root: Path,
    train: int = 20,
    val: int = 8,
    backbone: Backbone | None = None,
    more: Callable[[pa.Table], pa.Table] = lambda triples: triples,
) -> World:
    """All that `stages.train_lora` reads, under `root`, of what `more` makes of tiny triples; for a tiny FLUX, unless a backbone is
    given.
    """
    backbone = backbone or backbone_of(write_pipeline(root / "models" / "tiny"))
    triples = more(pa.concat_tables([curated_triples(train, "train"), curated_triples(val, "val", train + 1)]))
    outputs = root / "outputs"
    sources = Sources(*(outputs / name for name in ("curated", "negatives", "prompts", "negative_prompts", "latents")))
    write_curated(sources.curated, triples, triples.slice(0, 0))
    held = pa.Table.from_pylist(
        [{name: row[name] for name in ("image_id", "subject", "predicate", "object")} for row in triples.to_pylist()]
    )
    against = negatives(triples, held, Negatives())
    write_table(against.cast(NEGATIVES), sources.negatives / "negatives.parquet")
    said = curated_prompts(triples, ("relational", "neutral", "wrong"), 0)
    _prompt_cache(backbone, said, unique_concepts(triples), sources.prompts, root / "state" / "p")
    _prompt_cache(backbone, conflicting_prompts(against), [], sources.negative_prompts, root / "state" / "n")
    write_images(root / "data", triples)
    crops, who = Crops.of(triples), latent_identity(backbone)
    shards = cut("latents", len(crops), 64)
    state = root / "state" / "l"
    for folder in (state, sources.latents):
        folder.mkdir(parents=True)
    vae = load_module(backbone, "vae")
    load: Callable[[int], Any] = ImageStore(VisualGenomeImages(root / "data")).load
    family = family_of_backbone(backbone)
    run_shards(shards, state, ALONE, lambda: latent_maker(family, vae, load, crops, SIDE, 16, config_hash(who)), "crop")
    merge_latents(shards, state, sources.latents, crops, who, family.statistics(vae))
    return World(backbone, sources)


def train(world: World, folder: Path, recipe: Train, tokens: GraphTokens = TOKENS, name: str = "graph") -> Training:
    folder.mkdir(parents=True, exist_ok=True)
    return fit(
        world.arm(recipe, tokens, name), world.denoiser(), world.backbone, world.data(), folder, ALONE, {"config": "abc"}
    )  # fmt: skip


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
