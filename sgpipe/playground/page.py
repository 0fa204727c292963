"""The page of the playground, in Gradio: graph editor, controls, images side by side, maps, verdicts, history."""

import base64
import html
import io
import json
import zipfile
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, Final

import gradio as gr
import numpy as np
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image

from sgpipe.errors import SgpipeError
from sgpipe.graphs.scene_graph import SceneGraph, parse_graph
from sgpipe.playground.engine import BASE, MOST_TRIPLES, Engine, Panel, Request, Result, as_command, as_python
from sgpipe.relations.predicates import PREDICATES, phrase

START: Final = [["dog", "left of", "cat"]]
HISTORY = 24
"""Drawings that a session keeps."""
CSS = """
.panels { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: 0.8rem; margin: 0; }
.panels figure, .maps figure { margin: 0; max-width: 17rem; }
.panels img { width: 100%; image-rendering: pixelated; border-radius: 8px; }
.panels figcaption { font-weight: 600; margin-bottom: 0.25rem; }
.panels ul { margin: 0.3rem 0 0; padding-left: 1.1rem; font-size: 0.9em; }
.maps table { border-collapse: collapse; } .maps th { font-weight: 600; padding: 0.2rem 0.4rem; text-align: left; }
.maps td { padding: 0.2rem; } .maps img { width: 5.2rem; image-rendering: pixelated; border-radius: 4px; }
.maps { overflow-x: auto; } .warnings { font-size: 0.9em; }
"""


@cache
def _text(name: str) -> str:
    return files("sgpipe.playground").joinpath(name).read_text()


def _source(pixels: NDArray[np.uint8]) -> str:
    held = io.BytesIO()
    Image.fromarray(pixels).save(held, "png")
    return "data:image/png;base64," + base64.b64encode(held.getvalue()).decode()


def _figure(panel: Panel, prompt: str) -> str:
    under = f" under the graph “{panel.graph}”" if panel.graph is not None else ", no graph"
    alt = html.escape(f"image of the prompt “{prompt}”{under}", quote=True)
    said = "".join(f"<li>{html.escape(verdict)}</li>" for verdict in panel.verdicts)
    return (
        f'<figure><figcaption>{html.escape(panel.title)}</figcaption><img src="{_source(panel.image)}" alt="{alt}">'
        f"{f'<ul>{said}</ul>' if said else ''}</figure>"
    )


def overlay(image: NDArray[np.uint8], values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """A map `[H, W]` over an image `[S, S, 3]`, coloured from its least to its greatest value."""
    low, high = float(values.min()), float(values.max())
    scaled = (values - low) / (high - low) if high > low else np.zeros_like(values)
    heat = Image.fromarray((colormaps["magma"](scaled)[..., :3] * 255).astype(np.uint8))
    heat = heat.resize(image.shape[1::-1], Image.Resampling.BILINEAR)
    return (0.3 * image + 0.7 * np.asarray(heat)).round().astype(np.uint8)


def shown_panels(result: Result) -> str:
    """The images as HTML, with alternative texts and the judge's verdicts."""
    warnings = "".join(f"<li>{html.escape(each)}</li>" for each in result.warnings)
    figures = "".join(_figure(panel, result.request.text) for panel in result.panels)
    return f'<div class="panels">{figures}</div>' + (f'<ul class="warnings">{warnings}</ul>' if warnings else "")


def shown_maps(result: Result) -> str:
    """The maps as HTML: a row per kind and layer group, a column per concept."""
    if not result.maps:
        return "<p>No maps: the generator is guided by a second forward, or there is no concept.</p>"
    image = result.panels[min(1, len(result.panels) - 1)].image
    head = "".join(f'<th scope="col">{html.escape(concept)}</th>' for concept in result.concepts)
    rows = []
    for kind, groups in result.maps.items():
        for group, maps in groups.items():
            alts = [html.escape(f"{kind} of {concept}, {group} blocks", quote=True) for concept in result.concepts]
            cells = "".join(
                f'<td><img src="{_source(overlay(image, values))}" alt="{alt}"></td>'
                for alt, values in zip(alts, maps, strict=True)
            )
            rows.append(f'<tr><th scope="row">{kind}, {html.escape(group)} blocks</th>{cells}</tr>')
    return f'<div class="maps"><table><thead><tr><td></td>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def read_editor(value: str | Sequence[Sequence[str]]) -> SceneGraph:
    """The graph of the editor's rows; one without both names is left out. Raises `DataError` for what is no graph."""
    rows = json.loads(value) if isinstance(value, str) else value
    whole = [row for row in rows if row[0].strip() and row[2].strip()]
    return parse_graph("; ".join(", ".join(row) for row in whole)) if whole else SceneGraph()


def found_adapters(root: Path) -> list[str]:
    """Adapters that training left under outputs/, the default's graph arm first."""
    there = sorted(str(path.parent) for path in root.glob("outputs/lora/*/adapter/adapter.json"))
    return sorted(there, key=lambda path: "/graph/" not in path)


def found_models(root: Path) -> list[str]:
    """Pipeline folders under models/."""
    return sorted(str(path.parent) for path in root.glob("models/*/model_index.json"))


def _line(result: Result) -> list[str | int]:
    """A row of the history: what was drawn, from which seed, and what the judge said of the image under the graph."""
    asked = result.request
    return [str(asked.graph) or asked.text, asked.seed, "; ".join(result.panels[min(1, len(result.panels) - 1)].verdicts)]


def _archive(history: Sequence[Result], folder: Path) -> str:
    """The drawings of a session as one ZIP: the images, and a JSON line per drawing."""
    path = folder / "session.zip"
    with zipfile.ZipFile(path, "w") as archive:
        lines = []
        for number, result in enumerate(history, 1):
            names = []
            for panel in result.panels:
                held = io.BytesIO()
                Image.fromarray(panel.image).save(held, "png")
                names.append(f"{number:02}-{panel.title.replace(' ', '-')}.png")
                archive.writestr(names[-1], held.getvalue())
            asked = result.request
            lines.append(
                json.dumps(
                    {
                        "graph": str(asked.graph), "prompt": asked.text, "seed": asked.seed, "steps": asked.steps,
                        "model": asked.model, "adapter": asked.adapter, "images": names, "command": as_command(asked, result.size),
                        "verdicts": {panel.title: panel.verdicts for panel in result.panels},
                    }
                )
            )  # fmt: skip
        archive.writestr("drawings.jsonl", "\n".join(lines) + "\n")
    return str(path)


def build_page(
    engine: Engine, models: Sequence[str], adapters: Sequence[str], names: Sequence[str], folder: Path
) -> tuple[gr.Blocks, dict[str, Any]]:
    """The page, and the options of its `launch`. What a visitor drew is in the state of the visit alone, so that two do not mix."""

    def draw(
        triples: str, prompt: str, seed: float | None, steps: float, model: str, adapter: str, history: list[Result]
    ) -> tuple[Any, ...]:
        try:
            graph = read_editor(triples)
            request = Request(graph, prompt, int(seed or 0), int(steps), model, adapter)
            result = engine.answer(request, gr.Info)
        except SgpipeError as error:
            raise gr.Error(str(error), duration=None, print_exception=False) from None
        history = [*history, result][-HISTORY:]
        lines = [_line(each) for each in reversed(history)]
        archive = _archive(history, Path(mkdtemp(dir=folder)))
        return (
            shown_panels(result),
            shown_maps(result),
            as_command(request, result.size),
            as_python(request, result.size),
            lines,
            archive,
            history,
        )

    fonts = ["system-ui", "sans-serif"]
    theme = gr.themes.Default(font=fonts, font_mono=["monospace"])
    with gr.Blocks(title="sgpipe playground", analytics_enabled=False) as page:
        gr.Markdown(
            "# sgpipe playground\nWhat a scene graph does to an image: the same noise without it, with it, and with it swapped."
        )
        history = gr.State([])
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                editor = gr.HTML(
                    json.dumps(START), label="Scene graph", show_label=True, html_template=_text("editor.html"),
                    css_template=_text("editor.css"), container=True, js_on_load=_text("editor.js"), names=list(names),
                    relations=[phrase(name) for name in PREDICATES], most=MOST_TRIPLES, elem_id="editor",
                )  # fmt: skip
                prompt = gr.Textbox(label="Prompt", placeholder="empty: the names of the graph", elem_id="prompt")
                with gr.Row():
                    seed = gr.Number(0, label="Seed", precision=0, minimum=0, elem_id="seed", min_width=100)
                    steps = gr.Slider(1, 50, 4, step=1, label="Steps", elem_id="steps", min_width=160)
                model = gr.Dropdown(list(models), value=models[0], label="Backbone", allow_custom_value=False)
                chosen = [BASE, *adapters]
                adapter = gr.Dropdown(chosen, value=chosen[-1] if len(chosen) == 1 else chosen[1], label="Adapter")
                button = gr.Button("Draw", variant="primary", elem_id="draw")
            with gr.Column(scale=3, min_width=300):
                panels = gr.HTML(elem_id="panels", label="Images")
                with gr.Tabs():
                    with gr.Tab("Maps"):
                        maps = gr.HTML(elem_id="maps")
                    with gr.Tab("Copy"):
                        command = gr.Textbox(label="As command", buttons=["copy"], lines=3, elem_id="command", interactive=False)
                        python = gr.Textbox(label="As Python", buttons=["copy"], lines=8, elem_id="python", interactive=False)
                    with gr.Tab("History"):
                        listed = gr.Dataframe(headers=["graph", "seed", "judge"], interactive=False, elem_id="history")
                        saved = gr.DownloadButton("Download this session", elem_id="download")
        asked = [editor, prompt, seed, steps, model, adapter, history]
        shown = [panels, maps, command, python, listed, saved, history]
        gr.on([button.click, editor.change, prompt.submit, page.load], draw, asked, shown, api_name="draw", concurrency_limit=2)
    return page, {"css": CSS, "theme": theme}
