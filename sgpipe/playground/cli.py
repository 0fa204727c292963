"""`sgpipe playground`: the page, on this machine alone."""

from pathlib import Path
from typing import Annotated

import typer


def playground(
    port: Annotated[int, typer.Option(min=1, max=65535, help="port on 127.0.0.1")] = 7860,
    params: Annotated[Path, typer.Option("--params", help="parameter file: layer groups and judge")] = Path("params.yaml"),
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps")] = "cpu",
) -> None:
    """Serve a page on which a graph is edited and drawn, until interrupted."""
    import os
    from tempfile import TemporaryDirectory

    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    from sgpipe.errors import SgpipeError

    try:
        import gradio  # noqa: F401
    except ImportError:
        raise SgpipeError("playground: gradio is not installed; `pip install 'sgpipe[playground]'`") from None
    from sgpipe.graphs.scene_graph import SceneGraph
    from sgpipe.params.show import load_all
    from sgpipe.playground.engine import BASE, Engine, Request, base_of, known_names
    from sgpipe.playground.page import START, build_page, found_adapters, found_models
    from sgpipe.runs.processes import pick_device
    from sgpipe.runs.progress import keeps
    from sgpipe.runs.quiet import late_bars

    models = found_models(Path())
    if not models:
        raise SgpipeError("playground: no pipeline folder under models/; `dvc pull models.dvc` gets the embedded one")
    adapters = found_adapters(Path())
    if not adapters:
        print("no adapter under outputs/lora: only the base can be drawn; `dvc repro evaluate` trains the default's")
    sections = load_all(params)
    headline = sections["judge"].headline
    engine = Engine(
        sections["maps"],
        (headline, sections["judge"].judges[headline]),
        device=str(pick_device(device, 0, "--device")),
        size=sections["backbone"].resolution,
    )
    chosen = adapters[0] if adapters else BASE
    own = base_of(chosen)
    models.sort(key=lambda model: model != own)
    late_bars()
    keeps("stopped; what was downloaded is kept: run the same command again for a new page")
    print(f"loading {models[0]}, {chosen}", flush=True)
    engine.open(models[0], chosen)
    engine.answer(Request(SceneGraph.of(*START[0]), seed=1, model=models[0], adapter=chosen))  # the first forward is a slow one
    with TemporaryDirectory() as folder:
        page, options = build_page(engine, models, adapters, known_names(adapters), Path(folder))
        print(f"http://127.0.0.1:{port} (Ctrl-C ends it)", flush=True)
        page.queue(default_concurrency_limit=2).launch(server_name="127.0.0.1", server_port=port, quiet=True, **options)
        print("closed; what was downloaded is kept: run the same command again for a new page")
