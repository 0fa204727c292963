"""The pictures of the documentation, made again: terminals, sheets of the embedded data, plots of metrics, diagrams.

`python -m benchmarks.pictures` makes all of them, `python -m benchmarks.pictures curate doctor` some, from the root of a repository
in which `dvc repro` has run. Pictures with a command of their own (`sgpipe report sheet`, `sgpipe maps`, …) are not among them.
"""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
import polars as pl
import typer
from matplotlib.figure import Figure
from PIL import ImageDraw

from benchmarks._diagrams import DIAGRAMS
from benchmarks._drawing import OUTPUTS, curated, grid, save_png
from benchmarks._terminal import terminal
from sgpipe.runs.atomic import atomic_path

IMAGES, METRICS = Path("docs/images"), Path("metrics")
LIMIT = 60_000
"""Bytes of a picture."""
TERMINALS = {
    "adapters": "sgpipe adapter card outputs/lora/graph/adapter | head -n 32",
    "data_sets": "sgpipe data check data --kind visual_genome --shown 6",
    "doctor": "sgpipe doctor",
    "interpretation": "sgpipe report headline",
    "parameters": "sgpipe params show | head -n 15",
    "presets": "sgpipe preset flux-schnell-vg | head -n 30",
    "stages": "sgpipe dag",
}
"""Commands of pages where nothing else is to be seen."""


def _metrics(name: str) -> Any:
    return json.loads((METRICS / f"{name}.json").read_text(encoding="utf-8"))


def curate(out: Path) -> None:
    """Curated crops of six classes with the boxes of subject and object, and their prompts."""
    classes = ("left of", "above", "riding", "holding", "in", "behind")
    figure, axes = grid(6, 1, 1.55, 2.35)
    for axis, (row, crop) in zip(axes.flat, curated("maps", classes, 1), strict=True):
        pen = ImageDraw.Draw(crop)
        scale = crop.width / row["crop_w"]
        for end, colour in (("s", "#1f5fa8"), ("o", "#b4441c")):
            x, y = (row[f"{end}x"] - row["crop_x"]) * scale, (row[f"{end}y"] - row["crop_y"]) * scale
            pen.rectangle((x, y, x + row[f"{end}w"] * scale, y + row[f"{end}h"] * scale), outline=colour, width=3)
        axis.imshow(crop)
        axis.set_title(f"{row['subject']}\n{row['predicate']}\n{row['object']}", fontsize=9)
    figure.supxlabel("blue: box of the subject; red: box of the object", fontsize=8)
    save_png(figure, out)


def negatives(out: Path) -> None:
    """Train triples with what their graph says and what the false one says."""
    false = pl.read_parquet(OUTPUTS / "negatives/negatives.parquet").rows_by_key("triple_id", named=True, unique=True)
    figure, axes = grid(5, 1, 1.8, 2.5)
    several = curated("train", ("left of", "right of", "above", "below"), 100)
    replaced = next(each for each in several if false[each[0]["triple_id"]]["kind"] == "replace")
    shown = [*several[::100], replaced]
    for axis, (row, crop) in zip(axes.flat, shown, strict=True):
        other = false[row["triple_id"]]
        axis.imshow(crop)
        axis.set_title(f"g⁺: {row['subject']}, {row['predicate']}, {row['object']}", fontsize=8, color="#1e6b3a")
        axis.set_xlabel(
            f"g⁻: {other['subject']}, {other['predicate']}, {other['object']}\n({other['kind']})", fontsize=8, color="#a02020"
        )
    save_png(figure, out)


def cache_latents(out: Path) -> None:
    """Crops, the channels of their latents, and what the VAE makes of these."""
    import torch
    from diffusers import AutoencoderKL

    from sgpipe.backbones.config import Backbone
    from sgpipe.backbones.latent_cache import LatentCache
    from sgpipe.params.load import read_params

    backbone = read_params(Backbone)
    cache, shown = LatentCache(OUTPUTS / "latents", backbone), curated("train", ("left of", "above"), 1)
    mean, _ = cache.get([row["triple_id"] for row, _ in shown])
    vae = AutoencoderKL.from_pretrained(f"{backbone.model}/vae")
    with torch.no_grad():
        decoded = vae.decode(mean.float()).sample.clamp(-1, 1).add(1).div(2).permute(0, 2, 3, 1).numpy()
    channels = min(4, mean.shape[1])
    figure, axes = grid(channels + 2, len(shown), 1.45, 1.65)
    for (row, crop), latent, image, line in zip(shown, mean.float().numpy(), decoded, axes, strict=True):
        for axis, pixels in zip(line, (crop, *latent[:channels], image), strict=True):
            axis.imshow(pixels, cmap="gray", interpolation="nearest")
        line[0].set_ylabel(f"{row['subject']}\n{row['predicate']}\n{row['object']}", fontsize=8)
    for axis, title in zip(axes[0], ("crop", *(f"channel {n}" for n in range(channels)), "decoded again"), strict=True):
        axis.set_title(title, fontsize=9)
    figure.supxlabel(
        f"{channels} of {mean.shape[1]} channels of the posterior's mean, {mean.shape[2]} × {mean.shape[3]} each", fontsize=8
    )
    save_png(figure, out, None)


def controlnet(out: Path) -> None:
    """Crops, and the layout images of their graphs: annotated boxes, with arrows, and boxes that a rule proposes."""
    from sgpipe.graphs.layouts import layout_image, proposed
    from sgpipe.graphs.scene_graph import SceneGraph

    shown = curated("train", ("left of", "above"), 1)
    figure, axes = grid(4, len(shown), 1.7, 1.85)
    for (row, crop), line in zip(shown, axes, strict=True):
        graph = SceneGraph.of_row(row)
        layouts = (
            layout_image(graph, 192),
            layout_image(graph, 192, arrows=True),
            layout_image(proposed(SceneGraph(graph.objects, graph.triples)), 192),
        )
        for axis, pixels in zip(line, (crop, *layouts), strict=True):
            axis.imshow(pixels)
        line[0].set_ylabel(f"{row['subject']}\n{row['predicate']}\n{row['object']}", fontsize=8)
    titles = ("image", "boxes: oracle", "arrows: true", "boxes: proposed")
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=9)
    save_png(figure, out)


def cache_prompts(out: Path) -> None:
    """Every prompt of one val triple beside its crop."""
    row, crop = curated("val", ("left of",), 1)[0]
    tables = [pl.read_parquet(OUTPUTS / name / "prompts.parquet") for name in ("prompts", "negative_prompts")]
    lines = [
        (f"{each['condition']}", each["prompt"]) for table in tables for each in table.filter(triple_id=row["triple_id"]).to_dicts()
    ]
    lines += [("concepts", ", ".join(row["concepts"]))]
    figure = Figure(figsize=(7.4, 1.9), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 3.4))
    left.imshow(crop)
    left.set_title("curated crop", fontsize=9)
    left.set(xticks=[], yticks=[])
    right.axis("off")
    cells = [[text] for _, text in lines]
    table = right.table(cells, rowLabels=[f" {name} " for name, _ in lines], cellLoc="left", loc="center")
    table.auto_set_font_size(False)
    table.set_fontsize(9)
    table.scale(1, 1.5)
    save_png(figure, out)


def diffusers(out: Path) -> None:
    """Images that the example of docs/diffusers.md gives: without a graph, with it, with it reversed, at half the strength."""
    import torch
    from diffusers import FluxPipeline

    from sgpipe import GraphAdapter

    pipe = FluxPipeline.from_pretrained("models/mini-flux")
    pipe.set_progress_bar_config(disable=True)
    adapter = GraphAdapter.from_pretrained(str(OUTPUTS / "lora/graph/adapter")).apply(pipe)
    shown = (
        ("no graph: the base", None),
        ('graph="dog, left of, cat"', "dog, left of, cat"),
        ('graph="cat, left of, dog"', "cat, left of, dog"),
    )
    figure, axes = grid(3, 3, 1.75, 1.8)
    for seed, line in enumerate(axes):
        line[0].set_ylabel(f"manual_seed({seed})", fontsize=8)
        for axis, (title, graph) in zip(line, shown, strict=True):
            given = {} if graph is None else {"graph": graph}
            noise = {"num_inference_steps": 4, "generator": torch.Generator().manual_seed(seed)}
            axis.imshow(
                adapter("a photo of dog and cat on a plain background", **given, **noise).images[0], interpolation="nearest"
            )
            if not seed:
                axis.set_title(title, fontsize=9)
    figure.supxlabel("“a photo of dog and cat on a plain background”", fontsize=9)
    save_png(figure, out)


def canonicalize(out: Path) -> None:
    """Relations kept by class, and records dropped by reason."""
    counts = _metrics("canonicalize")
    figure = Figure(figsize=(8.2, 4.0), layout="constrained")
    for axis, key, title, colour in zip(
        figure.subplots(1, 2), ("by_class", "by_reason"), ("relations kept, by class", "records dropped, by reason"),
        ("#1f5fa8", "#b4441c"), strict=True,
    ):  # fmt: skip
        rows = sorted(counts[key].items(), key=lambda each: each[1])
        axis.barh([name for name, _ in rows], [count for _, count in rows], color=colour)
        axis.set_title(title, fontsize=10)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    save_png(figure, out)


def graph_encoder(out: Path) -> None:
    """How often the encoder tells a graph from its swap, by class, and finds an image by its graph."""
    found = _metrics("graph_encoder")["development"]
    figure = Figure(figsize=(8.2, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.5, 1))
    rows = sorted(found["true_above_swap"]["by_class"].items(), key=lambda each: each[1])
    left.barh([name for name, _ in rows], [value for _, value in rows], color="#1f5fa8")
    left.axvline(0.5, color="#5c5c5c", linestyle="--", linewidth=1)
    left.set_title(
        "an image is nearer to its graph than to the swapped\nor false one: share, by class (dashed: chance)", fontsize=9
    )
    left.tick_params(labelsize=7)
    for place, (way, values) in enumerate(found["retrieval"].items()):
        right.bar(np.arange(3) + 0.4 * place, [values[f"r{k}"] for k in (1, 5, 10)], 0.38, label=way.replace("_", " "),
                  color=("#1f5fa8", "#b4441c")[place])  # fmt: skip
    right.set_xticks(np.arange(3) + 0.2, ["first", "first 5", "first 10"])
    right.set_title("the right one is among the …", fontsize=9)
    right.legend(fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=2)
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    save_png(figure, out)


def performance(out: Path) -> None:
    """What maps cost beside plain generation, by family: FLOPs at full size, and time at a small one, with the bars."""
    from benchmarks.attention_maps import TIME_RATIO
    from benchmarks.families import FLOP_SHARE

    rows = _metrics("families")
    figure = Figure(figsize=(8.2, 2.8), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    left.barh(list(rows), [100 * row["maps_flop_share"] for row in rows.values()], color="#1f5fa8")
    left.axvline(100 * FLOP_SHARE, color="#b4441c", linestyle="--")
    left.set_title("FLOPs that maps add, % (dashed: bar)", fontsize=9)
    for place, row in enumerate(rows.values()):
        right.plot([row["maps_time_ratio_lowest"], row["maps_time_ratio_highest"]], [place, place], color="#1f5fa8")
        right.plot(row["maps_time_ratio"], place, "o", color="#1f5fa8")
    right.axvline(TIME_RATIO, color="#b4441c", linestyle="--")
    right.set_title("time with maps over time without\n(median, lowest and highest pair; dashed: bar)", fontsize=9)
    for axis in (left, right):
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    save_png(figure, out)


def experiments(out: Path) -> None:
    """Arms of several experiments side by side."""
    from sgpipe.report.figures import intervals

    arms = _metrics("sweep")["arms"]
    svg = intervals(list(arms.items()), "direction_accuracy", 0.5, "direction accuracy of g⁺ (dashed: chance)")
    with atomic_path(out) as temporary:
        temporary.write_text(svg, encoding="utf-8")


def scenes(out: Path) -> None:
    """Scenes of three and four objects of the world of several relations, with the triples that they show."""
    from sgworld.world.captions import sample_caption
    from sgworld.world.compose import compose
    from sgworld.world.raster import render
    from sgworld.world.specification import SLOTS

    rng = np.random.default_rng((0, 3))
    figure, axes = grid(6, 2, 1.55, 2.1)
    for index, axis in enumerate(axes.flat):
        scene = compose(sample_caption(rng, neutral=0.0, objects=3 + index % 2), rng.random(SLOTS))
        axis.imshow(render(scene), interpolation="nearest")
        axis.set_xlabel("\n".join(" ".join(each) for each in scene.triples[:4]), fontsize=7)
    save_png(figure, out)


def own_images(out: Path) -> None:
    """`sgpipe data check` of a folder of images with graphs, one of which has a fault."""
    with TemporaryDirectory() as folder:
        mine = Path(folder, "mine")
        mine.mkdir()
        records: list[dict[str, Any]] = []
        for index, (row, crop) in enumerate(curated("train", ("left of", "above"), 15)):
            crop.save(mine / f"{index:02}.png")
            boxes = [[v * crop.width for v in box] for box in row["boxes"]]
            objects = [{"name": name, "box": box} for name, box in zip(row["objects"], boxes, strict=True)]
            records.append({"image": f"{index:02}.png", "objects": objects, "relations": [[0, row["predicate"], 1]]})
        records[7]["relations"] = [[0, "resembling", 1]]
        (mine / "graphs.json").write_text(json.dumps(records), encoding="utf-8")
        terminal("ls mine | head -n 4\nsgpipe data check mine", out, cwd=Path(folder))


def fetch(out: Path) -> None:
    """`sgpipe fetch visual-genome` of the images that the curated triples show, twice, from a mirror of the embedded ones."""
    port, triples = 8765, "outputs/curated/triples.parquet"
    with TemporaryDirectory() as folder:
        shutil.unpack_archive("data/images.zip", Path(folder, "mirror"))
        Path(folder, "outputs").symlink_to(OUTPUTS.resolve())
        server = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1", "--directory", f"{folder}/mirror"]
        with subprocess.Popen(server, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as mirror:
            try:
                time.sleep(2)
                command = f"sgpipe fetch visual-genome --triples {triples} --images-url http://127.0.0.1:{port}"
                terminal(f"{command}\nls visual_genome\n{command}", out, 108, cwd=Path(folder))
            finally:
                mirror.terminate()


def troubleshooting(out: Path) -> None:
    """A misspelt knob and the one line that answers it."""
    with TemporaryDirectory() as folder:
        shutil.copy("params.yaml", folder)
        terminal("sed -i 's/ rank:/ rnak:/' params.yaml\nsgpipe params show", out, cwd=Path(folder))


def _command(command: str, out: Path) -> None:
    terminal(command, out, 112 if out.stem == "interpretation" else 100, hidden={str(Path.cwd()): "."})


MADE: tuple[Callable[[Path], None], ...] = (
    cache_latents, cache_prompts, canonicalize, controlnet, curate, diffusers, graph_encoder, negatives,
    performance, scenes,
)  # fmt: skip
VECTORS: tuple[Callable[[Path], None], ...] = (experiments, fetch, own_images, troubleshooting)


def pictures() -> dict[str, tuple[Callable[[Path], None], str]]:
    """What makes each picture, and the ending of its file."""
    found: dict[str, tuple[Callable[[Path], None], str]] = {
        name: (partial(_command, command), "svg") for name, command in TERMINALS.items()
    }
    found |= {each.__name__: (each, "svg") for each in VECTORS} | {each.__name__: (each, "png") for each in MADE}
    return found | {each.__name__: (each, "png") for each in DIAGRAMS}


def main(names: Annotated[list[str] | None, typer.Argument(help="pictures to make; else all")] = None) -> None:
    """Make pictures into docs/images and say how large they are; one above 60 KB is an error."""
    known = pictures()
    if unknown := set(names or ()) - set(known):
        raise typer.BadParameter(f"{', '.join(sorted(unknown))}: no such picture; valid: {', '.join(sorted(known))}")
    for name in names or known:
        make, ending = known[name]
        out = IMAGES / f"{name}.{ending}"
        make(out)
        size = out.stat().st_size
        print(f"{out}: {size / 1000:.0f} KB")
        if size > LIMIT:
            raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
