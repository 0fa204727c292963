"""The probes of all layer groups as one table with its figures, and the confusions for the negative graphs."""

from pathlib import Path
from typing import Annotated

import typer

from sgpipe.attention_maps.config import Maps
from sgpipe.params.load import read_section, to_builtins
from sgpipe.probes.config import Probes
from sgpipe.probes.plots import plot_confusion, plot_noised, plot_probe, plot_selectivity, plot_table
from sgpipe.probes.table import confusions, merged, read_groups
from sgpipe.runs.atomic import new_folder, write_json
from sgpipe.runs.command import run, write_metrics
from sgpipe.tracking.run import track

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    params: Annotated[Path, typer.Option(help="parameter file")] = Path("params.yaml"),
    probes: Annotated[Path, typer.Option(help="folder of all groups' probes")] = Path("outputs/probes"),
    out: Annotated[Path, typer.Option(help="table of confusions")] = Path("outputs/confusions/confusions.json"),
    plots: Annotated[Path, typer.Option(help="folder of the figures")] = Path("plots/probes"),
    metrics: Annotated[Path, typer.Option(help="metrics file")] = Path("metrics/probes.json"),
) -> None:
    """Merge the groups' figures, draw them, and write what was taken for what."""
    config = read_section(params, "probes", Probes)
    maps = read_section(params, "maps", Maps)
    with track("probe_table", {"probes": config, "maps": maps}, [probes], params) as recorded:
        tables = read_groups(probes, maps.groups)
        found = merged(tables, config.epochs, config.features)
        with new_folder(plots) as folder:
            for kind, row in found["cells"].items():
                plot_probe(kind, row, found["names"], found["classes"], folder / f"{kind}.png")
            plot_selectivity(found["cells"], folder / "selectivity.png")
            plot_table(found["cells"], folder / "table.png")
            plot_noised({name: found[name] for name in ("trace", "noise_aware")}, folder / "noised.png")
            for group, table in tables.items():
                path = folder / f"confusion_{group}.png"
                plot_confusion(group, table["classes"], table["confusion"], table["best"], path)
        write_json(confusions(tables.values()), out)
        write_metrics(found, metrics, {"probes": to_builtins(config), "maps": to_builtins(maps)})
        recorded.log_metrics(found)


if __name__ == "__main__":
    run(app)
