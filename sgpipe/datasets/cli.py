"""`sgpipe data`: whether a data set's files are sound, and COCO-Stuff's numbering of names."""

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
) -> None:
    """Read everything as `canonicalize` does and say what is wrong, a line each; exit code 1 if anything is."""
    from sgpipe.datasets.canonicalize import canonicalize, open_data_set
    from sgpipe.datasets.config import Canonicalize, Data
    from sgpipe.datasets.folder import Folder, unread_images
    from sgpipe.datasets.tables import REJECTS, read_table
    from sgpipe.relations.predicates import use_relations

    use_relations(relations)
    data_set = open_data_set(Data(kind, str(root)))
    with tempfile.TemporaryDirectory() as out:
        found = canonicalize(data_set, Path(out), Canonicalize())
        rejects = read_table(Path(out) / "rejects.parquet", REJECTS).to_pylist()
    names = data_set.names if isinstance(data_set, Folder) else {}
    problems = []
    for row in rejects:
        image = names.get(row["image_id"], row["image_id"])
        where = f"image {image}" if image is not None else f"record {row['record']}"
        problems.append(f"{row['file']}: {where}: {row['reason']}: {row['raw']}")
    problems += unread_images(data_set) if isinstance(data_set, Folder) else []
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
