"""Which graphs are chosen: whole ones, further ones of several triples for validation, combinations that it keeps to itself."""

from itertools import product

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from msgspec.structs import replace

from sgpipe.datasets.tables import IMAGES, OBJECTS, RELATIONS
from sgpipe.errors import DataError
from sgpipe.graphs.candidates import combination_side, pair_sides
from sgpipe.graphs.config import Curate, GraphSize, Quality
from sgpipe.graphs.curate import choose, curate
from sgpipe.graphs.scene_graph import SceneGraph, combinations_of, graphs_of

NAMES = ("dog", "cat", "hat", "tree", "cup", "box", "bus", "car", "bed", "kite", "ball")
CLASSES = ("on", "in", "riding", "wearing", "holding", "left of")
PARAMS = Curate(
    predicates=("on",), train=40, val=2, map_predicates=("on",), maps_per_class=0, allow_short=True, geometric=False,
    quality=Quality(min_side=1, min_area=0.0, max_distance=1.0), graph=GraphSize(1, 3), val_pairs=0.4,
)  # fmt: skip


def tables() -> tuple[pa.Table, pa.Table, pa.Table]:
    """600 images of four objects: `a on b`, `b <class> c`; every third says nothing of the fourth, the others relate it to `a`.

    In every second image the object b of the second relation is annotated anew: another id, the same name and box.
    """
    images, objects, relations = [], [], []
    for image in range(600):
        split = "val" if image // 6 % 4 == 0 else "train"
        images.append({"image_id": image, "width": 100, "height": 100, "url": "", "split": split})
        names = [NAMES[(image + i * (1 + image % 2)) % 11] for i in range(4)]
        at = [{"name": name, "x": 10.0 + 20 * i, "y": 10.0, "w": 10.0, "h": 10.0} for i, name in enumerate(names)]
        for i, each in enumerate(at):
            objects.append({"object_id": 10 * image + i, "image_id": image, "raw_name": each["name"], **each})
        said = [(0, "on", 1), (1, CLASSES[image % len(CLASSES)], 2), *([(3, "left of", 0)] if image % 3 else [])]
        for number, (s, predicate, o) in enumerate(said):
            ids = [10 * image + end for end in (s, o)]
            if image % 2 and number == 1:
                ids[0] = 10 * image + 7
            ends = {f"{side}{n}": at[end][n] for side, end in (("s", s), ("o", o)) for n in "xywh"}
            relations.append(
                {
                    "relationship_id": 10 * image + number, "image_id": image, "subject_id": ids[0], "object_id": ids[1],
                    "subject": at[s]["name"], "predicate": predicate, "object": at[o]["name"], "raw_predicate": predicate,
                    "source": "annotated", **ends,
                }
            )  # fmt: skip
    made = zip((relations, images, objects), (RELATIONS, IMAGES, OBJECTS), strict=True)
    return tuple(pa.Table.from_pylist(rows, schema=schema) for rows, schema in made)  # type: ignore[return-value]


def chosen(**changed: object) -> pa.Table:
    relations, images, objects = tables()
    params = Curate(**{**{name: getattr(PARAMS, name) for name in PARAMS.__struct_fields__}, **changed})
    return curate(relations, images, params, objects).triples


def test_an_object_that_is_annotated_twice_is_one() -> None:
    """Image 1 says `cat on tree` and, of another id, `tree in box`: one graph over three objects."""
    made = chosen(graph=GraphSize(2, 3), val_pairs=0.01)
    graphs = dict(zip(made["image_id"].to_pylist(), graphs_of(made), strict=True))
    assert any(image % 2 for image in graphs)
    assert all(len(graph.objects) == len(graph.triples) + 1 for graph in graphs.values())


def test_whole_graphs_name_every_object_of_their_image() -> None:
    """Of images that relate all four objects; the others would show one that the prompt does not name."""
    made = chosen(graph=GraphSize(1, 3), whole=True, val_pairs=0.01)
    assert made.num_rows and all(image % 3 for image in made["image_id"].to_pylist())
    assert {len(graph.objects) for graph in graphs_of(made)} == {4}
    assert {len(graph.objects) for graph in graphs_of(chosen(val_pairs=0.01))} >= {2, 3, 4}


def test_further_graphs_for_validation_are_of_several_triples_and_other_images_relations() -> None:
    plain = chosen(val_graph=GraphSize(1, 1))
    more = chosen(val_graph=GraphSize(1, 1), several=5, several_graph=GraphSize(2, 3))
    assert more.slice(0, plain.num_rows).equals(plain)
    added = more.slice(plain.num_rows)
    assert added.num_rows == 5 and set(added["split"].to_pylist()) == {"val"}
    assert {len(graph.triples) for graph in graphs_of(added)} <= {2, 3}
    ids = more["triple_id"].to_pylist()
    assert len(set(ids)) == len(ids)
    of_val = {len(g.triples) for g, split in zip(graphs_of(plain), plain["split"].to_pylist(), strict=True) if split == "val"}
    assert of_val == {1}
    with pytest.raises(DataError, match=r"several \d+ of 500"):
        chosen(several=500, allow_short=False, train=0, val=0)


def test_classes_that_are_kept_for_validation_meet_in_no_train_graph() -> None:
    made = chosen(val_combinations=0.4, graph=GraphSize(1, 3), several=20, val_pairs=0.4)
    params = Curate(**{**{name: getattr(PARAMS, name) for name in PARAMS.__struct_fields__}, "val_combinations": 0.4})
    by_split: dict[str, set[tuple[str, str]]] = {"train": set(), "val": set()}
    for graph, split in zip(graphs_of(made), made["split"].to_pylist(), strict=True):
        by_split[split] |= combinations_of(graph.triples)
    assert by_split["train"] and not any(combination_side(each, params) == "val" for each in by_split["train"])
    assert any(combination_side(each, params) == "val" for each in by_split["val"])


def several_facts() -> tuple[pa.Table, pa.Table, pa.Table]:
    """Images of two triples over few names, so that the same triple stands in many images beside different others."""
    relations, images = [], []
    for image in range(400):
        images.append({"image_id": image, "width": 100, "height": 100, "url": "", "split": "val" if image % 7 == 0 else "train"})
        a, b, c = NAMES[image % 3], NAMES[3 + image // 3 % 3], NAMES[6 + image // 9 % 3]
        said = [(a, CLASSES[image % 2], b), (b, CLASSES[2 + image // 2 % 2], c)][: 1 + image % 5 // 2]
        for number, (s, predicate, o) in enumerate(said):
            ends = {f"{end}{n}": v for end, x in (("s", 10), ("o", 40)) for n, v in zip("xywh", (x + number, 9, 9, 9), strict=True)}
            ends |= {"sx": 40.0, "sy": 9.0} if number else {}
            ids = {"subject_id": 10 * image + number, "object_id": 10 * image + number + 1}
            relations.append(
                {
                    "relationship_id": 10 * image + number, "image_id": image, **ids, "subject": s, "predicate": predicate,
                    "object": o, "raw_predicate": predicate, "source": "annotated", **ends,
                }
            )  # fmt: skip
    return pa.Table.from_pylist(relations, schema=RELATIONS), pa.Table.from_pylist(images, schema=IMAGES), OBJECTS.empty_table()


@pytest.mark.parametrize("dev", [0.0, 0.5])
def test_held_out_combinations_are_of_train_triples_that_no_train_graph_joins(dev: float) -> None:
    params = replace(
        PARAMS, predicates=CLASSES[:4], train=20, val=4, combinations=4, several_train=150, several_graph=GraphSize(2, 2),
        graph=GraphSize(1, 1), val_pairs=0.01, dev=dev,
    )  # fmt: skip
    relations, images, objects = several_facts()
    made = curate(relations, images, params, objects)
    of_split = {split: made.triples.filter(pc.equal(made.triples["split"], split)) for split in ("train", "val")}
    trained = [graph.facts for graph in graphs_of(of_split["train"])]
    held = [graph.facts for graph in graphs_of(of_split["val"]) if len(graph.triples) == 2]
    assert len(held) == made.metrics["further"]["combinations"] == 4
    assert sum(len(facts) == 2 for facts in trained) == made.metrics["further"]["several_train"] > 20
    singly = set().union(*(facts for facts in trained if len(facts) == 1))
    for facts in held:
        assert facts <= singly and not any(facts <= each for each in trained)
    images_of = {split: set(table["image_id"].to_pylist()) for split, table in of_split.items()}
    assert not images_of["train"] & images_of["val"]
    by_class = of_split["train"].slice(0, 20)["predicate"].to_pylist()
    assert all(by_class.count(name) == 5 for name in CLASSES[:4]), "what must be shown comes first in its class, within its number"
    plain = curate(relations, images, replace(params, combinations=0), objects).triples
    assert any(facts <= each.facts for facts in held for each in graphs_of(plain.filter(pc.equal(plain["split"], "train")))), (
        "without the knob training joins some of them"
    )


def test_facts_are_the_same_however_they_are_spelled() -> None:
    graph = SceneGraph(("dog", "cat", "hat"), ((0, "right of", 1), (2, "touching", 0)))
    other = SceneGraph(("cat", "dog", "hat"), ((0, "left of", 1), (1, "touching", 2)))
    assert graph.facts == other.facts and len(graph.facts) == 2
    assert graph.facts != graph.reversed().facts


def test_a_class_and_its_inverse_are_one_in_a_combination() -> None:
    assert combinations_of([(0, "right of", 1), (1, "on", 2), (3, "in", 4)]) == {("left of", "on")}
    assert combinations_of([(0, "left of", 1), (2, "on", 1)]) == {("left of", "on")}
    sides = [combination_side(pair, Curate(val_combinations=0.5)) for pair in product(CLASSES, CLASSES)]
    assert 0.25 < sides.count("val") / len(sides) < 0.75
    assert {combination_side(pair, Curate()) for pair in product(CLASSES, CLASSES)} == {"train"}


def test_the_development_split_has_nothing_of_validation_and_shares_nothing_with_training() -> None:
    """Neither images nor pairs of names nor combinations of classes; it is made as the val split is."""
    options = {"val_combinations": 0.2, "graph": GraphSize(1, 3), "several": 10, "val": 20}
    final, made = chosen(**options), chosen(**options, dev=0.4)
    params = Curate(**{**{name: getattr(PARAMS, name) for name in PARAMS.__struct_fields__}, **options})  # type: ignore[arg-type]
    of = {
        key: table.filter(pc.equal(table["split"], split))
        for table, key, split in ((final, "val", "val"), (made, "dev", "val"), (made, "train", "train"))
    }
    images = {key: set(table["image_id"].to_pylist()) for key, table in of.items()}
    pairs = {
        key: {frozenset((g.objects[s], g.objects[o])) for g in graphs_of(table) for s, _, o in g.triples}
        for key, table in of.items()
    }
    assert all(images.values()) and not images["val"] & (images["dev"] | images["train"]) and not images["dev"] & images["train"]
    assert not pairs["dev"] & pairs["train"]
    assert "val" not in pair_sides([tuple(sorted(pair)) for pair in pairs["dev"] | pairs["train"]], params)
    met = {key: {c for g in graphs_of(table) for c in combinations_of(g.triples)} for key, table in of.items()}
    kept = {each for each in met["dev"] - met["train"] if combination_side(each, replace(params, dev=0.4)) == "val"}
    assert kept and not any(combination_side(each, params) == "val" for each in met["dev"] | met["train"])
    assert max(len(g.triples) for g in graphs_of(of["dev"])) > 1


def test_whole_graphs_of_each_size_take_turns() -> None:
    """Most images show two objects; a class takes as many graphs of several triples as there are, then fills up."""
    rows = [
        {"predicate": "on", "side": "train", "size": size, "derived": False, "rank": rank, "image_id": rank, "relationship_id": 0}
        for rank, size in enumerate([1] * 10 + [2] * 3 + [3])
    ]
    frame = pl.DataFrame(rows).with_columns(subject=pl.lit("dog"), object=pl.lit("box"))
    assert choose(frame, "train", ("on",), 6, 0)["size"].to_list() == [1, 2, 3, 1, 2, 1]
    assert choose(frame, "train", ("on",), 9, 0)["size"].value_counts().sort("size")["count"].to_list() == [5, 3, 1]
    assert choose(frame.with_columns(size=pl.lit(0)), "train", ("on",), 4, 0)["rank"].to_list() == [0, 1, 2, 3]
