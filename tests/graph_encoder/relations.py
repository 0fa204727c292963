"""Random relations of images of 128 × 96 pixels, as the two tables of stage `canonicalize`."""

from typing import Any

import numpy as np
import pyarrow as pa

from sgpipe.datasets.tables import IMAGES, RELATIONS

CLASSES = ("on", "left of", "above", "around/near")
_NAMES = ("dog", "cat", "table", "ball", "tree", "hat", "cup", "box")


def relations(count: int, seed: int = 0) -> tuple[pa.Table, pa.Table]:
    """`count` relations of half as many images, and the images."""
    draw = np.random.default_rng(seed)
    images = count // 2
    ends = np.array([draw.choice(len(_NAMES), 2, replace=False) for _ in range(count)])
    columns: dict[str, Any] = {
        "relationship_id": np.arange(count),
        "image_id": draw.integers(0, images, count),
        "subject_id": np.arange(count),
        "object_id": np.arange(count) + count,
        "subject": [_NAMES[n] for n in ends[:, 0]],
        "predicate": draw.choice(CLASSES, count).astype(object),
        "object": [_NAMES[n] for n in ends[:, 1]],
        "raw_predicate": pa.nulls(count, pa.string()),
        "source": draw.choice(["annotated", "geometric"], count).astype(object),
    }
    for side in "so":
        columns |= {f"{side}{name}": draw.integers(4, 40, count).astype(np.float32) for name in "xywh"}
    sizes = {
        "image_id": np.arange(images),
        "width": np.full(images, 128, np.int32),
        "height": np.full(images, 96, np.int32),
        "url": pa.nulls(images, pa.string()),
        "split": draw.choice(["train", "val"], images, p=[0.7, 0.3]).astype(object),
    }
    return pa.table(columns, schema=RELATIONS), pa.table(sizes, schema=IMAGES)
