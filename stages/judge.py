"""What the judges say of the arms' images, and of ground-truth ones for their calibrations."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from sgpipe.backbones.config import Backbone
from sgpipe.datasets.config import Data
from sgpipe.datasets.images import ImageStore, open_images
from sgpipe.datasets.tables import NEGATIVES, TRIPLES, read_table, write_table
from sgpipe.errors import DataError
from sgpipe.evaluation.calibration import ground_truth_figures, questions
from sgpipe.evaluation.config import JudgeParams, Quality
from sgpipe.evaluation.extractors import Extractor, Features, feature_maker, merge_features, open_extractor, quality_identity
from sgpipe.evaluation.judge_factory import judge_identity, open_judge
from sgpipe.evaluation.judging import Work, ground_truth_images, judge_maker, merge_verdicts
from sgpipe.evaluation.samples import FILE, ImageFile
from sgpipe.evaluation.sampling_plan import read_evaluation_triples
from sgpipe.params.load import read_params, to_builtins
from sgpipe.runs.atomic import new_folder
from sgpipe.runs.command import run
from sgpipe.runs.config import Compute
from sgpipe.runs.processes import start
from sgpipe.runs.shards import Make, run_shards
from stages import IMAGES, JUDGED, NEGATIVES_FILE, TRIPLES_FILE
from stages._stage import working


def main(
    images: Annotated[Path, typer.Option(help="folder with a folder of images per arm")] = IMAGES,
    out: Annotated[Path, typer.Option(help="folder of the verdicts")] = JUDGED,
) -> None:
    """Let every judge see every image; killed at any point, the same command goes on. Nothing is sampled."""
    config, backbone, compute, data = read_params(JudgeParams, Backbone, Compute, Data)
    quality = read_params(Quality) if images == IMAGES else Quality()  # epochs are compared by what judges say alone
    who = {name: judge_identity(name, each) for name, each in config.judges.items()}
    files = {file.arm: file for file in (ImageFile(path.parent) for path in sorted(images.glob(f"*/{FILE}")))}
    if not files:
        raise DataError(f"{images}: no arm's images there; run `dvc repro sample_base sample_images`")
    triples = read_table(TRIPLES_FILE, TRIPLES)
    against = read_table(NEGATIVES_FILE, NEGATIVES)
    val, cases = (read_evaluation_triples(triples, against, seen=seen) for seen in (0, None))
    known = {case.triple_id for case in cases}
    for file in files.values():
        if not known.issuperset(file.items["triple_id"].unique().to_pylist()):
            raise DataError(
                f"{file.path}: images of triples that are not among the curated ones; DVC leaves the folder of an arm or epoch "
                f"that is asked for no more: remove {file.path.parent}, or sample it again"
            )
    work = Work(cases, files, questions(val), tuple(config.judges))
    processes, store = start(compute), ImageStore(open_images(data))
    shards, features = work.shards(config.shard_size), Features.of(quality, files, val, triples)
    feature_shards = features.shards(config.shard_size)

    def open_maker() -> Make:
        return judge_maker(
            work,
            lambda name: open_judge(name, config.judges[name], processes.device),
            lambda: ground_truth_images(val, store, backbone.resolution),
            config.batch_size,
        )

    def open_features() -> Make:
        def open_network(name: str) -> Extractor:
            return open_extractor(name, quality, features.classes, processes.device)

        return feature_maker(features, open_network, store, backbone.resolution, config.batch_size)

    inputs = [TRIPLES_FILE, NEGATIVES_FILE, *(file.path.parent for file in files.values())]
    asked = {"judge": to_builtins(config), "judges": who, "quality": quality_identity(quality), "reference": quality.reference}
    plain = {**asked, "images": store.signature(), "side": backbone.resolution}
    with working("judge", plain, {"judge": config}, inputs, processes) as (state, recorded):
        run_shards(shards, state, processes, open_maker, "image")
        run_shards(feature_shards, state, processes, open_features, "image")
        if processes.is_main:
            said = merge_verdicts(work, shards, state)
            with new_folder(out) as folder:
                for name in ("verdicts", "calibration", "rejects", "features"):
                    write_table(getattr(said, name), folder / f"{name}.parquet")
                write_table(merge_features(feature_shards, state), folder / "quality.parquet")
            truth = ground_truth_figures(len(val), said.rejects)
            if said.rejects.num_rows:
                reasons = ", ".join(f"{name}: {count}" for name, count in truth["rejected_by_reason"].items())
                print(
                    f"warning: ground truth of {said.rejects.num_rows} of {len(val)} val triples cannot be read "
                    f"({reasons}); judges are calibrated on the others, and {out / 'rejects.parquet'} names these",
                    file=sys.stderr,
                )
            counts = {"verdicts": said.verdicts.num_rows, "questions": said.calibration.num_rows}
            recorded.log_metrics({**counts, "ground_truth": truth})


if __name__ == "__main__":
    run(main)
