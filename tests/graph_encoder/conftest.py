"""One thread for tiny tensors; a tower, examples and features, made once."""

from collections.abc import Iterator

import pytest
import torch

from sgpipe.datasets.images import AnnotatedImage
from sgpipe.errors import DataError
from sgpipe.graph_encoder.config import GraphEncoder
from sgpipe.graph_encoder.examples import Examples
from sgpipe.graph_encoder.features import Features, feature_maker
from sgpipe.graph_encoder.open_vocabulary import NameTable
from sgpipe.graph_encoder.tower import ImageTower
from sgpipe.relations.predicates import PREDICATES, phrase
from sgpipe.runs.shards import cut
from sgworld.contrast import Tower, build_clip, save_local
from tests.graph_encoder.world import CPU, CURATE, damaged, load, tables


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="package", autouse=True)
def no_waiting_for_the_disk() -> Iterator[None]:
    """Files are renamed into place without being synced first: a power failure is not tested."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("os.fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="package")
def params(tmp_path_factory: pytest.TempPathFactory) -> GraphEncoder:
    """Knobs for a random tower of 4 × 4 patches, as open_clip reads it from a folder."""
    folder = tmp_path_factory.mktemp("tower")
    size = Tower(width=32, layers=3, patch=16, embed=16)
    save_local(build_clip(size, seed=1), size, folder)
    return GraphEncoder(
        tower=f"local-dir:{folder}",
        files=str(folder),
        embed=24,
        width=32,
        layers=1,
        queries=2,
        steps=6,
        batch_size=16,
        masked_batch=4,
        tower_batch=8,
        shard_size=50,
        development=0.3,
    )


@pytest.fixture(scope="package")
def tower(params: GraphEncoder) -> ImageTower:
    return ImageTower(params, CPU)


@pytest.fixture(scope="package")
def examples(params: GraphEncoder) -> Examples:
    return Examples.of(*tables(), CURATE, params)


@pytest.fixture(scope="package")
def features(params: GraphEncoder, tower: ImageTower, examples: Examples, tmp_path_factory: pytest.TempPathFactory) -> Features:
    made = tmp_path_factory.mktemp("features")

    def read(image_id: int) -> AnnotatedImage:
        if image_id == damaged(examples):
            raise DataError("damaged")
        return load(image_id)

    shards = cut("features", len(examples.crops), params.shard_size)
    make = feature_maker(tower, read, examples.crops, params.tower_batch, "it")
    for shard in shards:
        (made / shard.name).mkdir()
        make(shard, made / shard.name, lambda _: None)
    return Features(shards, made, len(examples.crops), "it")


@pytest.fixture(scope="package")
def texts(examples: Examples) -> NameTable:
    generator = torch.Generator().manual_seed(0)
    words = [*examples.names(1), *map(phrase, PREDICATES)]
    return NameTable({word: torch.randn(20, generator=generator) for word in words})
