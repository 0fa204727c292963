"""Kind `graph_tokens`: graph tokens beside the prompt's, read by the transformer as it is."""

from pathlib import Path
from typing import TYPE_CHECKING, Self

from msgspec import Struct

from sgpipe.arms.config import ArmOptions
from sgpipe.arms.kinds.base import Adapter, Base, Prompts, Sections
from sgpipe.graph_encoder.config import GraphTokens

if TYPE_CHECKING:
    from torch import nn

    from sgpipe.arms.conditioning import GraphConditioner
    from sgpipe.backbones.base import TextCondition


class TokensSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """The tokens."""

    graph_tokens: GraphTokens


class TokensAlone(Adapter):
    """Graph tokens beside the prompt's, read by the transformer as it is."""

    options = ArmOptions
    settings = TokensSettings

    def __init__(self, conditioner: "GraphConditioner") -> None:
        self.conditioner = conditioner
        self.mode = conditioner.params.injection

    @classmethod
    def resolve(cls, key: str, options: ArmOptions, sections: Sections) -> TokensSettings:
        """`graph_tokens` as they are."""
        return TokensSettings(sections.graph_tokens)

    @classmethod
    def files(cls, settings: TokensSettings) -> dict[str, Path]:
        """The graph encoder that the tokens read."""
        return settings.graph_tokens.files()

    @classmethod
    def build(cls, settings: TokensSettings, base: Base) -> Self:
        """Projections of the seed."""
        from sgpipe.arms.conditioning import GraphConditioner

        return cls(GraphConditioner.fresh(settings.graph_tokens, base))

    def parameters(self) -> dict[str, dict[str, "nn.Parameter"]]:
        """What `train_encoder` says."""
        return {"tokens": self.conditioner.trained()}

    def condition(self, prompts: Prompts) -> "TextCondition":
        """Tokens before the prompt's rows, or added to those of its names."""
        return self.conditioner(prompts)

    def save(self, folder: Path) -> None:
        """Tokens, and the encoder that they read."""
        self.conditioner.save(folder)

    @classmethod
    def load(cls, settings: TokensSettings, base: Base, folder: Path) -> Self:
        """The encoder is that of the folder."""
        from sgpipe.arms.conditioning import GraphConditioner

        return cls(GraphConditioner.load(settings.graph_tokens, base, folder))
