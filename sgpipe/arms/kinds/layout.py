"""What arms that are told boxes share: a graph's layout image, and what it adds behind the blocks of the transformer."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from msgspec import Meta, Struct

from sgpipe.arms.config import ArmOptions
from sgpipe.arms.kinds.base import Adapter, Base, Prompts
from sgpipe.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from sgpipe.backbones.base import TextCondition
    from sgpipe.graphs.scene_graph import SceneGraph

Boxes = Annotated[
    Literal["oracle", "proposed"],
    Meta(
        description="in sampling: those that a graph has (of a curated triple, ground truth), or all proposed from its triples "
        "alone; training shows those that a graph has"
    ),
]
Arrows = Annotated[bool, Meta(description="the layout image shows each triple as an arrow from subject to object, too")]


class LayoutOptions(ArmOptions, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What an arm that is told boxes may say."""

    boxes: Boxes = "oracle"
    arrows: Arrows = False


class LayoutSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """As the options."""

    boxes: Boxes


class LayoutAdapter(Adapter):
    """Shows the transformer a graph's boxes as an image; the prompt stays as it is.

    Boxes that a graph has are shown as they are (in sampling only with `boxes: oracle`), those of other objects in its triples are
    proposed from the triples (`sgpipe.graphs.layouts`). A graph with neither shows nothing: the transformer computes what the base
    does.
    """

    mode = "prepend"

    def __init__(self, settings: LayoutSettings, base: Base, module: "nn.Module") -> None:
        """`module` is what is trained; its mode says whether this is training."""
        self.denoiser, self.boxes = base.denoiser, settings.boxes
        self.module: Any = module
        module.to(base.denoiser.device).float().requires_grad_(True).train()

    @staticmethod
    def check(base: Base) -> None:
        """Raises `ModelError` for a family whose blocks nothing can be added behind."""
        family = base.denoiser.family
        if not family.residual_inputs:
            raise ModelError(
                f"{family.pipeline}: nothing can be added behind its blocks; layout arms are for FluxPipeline and "
                "StableDiffusion3Pipeline"
            )

    def condition(self, prompts: Prompts) -> "TextCondition":
        """The prompts' own encoding, with residuals of the layouts where a graph has one."""
        from sgpipe.graphs.layouts import proposed

        known = self.boxes == "oracle" or self.module.training
        layouts = [proposed(graph if known else replace(graph, boxes=())) for graph in prompts.graphs]
        return replace(prompts.text, residuals=_Added(self, layouts)) if any(map(_shown, layouts)) else prompts.text

    @abstractmethod
    def residuals(
        self, layouts: "Sequence[SceneGraph]", latents: "Tensor", inputs: Mapping[str, Any]
    ) -> "Sequence[Sequence[Tensor] | None]":
        """As `backbones.base.Residuals`, of graphs with boxes."""


def _shown(layout: "SceneGraph") -> bool:
    return any(box is not None for box in layout.boxes)


@dataclass(frozen=True)
class _Added:
    """The residuals of a batch of layouts, 0 for a graph that shows nothing, in the precision of the latents."""

    adapter: LayoutAdapter
    layouts: "Sequence[SceneGraph]"

    def __call__(self, latents: "Tensor", inputs: Mapping[str, Any]) -> "Sequence[Sequence[Tensor] | None]":
        made = self.adapter.residuals(self.layouts, latents, inputs)
        shown = latents.new_tensor([_shown(layout) for layout in self.layouts])[:, None, None]
        return [rows if rows is None else [each.to(latents.dtype) * shown for each in rows] for rows in made]
