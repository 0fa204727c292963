"""Where the scene graphs and images are."""

from typing import Annotated, Literal

from msgspec import Meta, Struct


class Data(Struct, frozen=True, forbid_unknown_fields=True):
    """Section `data`: a folder in Visual Genome's own layout."""

    root: Annotated[
        str,
        Meta(
            min_length=1,
            description="folder with image_data.json, objects.json, relationships.json and the images",
        ),
    ] = "data"
    release: Annotated[
        Literal["auto", "v1.4", "v1.2", "v1.0"],
        Meta(
            description="layout of the JSON files; auto tells them apart by content, a name refuses any other"
        ),
    ] = "auto"
