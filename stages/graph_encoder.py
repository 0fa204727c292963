"""Pre-training of the graph encoder on features of a frozen image tower, and what it then tells apart."""

from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

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
from sgpipe.optim.log import publish_log
from sgpipe.params.load import read_params, to_builtins
from sgpipe.relations.predicates import DIRECTIONAL, PREDICATES
from sgpipe.runs.atomic import new_folder
from sgpipe.runs.command import run, write_metrics
from sgpipe.runs.config import Compute
from sgpipe.runs.processes import start
from sgpipe.runs.shards import Make, cut, run_shards
from sgpipe.runs.state import config_hash
from stages import CANONICAL, MAP_TRIPLES_FILE, METRICS, PROMPTS, TRIPLES_FILE
from stages._stage import working

OUT = Path("outputs/graph_encoder")


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


def main() -> None:
    """Cache features, train, save, measure; killed at any point, the same command goes on."""
    config, choice, backbone, compute = read_params(GraphEncoder, Curate, Backbone, Compute)
    data = read_params(Data)
    processes = start(compute)
    who, store = tower_identity(config), ImageStore(open_images(data))
    inputs = [CANONICAL / "relations.parquet", CANONICAL / "images.parquet", TRIPLES_FILE, MAP_TRIPLES_FILE]
    schemas = (RELATIONS, IMAGES, TRIPLES, TRIPLES)
    relations, images, *said = (read_table(path, schema) for path, schema in zip(inputs, schemas, strict=True))
    examples = Examples.of(relations, images, said[0], choice, config)
    shards = cut("features", len(examples.crops), config.shard_size)

    def open_maker() -> Make:
        tower = ImageTower(config, processes.device)
        return feature_maker(tower, store.load, examples.crops, config.tower_batch, config_hash(who))

    plain = {"graph_encoder": to_builtins(config), "curate": to_builtins(choice), "tower": who}
    sections = {"graph_encoder": config, "curate": choice, "backbone": backbone, "data": data}
    inputs.append(PROMPTS / "manifest.json")
    settings = {**plain, "images": store.signature(), "threads": torch.get_num_threads()}
    with working("graph_encoder", settings, sections, inputs, processes) as (state, recorded):
        run_shards(shards, state, processes, open_maker, "crop", partial(check_shard, encoder=config_hash(who)))
        if not processes.is_main:
            return
        features = Features(shards, state, len(examples.crops), config_hash(who))
        crops = {"read": int(features.read.sum()), "all": len(examples.crops), "rescaled": features.counts.pop("rescaled", 0)}
        say_rescaled("graph_encoder", crops["rescaled"], crops["read"])
        known = examples.names(config.min_count)
        texts = _name_table(PromptCache([PROMPTS], backbone), pa.concat_tables(said))
        encoder, vocabulary = _encoder(config, known, texts)
        names = vocabulary or texts
        usable = frozenset(known if vocabulary else texts.vectors)
        lessons = {part: Lessons(examples, features, examples.rows(part, features.read, usable), names) for part in PARTS}
        for part, least in (("train", config.batch_size), ("val", 1)):
            if len(lessons[part].rows) < least:
                raise DataError(
                    f"graph_encoder: {len(lessons[part].rows)} {part} relations have a crop and known names, {least} are "
                    f"needed; see graph_encoder.min_count and `dvc repro curate`"
                )
        learner = Learner(encoder, features.shape, config, processes.device)
        graphs = [examples.graphs[row] for row in lessons["val"].rows]
        cosines = partial(
            token_cosines, encoder, [graph for graph in graphs if graph.triples[0][1] in DIRECTIONAL], names, texts, config.seed
        )
        before = cosines()
        pretrain(learner, lessons["train"], config, state, recorded.log_step)
        publish_log(state, "graph_encoder")
        found: dict[str, Any] = {
            part: measure(learner, lessons[part]) for part in ("development", "val") if len(lessons[part].rows)
        }
        parts = examples.frame["part"].to_list()
        counts = {part: {"all": parts.count(part), "used": len(lessons[part].rows)} for part in PARTS}
        counts["development"]["image_in_training"] = examples.shared
        found |= {
            "true_above_swap": found["val"]["true_above_swap"]["directional"],
            "direction_cosine": {"before": before, "after": cosines()},
            "relations": counts,
            "crops": crops,
            "rejected_by_reason": features.counts,
        }
        with new_folder(OUT) as folder:
            save_encoder(folder, encoder, vocabulary, learner.reconstruction)
            write_tensors(learner.head.state_dict(), folder / "image_head.safetensors", {"format": "pt"})
        write_metrics(found, METRICS / "graph_encoder.json", plain, recorded)


if __name__ == "__main__":
    run(main)
