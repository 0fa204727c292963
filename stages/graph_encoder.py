"""Pre-training of the graph encoder on features of a frozen image tower, and what it then tells apart."""

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import torch
import typer
from numpy.typing import NDArray

from sgpipe.backbones.config import Backbone
from sgpipe.backbones.images import say_rescaled
from sgpipe.backbones.prompt_cache import PromptCache
from sgpipe.backbones.strict import write_tensors
from sgpipe.datasets.config import Data
from sgpipe.datasets.images import ImageStore, open_images
from sgpipe.datasets.tables import IMAGES, RELATIONS, TRIPLES, read_table
from sgpipe.errors import DataError
from sgpipe.graph_encoder.cgip import Cgip, CgipConfig
from sgpipe.graph_encoder.checkpoints import Encoder, save_encoder
from sgpipe.graph_encoder.config import GraphEncoder
from sgpipe.graph_encoder.evaluate import measure, token_cosines
from sgpipe.graph_encoder.examples import PARTS, Examples
from sgpipe.graph_encoder.features import Features, check_shard, feature_maker
from sgpipe.graph_encoder.open_vocabulary import NameTable, OpenVocabularyConfig, OpenVocabularyEncoder
from sgpipe.graph_encoder.tower import ImageTower, tower_identity
from sgpipe.graph_encoder.training import Learner, Lessons, pretrain
from sgpipe.graph_encoder.vocabulary import Vocabulary
from sgpipe.graphs.config import Curate
from sgpipe.graphs.prompts import unique_concepts
from sgpipe.graphs.scene_graph import SceneGraph
from sgpipe.optim.log import publish_log
from sgpipe.params.load import read_section, to_builtins
from sgpipe.relations.predicates import DIRECTIONAL, PREDICATES
from sgpipe.runs.atomic import new_folder
from sgpipe.runs.command import run, write_metrics
from sgpipe.runs.config import Compute
from sgpipe.runs.processes import start
from sgpipe.runs.shards import Make, cut, run_shards
from sgpipe.runs.state import config_hash
from stages._stage import working

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def _name_table(cache: PromptCache, triples: pa.Table) -> NameTable:
    """The mean state of each cached name's and predicate phrase's own tokens."""
    texts = unique_concepts(triples)
    states, words = cache.concepts(texts)
    means = (states.float() * words[..., None]).sum(1) / words.sum(1, keepdim=True)
    return NameTable(dict(zip(texts, means, strict=True)))


def _encoder(config: GraphEncoder, names: list[str], texts: NameTable) -> tuple[Encoder, Vocabulary | None]:
    """A fresh encoder of the kind asked for, a function of the seed, and its vocabulary if it has one."""
    torch.manual_seed(config.seed)
    if config.kind == "open_vocabulary":
        sizes = OpenVocabularyConfig(texts.width, config.width, config.embed, config.layers)
        return OpenVocabularyEncoder(sizes), None
    vocabulary = Vocabulary.of(names, PREDICATES)
    rows = len(vocabulary.objects), len(vocabulary.predicates)
    return Cgip(CgipConfig(*rows, config.width, config.embed, config.layers)), vocabulary


def _directional(examples: Examples, rows: NDArray[np.int64]) -> list[SceneGraph]:
    """The graphs of these rows whose swap says the contrary."""
    graphs = (examples.graphs[row] for row in rows)
    return [graph for graph in graphs if graph.triples[0][1] in DIRECTIONAL]


def _counts(lessons: dict[str, Lessons], examples: Examples) -> dict[str, dict[str, int]]:
    """How many relations each part has, how many of them are used (crop read, names known), and how many share a trained image."""
    parts = examples.frame["part"].to_list()
    found = {part: {"all": parts.count(part), "used": len(lessons[part].rows)} for part in PARTS}
    found["development"]["image_in_training"] = examples.shared
    return found


@app.command()
def main(
    params: Annotated[Path, typer.Option(help="parameter file")] = Path("params.yaml"),
    canonical: Annotated[Path, typer.Option(help="folder of the relations")] = Path("outputs/canonical"),
    curated: Annotated[Path, typer.Option(help="folder of the triples")] = Path("outputs/curated"),
    prompts: Annotated[Path, typer.Option(help="prompt cache, for vectors of names")] = Path("outputs/prompts"),
    out: Annotated[Path, typer.Option(help="folder of the encoder")] = Path("outputs/graph_encoder"),
    metrics: Annotated[Path, typer.Option(help="metrics file")] = Path("metrics/graph_encoder.json"),
) -> None:
    """Cache features, train, save, measure; killed at any point, the same command goes on."""
    config = read_section(params, "graph_encoder", GraphEncoder)
    choice = read_section(params, "curate", Curate)
    backbone = read_section(params, "backbone", Backbone)
    compute = read_section(params, "compute", Compute)
    data = read_section(params, "data", Data)
    processes = start(compute)
    who, store = tower_identity(config), ImageStore(open_images(data))
    inputs = [canonical / "relations.parquet", canonical / "images.parquet"]
    relations, images = (read_table(path, schema) for path, schema in zip(inputs, (RELATIONS, IMAGES), strict=True))
    inputs += [curated / "triples.parquet", curated / "map_triples.parquet"]
    said = [read_table(path, TRIPLES) for path in inputs[2:]]
    examples = Examples.of(relations, images, said[0], choice, config)
    shards = cut("features", len(examples.crops), config.shard_size)

    def open_maker() -> Make:
        tower = ImageTower(config, processes.device)
        return feature_maker(tower, store.load, examples.crops, config.tower_batch, config_hash(who))

    plain = {"graph_encoder": to_builtins(config), "curate": to_builtins(choice), "tower": who}
    sections = {"graph_encoder": config, "curate": choice, "backbone": backbone, "data": data}
    inputs.append(prompts / "manifest.json")
    state_config = {**plain, "images": store.signature(), "threads": torch.get_num_threads()}
    with working("graph_encoder", state_config, sections, inputs, params, processes) as (state, recorded):
        whole = partial(check_shard, encoder=config_hash(who))
        run_shards(shards, state, processes, open_maker, "crop", whole)
        if not processes.is_main:
            return
        features = Features(shards, state, len(examples.crops), config_hash(who))
        rescaled = features.counts.pop("rescaled", 0)
        say_rescaled("graph_encoder", rescaled, int(features.read.sum()))
        known = examples.names(config.min_count)
        texts = _name_table(PromptCache([prompts], backbone), pa.concat_tables(said))
        encoder, vocabulary = _encoder(config, known, texts)
        names = vocabulary or texts
        usable = frozenset(known if vocabulary else texts.vectors)
        lessons = {part: Lessons(examples, features, examples.rows(part, features.read, usable), names) for part in PARTS}
        for part in ("train", "val"):
            least = config.batch_size if part == "train" else 1
            if len(lessons[part].rows) < least:
                raise DataError(
                    f"graph_encoder: {len(lessons[part].rows)} {part} relations have a crop and known names, {least} are "
                    f"needed; see graph_encoder.min_count and `dvc repro curate`"
                )
        learner = Learner(encoder, features.shape, config, processes.device)
        positive = _directional(examples, lessons["val"].rows)
        before = token_cosines(encoder, positive, names, texts, config.seed)
        pretrain(learner, lessons["train"], config, state, recorded.log_step)
        publish_log(state, "graph_encoder")
        found: dict[str, Any] = {
            part: measure(learner, lessons[part]) for part in ("development", "val") if len(lessons[part].rows)
        }
        found |= {
            "true_above_swap": found["val"]["true_above_swap"]["directional"],
            "direction_cosine": {"before": before, "after": token_cosines(encoder, positive, names, texts, config.seed)},
            "relations": _counts(lessons, examples),
            "crops": {"read": int(features.read.sum()), "all": len(examples.crops), "rescaled": rescaled},
            "rejected_by_reason": features.counts,
        }
        with new_folder(out) as folder:
            save_encoder(folder, encoder, vocabulary, learner.reconstruction)
            write_tensors(learner.head.state_dict(), folder / "image_head.safetensors", {"format": "pt"})
        write_metrics(found, metrics, plain)
        recorded.log_metrics(found)


if __name__ == "__main__":
    run(app)
