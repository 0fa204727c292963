"""An adapter in a pipeline of diffusers: `GraphAdapter`.

The pipeline's class, its modules' code and its own encoding of prompts stay as they are. During a call a hook on the transformer
gives each forward at the adapter's times the condition with graph tokens (`Family.pipeline_inputs`) and leaves the others alone, so
that the image has the bits of `sgpipe generate` for the same noise. Outside such calls the adapter is off.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from msgspec import structs
from torch import Tensor

from sgpipe.arms.adapter import backbone_of, check_base, open_adapter, read_about, use_classes_of
from sgpipe.arms.coverage import TRAINED_ON, uncovered
from sgpipe.arms.footprint import Footprint
from sgpipe.arms.generation import add_names
from sgpipe.arms.model import ArmModel
from sgpipe.backbones.base import Family, TextCondition
from sgpipe.backbones.config import Backbone
from sgpipe.backbones.denoiser import Denoiser
from sgpipe.backbones.families import FAMILIES
from sgpipe.backbones.rectified_flow import is_within
from sgpipe.backbones.text import T5WithClips
from sgpipe.errors import ModelError, ParamsError
from sgpipe.graph_encoder.open_vocabulary import NameTable
from sgpipe.graphs.prompts import words
from sgpipe.graphs.scene_graph import SceneGraph, given_graph

_PIPELINES = ("FluxPipeline", "StableDiffusion3Pipeline")
_OURS = ("prompt_embeds", "pooled_prompt_embeds", "prompt_2", "prompt_3")


class GraphAdapter:
    """A trained adapter for a `FluxPipeline` or `StableDiffusion3Pipeline` that is loaded already.

        adapter = GraphAdapter.from_pretrained("outputs/lora/graph/adapter").apply(pipe)
        image = adapter("a photo of dog and cat on a plain background", graph="dog, left of, cat").images[0]
        adapter.unload()

    While it is applied, `pipe(...)` itself gives the base's images, to the bit; after `unload` nothing of it is left.
    """

    def __init__(self, folder: Path, about: Mapping[str, Any]) -> None:
        """Of a folder and its `adapter.json`; see `from_pretrained`."""
        self.folder, self.about = folder, about
        self.backbone = backbone_of(about, folder)
        self.strength = 1.0
        self.pipe: Any = None
        self._model: ArmModel | None = None
        self._vectors: dict[str, Tensor] = {}
        self._footprint: Footprint | None = None
        self._resting = ExitStack()

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Self:
        """The adapter of a folder that `train_lora` wrote; no weights are read yet. Raises `ModelError` for another folder.

        Relation classes of its own are in force in this process from then on.
        """
        about = read_about(Path(folder))
        use_classes_of(about, Path(folder))
        return cls(Path(folder), about)

    def apply(self, pipe: Any) -> Self:
        """Load into the transformer of `pipe`. Raises `ModelError` for a pipeline that it does not fit."""
        if self.pipe is not None:
            raise ModelError(f"{self.folder}: applied to a pipeline already; unload it first, or open it a second time")
        name = type(pipe).__name__
        if name not in _PIPELINES:
            raise ModelError(f"apply: got a {name}; valid: {', '.join(_PIPELINES)}; `sgpipe generate` samples others")
        transformer = pipe.transformer
        if getattr(transformer, "peft_config", None):
            raise ModelError(
                f"apply: the transformer has LoRA of its own ({', '.join(transformer.peft_config)}); merge it first "
                "(pipe.fuse_lora(), pipe.unload_lora_weights())"
            )
        denoiser = _denoiser_of(pipe)
        backbone = self._checked_base(transformer, denoiser)
        footprint = Footprint(transformer)
        try:
            denoiser.family.prepare(transformer)
            self._model = open_adapter(self.folder, self.about, denoiser, backbone)
            if self.strength != 1:
                self._model.adapter.set_strength(self.strength)
        except BaseException:
            self._model = None
            footprint.close()
            footprint.revert()
            raise
        footprint.close()
        self.pipe, self._footprint = pipe, footprint
        self._resting.enter_context(self._model.off())
        return self

    def set_strength(self, strength: float) -> None:
        """Multiply the adapter's updates of weights, as `set_adapters` of diffusers does; graph tokens stay. 1 is as trained.

        Raises `ParamsError` for an adapter that has no such updates.
        """
        if self._model is not None:
            self._model.adapter.set_strength(strength)
        self.strength = strength

    def unload(self) -> None:
        """Take the adapter out of its pipeline, which is then as it was. Nothing, if it is in none."""
        self._resting.close()
        if self._footprint is not None:
            self._footprint.revert()
        self.pipe = self._model = self._footprint = None
        self._vectors = {}

    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        *,
        graph: str | SceneGraph | Sequence[str | SceneGraph] | None = None,
        **options: Any,
    ) -> Any:
        """What the pipeline gives for these prompts and `options`, with a graph for each prompt.

        graph: text as `sgpipe generate --graph` takes it, a `SceneGraph`, or a list; one stands for all prompts, and one prompt for
        all graphs. "" is the empty graph; None switches the adapter off: the base's images.
        prompt: by default the names of the graph without a relation, as in training.
        Options that are not given are the training's: height, width, max_sequence_length, a distilled transformer's guidance_scale.
        Raises `ParamsError` or `DataError` for a call that has no meaning.
        """
        pipe, model = self.pipe, self._model
        if pipe is None or model is None:
            raise ModelError(f"{self.folder}: in no pipeline; call apply(pipe) first")
        options = {**self._defaults(), **options}
        if graph is None:
            return pipe(prompt, **options)
        taken = [name for name in _OURS if options.get(name) is not None]
        if taken:
            raise ParamsError(
                f"{taken[0]}: a graph joins the encoding of `prompt`; give the prompt as text, and nothing in its place"
            )
        prompts, graphs = _pairs(prompt, graph)
        for each, text in zip(graphs, prompts, strict=True):
            for said in uncovered(each, text, self.about.get(TRAINED_ON)):
                print(f"warning: {said}", file=sys.stderr)
        copies = options.get("num_images_per_prompt") or 1
        texts = [text for text in prompts for _ in range(copies)]
        graphs = [each for each in graphs for _ in range(copies)]
        encoder = _NameEncoder(pipe, model.denoiser.family, self.backbone.max_sequence_length)
        names = add_names(self._vectors, encoder.concepts, graphs)
        with self._on(), _forwards(_Told(self._moved(model), graphs, texts, names)):
            return pipe(prompts, **options)

    def _defaults(self) -> dict[str, Any]:
        side = self.backbone.resolution
        found = {"height": side, "width": side, "max_sequence_length": self.backbone.max_sequence_length}
        return found if self._model is None or self._model.guidance is None else {**found, "guidance_scale": self._model.guidance}

    def _checked_base(self, transformer: Any, denoiser: Denoiser) -> Backbone:
        """Section `backbone` of this pipeline. Raises `ModelError` where its files are others than in training; says so on stderr
        where it is not known from which files it was loaded.
        """
        origin, trained = Path(str(transformer.config.get("_name_or_path") or "")), self.backbone
        folder = origin.parent if origin.name == "transformer" else origin
        if not (folder / "model_index.json").is_file():
            print(
                f"warning: it is not known from which files this pipeline was loaded ({origin}), so whether the adapter fits is "
                f"not checked; it was trained on {trained.model}",
                file=sys.stderr,
            )
            return trained
        of_commit = trained.revision is not None and folder.name == trained.revision
        backbone = trained if of_commit else structs.replace(trained, model=str(folder), files=str(folder), revision=None)
        check_base(self.folder, self.about, denoiser.family, backbone)
        return backbone

    def _moved(self, model: ArmModel) -> ArmModel:
        """The model where the pipeline runs by now."""
        device = self.pipe._execution_device
        if device != model.denoiser.device:
            for part in model.adapter.modules():
                part.to(device)
            model.denoiser = replace(model.denoiser, device=device)
        return model

    @contextmanager
    def _on(self) -> Iterator[None]:
        """Within the body the adapter works."""
        self._resting.close()
        try:
            yield
        finally:
            if self._model is not None:
                self._resting.enter_context(self._model.off())


def _denoiser_of(pipe: Any) -> Denoiser:
    """The pipeline's own transformer."""
    family, parts = FAMILIES[type(pipe).__name__], (pipe.transformer, pipe.vae)
    transformer, vae = ({"_class_name": type(part).__name__, **part.config} for part in parts)
    return Denoiser(family, pipe.transformer, family.layout(transformer, vae), dict(pipe.scheduler.config), pipe._execution_device)


class _NameEncoder(T5WithClips):
    """The pipeline's own T5, for names and phrases."""

    def __init__(self, pipe: Any, family: Family, length: int) -> None:
        part, tokenizer = family.name_parts
        encoder = getattr(pipe, part)
        if encoder is None:
            raise ModelError(f"the pipeline has no {part}, which encodes the names of a graph; load it with its {part}")
        self._length, self._device, self._offload, self._parts = length, pipe._execution_device, "none", [part]
        self._encoders, self._tokenizers = {part: encoder}, {part: getattr(pipe, tokenizer)}


def _pairs(
    prompt: str | Sequence[str] | None, graph: str | SceneGraph | Sequence[str | SceneGraph]
) -> tuple[list[str], list[SceneGraph]]:
    """A prompt and a graph for each image."""
    given = [graph] if isinstance(graph, str | SceneGraph) else list(graph)
    if any(each is None for each in given):
        raise ParamsError(
            'graph: got None in a list; give "" for the empty graph, and sample images of the base in a call of their own'
        )
    graphs = [given_graph(each) if isinstance(each, str) else each for each in given]
    prompts = (
        [words(each, "neutral") for each in graphs] if prompt is None else [prompt] if isinstance(prompt, str) else list(prompt)
    )
    count = max(len(prompts), len(graphs))
    if {len(prompts), len(graphs)} - {1, count} or not count:
        raise ParamsError(f"got {len(prompts)} prompts and {len(graphs)} graphs; give as many, or one of either")
    return prompts * (count if len(prompts) == 1 else 1), graphs * (count if len(graphs) == 1 else 1)


class _Told:
    """What the forwards of one call of the pipeline are given."""

    def __init__(self, model: ArmModel, graphs: Sequence[SceneGraph], texts: Sequence[str], names: NameTable) -> None:
        self.model, self.graphs, self.texts, self.names = model, graphs, texts, names
        self._off = ExitStack()
        self._first: Tensor | None = None
        self._made: tuple[Tensor, TextCondition] | None = None

    def enter(
        self, transformer: Any, args: tuple[Any, ...], given: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Before a forward: another condition at the adapter's times, elsewhere the adapter off."""
        denoiser = self.model.denoiser
        self._first = given["encoder_hidden_states"] if self._first is None else self._first
        if is_within(denoiser.family.pipeline_time(given), *self.model.times):
            return args, denoiser.family.pipeline_inputs(given, self._condition(given), denoiser.layout)
        self._off.enter_context(self.model.off())
        return None

    def leave(self, *_: Any) -> None:
        """After a forward, also one that failed."""
        self._off.close()

    def _condition(self, given: Mapping[str, Any]) -> TextCondition:
        """The condition with graphs of a forward's own one.

        Negative prompts stay without one: under guidance SD3's forwards have their rows before the prompts', and FLUX.1 makes
        forwards of their own for them, after the prompts'.
        """
        states, pooled, count = given["encoder_hidden_states"], given["pooled_projections"], len(self.graphs)
        assert self._first is not None
        if len(self._first) == count and states is not self._first:
            return TextCondition(states, pooled)
        if self._made is None or self._made[0] is not states:
            own = TextCondition(states[-count:], pooled[-count:])
            made = self.model.condition(self.graphs, self.texts, own, self.names)
            if made.before is not None or made.residuals is not None:
                raise ModelError(
                    "the adapter acts inside the transformer (tokens that enter behind its first block, or what is added to image "
                    "rows), where a pipeline's forward takes nothing; sample by `sgpipe generate`"
                )
            if len(states) > count:
                negative = TextCondition(states[:-count], pooled[:-count], prepended=made.prepended)
                made = TextCondition.cat([negative, made])
            self._made = states, made
        return self._made[1]


@contextmanager
def _forwards(told: _Told) -> Iterator[None]:
    """Within the body the transformer's forwards are `told`."""
    transformer = told.model.denoiser.transformer
    handles = [
        transformer.register_forward_pre_hook(told.enter, with_kwargs=True),
        transformer.register_forward_hook(told.leave, always_call=True),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        told.leave()
