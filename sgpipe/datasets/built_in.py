"""Opens the data sets that are one class for annotations and images; Visual Genome is two, so that images need no reader."""

from pathlib import Path

from sgpipe.datasets.base import DataSet, brought
from sgpipe.datasets.config import Data


def open_other(data: Data) -> DataSet:
    """The data set of a kind other than Visual Genome, built in or brought. Raises `ParamsError` for an unknown one."""
    root = Path(data.root)
    if data.kind == "gqa":
        from sgpipe.datasets.gqa import Gqa

        return Gqa(root, data.gqa)
    if data.kind == "coco_stuff":
        from sgpipe.datasets.coco_stuff import CocoStuff

        return CocoStuff(root, data.coco_stuff)
    if data.kind == "folder":
        from sgpipe.datasets.folder import Folder

        return Folder(root, data.folder)
    return brought(data)
