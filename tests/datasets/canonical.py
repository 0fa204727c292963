"""Canonical tables as tests read them, and small annotations of any size."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from sgpipe.datasets.canonicalize import SCHEMAS

Folder = Callable[..., Path]


def rows(out: Path, name: str) -> list[dict[str, Any]]:
    return pq.read_table(out / f"{name}.parquet").to_pylist()


def parts(out: Path) -> dict[str, bytes]:
    return {name: (out / f"{name}.parquet").read_bytes() for name in SCHEMAS}


def check_conservation(out: Path, metrics: dict[str, Any]) -> None:
    """The counts of the metrics are those of the tables, and nothing is lost."""
    rejects = rows(out, "rejects")
    for name, file, found in (
        ("relations", "relationships.json", metrics),
        ("objects", "objects.json", metrics["objects"]),
        ("images", "image_data.json", metrics["images"]),
    ):
        mine = [row for row in rejects if row["file"] == file]
        assert found["rejected"] == len(mine)
        assert Counter(row["reason"] for row in mine) == found["by_reason"]
        assert found["kept"] == sum(row.get("source") != "geometric" for row in rows(out, name))
        assert found["read"] == found["kept"] + found["rejected"]


def many(count: int) -> tuple[list[Any], list[Any], list[Any]]:
    """Records of image_data.json, objects.json and relationships.json for so many images, by seed."""
    draw = np.random.default_rng(0)
    images = [{"image_id": n, "width": 640, "height": 480, "url": None} for n in range(1, count + 1)]
    objects, relations = [], []
    for image in images:
        boxes = draw.integers(0, 400, (6, 4)).tolist()
        here = [
            {
                "object_id": 10 * image["image_id"] + n,
                "names": ["cat dog man bus"[4 * (n % 4) :][:3]],
                "x": x,
                "y": y,
                "w": w + 1,
                "h": h + 1,
            }
            | {"merged_object_ids": []}
            for n, (x, y, w, h) in enumerate(boxes)
        ]
        objects.append({"image_id": image["image_id"], "objects": here})
        pairs = draw.integers(0, 6, (5, 2)).tolist()
        words = ["on", "has", "WEARS", "next to", "zzz"]
        relations.append(
            {
                "relationships": [
                    {"relationship_id": n, "predicate": words[n], "subject": here[s], "object": here[o]}
                    for n, (s, o) in enumerate(pairs)
                ],
                "image_id": image["image_id"],
            }
        )
    return images, objects, relations


def sample_bytes(sample: Path, name: str) -> bytes:
    return (sample / f"{name}.json").read_bytes()
