"""Balanced train, val and map triples from the canonical tables."""

from sgpipe.datasets.tables import IMAGES, OBJECTS, RELATIONS, read_table, write_table
from sgpipe.graphs.config import Curate
from sgpipe.graphs.curate import STEPS, curate
from sgpipe.params.load import read_params, to_builtins
from sgpipe.runs.command import run, write_metrics
from sgpipe.runs.progress import progress
from sgpipe.tracking.recorder import record
from stages import CANONICAL, MAP_TRIPLES_FILE, METRICS, TRIPLES_FILE


def main() -> None:
    """Choose the triples, build their prompts and crops, and count them by class."""
    config = read_params(Curate)
    inputs = [CANONICAL / f"{name}.parquet" for name in ("relations", "images", "objects")]
    with record("curate", {"curate": config}, inputs) as recorded:
        with progress(STEPS, "curating", "step"):
            relations, images, objects = map(read_table, inputs, (RELATIONS, IMAGES, OBJECTS))
            curated = curate(relations, images, config, objects)
        write_table(curated.triples, TRIPLES_FILE)
        write_table(curated.map_triples, MAP_TRIPLES_FILE)
        write_metrics(curated.metrics, METRICS / "curate.json", to_builtins(config), recorded)


if __name__ == "__main__":
    run(main)
