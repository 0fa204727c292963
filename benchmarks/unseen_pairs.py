"""Who decides roles and classes of pairs that nobody picked: base, empty graph, g⁺ and g⁻ on far more pairs than val has.

The val split has few pairs, and a model that is told nothing of the roles samples a pair much alike from every noise, so that a
share of val images can lie far from a half by luck. Here each pair of names that no train or val triple has is asked once per axis
(above/below, left of/right of, …) or class, under a neutral prompt, judged by the headline's judge; and which of the 24 classes it
sees there and who is the subject, which an empty graph should leave as the base has them. Nothing is chosen by these figures.

Run `python -m benchmarks.unseen_pairs --out metrics/unseen_pairs.json` after `dvc repro`.
"""

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import torch
import typer
from numpy.typing import NDArray

from sgpipe.backbones.config import Backbone
from sgpipe.datasets.tables import RELATIONS, TRIPLES, read_table
from sgpipe.errors import DataError
from sgpipe.evaluation.calibration import choices
from sgpipe.evaluation.config import HEADLINE, Evaluate, JudgeParams, Statistics
from sgpipe.evaluation.judge_factory import open_judge
from sgpipe.evaluation.judges import Judge
from sgpipe.evaluation.sampling import open_generator
from sgpipe.evaluation.sampling_plan import BASE, EvaluationTriple, plan
from sgpipe.evaluation.statistics import Bootstrap, Floats
from sgpipe.evaluation.summary import bounds
from sgpipe.graphs.negatives import contradiction
from sgpipe.graphs.prompts import words
from sgpipe.graphs.scene_graph import SceneGraph
from sgpipe.params.load import read_section
from sgpipe.relations.predicates import INVERSE, PREDICATES
from sgpipe.runs.atomic import DIGITS, write_json
from sgpipe.runs.hashing import hashed

CPU = torch.device("cpu")
GRAPHS = ("positive", "negative", "empty")


def unseen(relations: pa.Table, triples: pa.Table, count: int | None = None) -> list[EvaluationTriple]:
    """One relation, by hash, of each class (of two inverse ones together) and pair of names that no triple has; classes are those
    of the triples. Raises `DataError` if there is no such pair.
    """
    seen = {frozenset(pair) for pair in zip(*(triples[n].to_pylist() for n in ("subject", "object")), strict=True)}
    for names, related in zip(triples["objects"].to_pylist(), triples["triples"].to_pylist(), strict=True):
        seen |= {frozenset((names[each["subject"]], names[each["object"]])) for each in related or ()}
    classes = set(triples["predicate"].to_pylist())
    ids = [relations[name].to_numpy() for name in ("image_id", "relationship_id")]
    ranks = hashed(0, "unseen pairs", *ids)
    found: dict[Any, EvaluationTriple] = {}
    order = np.argsort(ranks, kind="stable")
    for rank, row in zip(ranks[order].tolist(), relations.take(order).to_pylist(), strict=True):
        subject, predicate, object_ = row["subject"], row["predicate"], row["object"]
        pair = frozenset((subject, object_))
        if predicate not in classes or len(pair) < 2 or pair in seen:
            continue
        graph = SceneGraph.of(subject, predicate, object_)
        named = (0, 1) if rank % 2 else (1, 0)
        kind, against = ("swap" if predicate in INVERSE else "replace"), contradiction(subject, predicate, object_)
        case = EvaluationTriple(
            f"{row['image_id']}-{row['relationship_id']}",
            row["image_id"],
            (0.0, 0.0, 0.0, 0.0),
            graph,
            graph.negated(kind, against[1]),
            kind,
            {"neutral": words(graph, "neutral", named)},
        )
        found.setdefault((pair, frozenset((predicate, INVERSE.get(predicate, predicate)))), case)
    if not found:
        raise DataError("every pair of names of a relation is in a train or val triple")
    return list(found.values())[:count]


def figures(images: NDArray[np.uint8], cases: list[EvaluationTriple], judge: Judge, statistics: Statistics) -> dict[str, Any]:
    """Direction accuracy of g⁺ in images of the right kind of arrangement, of classes whose negative swaps the roles, and objects
    present, with intervals by pair; `classes`, and `first_is_subject` of the images whose class has a subject.

    `images` are those of all cases with one noise, then those with the next, and so on.
    """
    every = cases * (len(images) // len(cases))
    scores = judge.scores(images, [(case.positive, case.negative) for case in every])
    chosen = choices(scores[:, :1].astype(float), scores[:, 1:].astype(float)).reshape(-1, len(cases)).T
    chosen = np.where(np.array([case.kind == "swap" for case in cases])[:, None], chosen, np.nan)
    seen, first = _seen(images, every, judge)
    bootstrap = Bootstrap(statistics.resamples, statistics.confidence, statistics.seed)
    roles = bootstrap.mean(chosen)
    return {
        **bounds("direction_accuracy", roles),
        "direction_accuracy_images": roles.count,
        "objects_present": float(np.isfinite(scores).all(1).mean()),
        "classes": {name: float((seen == index).mean()) for index, name in enumerate(PREDICATES)},
        **bounds("first_is_subject", bootstrap.mean(first.reshape(-1, len(cases)).T)),
    }


def _seen(images: NDArray[np.uint8], cases: list[EvaluationTriple], judge: Judge) -> tuple[NDArray[np.int64], Floats]:
    """Of each image the number of the class that the judge scores highest, either way round, -1 without a positive score; and 1
    where the name that comes first in the alphabet is its subject, 0 where the other is, NaN where both are or neither."""
    statements = [[(s, name, o) for name in PREDICATES for s, o in (case.positive[::2], case.positive[::-2])] for case in cases]
    scores = np.nan_to_num(judge.scores(images, statements)).reshape(len(cases), len(PREDICATES), 2)
    seen = np.where(scores.max((1, 2)) > 0, scores.max(2).argmax(1), -1)
    told, turned = scores[np.arange(len(cases)), np.maximum(seen, 0)].T
    alphabetical = np.array([case.positive[0] < case.positive[2] for case in cases])
    first = np.where(told == turned, np.nan, (told > turned) == alphabetical)
    return seen, first


def left_as_it_was(base: dict[str, Any], empty: dict[str, Any]) -> dict[str, float]:
    """How far an empty graph moves the base: of direction accuracy, of roles, and of the class whose share moves most."""
    moved = {name: abs(base["classes"][name] - empty["classes"][name]) for name in PREDICATES}
    largest = max(moved, key=moved.__getitem__)
    return {
        "direction_accuracy_difference": abs(base["direction_accuracy"] - empty["direction_accuracy"]),
        "first_is_subject_difference": abs(base["first_is_subject"] - empty["first_is_subject"]),
        "largest_class_difference": moved[largest],
        "objects_present_difference": abs(base["objects_present"] - empty["objects_present"]),
    }


def main(
    params: Annotated[Path, typer.Option(help="parameter file")] = Path("params.yaml"),
    canonical: Annotated[Path, typer.Option(help="folder of the relations")] = Path("outputs/canonical"),
    curated: Annotated[Path, typer.Option(help="folder of the triples")] = Path("outputs/curated"),
    adapter: Annotated[Path, typer.Option(help="adapter that is evaluated")] = Path("outputs/lora/graph/adapter"),
    count: Annotated[int | None, typer.Option(min=2, help="no more than so many; else all")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="noises of each")] = 1,
    out: Annotated[Path | None, typer.Option(help="write the figures to this JSON file")] = None,
) -> None:
    """SampleRequest and judge."""
    backbone = read_section(params, "backbone", Backbone)
    evaluate = read_section(params, "evaluate", Evaluate)
    judges = read_section(params, "judge", JudgeParams)
    statistics = read_section(params, "statistics", Statistics)
    cases = unseen(read_table(canonical / "relations.parquet", RELATIONS), read_table(curated / "triples.parquet", TRIPLES), count)
    judge = open_judge(judges.headline, judges.judges[judges.headline], CPU)
    found: dict[str, Any] = {"triples": len(cases), "seeds": seeds, "judge": judges.headline, "conditions": {}}
    for name, shown, given in ((BASE, ("positive",), "none"), ("graph", GRAPHS, "graphs")):
        planned = {graph: plan(cases, {HEADLINE: (graph,)}, range(seeds), given) for graph in shown}
        every = [each for requests in planned.values() for each in requests]
        generator = open_generator(backbone, None if name == BASE else adapter, CPU, every)
        for graph, requests in planned.items():
            images = generator.sample(
                [each.text for each in requests],
                [each.scene for each in requests],
                [each.noise_seed for each in requests],
                steps=evaluate.steps,
                size=backbone.resolution,
            )
            key = name if name == BASE else f"{name}, {graph} graph"
            found["conditions"][key] = row = figures(images, cases, judge, statistics)
            print(
                f"{key}: direction accuracy of g⁺ {row['direction_accuracy']:.3f} [{row['direction_accuracy_low']:.3f}, "
                f"{row['direction_accuracy_high']:.3f}] of {row['direction_accuracy_images']}, "
                f"both objects {row['objects_present']:.3f}"
            )
    found["empty_graph"] = left_as_it_was(found["conditions"][BASE], found["conditions"]["graph, empty graph"])
    print("an empty graph moves", ", ".join(f"{name} by {value:.3f}" for name, value in found["empty_graph"].items()))
    if out:
        write_json(found, out, DIGITS)


if __name__ == "__main__":
    typer.run(main)
