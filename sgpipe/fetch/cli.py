"""`sgpipe fetch`: public data sets from their official homes."""

from pathlib import Path
from typing import Annotated

import typer

from sgpipe.fetch import catalogue

app = typer.Typer(help="Fetch public data sets: resumable, verified, polite.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Keeps `visual-genome` a command of its own, whatever else is fetched one day."""


@app.command("visual-genome")
def visual_genome(
    root: Annotated[
        Path, typer.Option(help="data folder to fill; set `data.root` in params.yaml to it")
    ] = Path("visual_genome"),
    release: Annotated[
        str, typer.Option(help="annotation release: " + ", ".join(catalogue.ANNOTATIONS))
    ] = "v1.4",
    annotations_only: Annotated[
        bool, typer.Option("--annotations-only", help="leave out the 15.2 GB of images")
    ] = False,
    triples: Annotated[
        list[Path] | None,
        typer.Option(
            help="fetch only the images that this table of curated triples shows; may be given more than once"
        ),
    ] = None,
    images_table: Annotated[
        Path, typer.Option(help="table that tells each image's address (with --triples)")
    ] = Path("outputs/canonical/images.parquet"),
    annotations_url: Annotated[
        str, typer.Option(help="base address of the annotation archives")
    ] = catalogue.ANNOTATIONS_URL,
    images_url: Annotated[
        str | None,
        typer.Option(help=f"base address of images (default {catalogue.IMAGES_URL}, or each image's own)"),
    ] = None,
    unpinned: Annotated[
        bool,
        typer.Option("--unpinned", help="accept archives that differ from the published sizes and digests"),
    ] = False,
    connections: Annotated[
        int, typer.Option(min=1, max=16, help="connections at a time; archives use at most 2")
    ] = 4,
    rate: Annotated[
        float, typer.Option(min=0.0, help="requests per second over all connections; 0 for no limit")
    ] = 10.0,
    retries: Annotated[
        int, typer.Option(min=0, max=100, help="attempts in a row that may bring nothing new")
    ] = 6,
    longest_wait: Annotated[
        float, typer.Option(min=0.0, help="longest pause that a server may ask for, seconds")
    ] = 300.0,
) -> None:
    """Get Visual Genome (CC BY 4.0): annotations and image archives, or with --triples single images only.

    Run the same command again to continue after an interruption, to retry what could not be had, or to verify
    what is there: every file is compared with the SHA-256 in fetch_manifest.json. Ends with 1 if an image
    could not be had (fetch_rejects.json says why).
    """
    from rich.console import Console

    from sgpipe.errors import ParamsError
    from sgpipe.fetch.archives import Source, fetch_archives
    from sgpipe.fetch.images import REJECTS, fetch_images, wanted_images
    from sgpipe.fetch.transfer import Policy

    if release not in catalogue.ANNOTATIONS:
        raise ParamsError(f"--release: got {release!r}; valid: {', '.join(catalogue.ANNOTATIONS)}")
    if triples and annotations_only:
        raise ParamsError(
            "--annotations-only and --triples exclude each other: the latter fetches images only"
        )
    console = Console(stderr=True)
    policy = Policy(connections=connections, rate=rate, retries=retries, longest_wait=longest_wait)
    try:
        if triples:
            summary = fetch_images(root, wanted_images(triples, images_table, images_url), policy, console)
        else:
            files = catalogue.ANNOTATIONS[release] + (() if annotations_only else catalogue.IMAGE_ARCHIVES)
            source = Source(annotations_url, images_url or catalogue.IMAGES_URL, pinned=not unpinned)
            summary = fetch_archives(root, files, source, policy, console)
    except KeyboardInterrupt:
        typer.echo(f"{root}: stopped; run the same command again to continue", err=True)
        raise typer.Exit(130) from None
    typer.echo(
        f"{root}: {summary.fetched} fetched ({summary.size / 2**20:.1f} MiB), {summary.present} already "
        "there, "
        f"{len(summary.rejects)} could not be had"
    )
    if summary.rejects:
        typer.echo(f"{root / REJECTS} says why; run the same command to try these again", err=True)
        raise typer.Exit(1)
