"""The official Visual Genome files: where they are, how large they are and what they hash to.

Sizes are those of the files at the official home; digests were published by others who fetched them (SHA-256
for the image archives and `image_data`, SHA-1 for the release 1.4 annotations). A file whose digest is not
known here is still checked by its own CRC and by parsing it.
"""

from dataclasses import dataclass
from typing import Final, Literal

ANNOTATIONS_URL: Final = "https://homes.cs.washington.edu/~ranjay/visualgenome/data/dataset"
IMAGES_URL: Final = "https://cs.stanford.edu/people/rak248"
IMAGE_FOLDERS: Final = ("VG_100K", "VG_100K_2")
MEAN_IMAGE_BYTES: Final = (9_731_705_982 + 5_471_658_058) // 108_077
"""Mean size of one image, from the two archives and the 108,077 images in them."""

Kind = Literal["json_zip", "image_zip", "text"]


@dataclass(frozen=True)
class RemoteFile:
    """One file of the data set.

    `name` is what lies in the data folder when done; `path` is relative to the annotation or image base URL.
    `size` and `digest` (`"sha256:…"` or `"sha1:…"`) are those of the file as served; `unpacked` is the size
    of `name` after unpacking, in bytes, 0 where nothing is unpacked or it is not known.
    """

    name: str
    path: str
    kind: Kind
    size: int | None = None
    digest: str | None = None
    unpacked: int = 0

    @property
    def archive(self) -> str:
        """Name of the file as it is downloaded, before unpacking."""
        return self.path.rsplit("/", 1)[-1]

    def url(self, annotations_url: str, images_url: str) -> str:
        """Full address under the given bases."""
        base = images_url if self.kind == "image_zip" else annotations_url
        return f"{base.rstrip('/')}/{self.path}"


_IMAGE_DATA = RemoteFile(
    "image_data.json",
    "image_data.json.zip",
    "json_zip",
    1_780_854,
    "sha256:b87a94918cb2ff4d952cf1dfeca0b9cf6cd6fd204c2f8704645653be1163681a",
    17_612_822,
)
_ALIASES = (
    RemoteFile(
        "object_alias.txt",
        "object_alias.txt",
        "text",
        60_166,
        "sha256:0c8e059fc31eeebfd98231f5789892da8ae33bfa00434c70aee969dc6eaa853b",
    ),
    RemoteFile(
        "relationship_alias.txt",
        "relationship_alias.txt",
        "text",
        122_102,
        "sha256:15f7f64802c95c5bf5b5690457566b1b19ee64eac7a94d8b8cbb3a4378f2ec7c",
    ),
)

ANNOTATIONS: Final[dict[str, tuple[RemoteFile, ...]]] = {
    "v1.4": (
        _IMAGE_DATA,
        RemoteFile(
            "objects.json",
            "objects.json.zip",
            "json_zip",
            55_323_929,
            "sha1:ef3173d5e9ba4be7ad10b32c7619ab7ad51c125e",
            414_000_000,
        ),
        RemoteFile(
            "relationships.json",
            "relationships.json.zip",
            "json_zip",
            77_904_473,
            "sha1:a1c6873f98e6ef4cbf9c26a810444bfb4cdb69c6",
            743_673_397,
        ),
        *_ALIASES,
    ),
    "v1.2": (
        _IMAGE_DATA,
        RemoteFile("objects.json", "objects_v1_2.json.zip", "json_zip", unpacked=414_000_000),
        RemoteFile("relationships.json", "relationships_v1_2.json.zip", "json_zip", unpacked=710_000_000),
        *_ALIASES,
    ),
    "v1.0": (
        RemoteFile("image_data.json", "image_data_v1.json.zip", "json_zip", unpacked=18_000_000),
        RemoteFile("objects.json", "objects_v1.json.zip", "json_zip", unpacked=414_000_000),
        RemoteFile("relationships.json", "relationships_v1.json.zip", "json_zip", unpacked=710_000_000),
        *_ALIASES,
    ),
}
"""Annotation files by release, as the canonicalize stage reads them."""

IMAGE_ARCHIVES: Final = (
    RemoteFile(
        "images.zip",
        "VG_100K_2/images.zip",
        "image_zip",
        9_731_705_982,
        "sha256:51c682d2721f880150720bb416e0346a4c787e4c55d7f80dfd1bd3f73ba81646",
    ),
    RemoteFile(
        "images2.zip",
        "VG_100K_2/images2.zip",
        "image_zip",
        5_471_658_058,
        "sha256:99da1a0ddf87011319ff3b05cf9176ffee2731cc3c52951162d9ef0d68e3cfb5",
    ),
)
"""All images, kept zipped: the image store reads them where they are."""
