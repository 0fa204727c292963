r"""Try a recipe: train with other knobs, draw the development triples, and see with the exact detector what the graph decides.

The development split is a share of the *train* triples' name pairs that training then does not see; the val triples are neither
trained on nor drawn. Of the embedded world alone, whose detector knows every object.

    python -m benchmarks.lora_recipe --set lora.blocks=[7..12] --set train.losses.margin.weight=0.3 --seeds 3

With `--preset` the recipe is a preset's, and with several `--rate` each learning rate is tried, so that a baseline is compared at
its best and not at another recipe's rate:

    python -m benchmarks.lora_recipe --preset predecessor-miniature --rate 1e-4 --rate 3e-4 --rate 1e-3 --rate 3e-3 --rate 1e-2 \
        --prompt neutral --prompt relational --metrics metrics/predecessor_rate.json

`direction accuracy` counts, among images with both objects and of directional triples, those whose arrangement's direction is the
triple's; `swapped followed`, among pairs of images of one noise under g⁺ and under its swap, both with both objects, those of
which each shows its own graph's direction.
"""

import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from dataclasses import replace as with_fields
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from msgspec.structs import replace
from numpy.typing import NDArray

from sgpipe.arms.config import ArmOptions
from sgpipe.arms.generation import GraphGenerator
from sgpipe.arms.kinds.base import Sections
from sgpipe.arms.resolve import resolve
from sgpipe.backbones.denoiser import Denoiser
from sgpipe.errors import ParamsError
from sgpipe.graphs.scene_graph import SceneGraph
from sgpipe.params.load import decode, parse_yaml, read_yaml, section_type, to_builtins
from sgpipe.presets import FOLDER, preset_path, with_preset
from sgpipe.relations.boxes import sector
from sgpipe.relations.predicates import INVERSE
from sgpipe.runs.atomic import write_json
from sgpipe.runs.processes import Processes
from sgpipe.training.examples import Data, Example, Sources, prompt_of, read_data
from sgpipe.training.fit import fit
from sgworld.detector import detect_batch
from sgworld.measure import boxes_of

KNOBS = ("lora", "train", "arms", "graph_tokens")
"""Sections that a recipe is made of."""
PLANAR = ("left of", "right of", "above", "below")
"""Directional classes that centres of boxes tell apart."""


def changed(sections: dict[str, Any], settings: list[str]) -> dict[str, Any]:
    """Plain sections with `a.b.c=value` settings applied, values as YAML."""
    for setting in settings:
        key, equals, text = setting.partition("=")
        path = key.split(".")
        if not equals or path[0] not in KNOBS:
            raise ParamsError(f"--set {setting}: write <section>.<knob>=<value>; sections: {', '.join(KNOBS)}")
        place = sections
        for part in path[:-1]:
            place = place.setdefault(part, {})
        place[path[-1]] = parse_yaml(f"value: {text}", f"--set {setting}")["value"]
    return sections


@dataclass(frozen=True)
class Seen:
    """Of each image, where the subject stands from the object; None where one of the two is missing."""

    directions: list[str | None]

    @classmethod
    def of(cls, images: NDArray[np.uint8], graphs: list[SceneGraph]) -> "Seen":
        """By the exact detector."""
        found = []
        for image, graph in zip(detect_batch(images), graphs, strict=True):
            boxes = boxes_of(image, graph.objects)
            found.append(None if boxes is None else str(sector(*np.array(boxes, np.float64)[:, None])[0]))
        return cls(found)

    @property
    def present(self) -> float:
        """Share of images with both objects."""
        return float(np.mean([way is not None for way in self.directions]))


def measure(generator: GraphGenerator, examples: list[Example], prompt: str, seeds: int, size: int) -> dict[str, float]:
    """Figures of planar triples under the kind of prompt `prompt`, each drawn with `seeds` noises."""
    rows = [(each, seed) for each in examples for seed in range(seeds)]
    texts = [prompt_of(each, prompt) for each, _ in rows]
    noises = [1000 * index + seed for index, (_, seed) in enumerate(rows)]
    graphs = [each.graph for each, _ in rows]
    half = len(graphs) // 2
    given: dict[str, list[SceneGraph | None]] = {
        "graph": [*graphs],
        "swapped": [graph.reversed() for graph in graphs],
        "empty": [SceneGraph()] * len(graphs),
        "shuffled": [*graphs[half:], *graphs[:half]],
        "base": [None] * len(graphs),
    }
    asked = [graph.triples[0][1] for graph in graphs]
    seen = {name: Seen.of(generator.sample(texts, each, noises, size=size), graphs) for name, each in given.items()}
    figures: dict[str, float] = {"images": float(len(graphs))}
    for name, found in seen.items():
        pairs = [(way, wish) for way, wish in zip(found.directions, asked, strict=True) if way is not None]
        right = [way == (INVERSE[wish] if name == "swapped" else wish) for way, wish in pairs]
        axis = [way in (wish, INVERSE[wish]) for way, wish in pairs]
        aligned = [r for r, a in zip(right, axis, strict=True) if a]
        figures[f"{name}_present"] = found.present
        figures[f"{name}_right"] = float(np.mean(right)) if right else 0.0
        figures[f"{name}_role"] = float(np.mean(aligned)) if aligned else 0.0
    both = [
        (one == wish, other == INVERSE[wish])
        for one, other, wish in zip(seen["graph"].directions, seen["swapped"].directions, asked, strict=True)
        if one is not None and other is not None
    ]
    figures["swap_follow_rate"] = float(np.mean([a and b for a, b in both])) if both else 0.0
    return figures


def try_recipe(
    name: str, options: ArmOptions, sections: Sections, data: Data, prompts: Sequence[str], seeds: int, folder: Path
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Train one arm once: figures of the training, and those of its images by kind of prompt."""
    processes = Processes(0, 1, torch.device("cpu"))
    backbone, resolved = sections.backbone, resolve(name, options, sections)
    start = time.perf_counter()
    fitted = fit(resolved, Denoiser.load(backbone, processes.device), backbone, data, folder, processes, {})
    trained = time.perf_counter() - start
    planar = [each for each in data.held_out if each.predicate in PLANAR]
    generator = GraphGenerator.load(backbone.model, folder / "adapter", backbone=backbone)
    last = fitted.history.controls[-1]
    of_training = {
        **{f"val_{name}": value for name, value in last["losses"].items()},
        "val_preferred": last["preferred"],
        "steps": float(fitted.steps),
        "seconds": trained,
        "seconds_per_step": fitted.engine.seconds / fitted.engine.taken,
    }
    shown = {prompt: measure(generator, planar, prompt, seeds, backbone.resolution) for prompt in prompts}
    return of_training, shown


def summary(found: Mapping[str, float]) -> dict[str, float]:
    """What a rate is chosen by: both objects present, class and roles right of those, and the share that has both."""
    present, right = found["graph_present"], found["graph_right"]
    return {
        "images": found["images"],
        "objects_present": present,
        "relation_accuracy": right,
        "present_and_right": present * right,
        "direction_accuracy": found["graph_role"],
        "swap_follow_rate": found["swap_follow_rate"],
        "base_objects_present": found["base_present"],
    }


def main(
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="<section>.<knob>=<value> of lora, train, arms or graph_tokens")
    ] = None,
    preset: Annotated[str | None, typer.Option(help="preset whose values are taken before --set")] = None,
    rates: Annotated[list[float] | None, typer.Option("--rate", help="train.optimiser.learning_rate; several, each tried")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="noises per triple")] = 3,
    trainings: Annotated[int, typer.Option(min=1, help="training seeds, from train.seed on")] = 1,
    dev: Annotated[float, typer.Option(help="share of train name pairs kept for this")] = 0.2,
    arm: Annotated[str, typer.Option(help="arm to train")] = "graph",
    prompts: Annotated[
        list[str] | None, typer.Option("--prompt", help="kinds of prompt to sample under; neutral by default")
    ] = None,
    params: Annotated[Path, typer.Option(help="parameter file")] = Path("params.yaml"),
    out: Annotated[Path | None, typer.Option(help="JSON lines file that results are added to")] = None,
    metrics: Annotated[Path | None, typer.Option(help="metrics file by learning rate, written after each training")] = None,
) -> None:
    """Train in a temporary folder, sample the development triples, print what the graph decides."""
    plain = read_yaml(params)
    if preset is not None:
        changed_by = with_preset(params, preset_path(params.parent / FOLDER, preset))
        plain = {name: to_builtins(section) for name, section in changed_by.items()}
    sections = changed(plain, settings or [])
    names = ("backbone", "maps", *KNOBS)
    chosen: dict[str, Any] = {name: decode(name, sections[name], section_type(name), str(params)) for name in names}
    if arm not in chosen["arms"]:
        raise ParamsError(f"--arm: got {arm!r}; valid: {', '.join(chosen['arms'])}")
    recipe, train = Sections.of(chosen), chosen["train"]
    data = read_data(Sources(), recipe.backbone, dev)
    print(f"{len(data.train)} triples to train on, {len(data.held_out)} held out of them")
    by_rate: dict[str, dict[str, Any]] = {}
    for rate in rates or [train.optimiser.learning_rate]:
        by_rate[f"{rate:g}"] = of_rate = {}
        for seed in range(train.seed, train.seed + trainings):
            optimiser = replace(train.optimiser, learning_rate=rate)
            tried = with_fields(recipe, train=replace(train, seed=seed, dev=dev, optimiser=optimiser))
            with tempfile.TemporaryDirectory() as folder:
                took, shown = try_recipe(arm, chosen["arms"][arm], tried, data, prompts or ["neutral"], seeds, Path(folder))
            for prompt, figures in shown.items():
                found = {**figures, **took}
                line = ", ".join(f"{name} {value:.4g}" for name, value in found.items())
                print(f"rate {rate:g}, seed {seed}, {prompt} prompt: {line}")
                if out is not None:
                    told = {"settings": settings or [], "preset": preset, "rate": rate, "arm": arm, "prompt": prompt}
                    with out.open("a", encoding="utf-8") as stream:
                        stream.write(json.dumps({**told, "seed": seed, **found}) + "\n")
            of_rate[f"seed_{seed}"] = {prompt: summary(figures) for prompt, figures in shown.items()}
            if metrics is not None:
                about = {"preset": preset, "arm": arm, "dev": dev, "triples": len(data.train)}
                write_json({**about, "noises": seeds, "rates": by_rate}, metrics)


if __name__ == "__main__":
    typer.run(main)
