"""An arm in the world of several relations: which noise, which tokens and which times it needs there. An exploration: the pipeline
has none of it yet.

The generator of that world draws one scene per noise, so that a crop that meets any noise teaches at t = 1 nothing but the
mean of all scenes. Here each train graph gets the noise whose scene, under the graph in words, comes nearest to its crop:
the best of `--draws` noises, then of those with the sign of one channel turned (a coupling as in Pooladian et al. 2023, searched
for). A step takes other noise of the same channel means. A second noise is searched for under the same sentence with subject and
object exchanged (`benchmarks._coupling.coupled`).

Variants, each of the first four another in one thing from the first:

- `phrases`: tokens are the rows of the text encoder for the predicate, read in a sentence with its two names, in place of
  the prompt's padding; a learned vector of (predicate, role) is added to the prompt's rows of the names; all four times of the
  sampler
- `no_phrases`: those learned vectors alone
- `first_step`: trained and active at t = 1 alone
- `independent`: noise as it comes
- `spoken`: the rows of names are read in that sentence, too; crops that no noise comes near are left out; no margin to the
  negative; where turning one channel exchanges the roles of a class, that channel stays random, so that who is the subject is
  told by the graph and not by the noise; LoRA on blocks 0–9, two thirds of the batch at t = 1
- `two_noises`: the same, but instead of a random channel both noises of a crop by turns
- `graphs`: `spoken` with train graphs of two and three triples, too

`python -m benchmarks.world_arms --model world_start --work outputs/world_arms` renders the data set, runs the stages up to the
caches there, and writes `metrics/world_arms.json`, on val graphs under neutral prompts, 4 Euler steps: how often the exact reader
finds a triple (`right`), all of a graph's (`graphs`), a triple's class whatever the roles (`type`), and all objects, with the graph
and without, and with the graph before any training (`untrained`).
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
import torch
import typer
import yaml
from msgspec import structs
from torch import Tensor

from benchmarks._coupling import CPU, FAR, Coupled, coupled, in_precision, like, reversing
from benchmarks._phrases import PhraseModel, Phrases
from benchmarks._workspace import merged
from sgpipe.arms.adapter import build
from sgpipe.arms.config import Lora
from sgpipe.arms.model import ArmModel
from sgpipe.arms.resolve import Arm, read_arm
from sgpipe.backbones.config import Backbone
from sgpipe.backbones.denoiser import Denoiser
from sgpipe.backbones.families import open_text_encoders
from sgpipe.backbones.images import decode
from sgpipe.backbones.loading import load_module
from sgpipe.backbones.rectified_flow import generator
from sgpipe.graph_encoder.config import GraphTokens
from sgpipe.optim.precision import choose
from sgpipe.params.blocks import Blocks
from sgpipe.params.load import read_params
from sgpipe.runs.atomic import DIGITS, write_json
from sgpipe.runs.processes import Processes
from sgpipe.training import controls
from sgpipe.training.config import Margin
from sgpipe.training.examples import Data, Example, Sources, read_data
from sgpipe.training.fit import prepare
from sgpipe.training.loop import Training
from sgpipe.training.objective import Noised, Objective, Spoken

TIMES: Final = (0.5, 0.25, 0.1)
"""The sampler's own behind its first, which is drawn as often as these together, or twice as often."""
STAGES: Final = (
    ("canonicalize",), ("curate",), ("negatives",), ("cache_prompts",),
    ("cache_prompts", "--negatives", "outputs/negatives/negatives.parquet", "--out", "outputs/negative_prompts",
     "--metrics", "metrics/cache_negative_prompts.json"),
    ("cache_latents",), ("resolve",),
)  # fmt: skip
SETTINGS: Final = {
    "curate.predicates": [
        "on", "in", "around/near", "above", "below", "behind", "in front of", "wearing", "holding", "sitting on", "standing on",
        "hanging from", "riding", "carrying", "eating", "looking at",
    ],
    "curate.train": 800, "curate.val": 160, "curate.maps_per_class": 8, "curate.whole": True, "curate.crop": {"kind": "image"},
    "curate.several": 200, "curate.several_train": 600, "curate.combinations": 24, "negatives.changes": "any",
    "backbone.max_sequence_length": 32, "tracking.enabled": False,
}  # fmt: skip


@dataclass(frozen=True)
class Variant:
    """What is told and trained."""

    phrases: bool = True
    coupled: bool = True
    first_step: bool = False
    spoken: bool = False
    two_noises: bool = False
    several: bool = False
    """Whether graphs of several triples are trained on, too."""
    blocks: range = range(2, 13)
    first_times: int = 3
    """How often t = 1 is drawn beside `TIMES`."""
    token_rate: float = 10
    token_scale: float = 0.2


VARIANTS: Final = {
    "phrases": Variant(),
    "no_phrases": Variant(phrases=False),
    "first_step": Variant(first_step=True),
    "independent": Variant(coupled=False),
    "spoken": Variant(spoken=True, blocks=range(10), first_times=6, token_rate=20, token_scale=1.0),
    "two_noises": Variant(spoken=True, two_noises=True, blocks=range(10), first_times=6, token_rate=20, token_scale=1.0),
    "graphs": Variant(spoken=True, several=True, blocks=range(10), first_times=6, token_rate=20, token_scale=1.0),
}


def make_inputs(work: Path, model: Path) -> None:
    """Data set, parameters and what the stages make of them; what is there stays."""
    if (work / "outputs" / "resolved" / "graph.json").is_file():
        return
    from sgworld.world.data import write_data

    repository = Path.cwd()
    write_data(work / "data", 16_000, 0)
    (work / "models").mkdir()
    (work / "models" / "mini-flux").symlink_to(model.resolve())
    (work / "presets").symlink_to(repository / "presets")
    values = merged(yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8")), SETTINGS)
    (work / "params.yaml").write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    for stage, *options in STAGES:
        command = [sys.executable, "-m", f"stages.{stage}", *options]
        subprocess.run(command, cwd=work, env={**os.environ, "PYTHONPATH": str(repository)}, check=True)


class Exploration(Training):
    """A training whose noise and times are those of a variant."""

    variant = Variant()
    noises: dict[str, list[Tensor]]
    free: dict[str, int]

    def batch(self, step: int, pass_: int = 0) -> tuple[Noised, Spoken, Spoken]:
        """See `Training.batch`."""
        noised, positive, negative = super().batch(step, pass_)
        if self.variant.coupled:
            turns = torch.randint(1 << 16, (len(noised.examples),), generator=generator("readings", self.train.seed, step))
            known = [self.noises[each.triple_id] for each in noised.examples]
            chosen = torch.stack([several[turn % len(several)] for several, turn in zip(known, turns.tolist(), strict=True)])
            random = self.variant.spoken and not self.variant.two_noises
            free = [self.free.get(each.predicate) for each in noised.examples] if random else None
            noised = replace(noised, noise=like(chosen, generator("like", self.train.seed, step), free))
        if not self.variant.first_step:
            times = torch.tensor((*[1.0] * self.variant.first_times, *TIMES))
            drawn = torch.randint(len(times), (len(noised.examples),), generator=generator("times", self.train.seed, step))
            noised = replace(noised, t=times[drawn])
        return noised, positive, negative


def of_variant(arm: Arm, variant: Variant, epochs: int, rate: float, seed: int) -> Arm:
    """The arm `graph` with the rows of the text for LoRA, learned vectors on names, and the variant's times."""
    train, settings = arm.train, arm.settings
    times = structs.replace(train.times, low=0.9 if variant.first_step else 0.0, high=1.0)
    changed = {"learning_rate": rate, "token_lr_multiplier": variant.token_rate, "schedule": "cosine", "warmup": 20}
    optimiser = structs.replace(train.optimiser, **changed)
    validation = structs.replace(train.validation, triples=48, images=0, every=epochs)
    train = structs.replace(
        train,
        epochs=epochs,
        keep_epochs=(),
        times=times,
        optimiser=optimiser,
        validation=validation,
        precision=choose(CPU),
        seed=seed,
    )
    if variant.spoken:
        train = structs.replace(train, losses=structs.replace(train.losses, margin=Margin(weight=0.0)))
    lora: Lora = structs.replace(
        settings.lora, blocks=Blocks(variant.blocks), targets=("add_k_proj", "add_q_proj", "add_v_proj", "to_add_out")
    )
    tokens: GraphTokens = structs.replace(settings.graph_tokens, injection="residual", relation_scale=variant.token_scale)
    return replace(arm, train=train, settings=structs.replace(settings, lora=lora, graph_tokens=tokens))


def _sampled(model: ArmModel, data: Data, part: Sequence[Example], seeds: list[int], condition: str) -> Tensor:
    said = controls.spoken(condition, part, "neutral", model.mode)
    text = data.prompts.get(said.texts)
    with model.evaluating(), in_precision(), torch.compiler.set_stance("force_eager"):
        if condition == "base":
            with model.off():
                return model.denoiser.sample(text, seeds, 64, 4, None)
        return model.sample(model.condition(said.graphs, said.texts, text, data.names), text, seeds, 64, 4, None)


@torch.no_grad()
def found_in_images(model: ArmModel, data: Data, examples: Sequence[Example], vae: Any, condition: str) -> dict[str, Any]:
    """Shares of samples, one per graph, in which the exact reader finds its triples (of graphs the mean), all of them, their
    classes whatever the roles, and all objects, and one of them twice; the first by class, too. Of the condition `negative`: the
    triple that was changed, and the others.
    """
    from sgworld.world.judge import ExactReader

    reader, rows, by_class = ExactReader(), [], dict[str, list[float]]()
    for start in range(0, len(examples), 48):
        part = examples[start : start + 48]
        latents = _sampled(model, data, part, list(range(start, start + len(part))), condition)
        images = np.stack(list(decode(model.denoiser.family, vae, latents.float())))
        for image, each in zip(images, part, strict=True):
            graph = each.negative if condition == "negative" else each.graph
            named = list(graph.named)
            scores = reader.scores(image[None], [[*named, *((o, p, s) for s, p, o in named)]])[0].reshape(2, -1)
            right, changed = scores[0] == 1, np.arange(len(named)) == each.changed
            twice = reader.duplicates(image[None], [list(graph.objects)])[0]
            rows.append(
                [right.mean(), right.all(), (scores == 1).any(0).mean(), np.isfinite(scores).all(), twice]
                + ([right[changed].mean(), right[~changed].mean() if len(named) > 1 else np.nan] if condition == "negative" else [])
            )
            for (_, predicate, _), found in zip(named, right.tolist(), strict=True):
                by_class.setdefault(predicate, []).append(found)
    names = ("right", "graphs", "type", "present", "duplicates", "changed", "others")
    means = [float(np.nanmean(column)) if np.isfinite(column).any() else None for column in np.array(rows, float).T]
    found = {name: mean for name, mean in zip(names, means, strict=False) if mean is not None}
    return {**found, "right_by_class": {name: float(np.mean(of_class)) for name, of_class in sorted(by_class.items())}}


@dataclass(frozen=True)
class Inputs:
    """What all variants share."""

    model: Path
    backbone: Backbone
    data: Data
    vae: Any
    noises: dict[str, tuple[Coupled, Coupled]]
    free: dict[str, int]
    epochs: int
    rate: float
    seed: int

    def explored(self, name: str) -> dict[str, Any]:
        """Figures of a variant, with its graphs, with empty ones, and of the base."""
        variant = VARIANTS[name]
        arm = of_variant(read_arm(Path("outputs/resolved/graph.json")), variant, self.epochs, self.rate, self.seed)
        plain = build(Denoiser.load(self.backbone, CPU, "none"), self.backbone, arm, self.data.names.rms)
        phrases = Phrases(self.model) if variant.phrases else None
        made = PhraseModel(**vars(plain), phrases=phrases, names=variant.spoken)
        prepare(made, arm)
        groups = {"": self._held_out((1,))} | ({"several": self._held_out((2, 3))} if variant.several else {})
        found: dict[str, Any] = {"epochs": self.epochs, "rate": self.rate, "seed": self.seed}

        def measured(conditions: Sequence[str]) -> dict[str, Any]:
            shares = {(group, said): found_in_images(made, self.data, each, self.vae, said)
                      for group, each in groups.items() for said in conditions}  # fmt: skip
            return {f"{group}_{said}".strip("_"): value for (group, said), value in shares.items()}

        found |= {f"untrained_{said}".removesuffix("_graph"): value for said, value in measured(["graph"]).items()}
        folder = Path("trained") / f"{name}-{self.seed}"
        folder.mkdir(parents=True, exist_ok=True)
        both = {
            key: [each.noise for each in pair[: 1 + variant.two_noises] if each.error < FAR or not variant.spoken]
            for key, pair in self.noises.items()
        }
        train = [each for each in self.data.train if (variant.several or len(each.graph.triples) == 1) and both.get(each.triple_id)]
        found["examples"] = len(train)
        objective = Objective(made, replace(self.data, train=tuple(train)), arm.train.losses)
        training = Exploration(objective, arm.train, folder, Processes(0, 1, CPU))
        training.variant, training.noises, training.free = variant, both, self.free
        training.run()
        with training.engine.averaged():
            return found | measured(["graph", "negative", "empty", "base"])

    def _held_out(self, sizes: Sequence[int]) -> list[Example]:
        return [each for each in self.data.held_out if len(each.graph.triples) in sizes]


def main(
    model: Annotated[Path, typer.Option(help="pipeline folder of the world's generator")] = Path("world_start"),
    work: Annotated[Path, typer.Option(help="data set, caches and trainings")] = Path("outputs/world_arms"),
    metrics: Annotated[Path, typer.Option(help="metrics file; variants are added to it")] = Path("metrics/world_arms.json"),
    variant: Annotated[list[str] | None, typer.Option(help=f"repeatable; {', '.join(VARIANTS)}; all of them without it")] = None,
    epochs: Annotated[int, typer.Option(min=1, help="passes over the train triples in batches of 16")] = 12,
    rate: Annotated[float, typer.Option(help="learning rate of LoRA; of the vectors 10 or 20 times as much")] = 1e-3,
    draws: Annotated[int, typer.Option(min=1, help="noises that are tried for each train graph")] = 32,
    seed: Annotated[int, typer.Option(min=0, help="training seed")] = 0,
) -> None:
    """Train and measure."""
    out, model, work = metrics.resolve(), model.resolve(), work.resolve()
    make_inputs(work, model)
    os.chdir(work)
    backbone = read_params(Backbone)
    data, vae, stored = read_data(Sources(), backbone), load_module(backbone, "vae"), Path(f"coupling-{draws}.pt")
    if not stored.is_file():
        base, encoders = Denoiser.load(backbone, CPU, "none"), open_text_encoders(backbone, CPU, "none")
        base.transformer.set_attention_backend("_native_math")
        pairs = coupled(base, data, data.train, encoders.prompts, draws)
        free = reversing(base, data, {key: pair[0].noise for key, pair in pairs.items()}, vae)
        torch.save(({key: [(each.noise, each.error) for each in pair] for key, pair in pairs.items()}, free), stored)
    known, free = torch.load(stored)
    noises = {key: (Coupled(*said), Coupled(*turned)) for key, (said, turned) in known.items()}
    inputs = Inputs(model, backbone, data, vae, noises, free, epochs, rate, seed)
    values: dict[str, Any] = json.loads(out.read_text(encoding="utf-8")) if out.is_file() else {}
    near = np.array([[each.error < FAR for each in pair] for pair in noises.values()])
    values["coupling"] = {"near": float(near[:, 0].mean()), "near_reversed_of_near": float(near[near[:, 0], 1].mean())}
    values["free_channels"] = free
    for name in variant or list(VARIANTS):
        found = inputs.explored(name)
        values[name if seed == 0 else f"{name}_seed_{seed}"] = found
        write_json(values, out, DIGITS)
        print(name, found)


if __name__ == "__main__":
    typer.run(main)
