"""`sgpipe data`: whether a data set's files are sound, and which row of SGDiff's encoders stands for which name."""

import json
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Look at a data set before it is used.", no_args_is_help=True)


@app.command("check")
def check(
    root: Annotated[Path, typer.Argument(help="folder of images and graphs, `data.root` of params.yaml")],
    kind: Annotated[str, typer.Option(help="`data.kind` of params.yaml")] = "folder",
    relations: Annotated[Path | None, typer.Option(help="own relation classes, `data.relations` of params.yaml")] = None,
    shown: Annotated[int, typer.Option(min=1, help="at most so many problems are printed")] = 100,
    as_json: Annotated[bool, typer.Option("--json", help="print counts and all problems as JSON")] = False,
) -> None:
    """Read everything as `canonicalize` does and say what is wrong, a line each; exit code 1 if anything is."""
    from sgpipe.datasets.canonicalize import canonicalize, open_data_set
    from sgpipe.datasets.config import Canonicalize, Data
    from sgpipe.datasets.folder import Folder, unread_images
    from sgpipe.datasets.tables import REJECTS, read_table
    from sgpipe.relations.predicates import use_relations
    from sgpipe.runs.progress import FileBars

    use_relations(relations)
    data_set = open_data_set(Data(kind, str(root)))
    with tempfile.TemporaryDirectory() as out:
        found = canonicalize(data_set, Path(out), Canonicalize(), progress=FileBars().show)
        rejects = read_table(Path(out) / "rejects.parquet", REJECTS).to_pylist()
    names = data_set.names if isinstance(data_set, Folder) else {}
    problems = []
    for row in rejects:
        image = names.get(row["image_id"], row["image_id"])
        where = f"image {image}" if image is not None else f"record {row['record']}"
        problems.append(f"{row['file']}: {where}: {row['reason']}: {row['raw']}")
    problems += unread_images(data_set) if isinstance(data_set, Folder) else []
    if as_json:
        counts = {name: found[name]["kept"] for name in ("images", "objects")} | {"relations": found["kept"]}
        print(json.dumps({"counts": counts, "by_class": found["by_class"], "problems": problems}, ensure_ascii=False))
        sys.exit(1 if problems else 0)
    for problem in problems[:shown]:
        print(problem)
    if len(problems) > shown:
        print(f"… and {len(problems) - shown} more; --shown {len(problems)} prints all")
    print(
        f"{root}: {found['images']['kept']} images, {found['objects']['kept']} objects, {found['kept']} relations are sound; "
        f"{len(problems)} problems"
    )
    classes = ", ".join(f"{name} {count}" for name, count in found["by_class"].items() if count)
    print(f"relations by class: {classes or 'none'}")
    if problems:
        sys.exit(1)


@app.command("coco-vocabulary")
def coco_vocabulary(
    root: Annotated[Path, typer.Argument(help="folder with instances_*.json and stuff_*.json")],
    out: Annotated[Path, typer.Option(help="file to write")] = Path("vocab.json"),
) -> None:
    """Write which row of SGDiff's COCO encoder (184 names, 7 predicates) stands for what, for its checkpoint `sip_coco.pt`."""
    from sgpipe.datasets.coco_stuff import vocabulary
    from sgpipe.runs.atomic import write_json

    found = vocabulary(root)
    write_json(found, out)
    print(f"{out}: {len(found['object_idx_to_name'])} rows of objects, {len(found['pred_idx_to_name'])} of predicates")


@app.command("sgdiff-vocabulary")
def sgdiff_vocabulary_(
    root: Annotated[Path, typer.Argument(help="folder with Visual Genome v1.4's three JSON files and two alias files")],
    splits: Annotated[Path, typer.Option(help="sg2im's vg_splits.json: image ids of train, val and test")],
    out: Annotated[
        Path, typer.Option(help="vocabulary to write; the images that the rule keeps go to *_splits.json beside it")
    ] = Path("vocab.json"),
) -> None:
    """Write which row of SGDiff's Visual Genome encoder (179 names, 46 predicates) stands for what, and the images of its data.

    On the whole of Visual Genome the counts are compared with the published ones; exit code 1 if one differs.
    """
    from sgpipe.datasets.splits import read_split_file
    from sgpipe.datasets.visual_genome.sgdiff_vocabulary import PUBLISHED, WHOLE, sgdiff_vocabulary
    from sgpipe.errors import DataError
    from sgpipe.runs.atomic import write_json

    if not splits.is_file():
        raise DataError(f"{splits}: no such split file; --splits takes sg2im's vg_splits.json, `sg2im/data` of its repository")
    found = sgdiff_vocabulary(root, read_split_file(splits))
    kept = out.with_name(f"{out.stem}_splits.json")
    write_json(found.vocabulary(), out)
    write_json(found.splits, kept)
    if found.unread:
        print(f"records that could not be read and count for nothing: {len(found.unread)}; the first: {found.unread[0]}")
    print(f"{out}: {len(found.objects)} objects, {len(found.predicates)} predicates, and row 0 of either")
    print(f"{kept}: {', '.join(f'{name} {len(ids):,}' for name, ids in found.splits.items())} images")
    if not found.whole():
        shown = ", ".join(f"{name} {found.images[name]:,} of {number:,}" for name, number in WHOLE.items())
        print(f"these counts cannot be compared with the published ones, which are of all images; here are {shown}")
    elif differences := found.differences():
        print(
            f"not as published: {', '.join(differences)}; SGDiff's weights do not go with this vocabulary; "
            "`sgpipe fetch visual-genome` gets the five files of v1.4 and checks them"
        )
        sys.exit(1)
    else:
        print(f"as published: {', '.join(f'{name} {number:,}' for name, number in PUBLISHED.items())}")
