"""Relations with random images and a random tower: what the encoder is pre-trained on in these tests."""

from functools import cache

import numpy as np
import pyarrow as pa
import torch

from sgpipe.datasets.images import AnnotatedImage
from sgpipe.graph_encoder.cgip import Cgip, CgipConfig
from sgpipe.graph_encoder.config import GraphEncoder
from sgpipe.graph_encoder.examples import Examples
from sgpipe.graph_encoder.features import Features
from sgpipe.graph_encoder.training import Learner, Lessons
from sgpipe.graph_encoder.vocabulary import Vocabulary
from sgpipe.graphs.config import Curate, Quality
from sgpipe.graphs.curate import curate
from sgpipe.relations.predicates import PREDICATES
from tests.graph_encoder.relations import CLASSES, relations

CPU = torch.device("cpu")
CURATE = Curate(
    predicates=CLASSES,
    map_predicates=CLASSES,
    train=80,
    val=24,
    maps_per_class=1,
    val_pairs=0.4,
    allow_short=True,
    quality=Quality(min_side=1, min_area=0),
)


@cache
def tables() -> tuple[pa.Table, pa.Table, pa.Table]:
    found, images = relations(400)
    return found, images, curate(found, images, CURATE).triples


def load(image_id: int) -> AnnotatedImage:
    """Random images."""
    pixels = np.random.default_rng(image_id).integers(0, 256, (96, 128, 3), dtype=np.uint8)
    return AnnotatedImage(pixels, (128, 96))


def damaged(examples: Examples) -> int:
    """The image that cannot be read."""
    return int(examples.crops["image_id"][40])


def lesson(examples: Examples, features: Features, part: str = "train") -> Lessons:
    known = examples.names(1)
    names = Vocabulary.of(known, list(PREDICATES))
    return Lessons(examples, features, examples.rows(part, features.read, frozenset(known)), names)


def learner(lessons: Lessons, features: Features, params: GraphEncoder) -> Learner:
    torch.manual_seed(0)
    assert isinstance(lessons.names, Vocabulary)
    sizes = len(lessons.names.objects), len(lessons.names.predicates)
    encoder = Cgip(CgipConfig(*sizes, params.width, params.embed, params.layers))
    return Learner(encoder, features.shape, params, CPU)
