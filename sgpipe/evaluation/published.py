"""Published figures of scene-graph generators, as their sources state them: other protocols, which compare with no figure here."""

from typing import Final, NamedTuple


class Published(NamedTuple):
    """One system on one data set at one size."""

    system: str
    data: str
    pixels: int | None
    """Side of the images; None where the source does not say."""
    inception_score: str
    """Mean, and deviation where there is one."""
    fid: float | None
    source: str


_TABLE = "SGDiff, table 1"
_COLUMNS: Final = {
    64: (("real images", "16.3 ± 0.4", None, "13.9 ± 0.5", None), ("Sg2Im", "6.7 ± 0.1", 82.8, "5.5 ± 0.1", 71.3),
         ("WSGC", "5.6 ± 0.1", 91.3, "8.0 ± 1.1", 45.3), ("SOAP", "7.9 ± 0.2", 65.3, "–", None),
         ("PasteGAN", "9.1 ± 0.2", 50.9, "6.9 ± 0.2", 58.5), ("SGDiff", "11.4 ± 0.4", 22.4, "9.3 ± 0.2", 16.6)),
    128: (("real images", "24.2 ± 0.9", None, "17.4 ± 1.1", None), ("Sg2Im", "7.1 ± 0.2", 93.3, "6.1 ± 0.1", 82.7),
          ("WSGC", "5.1 ± 0.3", 108.6, "7.2 ± 0.3", 80.4), ("SOAP", "10.4 ± 0.4", 75.4, "–", None),
          ("PasteGAN", "11.1 ± 0.7", 70.7, "7.6 ± 0.7", 61.2), ("SGDiff", "14.6 ± 0.9", 30.2, "11.4 ± 0.5", 20.1)),
    256: (("real images", "30.7 ± 1.2", None, "27.3 ± 1.6", None), ("Sg2Im", "8.2 ± 0.2", 99.1, "7.9 ± 0.1", 90.5),
          ("WSGC", "6.5 ± 0.3", 121.7, "9.8 ± 0.4", 84.1), ("SOAP", "14.5 ± 0.7", 81.0, "–", None),
          ("PasteGAN", "12.3 ± 1.0", 79.1, "8.1 ± 0.9", 66.5), ("SGDiff", "17.8 ± 0.8", 36.2, "16.4 ± 0.3", 26.0)),
}  # fmt: skip
"""By size: system, Inception Score and FID on COCO-Stuff, the same on Visual Genome. SGDiff's are those conditioned on z_t."""
PUBLISHED: Final[tuple[Published, ...]] = (
    *(
        Published(system, data, pixels, score, fid, _TABLE)
        for pixels, rows in _COLUMNS.items()
        for system, coco_score, coco_fid, vg_score, vg_fid in rows
        for data, score, fid in (("Visual Genome", vg_score, vg_fid), ("COCO-Stuff", coco_score, coco_fid))
        if (score, fid) != ("–", None)
    ),
    Published("SATURN", "Visual Genome", None, "24.78", 21.62, "SATURN, arXiv 2508.14502"),
)
