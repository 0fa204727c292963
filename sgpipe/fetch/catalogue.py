"""The official Visual Genome files: where they are, what they hash to and how much disk space they need."""

from typing import Final

ANNOTATIONS_URL: Final = "https://homes.cs.washington.edu/~ranjay/visualgenome/data/dataset"
IMAGES_URL: Final = "https://cs.stanford.edu/people/rak248"
IMAGE_FOLDERS: Final = ("VG_100K", "VG_100K_2")
MEAN_IMAGE_BYTES: Final = (9_731_705_982 + 5_471_658_058) // 108_077
"""Mean size of one image, from the two archives and the 108,077 images in them."""

DIGESTS: Final = {
    "image_data.json.zip": "sha256:b87a94918cb2ff4d952cf1dfeca0b9cf6cd6fd204c2f8704645653be1163681a",
    "objects.json.zip": "sha1:ef3173d5e9ba4be7ad10b32c7619ab7ad51c125e",
    "relationships.json.zip": "sha1:a1c6873f98e6ef4cbf9c26a810444bfb4cdb69c6",
    "object_alias.txt": "sha256:0c8e059fc31eeebfd98231f5789892da8ae33bfa00434c70aee969dc6eaa853b",
    "relationship_alias.txt": "sha256:15f7f64802c95c5bf5b5690457566b1b19ee64eac7a94d8b8cbb3a4378f2ec7c",
    "images.zip": "sha256:51c682d2721f880150720bb416e0346a4c787e4c55d7f80dfd1bd3f73ba81646",
    "images2.zip": "sha256:99da1a0ddf87011319ff3b05cf9176ffee2731cc3c52951162d9ef0d68e3cfb5",
}
"""Digests by name of the downloaded file, published by others who fetched the files; there are none for releases v1.0 and v1.2."""

ROOM: Final = {
    "image_data.json": 1_780_854 + 17_612_822,
    "objects.json": 55_323_929 + 414_000_000,
    "objects_v1_2.json": 69_000_000 + 514_000_000,
    "relationships.json": 77_904_473 + 743_673_397,
    "images.zip": 9_731_705_982,
    "images2.zip": 5_471_658_058,
}
"""Bytes on disk that the archive and what is unpacked from it take together, of release v1.4; v1.2's objects by their share in
a sample of sixty images."""


def _release(image_data: str, graphs: str) -> dict[str, str]:
    return {
        "image_data.json": f"image_data{image_data}.json.zip",
        "objects.json": f"objects{graphs}.json.zip",
        "relationships.json": f"relationships{graphs}.json.zip",
        "object_alias.txt": "object_alias.txt",
        "relationship_alias.txt": "relationship_alias.txt",
    }


ANNOTATIONS: Final = {
    "v1.4": {**_release("", ""), "objects_v1_2.json": "objects_v1_2.json.zip"},
    "v1.2": _release("", "_v1_2"),
    "v1.0": _release("_v1", "_v1"),
}
"""Annotation files by release: name, as the canonicalize stage reads it, to path under `ANNOTATIONS_URL`. v1.4 comes with v1.2's
objects: a quarter of its relationships name one that its own objects.json lacks."""

IMAGE_ARCHIVES: Final = {"images.zip": "VG_100K_2/images.zip", "images2.zip": "VG_100K_2/images2.zip"}
"""All images, kept zipped for the image store: name to path under `IMAGES_URL`."""
