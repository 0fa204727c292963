"""Kind `relation_injection`: relation and appearance in LoRA of their own, after DreamRelation (Wei et al. 2025, arXiv 2503.07602).

Its recipe of videos, for images with graphs:

- Relation LoRA on queries and keys, subject LoRA on values. A batch trains one of the two, and the other is off in its forward;
  sampling takes the relation LoRA alone, so that appearances of the training images stay behind.
- Hybrid masks: beside the flow loss one over the boxes of both objects (relation batches), or of one of them (subject batches,
  which are told no graph).
- Relational contrast on the model's output: the paper's feature is the difference between frames, appearance that of single frames.
  Here it is the difference between the means of the two objects' boxes, and appearance the mean of each. Features of the same class
  in the batch are positives; appearances, and features of other classes (the paper trains one), are negatives.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

from msgspec import Meta, Struct
from msgspec.structs import replace

from sgpipe.arms.config import Lora, LoraOptions
from sgpipe.arms.kinds.base import Base, OwnTerms, Prompts, Sections
from sgpipe.arms.kinds.parts import PartsAdapter
from sgpipe.errors import ParamsError
from sgpipe.graph_encoder.config import GraphTokens

if TYPE_CHECKING:
    from torch import Tensor, nn

    from sgpipe.arms.lora import LoraLayers
    from sgpipe.backbones.base import TextCondition
    from sgpipe.graphs.scene_graph import Box, SceneGraph

SUBJECT = "subject"
"""peft's name of the subject LoRA, and its folder within the adapter's."""
Share = Annotated[float, Meta(gt=0.0, lt=1.0, description="probability of a batch to train the subject LoRA")]
MaskWeight = Annotated[float, Meta(ge=0.0, description="weight of the flow loss within the boxes")]
Contrast = Annotated[float, Meta(ge=0.0, description="weight of the relational contrast")]
Temperature = Annotated[float, Meta(gt=0.0, description="of the contrast's cosines")]


class InjectionOptions(LoraOptions, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """As `graph_lora`, but for `targets`, which are the idea; and how the two LoRA are trained."""

    subject_share: Share = 0.5
    mask: MaskWeight = 1.0
    contrast: Contrast = 0.01
    temperature: Temperature = 0.07


class InjectionSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where the two LoRA sit, the tokens, and the options."""

    lora: Lora
    subject: Lora
    graph_tokens: GraphTokens
    subject_share: Share
    mask: MaskWeight
    contrast: Contrast
    temperature: Temperature


class RelationInjection(PartsAdapter):
    """Graph tokens read by a relation LoRA on queries and keys; a subject LoRA on values takes up appearances in training alone."""

    options = InjectionOptions
    settings = InjectionSettings
    subject: "LoraLayers"
    how: InjectionSettings
    _seed: int
    _subject_batch = False
    _active: str

    @classmethod
    def resolve(cls, key: str, options: InjectionOptions, sections: Sections) -> InjectionSettings:
        """`lora` as the arm has it, twice. Raises `ParamsError` for targets, and where no block is named."""
        from sgpipe.arms.lora import resolve_lora

        if options.targets is not None:
            raise ParamsError(
                f"{key}.targets: got {', '.join(options.targets)}; kind relation_injection has its relation LoRA on to_q and to_k "
                "and its subject LoRA on to_v; leave it out"
            )
        own = {name: getattr(options, name) for name in ("subject_share", "mask", "contrast", "temperature")}
        given = {name: value for name, value in options.given().items() if name not in own}
        lora = resolve_lora(key, LoraOptions(kind=options.kind, **given), sections)
        if not lora.blocks.indices and not lora.single_blocks.indices:
            raise ParamsError(f"{key}: kind relation_injection trains LoRA, and lora.blocks is none; name blocks or drop the arm")
        relation, subject = (replace(lora, targets=targets) for targets in (("to_k", "to_q"), ("to_v",)))
        return InjectionSettings(lora=relation, subject=subject, graph_tokens=sections.graph_tokens, **own)

    @classmethod
    def _open(cls, settings: InjectionSettings, base: Base, folder: Path | None) -> Self:
        from sgpipe.arms.lora import NAME, LoraLayers

        subject = LoraLayers.open(base, settings.subject, None if folder is None else folder / SUBJECT, SUBJECT)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Already found a `peft_config`", UserWarning)  # there are to be two
            made = super()._open(settings, base, folder)  # the relation LoRA is the active one
        for weight in subject.weights.values():
            weight.requires_grad_(True)
        made.subject, made.how, made._seed, made._active = subject, settings, base.seed, NAME
        return made

    def parameters(self) -> "dict[str, dict[str, nn.Parameter]]":
        """Both LoRA; of the tokens what `train_encoder` says."""
        return {**super().parameters(), SUBJECT: self.subject.weights}

    def condition(self, prompts: Prompts) -> "TextCondition":
        """As `graph_lora`; in a batch that trains the subject LoRA the prompt as it is. Activates the LoRA that belongs to it.

        It stays active beyond `training`: the backward pass may run blocks again.
        """
        from sgpipe.arms.lora import NAME

        wanted = SUBJECT if self._subject_batch else NAME
        if wanted != self._active:
            self.subject.transformer.set_adapter(wanted)
            self._active = wanted
        return prompts.text if self._subject_batch else super().condition(prompts)

    @contextmanager
    def training(self, number: int, graphs: "Sequence[SceneGraph]") -> Iterator[OwnTerms]:
        """Which LoRA batch `number` trains depends on the seed and the number alone."""
        import torch

        from sgpipe.backbones.rectified_flow import generator

        random = generator(self._seed, "hybrid mask", number)
        subject = bool(torch.rand((), generator=random) < self.how.subject_share)
        first = (torch.rand(len(graphs), generator=random) < 0.5).tolist() if subject else None
        self._subject_batch = subject
        try:
            yield partial(self._terms, graphs, first)
        finally:
            self._subject_batch = False

    def _terms(
        self, graphs: "Sequence[SceneGraph]", first: Sequence[bool] | None, velocity: "Tensor", target: "Tensor"
    ) -> "Mapping[str, Tensor]":
        """`masked` and `contrast`, `[B]`, weighted; `first` says of whose appearance a subject batch is."""
        import torch

        height, width = velocity.shape[-2:]
        subjects, objects = (
            torch.stack([box_mask(_box(graph, end), height, width) for graph in graphs]).to(velocity.device) for end in (0, 2)
        )
        if first is None:
            where = subjects | objects
            labels = [graph.triples[0][1] for graph in graphs]
            seen = [region_mean(velocity.float(), mask) for mask in (subjects, objects)]
            contrast = relation_contrast(seen[0] - seen[1], torch.cat(seen), labels, self.how.temperature)
        else:
            where = torch.where(torch.tensor(first, device=velocity.device)[:, None, None], subjects, objects)
            contrast = velocity.new_zeros(len(graphs), dtype=torch.float32)
        masked = region_mean((velocity.float() - target.float()).square(), where).mean(dim=1)
        return {"masked": self.how.mask * masked, "contrast": self.how.contrast * contrast}

    def save(self, folder: Path) -> None:
        """As `graph_lora`, with the relation LoRA where pipelines look for one; the subject LoRA in a folder of its own."""
        super().save(folder)
        (folder / SUBJECT).mkdir(exist_ok=True)
        self.subject.save(folder / SUBJECT)


def _box(graph: "SceneGraph", end: int) -> "Box | None":
    """Of the first triple's subject (0) or object (2)."""
    index: Any = graph.triples[0][end]
    return graph.boxes[index] if graph.boxes else None


def box_mask(box: "Box | None", height: int, width: int) -> "Tensor":
    """True `[height, width]` in the cells that a box (fractions of the image) meets, one at least; everywhere for None."""
    import torch

    mask = torch.ones(height, width, dtype=torch.bool)
    if box is None:
        return mask
    x, y, w, h = box
    for low, size, cells, axis in ((x, w, width, 1), (y, h, height, 0)):
        places = torch.arange(cells)
        start = min(max(int(low * cells), 0), cells - 1)
        inside = (places >= start) & ((places < (low + size) * cells - 1e-6) | (places == start))
        mask &= inside[None, :] if axis else inside[:, None]
    return mask


def region_mean(values: "Tensor", mask: "Tensor") -> "Tensor":
    """The mean `[B, C]` of values `[B, C, h, w]` over a mask `[B, h, w]` with a cell at least."""
    weights = mask[:, None].to(values)
    return (values * weights).sum(dim=(2, 3)) / weights.sum(dim=(2, 3))


def relation_contrast(features: "Tensor", appearances: "Tensor", labels: Sequence[str], temperature: float) -> "Tensor":
    """−log Σ_{positives} exp(cos/τ) / Σ_{positives, negatives} exp(cos/τ), `[B]`, for features `[B, D]`.

    Positives are the other features of the same label, negatives those of other labels and the appearances `[A, D]`. 0 for a
    feature without a positive. Gradients reach all of them; the paper keeps positives and negatives of earlier batches instead.
    """
    import torch
    from torch.nn.functional import normalize

    unit = normalize(features, dim=-1)
    cosines = torch.cat([unit @ unit.T, unit @ normalize(appearances, dim=-1).T], dim=1) / temperature
    numbers = torch.tensor([labels.index(label) for label in labels], device=features.device)
    own = torch.eye(len(features), dtype=torch.bool, device=features.device)
    positive = torch.zeros_like(cosines, dtype=torch.bool)
    positive[:, : len(features)] = (numbers[:, None] == numbers[None, :]) & ~own
    others = cosines.masked_fill(torch.cat([own, torch.zeros_like(positive[:, len(features) :])], dim=1), -torch.inf)
    has = positive.any(dim=1)
    near = cosines.masked_fill(~positive & has[:, None], -torch.inf)
    return torch.where(has, torch.logsumexp(others, dim=1) - torch.logsumexp(near, dim=1), torch.zeros_like(cosines[:, 0]))
