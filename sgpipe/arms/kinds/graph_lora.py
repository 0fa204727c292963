"""Kind `graph_lora`: graph tokens beside the prompt's, and LoRA on the projections that read them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Self

from msgspec import Struct

from sgpipe.arms.config import Lora, LoraOptions
from sgpipe.arms.kinds.base import Adapter, Base, Prompts, Sections
from sgpipe.graph_encoder.config import GraphTokens

if TYPE_CHECKING:
    from torch import nn

    from sgpipe.arms.conditioning import GraphConditioner
    from sgpipe.arms.lora import LoraLayers
    from sgpipe.backbones.base import TextCondition


class GraphLoraSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """Where LoRA sits, and the tokens."""

    lora: Lora
    graph_tokens: GraphTokens


class GraphLora(Adapter):
    """Graph tokens beside the prompt's, and LoRA on the projections that read them; without blocks tokens alone."""

    options = LoraOptions
    settings = GraphLoraSettings

    def __init__(self, lora: "LoraLayers", conditioner: "GraphConditioner") -> None:
        self.lora, self.conditioner = lora, conditioner
        self.mode, self.dropout = conditioner.params.injection, lora.lora.dropout

    @classmethod
    def resolve(cls, key: str, options: LoraOptions, sections: Sections) -> GraphLoraSettings:
        """`lora` as the arm has it; `graph_tokens` as they are."""
        from sgpipe.arms.lora import resolve_lora

        return GraphLoraSettings(resolve_lora(key, options, sections), sections.graph_tokens)

    @classmethod
    def files(cls, settings: GraphLoraSettings) -> dict[str, Path]:
        """The graph encoder that the tokens read."""
        return settings.graph_tokens.files()

    @classmethod
    def build(cls, settings: GraphLoraSettings, base: Base) -> Self:
        """Up-projections start at 0, so that the transformer's function does not change."""
        from sgpipe.arms.conditioning import GraphConditioner
        from sgpipe.arms.lora import LoraLayers

        return cls(LoraLayers.attach(base, settings.lora), GraphConditioner.fresh(settings.graph_tokens, base))

    def parameters(self) -> dict[str, dict[str, "nn.Parameter"]]:
        """LoRA's weights; of the tokens what `train_encoder` says."""
        return {"lora": self.lora.weights, "tokens": self.conditioner.trained()}

    def condition(self, prompts: Prompts) -> "TextCondition":
        """Tokens before the prompt's rows, or added to those of its names."""
        return self.conditioner(prompts)

    def save(self, folder: Path) -> None:
        """LoRA as diffusers reads it, tokens, and the encoder that they read."""
        self.lora.save(folder)
        self.conditioner.save(folder)

    @classmethod
    def load(cls, settings: GraphLoraSettings, base: Base, folder: Path) -> Self:
        """Frozen or not, as `build` has it; the encoder is that of the folder."""
        from sgpipe.arms.conditioning import GraphConditioner
        from sgpipe.arms.lora import LoraLayers

        lora = LoraLayers.load(base, settings.lora, folder)
        return cls(lora, GraphConditioner.load(settings.graph_tokens, base, folder))

    @contextmanager
    def off(self) -> Iterator[None]:
        """LoRA is switched off."""
        with self.lora.off():
            yield
