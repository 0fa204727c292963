"""The scene graphs in a table of curated triples."""

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from sgpipe.graphs.scene_graph import SceneGraph


def graph_of(row: Mapping[str, Any]) -> SceneGraph:
    """The scene graph in the columns `objects`, `boxes` and `triples` of a row of curated triples."""
    triples = ((each["subject"], each["predicate"], each["object"]) for each in row["triples"])
    return SceneGraph(tuple(row["objects"]), tuple(triples), tuple(tuple(box) for box in row["boxes"]))


def graphs_of(triples: pa.Table) -> list[SceneGraph]:
    """`graph_of` of every row."""
    return [graph_of(row) for row in triples.select(["objects", "boxes", "triples"]).to_pylist()]
