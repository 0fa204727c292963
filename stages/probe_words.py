"""Linear probes of the text rows of subject, relation and object after each block: where the relation is in the text stream."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch

from sgpipe.attention_maps.config import Maps, NoisedMaps
from sgpipe.attention_maps.extract import map_items
from sgpipe.attention_maps.options import concept_embeddings
from sgpipe.backbones.config import Backbone
from sgpipe.backbones.denoiser import Denoiser
from sgpipe.backbones.families import open_tokenizers
from sgpipe.backbones.latent_cache import LatentCache
from sgpipe.backbones.prompt_cache import PromptCache
from sgpipe.backbones.rectified_flow import interpolate, noise
from sgpipe.datasets.tables import PROMPTS as PROMPT_TABLE
from sgpipe.datasets.tables import TRIPLES, read_table
from sgpipe.params.load import read_params, to_builtins
from sgpipe.probes.config import Probes
from sgpipe.probes.controls import NEEDED
from sgpipe.probes.data import Pairs
from sgpipe.probes.words import WordRows, gain_rows, group_figures, word_figures, word_spans, word_vectors
from sgpipe.runs.atomic import new_folder
from sgpipe.runs.command import run, write_metrics
from sgpipe.runs.config import Compute
from sgpipe.runs.processes import pick_device
from sgpipe.runs.progress import through
from sgpipe.tracking.recorder import record
from stages import LATENTS, MAP_TRIPLES_FILE, METRICS, PROMPTS

OUT = Path("outputs/word_probes")


def main() -> None:
    """One forward per map triple and prompt, of its real image noised to the highest of `saliency_noised.times`; then all fits."""
    config, backbone, maps, noised = read_params(Probes, Backbone, Maps, NoisedMaps)
    device = pick_device(read_params(Compute).device, 0)
    sections, inputs = {"probes": config, "saliency_noised": noised}, [MAP_TRIPLES_FILE, PROMPTS, LATENTS]
    with record("probe_words", sections, inputs) as recorded:
        latents, prompts, tokenizers = LatentCache(LATENTS, backbone), PromptCache([PROMPTS], backbone), open_tokenizers(backbone)
        table = latents.available(read_table(MAP_TRIPLES_FILE, TRIPLES))
        t = max(noised.times)
        items = map_items(table, read_table(PROMPTS / "prompts.parquet", PROMPT_TABLE), NEEDED, [t], noised.seed)
        denoiser, pairs = Denoiser.load(backbone, device), Pairs(table)
        batches = []
        for start in through(range(0, items.num_rows, maps.batch_size), "reading the text rows", "batch"):
            part = items.slice(start, maps.batch_size)
            texts, ids = part["prompt"].to_pylist(), part["triple_id"].to_pylist()
            clean, said = latents.latents(ids), prompts.get(texts)
            times = torch.full([len(ids)], t)
            z_t = interpolate(clean, noise(part["seed"].to_pylist(), tuple(clean.shape[1:])), times)
            ends = [pairs.names[pairs.of_row[pairs.row_of[name]]] for name in ids]
            spans = [
                word_spans(tokenizers, text, pair[0], named, pair[1])
                for text, pair, named in zip(texts, ends, part["prompt_predicate"].to_pylist(), strict=True)
            ]
            words_from = max(said.states.shape[1] - backbone.max_sequence_length, 0)
            batches.append(word_vectors(denoiser, z_t, times, said, spans, words_from, noised.guidance))
        vectors = [
            {word: np.concatenate([batch[place][word] for batch in batches]) for word in own}
            for place, own in enumerate(batches[0])
        ]
        names = sorted({name for pair in pairs.names for name in pair})
        states, mask = prompts.concepts(names)
        embeddings = dict(zip(names, concept_embeddings(states.float(), mask, "mean"), strict=True))
        found = word_figures(WordRows.of(vectors, items, pairs), pairs, embeddings, config)
        layout = denoiser.layout
        groups = {
            name: each.resolve(layout.double_blocks, layout.single_blocks, f"maps.groups.{name}")
            for name, each in maps.groups.items()
        }
        by_group = group_figures(found["gains"], found["groups"], groups, config)
        with new_folder(OUT) as folder:
            pq.write_table(gain_rows(found["gains"], found["groups"]), folder / "gains.parquet")
        figures = {"t": t, "images": table.num_rows, "rows": found["rows"], "groups": by_group}
        write_metrics(figures, METRICS / "word_probes.json", to_builtins(sections), recorded)


if __name__ == "__main__":
    run(main)
