"""What the kinds of this package share: an adapter of LoRA layers, graph tokens, or both."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from sgpipe.arms.kinds.base import Adapter, Base, Prompts, Sections
from sgpipe.errors import ParamsError
from sgpipe.graph_encoder.config import GraphTokens

if TYPE_CHECKING:
    from torch import nn

    from sgpipe.arms.conditioning import GraphConditioner
    from sgpipe.arms.lora import LoraLayers
    from sgpipe.backbones.base import TextCondition


def resolve_tokens(sections: Sections) -> GraphTokens:
    """Section `graph_tokens` as it is.

    Raises `ParamsError` where tokens would enter behind the model's last block, or behind the first with a loss that reads maps.
    """
    tokens, backbone = sections.graph_tokens, sections.backbone
    tokens.check(backbone.double_blocks + backbone.single_blocks)
    if tokens.enter and sections.train.losses.maps:
        raise ParamsError(
            f"graph_tokens.enter: got {tokens.enter}; losses that read saliency maps need tokens in all blocks: set it to 0, or "
            "the weights of train.losses.ranking and train.losses.saliency"
        )
    return tokens


class PartsAdapter(Adapter):
    """Has LoRA if its settings have a field `lora`, and graph tokens if they have `graph_tokens`.

    Up-projections of fresh LoRA are 0, so that the transformer's function does not change.
    """

    def __init__(self, lora: "LoraLayers | None" = None, conditioner: "GraphConditioner | None" = None) -> None:
        self.lora, self.conditioner = lora, conditioner
        self.mode = "text" if conditioner is None else conditioner.params.injection
        self.dropout = 0.0 if lora is None else lora.lora.dropout
        entry = 0 if conditioner is None else conditioner.params.enter
        self.untouched = entry if lora is None else min(entry, lora.first)

    @classmethod
    def files(cls, settings: Any) -> dict[str, Path]:
        """The graph encoder that the tokens read."""
        return settings.graph_tokens.files() if hasattr(settings, "graph_tokens") else {}

    @classmethod
    def build(cls, settings: Any, base: Base) -> Self:
        return cls._open(settings, base, None)

    @classmethod
    def load(cls, settings: Any, base: Base, folder: Path) -> Self:
        return cls._open(settings, base, folder)

    @classmethod
    def _open(cls, settings: Any, base: Base, folder: Path | None) -> Self:
        from sgpipe.arms.conditioning import GraphConditioner
        from sgpipe.arms.lora import LoraLayers

        lora = LoraLayers.open(base, settings.lora, folder) if hasattr(settings, "lora") else None
        tokens = GraphConditioner.open(settings.graph_tokens, base, folder) if hasattr(settings, "graph_tokens") else None
        return cls(lora, tokens)

    def parameters(self) -> dict[str, dict[str, "nn.Parameter"]]:
        """LoRA's weights; of the tokens what `train_encoder` says."""
        lora = {} if self.lora is None else {"lora": self.lora.weights}
        return lora if self.conditioner is None else {**lora, "tokens": self.conditioner.trained()}

    def condition(self, prompts: Prompts) -> "TextCondition":
        """Tokens before the prompt's rows, or added to those of its names; without tokens the prompt as it is."""
        return prompts.text if self.conditioner is None else self.conditioner(prompts)

    def save(self, folder: Path) -> None:
        """LoRA as diffusers reads it, tokens, and the encoder that they read."""
        for part in (self.lora, self.conditioner):
            if part is not None:
                part.save(folder)

    def off(self) -> AbstractContextManager[None]:
        """LoRA is switched off."""
        return nullcontext() if self.lora is None else self.lora.off()

    def set_strength(self, strength: float) -> None:
        """LoRA's updates are multiplied; tokens stay as they are."""
        if self.lora is None or not self.lora.weights:
            return super().set_strength(strength)
        self.lora.scale(strength)
