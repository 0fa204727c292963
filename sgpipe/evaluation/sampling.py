"""Sample the images of an arm in shards."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from sgpipe.backbones.config import Backbone
from sgpipe.backbones.families import pipeline_parts
from sgpipe.backbones.source import locate
from sgpipe.errors import ModelError
from sgpipe.evaluation.samples import FILE, SAMPLES, to_png, write_image_file
from sgpipe.evaluation.sampling_plan import SampleRequest
from sgpipe.runs.shards import Make, Shard, Tick

if TYPE_CHECKING:
    from sgpipe.arms.kinds.base import Generator

ABOUT = "adapter.json"


def check_adapter(folder: Path) -> None:
    """Raises `ModelError` unless there is an adapter in the folder."""
    if not (folder / ABOUT).is_file():
        raise ModelError(
            f"{folder}: no adapter there ({ABOUT} is missing); `dvc repro train_lora` trains it; an epoch's checkpoint is "
            "there only if train.keep_epochs names it"
        )


def open_generator(
    backbone: Backbone,
    adapter: Path | None,
    device: torch.device,
    requests: Sequence[SampleRequest],
    guidance: float | None = None,
    offload: str = "none",
) -> "Generator":
    """The pipeline of `backbone` with an adapter, or alone; for the folder of an external arm its own generator.

    Texts of the requests are encoded before the transformer is loaded. Raises `ModelError` if pipeline and adapter do not fit one
    another.
    """
    from sgpipe.arms.external import open_external
    from sgpipe.arms.generation import GraphGenerator

    if adapter is not None and (external := open_external(adapter, device)) is not None:
        return external
    return GraphGenerator.load(
        locate(backbone, pipeline_parts(backbone)),
        adapter,
        device=str(device),
        backbone=backbone,
        guidance=guidance,
        offload=offload,
        ahead=([each.text for each in requests], [each.scene for each in requests]),
    )


def image_maker(generator: "Generator", requests: Sequence[SampleRequest], steps: int, size: int, batch_size: int) -> Make:
    """What fills a shard with its images. Raises `ModelError` if the generator's images are not what was asked for."""

    def make(shard: Shard, folder: Path, tick: Tick) -> None:
        rows: list[dict[str, Any]] = []
        for batch in shard.batches(batch_size):
            part = requests[batch]
            pixels = generator.sample(
                [each.text for each in part],
                [each.scene for each in part],
                [each.noise_seed for each in part],
                steps=steps,
                size=size,
            )
            if pixels.shape != (len(part), size, size, 3) or pixels.dtype != np.uint8:
                raise ModelError(
                    f"the generator gave {pixels.dtype} {pixels.shape} for {len(part)} images of {size} px; "
                    "set backbone.resolution to a size that the model samples"
                )
            rows += [{**vars(each), "png": to_png(image)} for each, image in zip(part, pixels, strict=True)]
            tick(len(part))
        write_image_file([pa.Table.from_pylist(rows, schema=SAMPLES)], folder / FILE, {})

    return make


def merge_images(shards: Sequence[Shard], made: Path, out: Path, facts: dict[str, Any]) -> int:
    """Make the file of images in `out` of the finished shards in `made`; how many images it holds."""
    return write_image_file((pq.read_table(made / shard.name / FILE) for shard in shards), out / FILE, facts)
