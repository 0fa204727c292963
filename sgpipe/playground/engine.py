"""What the playground computes: images of a prompt without a graph, under it and under its swap, from one noise."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from sgpipe.arms.adapter import backbone_of, read_about
from sgpipe.arms.coverage import TRAINED_ON, uncovered
from sgpipe.arms.generation import GraphGenerator, backbone_for
from sgpipe.attention_maps.config import Maps
from sgpipe.attention_maps.options import MapOptions
from sgpipe.attention_maps.stream import concept_stream
from sgpipe.backbones.images import decode
from sgpipe.errors import ParamsError
from sgpipe.evaluation.config import Judge as Named
from sgpipe.evaluation.judge_factory import open_judge
from sgpipe.evaluation.judges import Judge
from sgpipe.graphs.prompts import words
from sgpipe.graphs.scene_graph import SceneGraph
from sgpipe.playground.remembered import RememberedTexts, keep
from sgpipe.relations.predicates import INVERSE, SYMMETRIC, phrase

BASE: Final = "none"
"""Stands for no adapter."""
MOST_TRIPLES, MOST_STEPS, MOST_SEED = 8, 50, 2**32 - 1
KEPT = 64
"""Images of the base that are remembered: a change of the graph alone does not sample them again."""
ANSWERS = 16
"""Whole answers that are remembered: the page asks twice when it is opened, and visitors begin with the same graph."""
Image = NDArray[np.uint8]


@dataclass(frozen=True)
class Request:
    """What a person asks for. An empty prompt stands for the names of the graph."""

    graph: SceneGraph
    prompt: str = ""
    seed: int = 0
    steps: int = 4
    model: str = "models/mini-flux"
    adapter: str = BASE

    def __post_init__(self) -> None:
        for name, given, least, most in (("seed", self.seed, 0, MOST_SEED), ("steps", self.steps, 1, MOST_STEPS)):
            if not least <= given <= most:
                raise ParamsError(f"{name}: got {given}; valid: {least} to {most}")
        if len(self.graph.triples) > MOST_TRIPLES:
            raise ParamsError(f"the graph has {len(self.graph.triples)} triples; valid here: at most {MOST_TRIPLES}")
        if not self.text:
            raise ParamsError("nothing to draw: name an object in the graph, or give a prompt")

    @property
    def text(self) -> str:
        """The prompt that is drawn."""
        return self.prompt.strip() or (words(self.graph, "neutral") if self.graph.objects else "")


@dataclass(frozen=True)
class Panel:
    """One image `[S, S, 3]`, 0–255: what it was sampled under, and a sentence of the judge per triple of the graph."""

    title: str
    image: Image
    graph: SceneGraph | None
    verdicts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Result:
    """Panels from the same noise, and the maps `[K, H, W]` of the image under the graph (of the base's without one)."""

    request: Request
    panels: tuple[Panel, ...]
    concepts: tuple[str, ...]
    maps: dict[str, dict[str, NDArray[np.float32]]]
    """By kind (`saliency`, `cross-attention`) and layer group."""
    warnings: tuple[str, ...]

    @property
    def size(self) -> int:
        """Side of the images in pixels."""
        return self.panels[0].image.shape[0]


def base_of(adapter: str) -> str | None:
    """The pipeline that an adapter was trained on, as its training named it; None for no adapter."""
    return None if adapter == BASE else backbone_of(read_about(Path(adapter)), Path(adapter)).model


def known_names(adapters: Sequence[str]) -> list[str]:
    """The names that the first of the adapters was trained on, which the editor offers."""
    trained = read_about(Path(adapters[0])).get(TRAINED_ON) if adapters else None
    return [] if trained is None else list(trained["names"])


def concepts_of(graph: SceneGraph) -> tuple[str, ...]:
    """The names and the phrases of the relations of a graph, each once, in the order of the triples."""
    said = [text for s, p, o in graph.named for text in (s, phrase(p), o)]
    return tuple(dict.fromkeys([*said, *graph.objects]))


@dataclass
class _Loaded:
    """A generator and the lock under which it samples: an adapter is switched on and off in the transformer itself."""

    generator: GraphGenerator
    size: int
    trained_on: Any
    groups: MapOptions
    lock: threading.Lock = field(default_factory=threading.Lock)
    base: dict[tuple[str, int, int], Image] = field(default_factory=dict)
    answers: dict[Request, Result] = field(default_factory=dict)


class Engine:
    """Loads what is asked for once, and answers requests; safe to call from several threads."""

    def __init__(self, maps: Maps, judge: tuple[str, Named] | None, *, device: str = "cpu", size: int = 64) -> None:
        self._maps, self._named, self._device, self._size = maps, judge, device, size
        self._opening, self._judging = threading.Lock(), threading.Lock()
        self._loaded: dict[tuple[str, str], _Loaded] = {}

    @cached_property
    def _judge(self) -> Judge | None:
        return None if self._named is None else open_judge(self._named[0], self._named[1], torch.device(self._device))

    def open(self, model: str, adapter: str) -> None:
        """Load a generator and the judge ahead of the first request. Raises `ModelError` where the adapter is of another base."""
        self._open(model, adapter)
        with self._judging:
            _ = self._judge

    def _open(self, model: str, adapter: str) -> _Loaded:
        with self._opening:
            if (model, adapter) not in self._loaded:
                folder = None if adapter == BASE else Path(adapter)
                backbone = backbone_for(model, folder)
                about = {} if folder is None else read_about(folder)
                size = self._size if folder is None else backbone_of(about, folder).resolution
                generator = GraphGenerator.load(model, folder, device=self._device, backbone=backbone)
                generator.texts = RememberedTexts(generator.texts)
                self._loaded.clear()  # one generator at a time: a published one fills the memory
                self._loaded[model, adapter] = _Loaded(
                    generator, size, about.get(TRAINED_ON), self._options(backbone.double_blocks)
                )
            return self._loaded[model, adapter]

    def _options(self, double_blocks: int) -> MapOptions:
        """The layer groups of the parameters where the generator has their blocks, else thirds of its own."""
        options = MapOptions(self._maps.groups, self._maps.normalisation)
        try:
            options.resolve(double_blocks)
        except ParamsError:
            cuts = [round(double_blocks * third / 3) for third in range(4)]
            thirds = zip(("early", "middle", "late"), cuts, cuts[1:], strict=False)
            return MapOptions({name: f"{a}..{b - 1}" for name, a, b in thirds if b > a}, self._maps.normalisation)
        return options

    def answer(self, request: Request, told: Callable[[str], None] = lambda _: None) -> Result:
        """Images, maps and verdicts. Raises `ParamsError`, `DataError` or `ModelError` for what cannot be drawn."""
        if request.graph.triples and request.adapter == BASE:
            told("no adapter is chosen: the base reads no graph, so its image alone is drawn")
        loaded = self._open(request.model, request.adapter)
        with loaded.lock:
            known = loaded.answers.get(request)
            return known if known is not None else keep(loaded.answers, request, self._answer(request, loaded), ANSWERS)

    def _answer(self, request: Request, loaded: _Loaded) -> Result:
        """Sample, map and judge, under the generator's lock."""
        graph, text = request.graph, request.text
        warnings = [] if request.adapter == BASE else uncovered(graph, text, loaded.trained_on)
        graphs: list[tuple[str, SceneGraph | None]] = [("without graph", None)]
        if request.adapter != BASE and graph.triples:
            graphs += [("with graph", graph), ("with the graph swapped", graph.reversed())]
        concepts = concepts_of(graph)
        key = (text, request.seed, request.steps)
        maps: dict[str, dict[str, NDArray[np.float32]]] = {}
        if key not in loaded.base or len(graphs) == 1:
            base, maps = self._sample(loaded, text, [None], request, concepts if len(graphs) == 1 else ())
            keep(loaded.base, key, base[0], KEPT)
        images = [loaded.base[key]]
        if len(graphs) > 1:
            under, maps = self._sample(loaded, text, [g for _, g in graphs[1:]], request, concepts)
            images += list(under)
        said = self._verdicts(graph, images)
        panels = tuple(
            Panel(title, image, own, verdicts) for (title, own), image, verdicts in zip(graphs, images, said, strict=True)
        )
        return Result(request, panels, concepts, maps, tuple(warnings))

    @torch.no_grad()
    def _sample(
        self, loaded: _Loaded, text: str, graphs: Sequence[SceneGraph | None], request: Request, concepts: Sequence[str]
    ) -> tuple[Image, dict[str, dict[str, NDArray[np.float32]]]]:
        """Images `[N, S, S, 3]` from the request's noise, and the maps of the first, where there are concepts."""
        generator, count = loaded.generator, len(graphs)
        asked = ([text] * count, graphs, [request.seed] * count, request.steps, loaded.size)
        denoiser = generator.denoiser
        if not concepts or denoiser.layout.classifier_free(generator.guidance):
            return decode(denoiser.family, generator.vae, generator.latents(*asked)), {}
        rows = generator.texts.concepts(list(concepts))
        vectors = torch.stack([row[0] if self._maps.concept_tokens == "first" else row.mean(0) for row in rows])
        vectors = vectors.to(denoiser.device, denoiser.dtype).expand(count, -1, -1)
        grid = denoiser.layout.grid(loaded.size)
        with concept_stream(denoiser.transformer, vectors, (grid, grid), loaded.groups) as stream:
            latents = generator.latents(*asked)
        found = stream.maps()
        maps = {
            "saliency": {name: each.saliency[0].float().cpu().numpy() for name, each in found.items()},
            "cross-attention": {name: each.cross[0].float().cpu().numpy() for name, each in found.items()},
        }
        return decode(denoiser.family, generator.vae, latents), maps

    def _verdicts(self, graph: SceneGraph, images: Sequence[Image]) -> list[tuple[str, ...]]:
        """For each image a sentence per triple: which of the triple and its other reading the judge sees."""
        if self._named is None or not graph.triples:
            return [()] * len(images)
        statements = [(triple, other_reading(triple)) for triple in graph.named]
        asked = [statement for pair in statements for statement in pair]
        with self._judging:
            judge = self._judge
            assert judge is not None
            scores = judge.scores(np.stack(images), [asked] * len(images)).reshape(len(images), -1, 2)
        return [tuple(_sentence(s, tuple(v)) for s, v in zip(statements, row.tolist(), strict=True)) for row in scores]


Triple = tuple[str, str, str]


def other_reading(triple: Triple) -> Triple:
    """The triple with its ends exchanged, said by the inverse class where there is one; of a symmetric class, nothing else."""
    subject, predicate, object_ = triple
    if predicate in INVERSE:
        return subject, INVERSE[predicate], object_
    return triple if predicate in SYMMETRIC else (object_, predicate, subject)


def _sentence(statements: tuple[Triple, Triple], scores: tuple[float, ...]) -> str:
    (subject, predicate, object_), other = statements
    name = f"{subject} {phrase(predicate)} {object_}"
    if any(score != score for score in scores):
        return f"{name}: cannot tell, an object is missing"
    if scores[0] > scores[1]:
        return f"{name}: yes"
    if scores[1] > scores[0]:
        return f"{name}: no, {' '.join((other[0], phrase(other[1]), other[2]))}"
    return f"{name}: {'yes' if scores[0] > 0 and other == statements[0] else 'no, neither way round'}"


def as_command(request: Request, size: int) -> str:
    """The shell command that draws the image under the graph, of side `size` (the base's without an adapter)."""
    import shlex

    parts = ["sgpipe", "generate", "--model", request.model, "--prompt", request.text]
    if request.adapter != BASE:
        parts += ["--adapter", request.adapter, "--graph", _written(request.graph)]
    else:
        parts += ["--size", str(size)]
    return shlex.join([*parts, "--seed", str(request.seed), "--steps", str(request.steps), "--out", "image.png"])


def _written(graph: SceneGraph) -> str:
    """A graph as a command takes it: short, or JSON where a name is given twice or an object has no triple."""
    import json

    mentioned = {index for s, _, o in graph.triples for index in (s, o)}
    if len(set(graph.objects)) == len(graph.objects) == len(mentioned) and list(graph.objects) == list(
        dict.fromkeys(name for s, _, o in graph.named for name in (s, o))
    ):
        return str(graph)
    return json.dumps({"objects": list(graph.objects), "triples": [list(triple) for triple in graph.triples]})


def as_python(request: Request, size: int) -> str:
    """The same in Python."""
    adapter = "None" if request.adapter == BASE else f"Path({request.adapter!r})"
    graph = "None" if request.adapter == BASE else f"given_graph({_written(request.graph)!r})"
    return (
        "from pathlib import Path\n\nfrom PIL import Image\n\n"
        "from sgpipe.arms.generation import GraphGenerator\nfrom sgpipe.graphs.scene_graph import given_graph\n\n"
        f"generator = GraphGenerator.load({request.model!r}, {adapter})\n"
        f"image = generator.sample([{request.text!r}], [{graph}], [{request.seed}], steps={request.steps}, size={size})[0]\n"
        'Image.fromarray(image).save("image.png")\n'
    )
