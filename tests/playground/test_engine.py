"""The playground's images are those of the generator, from one noise; its verdicts and maps belong to them."""

import shlex
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from sgpipe.arms.generation import GraphGenerator
from sgpipe.cli import app
from sgpipe.errors import DataError, ParamsError
from sgpipe.graphs.scene_graph import SceneGraph, parse_graph
from sgpipe.playground import engine as playing
from sgpipe.playground.engine import BASE, Engine, Request, as_command, as_python, other_reading
from sgpipe.playground.page import overlay, read_editor, shown_maps, shown_panels
from tests.training.world import World

GRAPH = parse_graph("dog, left of, cat")


def asked(world: World, adapter: Path | str, graph: SceneGraph = GRAPH, seed: int = 3) -> Request:
    return Request(graph, seed=seed, steps=2, model=world.backbone.model, adapter=str(adapter))


def test_panels_are_the_generators_images_from_one_noise(world: World, adapter: Path, engine: Engine) -> None:
    result = engine.answer(asked(world, adapter))
    text = "a photo of dog and cat on a plain background"
    side = result.panels[0].image.shape[0]
    generator = GraphGenerator.load(world.backbone.model, adapter)
    expected = generator.sample([text] * 3, [None, GRAPH, GRAPH.reversed()], [3] * 3, steps=2, size=side)
    for panel, image in zip(result.panels, expected, strict=True):
        assert np.abs(panel.image.astype(int) - image.astype(int)).max() <= 1
    assert len({panel.image.tobytes() for panel in result.panels}) == 3
    assert all(verdict.startswith("dog left of cat: ") for panel in result.panels for verdict in panel.verdicts)


class Work:
    """What an engine's generator does: images through the transformer and the VAE in how many calls, texts encoded, loads."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, engine: Engine) -> None:
        self.counts: Counter[str] = Counter()
        load, decode, work = playing.GraphGenerator.load, playing.decode, self.counts

        def loaded(*given: Any, **named: Any) -> GraphGenerator:
            work["loads"] += 1
            generator = load(*given, **named)
            for name in ("prompts", "concepts"):
                monkeypatch.setattr(generator.texts, name, self.counting(getattr(generator.texts, name)))

            def seen(module: Any, args: Any, named: dict[str, Any], out: Any) -> None:
                work.update(forwards=1, rows=len(named["hidden_states"]))

            generator.denoiser.transformer.register_forward_hook(seen, with_kwargs=True)
            return generator

        def decoded(family: Any, vae: Any, latents: Any) -> Any:
            work.update(decodes=1, decoded=len(latents))
            return decode(family, vae, latents)

        monkeypatch.setattr(playing.GraphGenerator, "load", loaded)
        monkeypatch.setattr(playing, "decode", decoded)
        self._engine = engine

    def counting(self, encode: Callable[[Sequence[str]], Any]) -> Callable[[Sequence[str]], Any]:
        def counted(texts: Sequence[str]) -> Any:
            self.counts.update(texts=len(texts))
            return encode(texts)

        return counted

    def of(self, request: Request) -> dict[str, int]:
        self.counts.clear()
        self._engine.answer(request)
        return dict(self.counts)


def test_nothing_is_done_twice(world: World, adapter: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """First image: the base and both graphs, 2 steps each, the prompt, two names, a phrase and the empty name encoded once."""
    work = Work(monkeypatch, engine)
    first = work.of(asked(world, adapter))
    assert first.pop("loads") == 1
    assert first == {"forwards": 4, "rows": 2 * (1 + 2), "decodes": 2, "decoded": 3, "texts": 1 + 3 + 1}
    assert work.of(asked(world, adapter)) == {}, "the same again is remembered"
    changed = work.of(asked(world, adapter, parse_graph("dog, right of, cat")))
    assert changed == {"forwards": 2, "rows": 2 * 2, "decodes": 1, "decoded": 2, "texts": 1}, "the new phrase alone is encoded"
    assert "texts" not in work.of(asked(world, adapter, seed=4))


def test_without_an_adapter_the_base_alone_is_drawn_and_has_maps(world: World, engine: Engine) -> None:
    told: list[str] = []
    result = engine.answer(asked(world, BASE), told.append)
    assert len(result.panels) == 1 and "no adapter" in told[0]
    assert set(result.maps) == {"saliency", "cross-attention"} and set(result.maps["saliency"]) == {"first", "rest"}
    assert result.concepts == ("dog", "left of", "cat") and result.maps["saliency"]["rest"].shape[0] == 3
    assert np.allclose(result.maps["saliency"]["rest"].sum(0), 1, atol=1e-5), "a softmax over concepts"


def test_verdicts_say_which_reading_the_judge_sees(world: World, adapter: Path, engine: Engine) -> None:
    right = engine.answer(asked(world, adapter, parse_graph("cat, left of, dog")))
    wrong = engine.answer(asked(world, adapter))
    assert right.panels[1].verdicts == ("cat left of dog: yes",)
    assert wrong.panels[1].verdicts == ("dog left of cat: no, dog right of cat",)
    assert other_reading(("dog", "riding", "horse")) == ("horse", "riding", "dog")


def test_what_the_training_did_not_show_is_said(world: World, adapter: Path, engine: Engine) -> None:
    result = engine.answer(asked(world, adapter, parse_graph("horse, left of, cat")))
    assert any("'horse'" in each for each in result.warnings) and "horse" in shown_panels(result)


def test_two_at_once_get_what_each_gets_alone(world: World, adapter: Path, engine: Engine) -> None:
    requests = [asked(world, adapter, graph, seed) for seed in (1, 2) for graph in (GRAPH, GRAPH.reversed())]
    alone = [engine.answer(each) for each in requests]
    engine._loaded.clear()
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(engine.answer, requests))
    for one, other in zip(alone, together, strict=True):
        assert [p.image.tobytes() for p in one.panels] == [p.image.tobytes() for p in other.panels]
        assert all(np.array_equal(one.maps["saliency"][g], other.maps["saliency"][g]) for g in one.maps["saliency"])


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


@pytest.mark.parametrize("trained", [True, False])
def test_the_copied_command_and_the_copied_python_draw_the_same_image(
    world: World, adapter: Path, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained: bool
) -> None:
    request = asked(world, adapter if trained else BASE)
    result = engine.answer(request)
    words = shlex.split(as_command(request, result.size))
    out = tmp_path / "image.png"
    run = CliRunner().invoke(app, [*words[1:-1], str(out)])
    assert run.exit_code == 0, run.output
    monkeypatch.chdir(_made(tmp_path / "copied"))
    exec(compile(as_python(request, result.size), "copied", "exec"), {"__name__": "__main__"})
    for path in (out, tmp_path / "copied" / "image.png"):
        image = np.asarray(Image.open(path)).astype(int)
        assert image.shape == result.panels[0].image.shape, path
        assert np.abs(image - result.panels[int(trained)].image.astype(int)).max() <= 1, path
    assert [path.name for path in Path().iterdir()] == ["image.png"]


@pytest.mark.parametrize(
    ("change", "said"),
    [({"steps": 0}, "steps: got 0"), ({"seed": -1}, "seed: got -1"), ({"graph": SceneGraph()}, "nothing to draw")],
)
def test_what_cannot_be_drawn_is_said_before_anything_is_loaded(change: dict, said: str) -> None:
    with pytest.raises(ParamsError, match=said):
        Request(**{"graph": GRAPH, "seed": 0, "steps": 4, **change})


def test_the_editor_reads_rows_and_names_what_is_no_graph() -> None:
    assert read_editor('[["dog", "left of", "cat"], ["bird", "near", ""]]') == GRAPH
    assert read_editor([]) == SceneGraph()
    with pytest.raises(DataError, match="relates 'dog' to itself"):
        read_editor([["dog", "left of", "dog"]])


def test_every_image_of_the_page_has_an_alternative_text(world: World, adapter: Path, engine: Engine) -> None:
    result = engine.answer(asked(world, adapter))
    for shown, count in ((shown_panels(result), 3), (shown_maps(result), 2 * 2 * 3)):
        assert shown.count("<img ") == shown.count('alt="') == count


def test_a_flat_map_is_drawn_without_a_warning() -> None:
    image = np.full((8, 8, 3), 200, np.uint8)
    assert overlay(image, np.ones((2, 2), np.float32)).shape == (8, 8, 3)
