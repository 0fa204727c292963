"""What the sections of params.yaml must agree upon, so that it is found before the first stage and not hours into a later one."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sgpipe.errors import ParamsError

_CACHED = "cache_prompts.conditions"
_TRACED = ("relational", "wrong", "neutral")
"""Conditions that the controls of the probes compare."""
_GUIDED = ("evaluate", "saliency", "saliency_noised")


def check(sections: Mapping[str, Any], source: str) -> None:
    """Refuse sections that contradict one another; those that are missing are left out.

    Raises `ParamsError` naming both knobs, what each holds, and what to do.
    """
    for rule in (_arms, _epochs, _prompts, _groups, _steps, _guidance):
        for problem in rule(_Sections(sections)):
            raise ParamsError(f"{source}: {problem}")


class _Sections:
    """Sections by name as attributes; None for one that is missing."""

    def __init__(self, sections: Mapping[str, Any]) -> None:
        self._sections = sections

    def __getattr__(self, name: str) -> Any:
        return self._sections.get(name)


def _list(values: Sequence[Any]) -> str:
    return ", ".join(map(str, values)) or "none"


def _arms(found: _Sections) -> Iterator[str]:
    """Arms that are evaluated are trained, and those that are given graphs read them."""
    arms = found.arms
    if arms is None:
        return
    given = dict(found.evaluate.adapters) if found.evaluate is not None else {}
    for arm, graphs in given.items():
        if arm not in arms:
            yield (
                f"evaluate.adapters: got {arm}, which is not in arms; valid: {_list(list(arms))}; add it to arms, or drop it from "
                "evaluate.adapters"
            )
        elif graphs == "graphs" and not arms[arm].reads_graph:
            yield (
                f"evaluate.adapters.{arm}: got graphs, and kind {arms[arm].kind} of arms.{arm} reads no graph, its graphs go in "
                "words; set it to empty"
            )
    runs = found.ablation.runs if found.ablation is not None else ()
    valid = [arm for arm, options in arms.items() if options.reads_graph and given.get(arm) != "empty"]
    for run in runs:
        if run not in arms:
            why = "which is not in arms; add it there"
        elif not arms[run].reads_graph:
            why = f"whose kind {arms[run].kind} reads no graph, where g⁺ is compared with g⁻; drop it"
        elif run not in valid:
            why = f"which is given no graph by evaluate.adapters.{run}: empty, where g⁺ is compared with g⁻; set that to graphs"
        else:
            continue
        yield f"ablation.runs: got {run}, {why}; valid: {_list(valid)}"


def _epochs(found: _Sections) -> Iterator[str]:
    """Epochs that are compared are kept, and each kept one ends at a step of its own."""
    train = found.train
    if train is None:
        return
    kept = sorted(train.keep_epochs)
    for epoch in found.ablation.epochs if found.ablation is not None else ():
        if epoch not in kept:
            yield (
                f"ablation.epochs: got {epoch}, which train.keep_epochs does not keep; valid: {_list(kept)}; add it there, or "
                "compare others"
            )
    if found.curate is not None and not train.dev:
        try:
            train.kept_steps(found.curate.train)
        except ValueError as error:
            yield f"{error} (curate.train)"


def _prompts(found: _Sections) -> Iterator[str]:
    """Prompts that are trained under or looked at are cached; those of negatives always are."""
    if found.cache_prompts is not None:
        cached = found.cache_prompts.conditions
        for knob, condition in _conditions(found):
            if condition not in cached:
                yield f"{knob}, whose {condition} prompts are not cached; {_CACHED}: {_list(cached)}; add {condition} there"
    if found.probes is not None and found.saliency_noised is not None:
        mapped = found.saliency_noised.conditions
        for condition in dict.fromkeys((*found.probes.noise_aware.conditions, *_TRACED)):
            if condition not in mapped:
                yield (
                    f"saliency_noised.conditions: got {_list(mapped)}; the probes need maps under {condition} prompts "
                    f"(probes.noise_aware.conditions, and the relation-word trace); add {condition} there"
                )


def _conditions(found: _Sections) -> Iterator[tuple[str, str]]:
    """Conditions of `cache_prompts` that are needed, each after the knob that needs it and what that holds."""
    arms = found.arms or {}
    if found.train is not None and any(options.reads_graph for options in arms.values()):
        for name, share in found.train.conditions.shares().items():
            if name != "conflicting":
                yield f"train.conditions.{name}: got {share:g}", name
    for arm, options in arms.items():
        if not options.reads_graph:
            yield f"arms.{arm}.kind: got {options.kind}", "relational"
            yield f"arms.{arm}.kind: got {options.kind}", "neutral"
    if found.saliency is not None:
        yield f"saliency.condition: got {found.saliency.condition}", found.saliency.condition
    if found.saliency_noised is not None:
        for name in found.saliency_noised.conditions:
            yield f"saliency_noised.conditions: got {name}", name


def _groups(found: _Sections) -> Iterator[str]:
    """Layer groups that losses read are defined."""
    if found.train is None or found.maps is None:
        return
    for name in ("ranking", "saliency"):
        term = getattr(found.train.losses, name)
        if term.weight and term.group not in found.maps.groups:
            yield (
                f"train.losses.{name}.group: got {term.group}, which is not in maps.groups; valid: {_list(list(found.maps.groups))}"
            )


def _steps(found: _Sections) -> Iterator[str]:
    """Who trains at a sampler's times samples with as many steps."""
    train = found.train
    if train is None or train.times.density != "sampler":
        return
    sampled = {"train.validation.steps": train.validation.steps} if train.validation.images else {}
    if found.evaluate is not None:
        sampled["evaluate.steps"] = found.evaluate.steps
    for knob, steps in sampled.items():
        if steps != train.times.steps:
            yield (
                f"train.times.steps: got {train.times.steps}, and {knob} is {steps}: adapters would be trained at other times than "
                "those at which they are sampled; set both alike, or train.times.density to uniform"
            )


def _guidance(found: _Sections) -> Iterator[str]:
    """A guidance-distilled base takes a scale everywhere, another one nowhere."""
    if found.train is None:
        return
    own = found.train.guidance
    for name in _GUIDED:
        section = getattr(found, name)
        if section is not None and (section.guidance is None) != (own is None):
            yield (
                f"{name}.guidance: got {'null' if section.guidance is None else f'{section.guidance:g}'}, and train.guidance is "
                f"{'null' if own is None else f'{own:g}'}; a guidance-distilled transformer takes a scale in both, another one null"
            )
