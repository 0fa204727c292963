"""The negative graph of every curated triple."""

from collections import Counter
from pathlib import Path

import pyarrow.compute as pc

from sgpipe.datasets.tables import RELATIONS, TRIPLES, read_table, write_table
from sgpipe.graphs.config import Negatives
from sgpipe.graphs.negatives import negatives
from sgpipe.graphs.scene_graph import graphs_of
from sgpipe.params.load import read_params, to_builtins
from sgpipe.runs.command import run, write_metrics
from sgpipe.tracking.recorder import record
from stages import CANONICAL, METRICS, NEGATIVES_FILE, TRIPLES_FILE


def main() -> None:
    """Make one negative per triple and count them by kind and by what replaces what."""
    config = read_params(Negatives)
    relations = CANONICAL / "relations.parquet"
    inputs = [TRIPLES_FILE, relations, *([Path(config.confusions)] if config.confusions else [])]
    with record("negatives", {"negatives": config}, inputs) as recorded:
        positives = read_table(TRIPLES_FILE, TRIPLES)
        held = read_table(relations, RELATIONS, ["image_id", "subject", "predicate", "object"])
        held = held.filter(pc.is_in(held["image_id"], pc.unique(positives["image_id"])))
        made = negatives(positives, held, config)
        write_table(made, NEGATIVES_FILE)
        kinds = made["kind"].to_pylist()
        changed = zip(graphs_of(positives), made["changed"].to_pylist(), strict=True)
        true_classes = [graph.triples[number][1] for graph, number in changed]
        rows = zip(true_classes, made["predicate"].to_pylist(), kinds, strict=True)
        replaced = Counter(f"{true} -> {false}" for true, false, kind in rows if kind == "replace")
        counts = {"triples": made.num_rows, "by_kind": Counter(kinds), "replaced": replaced}
        write_metrics(counts, METRICS / "negatives.json", to_builtins(config), recorded)


if __name__ == "__main__":
    run(main)
