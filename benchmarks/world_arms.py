"""An arm in the world of several relations: which noise, which tokens and which times it needs there. An exploration: the pipeline
has none of it yet.

The generator of that world draws one scene per noise, so that a crop that meets any noise teaches at t = 1 nothing but the
mean of all scenes. Here each train triple gets the noise whose scene, under the triple in words, comes nearest to its crop:
the best of `--draws` noises, then of those with the sign of one channel turned (a coupling as in Pooladian et al. 2023, searched
for). A step takes other noise of the same channel means.

Variants, each but the last another in one thing from the first:

- `phrases`: tokens are the rows of the text encoder for the predicate, read in a sentence with its two names, in place of
  the prompt's padding; a learned vector of (predicate, role) is added to the prompt's rows of the names; all four times of the
  sampler
- `no_phrases`: those learned vectors alone
- `first_step`: trained and active at t = 1 alone
- `independent`: noise as it comes
- `spoken`: the rows of names are read in that sentence, too; crops that no noise comes near are left out; no margin to the
  negative; where turning one channel exchanges the roles of a class, that channel stays random, so that who is the subject is
  told by the graph and not by the noise; LoRA on blocks 0–9, half of the batch at t = 1 and more

`python -m benchmarks.world_arms --model world_start --work outputs/world_arms` renders the data set, runs the stages up to the
caches there, and writes `metrics/world_arms.json`: on val graphs of one triple, neutral prompts, 4 Euler steps, 1 seed, how often
the exact reader finds the triple (`right`), its class whatever the roles (`type`), and both objects, with the graph and without,
and with the graph before any training (`untrained`).
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
import torch
import typer
import yaml
from msgspec import structs
from torch import Tensor

from benchmarks._coupling import CPU, FAR, coupled, in_precision, like, reversing
from benchmarks._workspace import merged
from sgpipe.arms.adapter import build
from sgpipe.arms.config import Lora
from sgpipe.arms.model import ArmModel
from sgpipe.arms.resolve import Arm, read_arm
from sgpipe.backbones.base import TextCondition
from sgpipe.backbones.config import Backbone
from sgpipe.backbones.denoiser import Denoiser
from sgpipe.backbones.images import decode
from sgpipe.backbones.loading import load_module
from sgpipe.backbones.rectified_flow import generator
from sgpipe.graph_encoder.config import GraphTokens
from sgpipe.graph_encoder.open_vocabulary import NameTable
from sgpipe.graphs.scene_graph import SceneGraph
from sgpipe.optim.precision import choose
from sgpipe.params.blocks import Blocks
from sgpipe.params.load import read_params
from sgpipe.relations.predicates import phrase
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
    "backbone.max_sequence_length": 32, "tracking.enabled": False,
}  # fmt: skip


@dataclass(frozen=True)
class Variant:
    """What is told and trained."""

    phrases: bool = True
    coupled: bool = True
    first_step: bool = False
    spoken: bool = False
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
    for words in STAGES:
        command = [sys.executable, "-m", f"stages.{words[0]}", *words[1:]]
        subprocess.run(command, cwd=work, env={**os.environ, "PYTHONPATH": str(repository)}, check=True)


class Phrases:
    """Rows of the text encoder for a triple, read in a sentence."""

    def __init__(self, model: Path) -> None:
        from diffusers import FluxPipeline

        parts = FluxPipeline.from_pretrained(model, transformer=None, vae=None)
        self._tokenizer: Any = parts.tokenizer_2
        self._encoder: Any = parts.text_encoder_2
        self._known: dict[tuple[str, str, str], list[Tensor]] = {}

    def length(self, text: str) -> int:
        """Number of its tokens."""
        return len(self._tokenizer.tokenize(text))

    @torch.no_grad()
    def rows(self, triple: tuple[str, str, str]) -> list[Tensor]:
        """Those of the subject, of the predicate and of the object, each `[k, D]`."""
        if triple not in self._known:
            subject, predicate, object_ = triple
            said, cuts = "a photo of", [self.length("a photo of")]
            for part in (subject, phrase(predicate), object_):
                said = f"{said} {part}"
                cuts.append(self.length(said))
            ids = self._tokenizer([f"{said} on a plain background"], padding="max_length", return_tensors="pt").input_ids
            states = self._encoder(ids)[0][0].float()
            self._known[triple] = [states[start:end] for start, end in pairwise(cuts)]
        return self._known[triple]


@dataclass
class PhraseModel(ArmModel):
    """An arm whose graphs also stand as phrases in place of the last rows of the prompt, which are padding; with `names` the
    prompt's rows of names are those of the sentence, too.
    """

    phrases: Phrases | None = None
    names: bool = False

    def condition(self, graphs: Sequence[SceneGraph], texts: Sequence[str], text: TextCondition, names: NameTable) -> TextCondition:
        """See `ArmModel.condition`."""
        if self.phrases is None:
            return super().condition(graphs, texts, text, names)
        states = text.states.float().clone()
        for row, graph, prompt in zip(states, graphs, texts, strict=True):
            said = [(graph.objects[s], p, graph.objects[o]) for s, p, o in graph.triples]
            if said:
                together = torch.cat([self.phrases.rows(each)[1] for each in said])
                row[-len(together) :] = together
            for triple in said if self.names else []:
                subject, _, object_ = self.phrases.rows(triple)
                for name, own in ((triple[0], subject), (triple[2], object_)):
                    start = self.phrases.length(prompt[: prompt.index(name)].strip())
                    row[start : start + len(own)] = own
        return super().condition(graphs, texts, replace(text, states=states.to(text.states.dtype)), names)


class Exploration(Training):
    """A training whose noise and times are those of a variant."""

    variant = Variant()
    noises: dict[str, Tensor]
    free: dict[str, int]

    def batch(self, step: int, pass_: int = 0) -> tuple[Noised, Spoken, Spoken]:
        """See `Training.batch`."""
        noised, positive, negative = super().batch(step, pass_)
        if self.variant.coupled:
            chosen = torch.stack([self.noises[each.triple_id] for each in noised.examples])
            free = [self.free.get(each.predicate) for each in noised.examples] if self.variant.spoken else None
            noised = replace(noised, noise=like(chosen, generator("like", step), free))
        if not self.variant.first_step:
            times = torch.tensor((*[1.0] * self.variant.first_times, *TIMES))
            drawn = torch.randint(len(times), (len(noised.examples),), generator=generator("times", step))
            noised = replace(noised, t=times[drawn])
        return noised, positive, negative


def of_variant(arm: Arm, variant: Variant, epochs: int, rate: float) -> Arm:
    """The arm `graph` with the rows of the text for LoRA, learned vectors on names, and the variant's times."""
    train, settings = arm.train, arm.settings
    times = structs.replace(train.times, low=0.9 if variant.first_step else 0.0, high=1.0)
    changed = {"learning_rate": rate, "token_lr_multiplier": variant.token_rate, "schedule": "cosine", "warmup": 20}
    optimiser = structs.replace(train.optimiser, **changed)
    validation = structs.replace(train.validation, triples=48, images=0, every=epochs)
    train = structs.replace(
        train, epochs=epochs, keep_epochs=(), times=times, optimiser=optimiser, validation=validation, precision=choose(CPU)
    )
    if variant.spoken:
        train = structs.replace(train, losses=structs.replace(train.losses, margin=Margin(weight=0.0)))
    lora: Lora = structs.replace(
        settings.lora, blocks=Blocks(variant.blocks), targets=("add_k_proj", "add_q_proj", "add_v_proj", "to_add_out")
    )
    tokens: GraphTokens = structs.replace(settings.graph_tokens, injection="residual", relation_scale=variant.token_scale)
    return replace(arm, train=train, settings=structs.replace(settings, lora=lora, graph_tokens=tokens))


@torch.no_grad()
def found_in_images(model: ArmModel, data: Data, examples: Sequence[Example], vae: Any, condition: str) -> dict[str, Any]:
    """Shares of samples, one per triple, in which the exact reader finds the triple, its class, and both objects; the first by
    class, too.
    """
    from sgworld.world.judge import ExactReader

    reader, rows = ExactReader(), []
    for start in range(0, len(examples), 48):
        part = examples[start : start + 48]
        said = controls.spoken(condition, part, "neutral", model.mode)
        text, seeds = data.prompts.get(said.texts), list(range(start, start + len(part)))
        with model.evaluating(), in_precision(), torch.compiler.set_stance("force_eager"):
            if condition == "base":
                with model.off():
                    latents = model.denoiser.sample(text, seeds, 64, 4, None)
            else:
                latents = model.sample(model.condition(said.graphs, said.texts, text, data.names), text, seeds, 64, 4, None)
        images = np.stack(list(decode(model.denoiser.family, vae, latents.float())))
        ends = [each.graph.named[0] for each in part]
        scores = reader.scores(images, [[(s, p, o), (o, p, s)] for s, p, o in ends])
        rows.append(np.stack([scores[:, 0] == 1, (scores == 1).any(1), np.isfinite(scores[:, 0])], 1))
    found, classes = np.concatenate(rows), np.array([each.predicate for each in examples])
    by_class = {predicate: float(found[classes == predicate, 0].mean()) for predicate in sorted(set(classes.tolist()))}
    return {**dict(zip(("right", "type", "present"), found.mean(0).tolist(), strict=True)), "right_by_class": by_class}


@dataclass(frozen=True)
class Inputs:
    """What all variants share."""

    model: Path
    backbone: Backbone
    data: Data
    vae: Any
    noises: dict[str, Tensor]
    errors: dict[str, float]
    free: dict[str, int]
    epochs: int
    rate: float

    def explored(self, name: str) -> dict[str, Any]:
        """Figures of a variant, with its graphs, with empty ones, and of the base."""
        variant = VARIANTS[name]
        arm = of_variant(read_arm(Path("outputs/resolved/graph.json")), variant, self.epochs, self.rate)
        plain = build(Denoiser.load(self.backbone, CPU, "none"), self.backbone, arm, self.data.names.rms)
        phrases = Phrases(self.model) if variant.phrases else None
        made = PhraseModel(**vars(plain), phrases=phrases, names=variant.spoken)
        prepare(made, arm)
        held_out = [each for each in self.data.held_out if len(each.graph.triples) == 1]
        found: dict[str, Any] = {"epochs": self.epochs, "rate": self.rate}
        found["untrained"] = found_in_images(made, self.data, held_out, self.vae, "graph")
        folder = Path("trained") / name
        folder.mkdir(parents=True, exist_ok=True)
        near = [each for each in self.data.train if not variant.spoken or self.errors[each.triple_id] < FAR]
        objective = Objective(made, replace(self.data, train=near), arm.train.losses)
        training = Exploration(objective, arm.train, folder, Processes(0, 1, CPU))
        training.variant, training.noises, training.free = variant, self.noises, self.free
        training.run()
        with training.engine.averaged():
            return found | {said: found_in_images(made, self.data, held_out, self.vae, said) for said in ("graph", "empty", "base")}


def main(
    model: Annotated[Path, typer.Option(help="pipeline folder of the world's generator")] = Path("world_start"),
    work: Annotated[Path, typer.Option(help="data set, caches and trainings")] = Path("outputs/world_arms"),
    metrics: Annotated[Path, typer.Option(help="metrics file; variants are added to it")] = Path("metrics/world_arms.json"),
    variant: Annotated[list[str] | None, typer.Option(help=f"repeatable; {', '.join(VARIANTS)}; all of them without it")] = None,
    epochs: Annotated[int, typer.Option(min=1, help="passes over the train triples in batches of 16")] = 12,
    rate: Annotated[float, typer.Option(help="learning rate of LoRA; of the vectors 10 or 20 times as much")] = 1e-3,
    draws: Annotated[int, typer.Option(min=1, help="noises that are tried for each train triple")] = 32,
) -> None:
    """Train and measure."""
    out, model, work = metrics.resolve(), model.resolve(), work.resolve()
    make_inputs(work, model)
    os.chdir(work)
    backbone = read_params(Backbone)
    data, vae, stored = read_data(Sources(), backbone), load_module(backbone, "vae"), Path(f"coupling-{draws}.pt")
    if not stored.is_file():
        base = Denoiser.load(backbone, CPU, "none")
        base.transformer.set_attention_backend("_native_math")
        noises, errors = coupled(base, data, draws)
        torch.save((noises, errors, reversing(base, data, noises, vae)), stored)
    noises, errors, free = torch.load(stored)
    inputs = Inputs(model, backbone, data, vae, noises, errors, free, epochs, rate)
    values: dict[str, Any] = json.loads(out.read_text(encoding="utf-8")) if out.is_file() else {}
    left = np.array(list(errors.values()))
    values |= {"coupling": {"error": float(left.mean()), "near": float((left < FAR).mean())}, "free_channels": free}
    for name in variant or list(VARIANTS):
        values[name] = inputs.explored(name)
        write_json(values, out, DIGITS)
        print(name, values[name])


if __name__ == "__main__":
    typer.run(main)
