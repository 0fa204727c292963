"""What the parameters mean for each arm, in one canonical spelling on which the training depends."""

from pathlib import Path

from sgpipe.arms.config import Arms, Lora
from sgpipe.arms.kinds.base import Sections
from sgpipe.arms.resolve import Arm, resolve
from sgpipe.attention_maps.config import Maps
from sgpipe.backbones.config import Backbone
from sgpipe.errors import ParamsError
from sgpipe.graph_encoder.config import GraphTokens
from sgpipe.params.load import read_params
from sgpipe.runs.atomic import new_folder, write_json
from sgpipe.runs.command import run
from sgpipe.runs.config import Compute
from sgpipe.runs.state import file_hash
from sgpipe.sgdiff.config import SgDiffParams
from sgpipe.training.config import Train
from stages import RESOLVED


def files_read(arm: Arm) -> dict[str, str]:
    """Content hashes of what an arm reads besides its data: what its kind reads, the probe of L_rel-rank.

    They stand in the resolved file, so that another encoder or probe retrains the arms that read it, and no other.
    Raises `ParamsError` for one that is not there.
    """
    ranking = arm.train.losses.ranking
    probe = {"train.losses.ranking.probe": Path(str(ranking.probe))} if ranking.weight else {}
    found = {}
    for knob, folder in (arm.kind_class.files(arm.settings) | probe).items():
        if not folder.is_dir():
            raise ParamsError(
                f"{knob}: got {str(folder)!r}, and there is no such folder; `dvc repro` makes outputs/graph_encoder and "
                "outputs/probes, `sgpipe sgdiff import` a folder of SGDiff"
            )
        found[knob] = file_hash(folder)[:16]
    return found


def main() -> None:
    """Write `<arm>.json` for every arm; a spelling that means the same gives the same bytes, and nothing trains again."""
    arms = read_params(Arms)
    lora, train, graph_tokens, backbone = read_params(Lora, Train, GraphTokens, Backbone)
    sections = Sections(lora, train, graph_tokens, backbone, *read_params(Maps, SgDiffParams))
    device = read_params(Compute).device
    with new_folder(RESOLVED) as folder:
        for name, options in arms.items():
            arm = resolve(name, options, sections, device)
            write_json({**arm.plain(), "files": files_read(arm)}, folder / f"{name}.json", digits=None)


if __name__ == "__main__":
    run(main)
