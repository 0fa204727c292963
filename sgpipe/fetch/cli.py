"""`sgpipe fetch`: public data sets from their official homes."""

from pathlib import Path
from typing import Annotated

import typer

from sgpipe.fetch import catalogue

app = typer.Typer(help="Fetch public data sets: resumable, verified, polite.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Keeps `visual-genome` a command of its own, whatever else is fetched one day."""


def _under(base: str, paths: dict[str, str]) -> dict[str, str]:
    return {name: f"{base.rstrip('/')}/{path}" for name, path in paths.items()}


@app.command("visual-genome")
def visual_genome(
    root: Annotated[Path, typer.Option(help="folder to fill, `data.root` of params.yaml")] = Path("visual_genome"),
    release: Annotated[str, typer.Option(help="of the annotations: " + ", ".join(catalogue.ANNOTATIONS))] = "v1.4",
    annotations_only: Annotated[bool, typer.Option("--annotations-only", help="leave out the 15.2 GB of images")] = False,
    triples: Annotated[
        list[Path] | None, typer.Option(help="fetch only the images of this table of curated triples; repeatable")
    ] = None,
    images_table: Annotated[Path, typer.Option(help="table of each image's address, for --triples")] = Path(
        "outputs/canonical/images.parquet"
    ),
    annotations_url: Annotated[str, typer.Option(help="base address of the annotation archives")] = catalogue.ANNOTATIONS_URL,
    images_url: Annotated[
        str | None, typer.Option(help=f"base address of images (default {catalogue.IMAGES_URL}, or each image's own)")
    ] = None,
    unpinned: Annotated[bool, typer.Option("--unpinned", help="accept archives that differ from the published digests")] = False,
    connections: Annotated[int, typer.Option(min=1, max=16, help="single images at a time")] = 4,
    retries: Annotated[int, typer.Option(min=0, max=100, help="how often a failed request is repeated")] = 6,
) -> None:
    """Get Visual Genome (CC BY 4.0): annotations and image archives, or with --triples single images only.

    Run the same command again to continue after an interruption, to retry what could not be had, or to verify
    what is there: every file is compared with its hash in fetch_registry.txt. Ends with 1 if an image could not
    be had (fetch_rejects.json says why).
    """
    from sgpipe.errors import ParamsError
    from sgpipe.fetch.download import session
    from sgpipe.fetch.visual_genome import REJECTS, fetch_archives, fetch_images, wanted_images
    from sgpipe.runs.progress import keeps

    if release not in catalogue.ANNOTATIONS:
        raise ParamsError(f"--release: got {release!r}; valid: {', '.join(catalogue.ANNOTATIONS)}")
    if triples and annotations_only:
        raise ParamsError("--annotations-only and --triples exclude each other: the latter fetches images only")
    keeps(f"stopped; what was fetched is kept in {root}: run the same command again to get the rest")
    http = session(connections, retries)
    if triples:
        summary = fetch_images(root, wanted_images(triples, images_table, images_url), http, connections)
    else:
        archives = {} if annotations_only else catalogue.IMAGE_ARCHIVES
        files = _under(annotations_url, catalogue.ANNOTATIONS[release])
        files |= _under(images_url or catalogue.IMAGES_URL, archives)
        summary = fetch_archives(root, files, http, pinned=not unpinned)
    rejected = len(summary.rejects)
    typer.echo(f"{root}: {summary.fetched} fetched, {summary.present} already there, {rejected} could not be had")
    if summary.rejects:
        typer.echo(f"{root / REJECTS} says why; run the same command to try these again", err=True)
        raise typer.Exit(1)
