"""The sections of params.yaml that this package reads: where LoRA sits, and which arms are trained."""

import re
from collections.abc import Mapping
from importlib import import_module
from typing import Annotated, Any, ClassVar, Literal, Self

from msgspec import Meta, Struct

from sgpipe.backbones.config import each_once
from sgpipe.errors import ParamsError
from sgpipe.params.blocks import Blocks, Placement
from sgpipe.params.load import decode

Target = Literal[
    "to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out", "proj_out", "to_qkv_mlp_proj",
    "to_out", "to_gate", "attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0",
]  # fmt: skip
Targets = Annotated[
    tuple[Target, ...],
    Meta(
        min_length=1,
        description="projections: to_* of the image, add_* of the text; of single blocks also proj_out (FLUX.1), or "
        "to_qkv_mlp_proj and to_out (FLUX.2), or to_gate (Krea 2); attn2.* of a second attention of image rows (SD3.5-medium)",
    ),
]
Rank = Annotated[int, Meta(ge=1)]
Alpha = Annotated[float, Meta(gt=0.0)]
Dropout = Annotated[float, Meta(ge=0.0, lt=1.0)]
_NAME = re.compile(r"[A-Za-z0-9_-]+")


class Lora(Struct, frozen=True, forbid_unknown_fields=True):
    """Section `lora`. LoRA (Hu et al. 2022) of every arm that has it; an arm may say otherwise in `arms.<name>`."""

    blocks: Annotated[Blocks, Meta(description="double-stream blocks with LoRA; none trains tokens alone")]
    single_blocks: Annotated[Blocks, Meta(description="single-stream blocks with LoRA")] = Blocks(())
    targets: Targets = ("to_q", "to_k", "to_v", "to_out.0")
    rank: Annotated[Rank, Meta(description="rank r")] = 16
    alpha: Annotated[Alpha, Meta(description="scale α; updates are multiplied by α/r")] = 16.0
    dropout: Annotated[Dropout, Meta(description="dropout before the down-projection")] = 0.0

    def __post_init__(self) -> None:
        each_once(targets=self.targets)


class ArmOptions(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What an arm of any kind may say."""

    reads_graph: ClassVar[bool] = True
    """False for a kind that is told graphs in the prompt's words alone."""

    kind: Annotated[str, Meta(description="how the graph reaches the generator")]
    seed: Annotated[
        Annotated[int, Meta(ge=0, lt=1 << 32)] | None, Meta(description="training seed of this arm; null takes `train.seed`")
    ] = None
    learning_rate: Annotated[
        Annotated[float, Meta(gt=0.0)] | None,
        Meta(description="peak learning rate of this arm; null takes `train.optimiser.learning_rate`"),
    ] = None
    triples: Annotated[
        Annotated[tuple[str, ...], Meta(min_length=1)] | None,
        Meta(description="train triples, by id, that this arm is trained on alone, repeated to as many as the others have"),
    ] = None


class LoraOptions(ArmOptions, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What an arm with LoRA may say beside: any knob of `lora`, null taking the section's."""

    blocks: Annotated[
        Placement | None,
        Meta(description="double-stream blocks; `random` draws as many as `lora.blocks` names, another set than that"),
    ] = None
    single_blocks: Annotated[Placement | None, Meta(description="single-stream blocks; `random` as for `blocks`")] = None
    targets: Annotated[Targets | None, Meta(description="projections")] = None
    rank: Annotated[Rank | None, Meta(description="rank r")] = None
    alpha: Annotated[Alpha | None, Meta(description="scale α")] = None
    dropout: Annotated[Dropout | None, Meta(description="dropout before the down-projection")] = None

    def __post_init__(self) -> None:
        each_once(targets=self.targets)

    def given(self) -> dict[str, Any]:
        """The knobs of `lora` that the arm states, by name."""
        own = [name for name in self.__struct_fields__ if name not in ArmOptions.__struct_fields__]
        return {name: value for name in own if (value := getattr(self, name)) is not None}


def arm_kinds() -> Mapping[str, Any]:
    """`sgpipe.arms.kinds.KINDS`, named by string: a stage that only checks its parameters runs no code of a kind."""
    return import_module("sgpipe.arms.kinds").KINDS


class Arms(dict[str, ArmOptions]):
    """Section `arms`. What is trained: by name (letters, digits, _ and -) a kind, and what this arm has otherwise than `lora` and
    `train` say. What an arm may say depends on its kind.
    """

    @classmethod
    def decode(cls, section: str, raw: Any, source: str) -> Self:
        """From plain values, each arm by its kind's options. Raises `ParamsError` naming the key at fault."""
        kinds, found = arm_kinds(), cls()
        if not isinstance(raw, Mapping) or not raw:
            raise ParamsError(f"{source}: {section}: got {raw!r}; name at least one arm, as {{graph: {{kind: graph_lora}}}}")
        for name, given in raw.items():
            if not isinstance(name, str) or not _NAME.fullmatch(name) or name == "base":
                raise ParamsError(
                    f"{source}: {section}: got the name {name!r}; valid are letters, digits, _ and -, and not base, the model "
                    "without an adapter"
                )
            if not isinstance(given, Mapping):
                raise ParamsError(f"{source}: {section}.{name}: got {given!r}; write {{kind: graph_lora}}")
            kind = given.get("kind")
            if not isinstance(kind, str) or kind not in kinds:
                raise ParamsError(f"{source}: {section}.{name}.kind: got {kind!r}; valid: {', '.join(kinds)}")
            found[name] = decode(f"{section}.{name}", given, kinds[kind].options, source)
        return found
