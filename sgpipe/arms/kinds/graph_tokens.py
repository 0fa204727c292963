"""Kind `graph_tokens`: graph tokens beside the prompt's, read by the transformer as it is."""

from msgspec import Struct

from sgpipe.arms.config import ArmOptions
from sgpipe.arms.kinds.base import Sections
from sgpipe.arms.kinds.parts import PartsAdapter, resolve_tokens
from sgpipe.graph_encoder.config import GraphTokens


class TokensSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """The tokens."""

    graph_tokens: GraphTokens


class TokensAlone(PartsAdapter):
    """Graph tokens beside the prompt's, read by the transformer as it is."""

    options = ArmOptions
    settings = TokensSettings

    @classmethod
    def resolve(cls, key: str, options: ArmOptions, sections: Sections) -> TokensSettings:
        """`graph_tokens` as they are."""
        return TokensSettings(resolve_tokens(sections))
