"""The seam between a graph and a generator: what a kind of arm must say. docs/extending.md shows how to add one.

A kind is one file, named in `KINDS`: a subclass of `Adapter`, which adds to the backbone and is trained here, or of `External`, a
generator of its own that was trained elsewhere. Every stage that checks its parameters imports the kinds, so torch
and what computes are imported inside the methods that need them.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, Self

from msgspec import Struct

from sgpipe.arms.config import ArmOptions, Lora
from sgpipe.attention_maps.config import Maps
from sgpipe.backbones.config import Backbone
from sgpipe.errors import ParamsError
from sgpipe.graph_encoder.config import GraphTokens
from sgpipe.relations.predicates import PREDICATES
from sgpipe.sgdiff.config import SgDiffParams
from sgpipe.training.config import Train

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from sgpipe.backbones.base import TextCondition
    from sgpipe.backbones.denoiser import Denoiser
    from sgpipe.graph_encoder.open_vocabulary import NameTable
    from sgpipe.graphs.scene_graph import SceneGraph

InjectionMode = Literal["text", "prepend", "residual"]
"""How a graph reaches the transformer: in the prompt's words alone, or by something beside them, which is made of the graph
(`prepend`), or also of the rows of its names in the prompt (`residual`)."""

OwnTerms = Callable[["Tensor", "Tensor"], Mapping[str, "Tensor"]]
"""Terms `[B]` of a kind's own loss, of velocity and target."""


@dataclass(frozen=True)
class Sections:
    """The sections of params.yaml that arms are resolved from; `train` has the arm's own seed by then."""

    lora: Lora
    train: Train
    graph_tokens: GraphTokens
    backbone: Backbone
    maps: Maps | None = None
    sgdiff: SgDiffParams | None = None

    @classmethod
    def of(cls, sections: Mapping[str, Any]) -> Self:
        """From sections by name, as `load_all` reads them."""
        return cls(*(sections[name] for name in cls.__dataclass_fields__))


@dataclass(frozen=True)
class Base:
    """What an adapter is built on: a frozen generator, the seed of fresh weights, the size of a text embedding (its root mean
    square), and the relation classes that it knows, in the order of its rows."""

    denoiser: "Denoiser"
    backbone: Backbone
    seed: int
    text_scale: float
    classes: Sequence[str] = PREDICATES


@dataclass(frozen=True)
class Prompts:
    """A batch of texts with a graph each; `text` is their encoding (`[B, T, D]`), `names` has a vector for every name and phrase
    in the graphs.
    """

    graphs: "Sequence[SceneGraph]"
    texts: Sequence[str]
    text: "TextCondition"
    names: "NameTable"


class Generator(Protocol):
    """What samples the images of an arm."""

    def sample(
        self, prompts: Sequence[str], graphs: "Sequence[SceneGraph | None]", seeds: Sequence[int], *, steps: int, size: int
    ) -> "NDArray[np.uint8]":
        """Images `[N, size, size, 3]`, 0–255; `steps` are those of the backbone."""


class Kind(ABC):
    """How graphs reach a generator."""

    options: ClassVar[type[ArmOptions]]
    """What `arms.<name>` may hold."""
    settings: ClassVar[type[Struct]]
    """The arm in canonical form, equal for equal meanings. It goes into the resolved file and adapter.json."""

    @classmethod
    @abstractmethod
    def resolve(cls, key: str, options: Any, sections: Sections) -> Struct:
        """The settings of arm `key` (as `arms.graph`). Raises `ParamsError` for what the model lacks."""

    @classmethod
    def files(cls, settings: Any) -> dict[str, Path]:
        """Folders that are read beside the data, by their knob; their content becomes part of the resolved arm."""
        return {}


class External(Kind):
    """An arm that is a generator of its own, trained elsewhere or not at all, whose images are judged beside the others'."""

    command: ClassVar[str] = "dvc repro sample_images"
    """What samples it."""

    @classmethod
    @abstractmethod
    def open(cls, settings: Any, device: "torch.device") -> Generator:
        """The generator, on a device. Raises `ModelError` for damaged files."""


class Adapter(Kind):
    """What an arm adds to a generator. `mode` says how it is told graphs."""

    mode: InjectionMode
    dropout: float = 0.0
    """Of what it puts into the transformer; above 0 that is trained in training mode."""
    untouched: int = 0
    """How many of the first blocks are the base's under every graph: nothing in them is adapted, and no graph has reached them."""

    @classmethod
    @abstractmethod
    def build(cls, settings: Any, base: Base) -> Self:
        """With fresh weights; the same seed gives the same ones."""

    @abstractmethod
    def parameters(self) -> dict[str, dict[str, "nn.Parameter"]]:
        """All that is trained, by group of the optimiser and name; a weight that requires a gradient and is not here is an error.

        Group `tokens` has `token_lr_multiplier` times the learning rate of the others.
        """

    @abstractmethod
    def condition(self, prompts: Prompts) -> "TextCondition":
        """What the transformer reads for prompts with a graph each. An empty graph leaves the text as it is."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write the weights; the same ones give the same bytes."""

    @classmethod
    @abstractmethod
    def load(cls, settings: Any, base: Base, folder: Path) -> Self:
        """What `save` wrote. Raises `ModelError` for damaged files."""

    def off(self) -> AbstractContextManager[None]:
        """Within the body the transformer is the base, to the bit."""
        return nullcontext()

    def training(self, number: int, graphs: "Sequence[SceneGraph]") -> "AbstractContextManager[OwnTerms]":
        """Around the forward of batch `number` of the training, whose examples have these graphs.

        Within the body `condition` is called once. What it yields makes of velocity and target `[B, C, h, w]` of the examples under
        their graphs terms `[B]` by name, the same names for every batch, which are added to the loss; none unless it is overridden.
        """
        return nullcontext(lambda velocity, target: {})

    def set_strength(self, strength: float) -> None:
        """Multiply what it adds to the transformer's weights; 1 is as trained. Raises `ParamsError` where that is nothing."""
        raise ParamsError(f"set_strength: got {strength:g}; an adapter of kind {type(self).__name__} has no weights to scale")

    def modules(self) -> "list[nn.Module]":
        """The modules it adds beside the transformer: those among its attributes."""
        from torch import nn

        return [value for value in vars(self).values() if isinstance(value, nn.Module)]
