"""Control losses: the same noise and times under the graph, without it, under another's and under its swap.

A training loss that falls may be the repair of damage by tokens that the base does not know. Only the distances between
these figures tell what the graph does.
"""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from sgpipe.arms.kinds.base import InjectionMode
from sgpipe.backbones.rectified_flow import generator, velocity_target
from sgpipe.graphs.scene_graph import SceneGraph
from sgpipe.training.config import Train
from sgpipe.training.examples import Example, prompt_of
from sgpipe.training.objective import Noised, Objective, Spoken, preferred, sample_losses
from sgpipe.training.timesteps import bin_names, bin_of, even_times

CONDITIONS = ("base", "graph", "empty", "shuffled", "swapped", "negative")
"""`negative` is the negative graph, of which `swapped` is the special case for directional relations."""


@dataclass(frozen=True)
class Controls:
    """Mean loss by condition, and the share of samples with ℓ(g⁺) < ℓ(g⁻), altogether and by bin of t."""

    losses: dict[str, float]
    preferred: float
    preferred_by_t: dict[str, float]


def chosen_condition(train: Train, mode: InjectionMode) -> str:
    """The kind of prompt that controls are measured under: the most frequent one of training."""
    shares = train.conditions.shares()
    return "relational" if mode == "text" else max(shares, key=lambda name: shares[name])


def spoken(
    condition: str, examples: Sequence[Example], prompts: str | Sequence[str], mode: InjectionMode, others: Sequence[Example] = ()
) -> Spoken:
    """What each example is given under a condition of `CONDITIONS`, beside a prompt of this kind or of one kind each; `shuffled`
    takes the graph of `others`.

    Where the graph goes in words alone, they are what changes: no relation for `empty`, the other example's triple for `shuffled`,
    the negative's for `swapped` and `negative`. Residual tokens need the prompt's own names, so that `shuffled` takes the other
    example's relation alone.
    """
    none = [SceneGraph()] * len(examples)
    if mode == "text":
        kind = {"empty": "neutral", "swapped": "conflicting", "negative": "conflicting"}.get(condition, "relational")
        return Spoken([prompt_of(each, kind) for each in (others if condition == "shuffled" else examples)], none)
    graphs = {
        "graph": [each.graph for each in examples],
        "shuffled": [each.graph for each in others],
        "swapped": [each.graph.reversed() for each in examples],
        "negative": [each.negative for each in examples],
    }.get(condition, none)
    if condition == "shuffled" and mode == "residual":
        graphs = [SceneGraph(own.graph.objects, other.triples) for own, other in zip(examples, graphs, strict=True)]
    kinds = [prompts] * len(examples) if isinstance(prompts, str) else prompts
    return Spoken([prompt_of(each, kind) for each, kind in zip(examples, kinds, strict=True)], graphs)


def _apart(objective: Objective, noised: Noised, said: Mapping[str, Spoken]) -> dict[str, Tensor]:
    """Velocities by condition, a forward each."""
    found = {}
    for name, each in said.items():
        with objective.model.off() if name == "base" else nullcontext():
            found[name] = objective.velocity(noised, each)
    return found


def _sharing(objective: Objective) -> bool:
    """Whether all conditions have first blocks in common."""
    return objective.model.mode == "prepend" and objective.model.adapter.untouched > 0


def _shared(objective: Objective, noised: Noised, said: Mapping[str, Spoken]) -> dict[str, Tensor]:
    """`_apart` to rounding: the blocks that are the base's run once, the others once for each different graph of a sample."""
    prefix = objective.prefix(noised, said["empty"].texts)
    everyone = torch.arange(len(noised.examples))
    found: dict[str, Tensor] = {}
    if "base" in said:
        with objective.model.off():
            found["base"] = objective.finished(prefix, said["base"], everyone)
    graphs: dict[tuple[int, SceneGraph], int] = {}
    rows = {
        name: [graphs.setdefault((n, _numbered(graph)), len(graphs)) for n, graph in enumerate(each.graphs)]
        for name, each in said.items()
        if name not in ("base", "empty")
    }
    found["empty"] = objective.finished(prefix, said["empty"], everyone)
    of = [n for n, _ in graphs]
    texts = [said["empty"].texts[n] for n in of]
    together = objective.finished(prefix, Spoken(texts, [graph for _, graph in graphs]), torch.tensor(of))
    return found | {name: together[places] for name, places in rows.items()}


def _numbered(graph: SceneGraph) -> SceneGraph:
    """The graph with its objects in the order in which its triples mention them, as negatives have them."""
    return graph.negated("replace", graph.triples[0][1])


@torch.no_grad()
def measure(objective: Objective, examples: Sequence[Example], train: Train, base: float | None = None) -> Controls:
    """Control losses of `examples`, without dropout, on noise that depends on the triple alone.

    `base`, the base model's loss, is taken as it is where it is known.
    """
    mode, kind = objective.model.mode, chosen_condition(train, objective.model.mode)
    times = even_times(len(examples), train.times, objective.sigmas(train.times))
    half = len(examples) // 2
    others = [*examples[half:], *examples[:half]]
    found: dict[str, list[Tensor]] = {name: [] for name in CONDITIONS if name != "base" or base is None}
    for start in range(0, len(examples), train.batch_size):
        part, other = (each[start : start + train.batch_size] for each in (examples, others))
        latents = objective.data.latents.latents([each.triple_id for each in part])
        noise = torch.stack([torch.randn(latents.shape[1:], generator=generator("validation", each.triple_id)) for each in part])
        target = velocity_target(latents, noise)
        noised = Noised(part, latents, noise, times[start : start + len(part)])
        said = {name: spoken(name, part, kind, mode, other) for name in found}
        with objective.model.evaluating():
            velocities = _shared(objective, noised, said) if _sharing(objective) else _apart(objective, noised, said)
        for name, velocity in velocities.items():
            found[name].append(sample_losses(velocity, target.to(velocity.device)).cpu())
    columns = {name: torch.cat(losses) for name, losses in found.items()}
    won = preferred(columns["graph"], columns["negative"]).double()
    where, names = bin_of(times, train.times, train.validation.bins), bin_names(train.times, train.validation.bins)
    by_t = {names[index]: float(won[where == index].mean()) for index in where.unique().tolist()}
    known = {} if base is None else {"base": base}
    means = known | {name: float(column.double().mean()) for name, column in columns.items()}
    return Controls(means, float(won.mean()), by_t)
