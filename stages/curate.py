"""Balanced train, val and map triples from the canonical tables."""

from sgpipe.datasets.tables import IMAGES, OBJECTS, RELATIONS, read_table, write_table
from sgpipe.graphs.config import Curate
from sgpipe.graphs.curate import curate
from sgpipe.params.load import read_params, to_builtins
from sgpipe.runs.command import run, write_metrics
from sgpipe.tracking.recorder import record
from stages import CANONICAL, MAP_TRIPLES_FILE, METRICS, TRIPLES_FILE


def main() -> None:
    """Choose the triples, build their prompts and crops, and count them by class."""
    config = read_params(Curate)
    inputs = [CANONICAL / f"{name}.parquet" for name in ("relations", "images", "objects")]
    with record("curate", {"curate": config}, inputs) as recorded:
        curated = curate(read_table(inputs[0], RELATIONS), read_table(inputs[1], IMAGES), config, read_table(inputs[2], OBJECTS))
        write_table(curated.triples, TRIPLES_FILE)
        write_table(curated.map_triples, MAP_TRIPLES_FILE)
        write_metrics(curated.metrics, METRICS / "curate.json", to_builtins(config), recorded)


if __name__ == "__main__":
    run(main)
