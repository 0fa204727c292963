"""Kind `graph_lora`: graph tokens beside the prompt's, and LoRA on the projections that read them."""

from msgspec import Struct

from sgpipe.arms.config import Lora, LoraOptions
from sgpipe.arms.kinds.base import Sections
from sgpipe.arms.kinds.parts import PartsAdapter, resolve_tokens
from sgpipe.graph_encoder.config import GraphTokens


class GraphLoraSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """Where LoRA sits, and the tokens."""

    lora: Lora
    graph_tokens: GraphTokens


class GraphLora(PartsAdapter):
    """Graph tokens beside the prompt's, and LoRA on the projections that read them; without blocks tokens alone."""

    options = LoraOptions
    settings = GraphLoraSettings

    @classmethod
    def resolve(cls, key: str, options: LoraOptions, sections: Sections) -> GraphLoraSettings:
        """`lora` as the arm has it; `graph_tokens` as they are."""
        from sgpipe.arms.lora import resolve_lora

        return GraphLoraSettings(resolve_lora(key, options, sections), resolve_tokens(sections))
