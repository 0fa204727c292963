"""The sections of params.yaml that this package reads: which triples are chosen, and their negatives."""

from typing import Annotated, Literal

from msgspec import Meta, Struct, field

from sgpipe.relations.predicates import PREDICATE_INDEX, PREDICATES

SUPPORTED = (
    "on", "in", "around/near", "above", "below", "behind", "in front of", "wearing", "holding", "sitting on", "standing on",
    "hanging from", "riding", "carrying", "eating", "looking at",
)  # fmt: skip
"""The 16 of the built-in classes with enough support in Visual Genome."""


class Quality(Struct, frozen=True, forbid_unknown_fields=True):
    """Bounds on the two boxes and names of a relation; one that misses a bound is no candidate."""

    min_area: Annotated[float, Meta(ge=0.0, lt=1.0, description="smallest box area, fraction of the image")] = 0.005
    min_side: Annotated[float, Meta(ge=0.0, description="smallest box side, pixels")] = 32.0
    max_overlap: Annotated[float, Meta(gt=0.0, le=1.0, description="largest intersection over union")] = 0.9
    max_size_ratio: Annotated[float, Meta(ge=1.0, description="largest ratio of the two areas")] = 100.0
    max_distance: Annotated[
        float, Meta(gt=0.0, le=1.0, description="largest distance of the centres, fraction of the image diagonal")
    ] = 0.7
    max_name_words: Annotated[int, Meta(ge=1, description="longest object name, words; longer ones are sentences")] = 3
    distinct_names: Annotated[bool, Meta(description="leave out relations whose two objects have the same name")] = True


class Crop(Struct, frozen=True, forbid_unknown_fields=True):
    """The region of the image that stands for a triple."""

    kind: Annotated[Literal["image", "union"], Meta(description="the full image, or the square around both boxes")] = "union"
    margin: Annotated[
        float, Meta(ge=0.0, le=2.0, description="margin of a union crop on every side, fraction of its longer side")
    ] = 0.1
    min_side: Annotated[float, Meta(ge=0.0, description="smallest side of a union crop, pixels, as far as the image allows")] = 0.0
    align: Annotated[
        float, Meta(ge=0.0, description="corners of a union crop are multiples of this many pixels; 0 is any place")
    ] = 0.0


class GraphSize(Struct, frozen=True, forbid_unknown_fields=True):
    """How many triples a scene graph has: a chosen relation, and others of its image that share an object with the graph."""

    min: Annotated[int, Meta(ge=1, le=16, description="relations whose image gives fewer triples are no candidates")] = 1
    max: Annotated[int, Meta(ge=1, le=16, description="most triples; each number from `min` on is aimed at equally often")] = 1

    def __post_init__(self) -> None:
        if self.min > self.max:
            raise ValueError(f"min: got min {self.min}, max {self.max}; min must not be above max")


class Curate(Struct, frozen=True, forbid_unknown_fields=True):
    """Section `curate`. Which triples are chosen for training, validation and maps, and what part of the image stands for each."""

    predicates: Annotated[
        tuple[str, ...], Meta(min_length=1, description="classes of the train and val triples, equally many of each")
    ] = field(default_factory=lambda: tuple(name for name in SUPPORTED if name in PREDICATE_INDEX) or tuple(PREDICATES))
    train: Annotated[int, Meta(ge=0, description="train triples, a multiple of the number of classes")] = 800
    val: Annotated[int, Meta(ge=0, description="val triples, a multiple of the number of classes")] = 160
    map_predicates: Annotated[tuple[str, ...], Meta(description="classes of the triples for the maps")] = field(
        default_factory=lambda: tuple(PREDICATES)
    )
    maps_per_class: Annotated[int, Meta(ge=0, description="triples for the maps, of each class")] = 700
    graph: Annotated[GraphSize, Meta(description="triples per scene graph of the train triples and of those for the maps")] = (
        GraphSize()
    )
    val_graph: Annotated[GraphSize, Meta(description="the same of the val triples")] = GraphSize()
    several: Annotated[int, Meta(ge=0, description="further val graphs, of `several_graph` triples, whatever their classes")] = 0
    several_graph: Annotated[GraphSize, Meta(description="triples of these")] = GraphSize(2, 3)
    several_train: Annotated[int, Meta(ge=0, description="further train graphs of `several_graph` triples")] = 0
    combinations: Annotated[
        int,
        Meta(
            ge=0,
            description="further val graphs of `several_graph` triples of `predicates`, each of which is a train triple while no "
            "train graph has two of them: held-out combinations of triples",
        ),
    ] = 0
    whole: Annotated[
        bool, Meta(description="only graphs that name every object annotated in their image, so that an image shows what is told")
    ] = False
    val_pairs: Annotated[
        float, Meta(gt=0.0, lt=1.0, description="fraction of unordered (subject, object) name pairs that are kept for val")
    ] = 0.2
    val_combinations: Annotated[
        float, Meta(ge=0.0, lt=1.0, description="fraction of unordered pairs of classes that meet at an object in val graphs alone")
    ] = 0.0
    dev: Annotated[
        float,
        Meta(
            ge=0.0,
            lt=1.0,
            description="share of the train images' name pairs, and of combinations as many as `val_combinations`, that take "
            "the val split's place: the development split, on which recipes are chosen without reading a val triple; 0: none",
        ),
    ] = 0.0
    max_per_pair: Annotated[
        int, Meta(ge=0, description="most triples of a class with the same two names in train or val; 0 is no limit")
    ] = 0
    geometric: Annotated[bool, Meta(description="let relations derived from boxes fill what annotated ones leave")] = True
    allow_short: Annotated[bool, Meta(description="take what there is of a class that is too small; false is an error")] = False
    seed: Annotated[int, Meta(ge=0, lt=1 << 32, description="seed of the choice and of the mention order")] = 0
    quality: Annotated[Quality, Meta(description="what a candidate must fulfil")] = Quality()
    crop: Annotated[Crop, Meta(description="what part of the image is used")] = Crop()

    def __post_init__(self) -> None:
        for key in ("predicates", "map_predicates"):
            given: tuple[str, ...] = getattr(self, key)
            for name in given:
                if name not in PREDICATE_INDEX:
                    raise ValueError(f"{key}: got {name!r}; valid: {', '.join(PREDICATES)}")
            if len(set(given)) != len(given):
                twice = next(name for name in given if given.count(name) > 1)
                raise ValueError(f"{key}: {twice!r} is named twice; name each class once")
        for key in ("train", "val"):
            if getattr(self, key) % len(self.predicates):
                count = len(self.predicates)
                raise ValueError(f"{key}: got {getattr(self, key)}; {count} predicates need a multiple of {count}")


class Negatives(Struct, frozen=True, forbid_unknown_fields=True):
    """Section `negatives`. How the negative graph g⁻ of a triple is made."""

    confusions: Annotated[
        str | None,
        Meta(
            description="JSON {class: {class: count}}, as probe_table writes it; a class that it leaves out, or all with {}, "
            "takes the built-in table, as null does outside of DVC"
        ),
    ] = None
    choice: Annotated[
        Literal["hardest", "sampled"], Meta(description="the most frequent confusion, or one drawn with the counts as weights")
    ] = "sampled"
    changes: Annotated[
        Literal["first", "any"],
        Meta(description="which triple of a graph of several g⁻ changes: that which it was chosen for, or one drawn by hash"),
    ] = "first"
    seed: Annotated[int, Meta(ge=0, lt=1 << 32, description="seed of the draw")] = 0
