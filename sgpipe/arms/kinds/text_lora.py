"""Kind `text_lora`: LoRA alone. The graph goes in the prompt's words: the control of every arm that reads graphs."""

from typing import ClassVar

from msgspec import Struct

from sgpipe.arms.config import Lora, LoraOptions
from sgpipe.arms.kinds.base import Sections
from sgpipe.arms.kinds.parts import PartsAdapter
from sgpipe.errors import ParamsError


class TextLoraOptions(LoraOptions, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """As `graph_lora`."""

    reads_graph: ClassVar[bool] = False


class TextLoraSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """Where LoRA sits."""

    lora: Lora


class TextLora(PartsAdapter):
    """LoRA alone, the graph in the prompt's words: trained under relational prompts, whatever `train.conditions` are."""

    options = TextLoraOptions
    settings = TextLoraSettings

    @classmethod
    def resolve(cls, key: str, options: LoraOptions, sections: Sections) -> TextLoraSettings:
        """`lora` as the arm has it. Raises `ParamsError` where that names no block."""
        from sgpipe.arms.lora import resolve_lora

        lora = resolve_lora(key, options, sections)
        if not lora.blocks.indices and not lora.single_blocks.indices:
            raise ParamsError(f"{key}: kind text_lora trains LoRA alone, and lora.blocks is none; name blocks or drop the arm")
        return TextLoraSettings(lora)
