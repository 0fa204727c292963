"""What the parameters mean for each arm, in one canonical spelling on which the training depends."""

from pathlib import Path
from typing import Annotated

import typer

from sgpipe.arms.config import Arms, Lora
from sgpipe.arms.kinds.base import Sections
from sgpipe.arms.resolve import Arm, resolve
from sgpipe.attention_maps.config import Maps
from sgpipe.backbones.config import Backbone
from sgpipe.errors import ParamsError
from sgpipe.graph_encoder.config import GraphTokens
from sgpipe.params.load import read_section
from sgpipe.runs.atomic import new_folder, write_json
from sgpipe.runs.command import run
from sgpipe.runs.state import file_hash
from sgpipe.training.config import Train

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def files_read(arm: Arm) -> dict[str, str]:
    """Content hashes of what an arm reads besides its data: what its kind reads, the probe of L_rel-rank.

    They stand in the resolved file, so that another encoder or probe retrains the arms that read it, and no other.
    Raises `ParamsError` for one that is not there.
    """
    ranking = arm.train.losses.ranking
    probe = {"train.losses.ranking.probe": Path(str(ranking.probe))} if ranking.weight else {}
    found = {}
    for knob, folder in (arm.adapter.files(arm.settings) | probe).items():
        if not folder.is_dir():
            raise ParamsError(
                f"{knob}: got {str(folder)!r}, and there is no such folder; `dvc repro` makes outputs/graph_encoder and "
                "outputs/probes"
            )
        found[knob] = file_hash(folder)[:16]
    return found


@app.command()
def main(
    params: Annotated[Path, typer.Option(help="parameter file")] = Path("params.yaml"),
    out: Annotated[Path, typer.Option(help="folder of one JSON per arm")] = Path("outputs/resolved"),
) -> None:
    """Write `<arm>.json` for every arm; a spelling that means the same gives the same bytes, and nothing trains again."""
    sections = Sections(
        read_section(params, "lora", Lora),
        read_section(params, "train", Train),
        read_section(params, "graph_tokens", GraphTokens),
        read_section(params, "backbone", Backbone),
        read_section(params, "maps", Maps),
    )
    with new_folder(out) as folder:
        for name, options in read_section(params, "arms", Arms).items():
            arm = resolve(name, options, sections)
            write_json({**arm.plain(), "files": files_read(arm)}, folder / f"{name}.json", digits=None)


if __name__ == "__main__":
    run(app)
