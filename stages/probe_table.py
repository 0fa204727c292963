"""The probes of all layer groups as one table with its figures, and the confusions for the negative graphs."""

from pathlib import Path

from sgpipe.attention_maps.config import Maps
from sgpipe.params.load import read_params, to_builtins
from sgpipe.probes.config import Probes
from sgpipe.probes.plots import plot_confusion, plot_noised, plot_probe, plot_selectivity, plot_table
from sgpipe.probes.table import confusions, merged, read_groups
from sgpipe.runs.atomic import new_folder, write_json
from sgpipe.runs.command import run, write_metrics
from sgpipe.tracking.recorder import record
from stages import METRICS, PLOTS, PROBES


def main() -> None:
    """Merge the groups' figures, draw them, and write what was taken for what."""
    config, maps = read_params(Probes, Maps)
    sections = {"probes": config, "maps": maps}
    with record("probe_table", sections, [PROBES]) as recorded:
        tables = read_groups(PROBES, maps.groups)
        found = merged(tables, config.epochs, config.features)
        with new_folder(PLOTS / "probes") as folder:
            for kind, row in found["cells"].items():
                plot_probe(kind, row, found["names"], found["classes"], folder / f"{kind}.png")
            plot_selectivity(found["cells"], folder / "selectivity.png")
            plot_table(found["cells"], folder / "table.png")
            plot_noised({name: found[name] for name in ("trace", "noise_aware")}, folder / "noised.png")
            for group, table in tables.items():
                path = folder / f"confusion_{group}.png"
                plot_confusion(group, table["classes"], table["confusion"], table["best"], path)
        write_json(confusions(tables.values()), Path("outputs/confusions/confusions.json"))
        write_metrics(found, METRICS / "probes.json", to_builtins(sections), recorded)


if __name__ == "__main__":
    run(main)
