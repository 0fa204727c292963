"""The sections of params.yaml that this package reads: where the annotations are and how they become tables."""

from typing import Annotated, Literal, get_args

from msgspec import Meta, Struct


class Gqa(Struct, frozen=True, forbid_unknown_fields=True):
    """What is read of GQA."""

    left_right: Annotated[
        float,
        Meta(ge=0.0, le=1.0, description="share of the pairs that keep `left of` and `right of`, which GQA derived from boxes"),
    ] = 1.0
    seed: Annotated[int, Meta(ge=0, lt=1 << 32, description="seed of the choice of these pairs")] = 0


class CocoStuff(Struct, frozen=True, forbid_unknown_fields=True):
    """What is read of COCO-Stuff, as sg2im and SGDiff do by default."""

    min_objects: Annotated[int, Meta(ge=1, description="images with fewer objects that are large enough are left out")] = 3
    max_objects: Annotated[int, Meta(ge=1, description="images with more of them are left out")] = 8
    min_area: Annotated[
        float, Meta(ge=0.0, lt=1.0, description="objects whose box is no larger than this fraction of the image are left out")
    ] = 0.02
    other: Annotated[bool, Meta(description="keep the class `other`, which stands for whatever has no class")] = False
    masks: Annotated[
        bool, Meta(description="directions from the centroids of masks where there are masks; else from the centres of boxes")
    ] = True
    seed: Annotated[int, Meta(ge=0, lt=1 << 32, description="seed of each object's partner in a relation")] = 0

    def __post_init__(self) -> None:
        if self.min_objects > self.max_objects:
            raise ValueError(f"min_objects: got min_objects {self.min_objects}, max_objects {self.max_objects}; lower it")


class Folder(Struct, frozen=True, forbid_unknown_fields=True):
    """What is read of a folder of own images."""

    min_score: Annotated[
        float, Meta(ge=0.0, le=1.0, description="relations that SGG-Benchmark gave a lower score are left out")
    ] = 0.1


class Data(Struct, frozen=True, forbid_unknown_fields=True):
    """Section `data`. Where the scene graphs and images are, and who reads them."""

    kind: Annotated[
        str,
        Meta(
            min_length=1,
            description="visual_genome, coco_stuff, gqa, folder, or what another package brings by an entry point of the group "
            "sgpipe.datasets",
        ),
    ] = "visual_genome"
    root: Annotated[str, Meta(min_length=1, description="folder of annotations and images, in the layout of the kind")] = "data"
    release: Annotated[
        Literal["auto", "v1.4", "v1.2", "v1.0"],
        Meta(description="layout of Visual Genome's JSON files; auto tells them apart by content, a name refuses any other"),
    ] = "auto"
    relations: Annotated[
        str | None,
        Meta(description="YAML list of own relation classes in the form of sgpipe/relations/relations.yaml; null: its 24 classes"),
    ] = None
    coco_stuff: Annotated[CocoStuff, Meta(description="what is read of COCO-Stuff")] = CocoStuff()
    gqa: Annotated[Gqa, Meta(description="what is read of GQA")] = Gqa()
    folder: Annotated[Folder, Meta(description="what is read of a folder of own images")] = Folder()


GeometricClass = Literal["left of", "right of", "above", "below", "in"]


class Splits(Struct, frozen=True, forbid_unknown_fields=True):
    """Which images belong to which split: by a published list, else by a hash of the image id."""

    file: Annotated[str | None, Meta(description="JSON {split: [image ids]}; images it does not name get the split `none`")] = None
    train: Annotated[float, Meta(ge=0.0, le=1.0, description="fraction of images hashed into train; without a file")] = 0.8
    val: Annotated[float, Meta(ge=0.0, le=1.0, description="fraction hashed into val; the rest is test")] = 0.1
    seed: Annotated[int, Meta(ge=0, lt=1 << 32, description="seed of the hash")] = 0

    def __post_init__(self) -> None:
        if self.train + self.val > 1.0 + 1e-9:
            raise ValueError(f"train + val = {self.train:g} + {self.val:g} is above 1; lower one")


class Geometric(Struct, frozen=True, forbid_unknown_fields=True):
    """Relations read off pairs of boxes (facts of scene-graph-to-image work on COCO-Stuff), marked `geometric`."""

    per_image: Annotated[int, Meta(ge=0, description="at most so many per image; 0 makes none")] = 0
    classes: Annotated[tuple[GeometricClass, ...], Meta(min_length=1, description="which classes may be derived from boxes")] = (
        "left of",
        "right of",
    )
    seed: Annotated[int, Meta(ge=0, lt=1 << 32, description="seed of the choice of pairs")] = 0

    def __post_init__(self) -> None:
        if len(set(self.classes)) != len(self.classes):
            raise ValueError(f"classes: got {list(self.classes)}; name each of {list(get_args(GeometricClass))} at most once")


class Canonicalize(Struct, frozen=True, forbid_unknown_fields=True):
    """Section `canonicalize`. How annotations become canonical tables."""

    splits: Annotated[Splits, Meta(description="train, val and test images")] = Splits()
    geometric: Annotated[Geometric, Meta(description="relations derived from boxes")] = Geometric()
