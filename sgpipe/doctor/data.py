"""Is the data folder there, whole, and does it hold the images that the triples show?"""

import zipfile
from pathlib import Path

from sgpipe.datasets.images import ARCHIVE_ERRORS
from sgpipe.doctor.findings import Finding, Level
from sgpipe.fetch.catalogue import IMAGE_ARCHIVES, IMAGE_FOLDERS
from sgpipe.fetch.visual_genome import REJECTS, read_rejects

AREA = "data"
TABLES = ("image_data.json", "objects.json", "relationships.json")


def _damage(path: Path) -> str | None:
    """What a look at both ends of a JSON list shows to be wrong; None where nothing is."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        start = stream.read(64).lstrip(b"\xef\xbb\xbf \t\r\n")
        stream.seek(max(0, size - 64))
        end = stream.read().rstrip()
    if not start.startswith(b"["):
        return f"not a JSON list; it begins with {start[:24]!r}"
    return None if end.endswith(b"]") else "cut off; it does not end with ]"


def _images(root: Path) -> tuple[set[int], list[str]]:
    """Ids of the images in `root`, loose and zipped, and what is wrong with its archives."""
    names: list[str] = []
    problems: list[str] = []
    for folder in IMAGE_FOLDERS:
        if (root / folder).is_dir():
            names += [path.name for path in (root / folder).iterdir() if path.suffix in (".jpg", ".png")]
    for path in (root / name for name in IMAGE_ARCHIVES):
        if path.is_file():
            try:
                with zipfile.ZipFile(path) as archive:
                    names += [name.rsplit("/", 1)[-1] for name in archive.namelist()]
            except ARCHIVE_ERRORS as error:
                problems.append(f"{path}: {error}")
    stems = (name.rsplit(".", 1)[0] for name in names)
    return {int(stem) for stem in stems if stem.isdecimal()}, problems


def _unknown_images(root: Path, triples: Path, present: set[int]) -> Finding | None:
    """The finding about images that `triples` shows and `root` lacks."""
    from sgpipe.datasets.tables import TRIPLES, read_table
    from sgpipe.errors import DataError

    try:
        shown = set(read_table(triples, TRIPLES, ["image_id"])["image_id"].to_pylist())
    except DataError as error:
        return Finding(Level.FAIL, AREA, str(error), "dvc repro curate")
    missing = len(shown - present)
    if missing == 0:
        return Finding(Level.OK, AREA, f"{triples}: all {len(shown)} images are there")
    remedy = f"sgpipe fetch visual-genome --root {root} --triples {triples}"
    return Finding(Level.FAIL, AREA, f"{triples}: {missing} of {len(shown)} images are not in {root}", remedy)


def check_data(root: Path, triples: list[Path], pulled: bool) -> list[Finding]:
    """The annotation tables, the images, and what an earlier fetch could not get.

    `pulled` tells whether a .dvc file tracks `root`, so that the remedy is to pull that and not a download.
    """
    remedy = f"dvc pull {root.name}.dvc" if pulled else f"sgpipe fetch visual-genome --root {root}"
    if not root.is_dir():
        return [Finding(Level.FAIL, AREA, f"data.root: {root} is not a folder", remedy)]
    findings = []
    for path in (root / name for name in TABLES):
        problem = _damage(path) if path.is_file() else "no such file"
        if problem is not None:
            findings.append(Finding(Level.FAIL, AREA, f"{path}: {problem}", remedy))
    if not findings:
        size = sum((root / name).stat().st_size for name in TABLES)
        findings.append(Finding(Level.OK, AREA, f"{root}: annotations, {size / 2**20:.1f} MiB"))
    present, problems = _images(root)
    findings += [Finding(Level.FAIL, AREA, problem, remedy) for problem in problems]
    existing = [path for path in triples if path.is_file()]
    if not present:
        findings.append(Finding(Level.FAIL, AREA, f"{root}: no image, neither loose nor zipped", remedy))
    elif not existing:
        findings.append(Finding(Level.OK, AREA, f"{root}: {len(present)} images"))
    else:
        findings += [f for f in (_unknown_images(root, path, present) for path in existing) if f is not None]
    rejects = read_rejects(root / REJECTS)
    if rejects:
        what = f"{root / REJECTS}: {len(rejects)} images could not be fetched (first: {rejects[0]['reason']})"
        findings.append(Finding(Level.WARN, AREA, what, "run the same `sgpipe fetch` again"))
    return findings
