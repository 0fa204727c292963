"""What `lora` and `graph_tokens` mean for each arm, in one canonical spelling on which the training depends."""

from pathlib import Path
from typing import Annotated

import typer

from sgpipe.lora.arms import resolve
from sgpipe.params.backbone import Backbone
from sgpipe.params.graph_tokens import GraphTokens
from sgpipe.params.load import read_section
from sgpipe.params.lora import Lora
from sgpipe.params.maps import Maps
from sgpipe.runs.atomic import write_json
from sgpipe.runs.command import run
from sgpipe.runs.shards import new_folder

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    params: Annotated[Path, typer.Option(help="parameter file")] = Path("params.yaml"),
    out: Annotated[Path, typer.Option(help="folder of one JSON per arm")] = Path("outputs/resolved"),
) -> None:
    """Write `<arm>.json` for every arm; a spelling that means the same gives the same bytes, and nothing trains again."""
    lora = read_section(params, "lora", Lora)
    tokens = read_section(params, "graph_tokens", GraphTokens)
    backbone = read_section(params, "backbone", Backbone)
    maps = read_section(params, "maps", Maps)
    with new_folder(out) as folder:
        for name in lora.arms:
            write_json(resolve(name, lora, tokens, backbone, maps).plain(), folder / f"{name}.json")


if __name__ == "__main__":
    run(app)
