"""The training loss of a batch: g⁺ and g⁻ in one forward, at the same z_t, t, prompt and ε.

Losses as pure functions. ℓ(x, g) = mean ‖v_θ(x_t, t, g) − (ε − x)‖², one number per sample; g⁺ is the graph, g⁻ its negative.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sgpipe.arms.model import ArmModel
from sgpipe.attention_maps.config import Pooling
from sgpipe.attention_maps.options import MapOptions, concept_embeddings
from sgpipe.attention_maps.scores import GroupMaps, resize_maps
from sgpipe.attention_maps.stream import concept_stream
from sgpipe.backbones.blockwise import Rows
from sgpipe.backbones.rectified_flow import interpolate, velocity_target
from sgpipe.graphs.scene_graph import SceneGraph
from sgpipe.relations.predicates import PREDICATES
from sgpipe.training.config import Losses, Times
from sgpipe.training.examples import Data, Example
from sgpipe.training.timesteps import sampler_times


def sample_losses(velocity: Tensor, target: Tensor) -> Tensor:
    """ℓ `[B]`, float32: the mean squared error of velocities `[B, …]`; its mean over the batch is L_gen."""
    return (velocity.float() - target.float()).square().flatten(1).mean(dim=1)


def relation_weights(saliency: Tensor, height: int, width: int) -> Tensor:
    """W = detach(normalise(σ(S_relation))) `[B, 1, height, width]` of scores `[B, H, W]`: mean 1 in a sample (seed document)."""
    weights = torch.sigmoid(saliency.detach().float())
    weights = weights / weights.mean(dim=(1, 2), keepdim=True)
    return F.interpolate(weights[:, None], (height, width), mode="nearest")


def saliency_weighted(velocity: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """L_gen-rel `[B]` = mean ‖W ⊙ (v − target)‖² for velocities `[B, C, h, w]` and weights `[B, 1, h, w]`."""
    return (weights * (velocity.float() - target.float())).square().flatten(1).mean(dim=1)


def relation_ranking(positive: Tensor, negative: Tensor, label: Tensor, margin: float) -> Tensor:
    """L_rel-rank `[B]` = max(0, m − ℓ⁺_y + ℓ⁻_y) for a probe's logits `[B, classes]` under g⁺ and g⁻, y the class of g⁺."""
    rows = label[:, None]
    return F.relu(margin - positive.gather(1, rows) + negative.gather(1, rows))[:, 0]


def bounded_margin(positive: Tensor, negative: Tensor, margin: float) -> Tensor:
    """max(0, m − (ℓ(g⁻) − ℓ(g⁺))) `[B]`: asks g⁻ to be worse by m, and no more."""
    return F.relu(margin - (negative - positive))


def graph_dpo(positive: Tensor, negative: Tensor, reference_positive: Tensor, reference_negative: Tensor, beta: float) -> Tensor:
    """−log σ(−(β/2) [(ℓ_θ(g⁺) − ℓ_ref(g⁺)) − (ℓ_θ(g⁻) − ℓ_ref(g⁻))]) `[B]` (Diffusion-DPO, Wallace et al. 2024, eq. 14).

    Winner and loser share x, t and ε here. A reference that reads no graph has ℓ_ref(g⁺) = ℓ_ref(g⁻) under equal prompts, and
    the two cancel; not where g⁺ and g⁻ are told in words.
    """
    advantage = (positive - reference_positive) - (negative - reference_negative)
    return -F.logsigmoid(-beta / 2 * advantage)


def preferred(positive: Tensor, negative: Tensor) -> Tensor:
    """Whether the model prefers the graph to its negative, ℓ(g⁺) < ℓ(g⁻), `[B]`; a tie is no preference."""
    return positive < negative


@dataclass(frozen=True)
class Probe:
    """A frozen classifier of maps: `logits` of maps `[B, C, H, W]` at times `[B]` are `[B, classes]`, differentiable in the maps.

    The channels are the maps of `kinds` (`saliency`, `cross`), one kind after the other; `side` is that of the maps it reads.
    """

    logits: Callable[[Tensor, Tensor], Tensor]
    kinds: tuple[str, ...] = ("saliency",)
    classes: Sequence[str] = PREDICATES
    side: int | None = None


RELATION = 1
"""The relation's place among the three concepts."""


@dataclass(frozen=True)
class Noised:
    """Latents `[B, C, h, w]` of examples, the noise that meets them, and when, `[B]`."""

    examples: Sequence[Example]
    latents: Tensor
    noise: Tensor
    t: Tensor
    number: int = 0
    """Of the batch within the training."""


@dataclass(frozen=True)
class Spoken:
    """What a batch is given beside its latents: a prompt and a graph each."""

    texts: Sequence[str]
    graphs: Sequence[SceneGraph]

    def __add__(self, other: "Spoken") -> "Spoken":
        return Spoken([*self.texts, *other.texts], [*self.graphs, *other.graphs])


class Objective:
    """Weighted sum of the loss terms, and each of them by name."""

    def __init__(
        self,
        model: ArmModel,
        data: Data,
        losses: Losses,
        *,
        maps: MapOptions | None = None,
        pooling: Pooling = "first",
        probe: Probe | None = None,
    ) -> None:
        self.model, self.data, self.losses = model, data, losses
        self._maps, self._pooling, self._probe = maps, pooling, probe

    def sigmas(self, times: Times) -> Tensor | None:
        """The base's sigmas within the bounds of `times` at the size of the latents; None for other densities than `sampler`."""
        if times.density != "sampler":
            return None
        denoiser, first = self.model.denoiser, self.data.train[0]
        side = self.data.latents.latents([first.triple_id]).shape[-1] * denoiser.layout.vae_factor
        return sampler_times(times, denoiser.family.sigmas(times.steps, denoiser.layout, side, denoiser.scheduler))

    def velocity(self, noised: Noised, spoken: Spoken) -> Tensor:
        """v_θ under what is spoken; several times as many texts as samples repeat the samples.

        Under the same prompts the blocks before the one at which graphs enter are computed once for all of them.
        """
        batch, texts = len(noised.latents), list(spoken.texts)
        condition = self.model.condition(spoken.graphs, texts, self.data.prompts.get(texts), self.data.names)
        shared = condition.enter and texts == texts[:batch] * (len(texts) // batch)
        repeat = 1 if shared else len(texts) // batch
        z_t = interpolate(noised.latents, noised.noise, noised.t).repeat(repeat, 1, 1, 1)
        return self.model.velocity(z_t, noised.t.repeat(repeat), condition)

    def prefix(self, noised: Noised, texts: Sequence[str]) -> Rows:
        """What the model and the base have in common under these prompts and any graph (`ArmModel.prefix`)."""
        z_t = interpolate(noised.latents, noised.noise, noised.t)
        return self.model.prefix(z_t, noised.t, self.data.prompts.get(texts))

    def finished(self, prefix: Rows, spoken: Spoken, of: Tensor) -> Tensor:
        """v_θ under what is spoken to the samples `of` a prefix."""
        prompts = self.data.prompts.get(spoken.texts)
        return self.model.finished(prefix, self.model.condition(spoken.graphs, spoken.texts, prompts, self.data.names), of)

    def __call__(self, noised: Noised, positive: Spoken, negative: Spoken) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and its parts `[B]` by name, detached: `flow`, `negative`, `preferred` every term with a weight, and the
        arm's own (`Adapter.training`)."""
        terms, batch = self.losses, len(noised.latents)
        spoken = positive + negative if terms.contrastive else positive
        with self.model.adapter.training(noised.number, [each.graph for each in noised.examples]) as own_terms:
            velocity, maps = self._with_maps(noised, spoken) if terms.maps else (self.velocity(noised, spoken), {})
        target = velocity_target(noised.latents, noised.noise).to(velocity.device)
        flow = sample_losses(velocity[:batch], target)
        parts = {"flow": flow}
        total = terms.flow * flow
        if terms.contrastive:
            against = sample_losses(velocity[batch:], target)
            parts |= {"negative": against, "preferred": preferred(flow, against).float()}
            if terms.margin.weight:
                parts["margin"] = bounded_margin(flow, against, terms.margin.margin)
                total = total + terms.margin.weight * parts["margin"]
            if terms.preference.weight:
                reference = self._reference(noised, positive, negative, target)
                parts["preference"] = graph_dpo(flow, against, *reference, terms.preference.beta)
                total = total + terms.preference.weight * parts["preference"]
            if terms.ranking.weight:
                parts["ranking"] = self._ranking(noised, maps[terms.ranking.group])
                total = total + terms.ranking.weight * parts["ranking"]
        if terms.saliency.weight:
            seen = maps[terms.saliency.group].saliency[:batch, RELATION]
            weights = relation_weights(seen, *velocity.shape[-2:])
            parts["saliency"] = saliency_weighted(velocity[:batch], target, weights)
            total = total + terms.saliency.weight * parts["saliency"]
        for name, term in own_terms(velocity[:batch], target).items():
            parts[name] = term
            total = total + term
        return total.mean(), {name: part.detach() for name, part in parts.items()}

    @torch.no_grad()
    def _reference(self, noised: Noised, positive: Spoken, negative: Spoken, target: Tensor) -> tuple[Tensor, Tensor]:
        """ℓ_ref(g⁺) and ℓ_ref(g⁻) `[B]` of the base model, which reads prompts and no graph.

        Under equal prompts they are equal and cancel, and both are given as 0, without a forward.
        """
        batch = len(noised.latents)
        if list(positive.texts) == list(negative.texts):
            nothing = torch.zeros(batch, device=target.device)
            return nothing, nothing
        said = Spoken([*positive.texts, *negative.texts], [SceneGraph()] * 2 * batch)
        # eager: without the adapter, blocks are others than those compiled for the training step
        with self.model.off(), torch.compiler.set_stance("force_eager"):
            velocity = self.velocity(noised, said)
        return sample_losses(velocity[:batch], target), sample_losses(velocity[batch:], target)

    def _with_maps(self, noised: Noised, spoken: Spoken) -> tuple[Tensor, Mapping[str, GroupMaps]]:
        """The velocity, and the maps of the examples' own concepts along that forward."""
        assert self._maps is not None
        denoiser = self.model.denoiser
        encoded = (self.data.prompts.concepts(each.concepts, self._maps.joined) for each in noised.examples)
        rows = [concept_embeddings(*states, self._pooling) for states in encoded]
        concepts = torch.stack(rows * (len(spoken.texts) // len(rows))).to(denoiser.device, denoiser.dtype)
        side = noised.latents.shape[-1] // denoiser.layout.patch
        with concept_stream(denoiser.transformer, concepts, (side, side), self._maps) as stream:
            velocity = self.velocity(noised, spoken)
            return velocity, stream.maps()

    def _ranking(self, noised: Noised, maps: GroupMaps) -> Tensor:
        probe = self._probe
        assert probe is not None
        seen = torch.cat([getattr(maps, kind) for kind in probe.kinds], dim=1)
        seen = seen if probe.side is None else resize_maps(seen, probe.side)
        logits = probe.logits(seen, noised.t.repeat(2).to(seen.device))
        label = torch.tensor([probe.classes.index(each.predicate) for each in noised.examples]).to(logits.device)
        positive, negative = logits.chunk(2)
        return relation_ranking(positive, negative, label, self.losses.ranking.margin)
