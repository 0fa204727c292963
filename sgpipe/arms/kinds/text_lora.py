"""Kind `text_lora`: LoRA alone. The graph goes in the prompt's words: the control of every arm that reads graphs."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self

from msgspec import Struct

from sgpipe.arms.config import Lora, LoraOptions
from sgpipe.arms.kinds.base import Adapter, Base, InjectionMode, Prompts, Sections
from sgpipe.errors import ParamsError

if TYPE_CHECKING:
    from torch import nn

    from sgpipe.arms.lora import LoraLayers
    from sgpipe.backbones.base import TextCondition


class TextLoraOptions(LoraOptions, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """As `graph_lora`."""

    reads_graph: ClassVar[bool] = False


class TextLoraSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """Where LoRA sits."""

    lora: Lora


class TextLora(Adapter):
    """LoRA alone, the graph in the prompt's words: trained under relational prompts, whatever `train.conditions` are."""

    options = TextLoraOptions
    settings = TextLoraSettings
    mode: InjectionMode = "text"

    def __init__(self, lora: "LoraLayers") -> None:
        self.lora, self.dropout = lora, lora.lora.dropout

    @classmethod
    def resolve(cls, key: str, options: LoraOptions, sections: Sections) -> TextLoraSettings:
        """`lora` as the arm has it. Raises `ParamsError` where that names no block."""
        from sgpipe.arms.lora import resolve_lora

        lora = resolve_lora(key, options, sections)
        if not lora.blocks.indices and not lora.single_blocks.indices:
            raise ParamsError(f"{key}: kind text_lora trains LoRA alone, and lora.blocks is none; name blocks or drop the arm")
        return TextLoraSettings(lora)

    @classmethod
    def build(cls, settings: TextLoraSettings, base: Base) -> Self:
        """Up-projections start at 0, so that the transformer's function does not change."""
        from sgpipe.arms.lora import LoraLayers

        return cls(LoraLayers.attach(base, settings.lora))

    def parameters(self) -> dict[str, dict[str, "nn.Parameter"]]:
        """LoRA's weights."""
        return {"lora": self.lora.weights}

    def condition(self, prompts: Prompts) -> "TextCondition":
        """The prompt as it is, whatever the graphs."""
        return prompts.text

    def save(self, folder: Path) -> None:
        """LoRA as diffusers reads it."""
        self.lora.save(folder)

    @classmethod
    def load(cls, settings: TextLoraSettings, base: Base, folder: Path) -> Self:
        """What `save` wrote."""
        from sgpipe.arms.lora import LoraLayers

        return cls(LoraLayers.load(base, settings.lora, folder))

    @contextmanager
    def off(self) -> Iterator[None]:
        """LoRA is switched off."""
        with self.lora.off():
            yield
