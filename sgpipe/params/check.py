"""What the sections of params.yaml must agree upon, so that it is found before the first stage and not hours into a later one."""

from collections.abc import Iterable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any

from sgpipe.errors import ParamsError

_TRACED = ("relational", "wrong", "neutral")
"""Conditions that the controls of the probes compare."""


def check(sections: Mapping[str, Any], source: str) -> None:
    """Refuse sections that contradict one another; those that are missing are left out.

    Raises `ParamsError` naming both knobs, what each holds, and what to do.
    """
    found = _Sections(**sections)
    for rule in (_arms, _epochs, _prompts, _joined, _groups, _steps, _guidance):
        for problem in rule(found):
            raise ParamsError(f"{source}: {problem}")


class _Sections(SimpleNamespace):
    """Sections by name as attributes; None for one that is missing."""

    def __getattr__(self, name: str) -> Any:
        return None


def _list(values: Iterable[Any]) -> str:
    return ", ".join(map(str, values)) or "none"


def _arms(found: Any) -> Iterator[str]:
    """Arms that are evaluated are trained, and those that are given graphs read them."""
    arms = found.arms
    if arms is None:
        return
    given = found.evaluate.adapters if found.evaluate else {}
    for arm, graphs in given.items():
        if arm not in arms:
            yield (
                f"evaluate.adapters: got {arm}, which is not in arms; valid: {_list(arms)}; add it to arms, or drop it from "
                "evaluate.adapters"
            )
        elif graphs == "graphs" and not arms[arm].reads_graph:
            yield (
                f"evaluate.adapters.{arm}: got graphs, and kind {arms[arm].kind} of arms.{arm} reads no graph, its graphs go in "
                "words; set it to empty"
            )
    for arm in found.study.arms if found.study else ():
        if arm not in arms or not arms[arm].reads_graph:
            reading = [name for name, options in arms.items() if options.reads_graph]
            yield (
                f"study.arms: got {arm}, and what is studied is an arm of this experiment that reads graphs; valid: "
                f"{_list(reading)}; drop it, or add it to arms"
            )
    valid = [arm for arm, options in arms.items() if options.reads_graph and given.get(arm) != "empty"]
    for run in found.ablation.runs if found.ablation else ():
        if run not in arms:
            why = "which is not in arms; add it there"
        elif not arms[run].reads_graph:
            why = f"whose kind {arms[run].kind} reads no graph, where g⁺ is compared with g⁻; drop it"
        else:
            why = f"which is given no graph by evaluate.adapters.{run}: empty, where g⁺ is compared with g⁻; set that to graphs"
        if run not in valid:
            yield f"ablation.runs: got {run}, {why}; valid: {_list(valid)}"


def _epochs(found: Any) -> Iterator[str]:
    """Epochs that are compared are kept, and each kept one ends at a step of its own."""
    train = found.train
    if train is None:
        return
    for epoch in found.ablation.epochs if found.ablation else ():
        if epoch not in train.keep_epochs:
            yield (
                f"ablation.epochs: got {epoch}, which train.keep_epochs does not keep; valid: {_list(sorted(train.keep_epochs))}; "
                "add it there, or compare others"
            )
    if found.curate:
        try:
            train.kept_steps(found.curate.train)
        except ValueError as error:
            yield f"{error} (curate.train)"


def _prompts(found: Any) -> Iterator[str]:
    """Prompts that are trained under or looked at are cached; those of negatives always are."""
    if found.cache_prompts:
        cached = found.cache_prompts.conditions
        for knob, condition in _conditions(found):
            if condition not in cached:
                yield (
                    f"{knob}, whose {condition} prompts are not cached; cache_prompts.conditions: {_list(cached)}; add {condition} "
                    "there"
                )
    if found.probes and found.saliency_noised:
        mapped = found.saliency_noised.conditions
        for condition in (*found.probes.noise_aware.conditions, *_TRACED):
            if condition not in mapped:
                yield (
                    f"saliency_noised.conditions: got {_list(mapped)}; the probes need maps under {condition} prompts "
                    f"(probes.noise_aware.conditions, and the relation-word trace); add {condition} there"
                )


def _conditions(found: Any) -> Iterator[tuple[str, str]]:
    """Conditions of `cache_prompts` that are needed, each after the knob that needs it and what that holds."""
    arms = found.arms or {}
    if found.train and any(options.reads_graph for options in arms.values()):
        for name, share in found.train.conditions.shares().items():
            if name != "conflicting":
                yield f"train.conditions.{name}: got {share:g}", name
    for arm, options in arms.items():
        if not options.reads_graph:
            for name in ("relational", "neutral"):
                yield f"arms.{arm}.kind: got {options.kind}", name
    if found.saliency:
        yield f"saliency.condition: got {found.saliency.condition}", found.saliency.condition
    for name in found.saliency_noised.conditions if found.saliency_noised else ():
        yield f"saliency_noised.conditions: got {name}", name


def _joined(found: Any) -> Iterator[str]:
    """Maps that read concepts encoded as one text find them in the cache."""
    if found.maps and found.cache_prompts and found.maps.variant == "official_sd3" and not found.cache_prompts.joined_concepts:
        yield (
            "maps.variant: got official_sd3, which reads a prompt's concepts as one text, and cache_prompts.joined_concepts is "
            "false; set it to true, or maps.variant to ours"
        )


def _groups(found: Any) -> Iterator[str]:
    """Layer groups that losses read are defined."""
    if not (found.train and found.maps):
        return
    groups, losses = found.maps.groups, found.train.losses
    for name, term in (("ranking", losses.ranking), ("saliency", losses.saliency)):
        if term.weight and term.group not in groups:
            yield f"train.losses.{name}.group: got {term.group}, which is not in maps.groups; valid: {_list(groups)}"


def _steps(found: Any) -> Iterator[str]:
    """Who trains at a sampler's times samples with as many steps."""
    train = found.train
    if train is None or train.times.density != "sampler":
        return
    sampled = {"train.validation.steps": train.validation.steps} if train.validation.images else {}
    if found.evaluate:
        sampled["evaluate.steps"] = found.evaluate.steps
    for knob, steps in sampled.items():
        if steps != train.times.steps:
            yield (
                f"train.times.steps: got {train.times.steps}, and {knob} is {steps}: adapters would be trained at other times than "
                "those at which they are sampled; set both alike, or train.times.density to uniform"
            )


def _guidance(found: Any) -> Iterator[str]:
    """A guidance-distilled base takes a scale everywhere, another one in sampling alone."""
    for name in ("evaluate", "saliency", "saliency_noised") if found.train else ():
        section = getattr(found, name)
        if section is None or (section.guidance is None) == (found.train.guidance is None):
            continue
        if name == "saliency_noised" or section.guidance is None:
            got, own = ("null" if scale is None else f"{scale:g}" for scale in (section.guidance, found.train.guidance))
            yield (
                f"{name}.guidance: got {got}, and train.guidance is {own}; a guidance-distilled transformer takes a scale in both, "
                "another one null: classifier-free guidance is of evaluate and saliency alone, which sample"
            )
