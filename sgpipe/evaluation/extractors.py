"""What networks that judge nothing make of images, for figures of quality: features, class logits and CLIP scores.

`tower` is an open_clip model whose classes are captions; `inception` is the network of 2015 that FID is defined by.
"""

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from PIL import Image

from sgpipe.backbones.images import CropRejected, read_crop
from sgpipe.backbones.open_clip_models import LOCAL, load_open_clip, open_clip_hash
from sgpipe.backbones.strict import OF_THE_MACHINE, why
from sgpipe.datasets.images import ImageStore
from sgpipe.datasets.tables import write_table
from sgpipe.errors import ModelError, SgpipeError
from sgpipe.evaluation.arms import headline_conditions
from sgpipe.evaluation.config import Quality
from sgpipe.evaluation.samples import QUALITY, REAL, REFERENCE, ImageFile, Pixels
from sgpipe.evaluation.sampling_plan import EvaluationTriple
from sgpipe.runs.hashing import hashed, text_ids
from sgpipe.runs.shards import Make, Shard, Tick, cut

INCEPTION_SHA256: Final = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"
"""Of inception-2015-12-05.pt, the published network as TorchScript: weights, layers and resizing in one file."""
_SHARDS: Final = "quality"


class Seen(NamedTuple):
    """What a network makes of N images, float32: features `[N, D]`, class logits `[N, P]`, CLIP scores `[N]` or None."""

    features: NDArray[np.float32]
    logits: NDArray[np.float32]
    clip_score: NDArray[np.float32] | None


class Extractor(Protocol):
    """A network of section `quality`."""

    def __call__(self, images: Pixels, captions: Sequence[str]) -> Seen:
        """Of images `[N, H, W, 3]`, 0–255, each with its caption."""


class Tower:
    """An open_clip model: image embeddings before they are divided by their length, and zero-shot logits over `classes`.

    The CLIP score is 100 max(cos(image, caption), 0) (Hessel et al. 2021, without their factor 2.5).
    """

    def __init__(self, params: Quality, classes: Sequence[str], device: torch.device) -> None:
        import open_clip

        name, self._device = str(params.tower), device
        try:
            model, self._preprocess = load_open_clip(name, params.pretrained, device)
            self._tokenizer = open_clip.get_tokenizer(name)
        except (SgpipeError, *OF_THE_MACHINE):
            raise
        except Exception as error:
            raise ModelError(
                f"quality.tower: {name} cannot be loaded ({why(error)}); give a local folder of open_clip, or fetch it into the "
                "hub's cache where there is a network (`hf download`), or set it to null"
            ) from error
        self._model = model.requires_grad_(False).eval()
        self._classes = self._text(sorted(set(classes)))

    @torch.no_grad()
    def _text(self, captions: Sequence[str]) -> torch.Tensor:
        return self._model.encode_text(self._tokenizer(list(captions)).to(self._device), normalize=True)

    @torch.no_grad()
    def __call__(self, images: Pixels, captions: Sequence[str]) -> Seen:
        """See `Extractor`."""
        pixels = torch.stack([self._preprocess(Image.fromarray(image)) for image in images])
        embedded = self._model.encode_image(pixels.to(self._device)).float()
        unit = torch.nn.functional.normalize(embedded, dim=-1)
        different = list(dict.fromkeys(captions))
        own = self._text(different).float()[[different.index(each) for each in captions]]
        logits = self._model.logit_scale.exp() * unit @ self._classes.float().T
        score = 100 * (unit * own).sum(dim=-1).clamp(min=0)
        return Seen(*(each.float().cpu().numpy() for each in (embedded, logits, score)))


class Inception:
    """The published Inception network: its pool features `[N, 2048]`, and logits without the bias of the last layer `[N, 1008]`.

    It resizes images to 299 px itself. Its class probabilities are taken as logits by their logarithm. Raises `ModelError` for
    another file: FID by other weights or another resizing compares with no published one.
    """

    def __init__(self, params: Quality, device: torch.device) -> None:
        path, self._device = Path(str(params.inception)), device
        check_inception(path)
        try:
            self._model = torch.jit.load(str(path), map_location=device).eval()
        except RuntimeError as error:
            raise ModelError(f"quality.inception: {path}: TorchScript cannot load it ({why(error)}); fetch it again") from None

    @torch.no_grad()
    def __call__(self, images: Pixels, captions: Sequence[str]) -> Seen:
        """See `Extractor`."""
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2).to(self._device)
        features = self._model(pixels, return_features=True)
        probabilities = self._model(pixels, no_output_bias=True)
        return Seen(features.float().cpu().numpy(), probabilities.float().clamp(min=1e-30).log().cpu().numpy(), None)


def check_inception(path: Path) -> None:
    """Raises `ModelError` unless the file is the published network."""
    advice = "inception-2015-12-05.pt of StyleGAN2-ADA (PyTorch) is needed, or null"
    try:
        with path.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise ModelError(f"quality.inception: {path}: cannot be read ({error.strerror}); {advice}") from None
    if found != INCEPTION_SHA256:
        raise ModelError(f"quality.inception: {path}: another file than the published one, by SHA-256 {found[:12]}…; {advice}")


def quality_identity(params: Quality) -> dict[str, Any]:
    """What features depend on, by network. Raises `ModelError` for local weights that are missing or not the published ones."""
    found: dict[str, Any] = {}
    if params.tower is not None:
        folder = Path(params.tower.removeprefix(LOCAL))
        if params.tower.startswith(LOCAL) and not folder.is_dir():
            raise ModelError(f"quality.tower: {params.tower}: no such folder; `dvc pull models.dvc` gets the embedded one")
        weights = open_clip_hash(folder) if params.tower.startswith(LOCAL) else None
        found["tower"] = {"model": params.tower, "pretrained": params.pretrained, "weights": weights}
    if params.inception is not None:
        check_inception(Path(params.inception))
        found["inception"] = INCEPTION_SHA256
    return found


@dataclass(frozen=True)
class Features:
    """What is extracted: by each of `networks` of the rows of each arm's file that count for it, and of ground-truth crops.

    `crops` are rows of curated triples by source, those of `REAL` in the order of the evaluated triples.
    """

    networks: Sequence[str]
    files: Mapping[str, ImageFile]
    rows: Mapping[str, NDArray[np.int64]]
    crops: Mapping[str, Sequence[Mapping[str, Any]]]
    captions: Mapping[str, str]

    @classmethod
    def of(
        cls, params: Quality, files: Mapping[str, ImageFile], cases: Sequence[EvaluationTriple], triples: pa.Table
    ) -> "Features":
        """`triples` are the curated ones; of those of the train split `quality.reference` are taken by hash of their ids."""
        names = [name for name in ("tower", "inception") if getattr(params, name) is not None]
        known = {case.triple_id for case in cases}
        rows = triples.to_pylist()
        train = [row for row in rows if row["split"] == "train"]
        rank = hashed(0, "quality reference", text_ids([row["triple_id"] for row in train])) if train else np.empty(0)
        chosen = [train[index] for index in sorted(np.argsort(rank, kind="stable")[: params.reference].tolist())]
        return cls(
            names,
            files,
            {arm: _own_rows(file, known) for arm, file in files.items()},
            {REAL: [row for row in rows if row["triple_id"] in known], REFERENCE: chosen},
            {row["triple_id"]: row["prompt"] for row in rows},
        )

    @property
    def classes(self) -> list[str]:
        """Relational prompts of the evaluated triples, between which the tower chooses."""
        return sorted({self.captions[row["triple_id"]] for row in self.crops[REAL]})

    def shards(self, size: int) -> list[Shard]:
        """One kind per network and source."""
        counts = {**{arm: len(rows) for arm, rows in self.rows.items()}, **{name: len(rows) for name, rows in self.crops.items()}}
        return [
            shard
            for network in self.networks
            for source, count in counts.items()
            for shard in cut(f"{_SHARDS}.{network}.{source}", count, size)
        ]


def _own_rows(file: ImageFile, known: Collection[str]) -> NDArray[np.int64]:
    """Rows of the known triples under the condition that counts for the arm (`arms.headline_conditions`)."""
    seen = set(zip(file.items["prompt"].to_pylist(), file.items["graph"].to_pylist(), strict=True))
    prompt, graph = headline_conditions({each: each for each in seen})[0]
    own = pc.and_(pc.equal(file.items["prompt"], prompt), pc.equal(file.items["graph"], graph))
    own = pc.and_(own, pc.is_in(file.items["triple_id"], pa.array(sorted(known))))
    return np.flatnonzero(own.to_numpy(zero_copy_only=False))


def open_extractor(name: str, params: Quality, classes: Sequence[str], device: torch.device) -> Extractor:
    """A network by its name. Raises `ModelError` where it cannot be loaded."""
    return Tower(params, classes, device) if name == "tower" else Inception(params, device)


def feature_maker(
    features: Features, open_network: Callable[[str], Extractor], store: ImageStore, side: int, batch_size: int
) -> Make:
    """What fills a shard with rows of `QUALITY`. Crops that cannot be read have none. Networks are loaded when first needed."""
    opened = cache(open_network)

    def crops(rows: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], list[Pixels]]:
        names, images = [], []
        for row in rows:
            try:
                box = (row["crop_x"], row["crop_y"], row["crop_w"], row["crop_h"])
                images.append(read_crop(store.load, row["image_id"], box, side)[0])
            except CropRejected:
                continue
            names.append({"triple_id": row["triple_id"]})
        return names, images

    def make(shard: Shard, folder: Path, tick: Tick) -> None:
        network, source = shard.name.removeprefix(f"{_SHARDS}.").rpartition("-")[0].split(".", 1)
        tables = [QUALITY.empty_table()]
        for batch in shard.batches(batch_size):
            if source in features.files:
                at = features.rows[source][batch]
                images: Any = features.files[source].read(at)
                items = features.files[source].items.take(pa.array(at)).select(["triple_id", "prompt", "graph", "seed"]).to_pylist()
            else:
                items, images = crops(features.crops[source][batch])
            if items:
                seen = opened(network)(np.stack(images), [features.captions[item["triple_id"]] for item in items])
                scores = [None] * len(items) if seen.clip_score is None else seen.clip_score.tolist()
                rows = zip(items, seen.features.astype("<f4"), seen.logits.astype("<f4"), scores, strict=True)
                made = [
                    {"network": network, "source": source, **item, "feature": f.tobytes(), "logits": p.tobytes(), "clip_score": s}
                    for item, f, p, s in rows
                ]
                tables.append(pa.Table.from_pylist(made, schema=QUALITY))
            tick(batch.stop - batch.start)
        write_table(pa.concat_tables(tables), folder / "quality.parquet")

    return make


def merge_features(shards: Sequence[Shard], made: Path) -> pa.Table:
    """Rows of `QUALITY` of the finished shards in `made`."""
    read = (pq.read_table(made / shard.name / "quality.parquet", schema=QUALITY) for shard in shards)
    return pa.concat_tables([QUALITY.empty_table(), *read])
