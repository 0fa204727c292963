"""An arm in the world of several relations: which noise, which tokens and which times it needs there. An exploration: the pipeline
has none of it yet.

The generator of that world draws one scene per noise, so that a crop that meets any noise teaches at t = 1 nothing but the
mean of all scenes. Here each train triple gets the noise whose scene, under the triple in words, comes nearest to its crop:
the best of `--draws` noises, then of those with the sign of one channel turned (a coupling as in Pooladian et al. 2023, searched
for). A step takes other noise of the same channel means.

Variants, each another in one thing from the first:

- `phrases`: tokens are the rows of the text encoder for the predicate, read in a sentence with its two names, in place of
  the prompt's padding; a learned vector of (predicate, role) is added to the prompt's rows of the names; all four times of the
  sampler
- `no_phrases`: those learned vectors alone
- `first_step`: trained and active at t = 1 alone
- `independent`: noise as it comes

`python -m benchmarks.world_arms --model world_start --work outputs/world_arms` renders the data set, runs the stages up to the
caches there, and writes `metrics/world_arms.json`: on val graphs of one triple, neutral prompts, 4 Euler steps, 1 seed, how often
the exact reader finds the triple (`right`), its class whatever the roles (`type`), and both objects, with the graph and without.
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
from tqdm import tqdm

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
from sgpipe.optim.compiled import compile_blocks
from sgpipe.params.blocks import Blocks
from sgpipe.params.load import read_params
from sgpipe.relations.predicates import phrase
from sgpipe.runs.atomic import DIGITS, write_json
from sgpipe.runs.processes import Processes
from sgpipe.training import controls
from sgpipe.training.examples import Data, Example, Sources, read_data
from sgpipe.training.fit import prepare
from sgpipe.training.loop import Training
from sgpipe.training.objective import Noised, Objective, Spoken

CPU: Final = torch.device("cpu")
TIMES: Final = (1.0, 1.0, 1.0, 0.5, 0.25, 0.1)
"""Drawn from for each sample: the sampler's own, half of them where it begins."""
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


VARIANTS: Final = {
    "phrases": Variant(),
    "no_phrases": Variant(phrases=False),
    "first_step": Variant(first_step=True),
    "independent": Variant(coupled=False),
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
    """Rows of the text encoder for a predicate, read in a sentence with its two names."""

    def __init__(self, model: Path) -> None:
        from diffusers import FluxPipeline

        parts = FluxPipeline.from_pretrained(model, transformer=None, vae=None)
        self._tokenizer: Any = parts.tokenizer_2
        self._encoder: Any = parts.text_encoder_2
        self._known: dict[tuple[str, str, str], Tensor] = {}

    @torch.no_grad()
    def rows(self, triple: tuple[str, str, str]) -> Tensor:
        """`[k, D]`."""
        if triple not in self._known:
            subject, predicate, object_ = triple
            before, own = f"a photo of {subject}", phrase(predicate)
            ids = self._tokenizer([f"{before} {own} {object_} on a plain background"], padding="max_length", return_tensors="pt")
            start, count = (len(self._tokenizer.tokenize(text)) for text in (before, own))
            self._known[triple] = self._encoder(ids.input_ids)[0][0, start : start + count].float()
        return self._known[triple]


@dataclass
class PhraseModel(ArmModel):
    """An arm whose graphs also stand as phrases in place of the last rows of the prompt, which are padding."""

    phrases: Phrases | None = None

    def condition(self, graphs: Sequence[SceneGraph], texts: Sequence[str], text: TextCondition, names: NameTable) -> TextCondition:
        """See `ArmModel.condition`."""
        if self.phrases is None:
            return super().condition(graphs, texts, text, names)
        states = text.states.float().clone()
        for row, graph in zip(states, graphs, strict=True):
            said = [self.phrases.rows((graph.objects[s], p, graph.objects[o])) for s, p, o in graph.triples]
            if said:
                together = torch.cat(said)
                row[-len(together) :] = together
        return super().condition(graphs, texts, replace(text, states=states.to(text.states.dtype)), names)


def _channels(noise: Tensor) -> Tensor:
    """Latents `[B, C, h, w]` as packed channels over tokens `[B, C, h/2, 2, w/2, 2]`, the same memory."""
    batch, channels, height, width = noise.shape
    return noise.view(batch, channels, height // 2, 2, width // 2, 2)


def like(noise: Tensor, random: torch.Generator) -> Tensor:
    """Other noise with the same mean of every packed channel, which is all that this generator hears of it."""
    fresh = _channels(torch.randn(noise.shape, generator=random))
    return (fresh - fresh.mean((2, 4), keepdim=True) + _channels(noise).mean((2, 4), keepdim=True)).reshape(noise.shape)


@torch.no_grad()
def coupled(base: Denoiser, data: Data, draws: int, batch: int = 50, compiled: bool = True) -> tuple[dict[str, Tensor], float]:
    """A noise `[C, h, w]` for each train triple, and the mean squared error to the crops of what they are drawn as."""
    if compiled:
        compile_blocks(base.transformer)
    random, found, errors = torch.Generator().manual_seed(5), {}, []
    examples = list(data.train) + list(data.train)[: -len(data.train) % batch]
    for start in tqdm(range(0, len(examples), batch), desc="coupling", unit="batch"):
        part = examples[start : start + batch]
        latents = data.latents.latents([each.triple_id for each in part])
        text, at = data.prompts.get([each.prompts["relational"] for each in part]), torch.ones(len(part))

        def error(noise: Tensor, latents: Tensor = latents, text: TextCondition = text, at: Tensor = at) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                velocity = base.velocity(noise, at, text, None)
            return (noise - velocity.float() - latents).square().flatten(1).mean(1)

        best = torch.randn(latents.shape, generator=random)
        least, channels = error(best), 4 * latents.shape[1]
        for number in range(draws - 1 + channels):
            tried = torch.randn(latents.shape, generator=random) if number < draws - 1 else best.clone()
            if number >= draws - 1:
                channel, (y, x) = (number - draws + 1) // 4, divmod(number % 4, 2)
                tried[:, channel, y::2, x::2] *= -1
            wrong = error(tried)
            best = torch.where((wrong < least)[:, None, None, None], tried, best)
            least = torch.minimum(wrong, least)
        found |= {each.triple_id: noise for each, noise in zip(part, best, strict=True)}
        errors.append(least)
    return found, float(torch.cat(errors).mean())


class Exploration(Training):
    """A training whose noise and times are those of a variant."""

    variant = Variant()
    noises: dict[str, Tensor]

    def batch(self, step: int, pass_: int = 0) -> tuple[Noised, Spoken, Spoken]:
        """See `Training.batch`."""
        noised, positive, negative = super().batch(step, pass_)
        if self.variant.coupled:
            chosen = torch.stack([self.noises[each.triple_id] for each in noised.examples])
            noised = replace(noised, noise=like(chosen, generator("like", step)))
        if not self.variant.first_step:
            drawn = torch.randint(len(TIMES), (len(noised.examples),), generator=generator("times", step))
            noised = replace(noised, t=torch.tensor(TIMES)[drawn])
        return noised, positive, negative


def of_variant(arm: Arm, variant: Variant, epochs: int, rate: float) -> Arm:
    """The arm `graph` with the rows of the text for LoRA, learned vectors on names, and the variant's times."""
    train, settings = arm.train, arm.settings
    times = structs.replace(train.times, low=0.9 if variant.first_step else 0.0, high=1.0)
    optimiser = structs.replace(train.optimiser, learning_rate=rate, token_lr_multiplier=10, schedule="cosine", warmup=20)
    validation = structs.replace(train.validation, triples=48, images=0, every=epochs)
    train = structs.replace(train, epochs=epochs, keep_epochs=(), times=times, optimiser=optimiser, validation=validation)
    lora: Lora = structs.replace(
        settings.lora, blocks=Blocks(range(2, 13)), targets=("add_k_proj", "add_q_proj", "add_v_proj", "to_add_out")
    )
    tokens: GraphTokens = structs.replace(settings.graph_tokens, injection="residual", relation_scale=0.2)
    return replace(arm, train=train, settings=structs.replace(settings, lora=lora, graph_tokens=tokens))


@torch.no_grad()
def found_in_images(model: ArmModel, data: Data, examples: Sequence[Example], vae: Any, condition: str) -> dict[str, float]:
    """Shares of samples, one per triple, in which the exact reader finds the triple, its class, and both objects."""
    from sgworld.world.judge import ExactReader

    reader, rows = ExactReader(), []
    for start in range(0, len(examples), 48):
        part = examples[start : start + 48]
        said = controls.spoken(condition, part, "neutral", model.mode)
        text, seeds = data.prompts.get(said.texts), list(range(start, start + len(part)))
        with model.evaluating(), torch.autocast("cpu", torch.bfloat16), torch.compiler.set_stance("force_eager"):
            if condition == "base":
                with model.off():
                    latents = model.denoiser.sample(text, seeds, 64, 4, None)
            else:
                latents = model.sample(model.condition(said.graphs, said.texts, text, data.names), text, seeds, 64, 4, None)
        images = np.stack(list(decode(model.denoiser.family, vae, latents.float())))
        ends = [each.graph.named[0] for each in part]
        scores = reader.scores(images, [[(s, p, o), (o, p, s)] for s, p, o in ends])
        rows.append(np.stack([scores[:, 0] == 1, (scores == 1).any(1), np.isfinite(scores[:, 0])], 1))
    return dict(zip(("right", "type", "present"), np.concatenate(rows).mean(0).tolist(), strict=True))


@dataclass(frozen=True)
class Inputs:
    """What all variants share."""

    model: Path
    backbone: Backbone
    data: Data
    vae: Any
    noises: dict[str, Tensor]
    epochs: int
    rate: float

    def explored(self, name: str) -> dict[str, Any]:
        """Figures of a variant, with its graphs, with empty ones, and of the base."""
        variant = VARIANTS[name]
        arm = of_variant(read_arm(Path("outputs/resolved/graph.json")), variant, self.epochs, self.rate)
        plain = build(Denoiser.load(self.backbone, CPU, "none"), self.backbone, arm, self.data.names.rms)
        made = PhraseModel(**vars(plain), phrases=Phrases(self.model) if variant.phrases else None)
        prepare(made, arm)
        folder = Path("trained") / name
        folder.mkdir(parents=True, exist_ok=True)
        training = Exploration(Objective(made, self.data, arm.train.losses), arm.train, folder, Processes(0, 1, CPU))
        training.variant, training.noises = variant, self.noises
        training.run()
        held_out = [each for each in self.data.held_out if len(each.graph.triples) == 1]
        with training.engine.averaged():
            return {said: found_in_images(made, self.data, held_out, self.vae, said) for said in ("graph", "empty", "base")}


def main(
    model: Annotated[Path, typer.Option(help="pipeline folder of the world's generator")] = Path("world_start"),
    work: Annotated[Path, typer.Option(help="data set, caches and trainings")] = Path("outputs/world_arms"),
    metrics: Annotated[Path, typer.Option(help="metrics file; variants are added to it")] = Path("metrics/world_arms.json"),
    variant: Annotated[list[str] | None, typer.Option(help=f"repeatable; {', '.join(VARIANTS)}; all of them without it")] = None,
    epochs: Annotated[int, typer.Option(min=1, help="passes over 800 triples in batches of 16")] = 12,
    rate: Annotated[float, typer.Option(help="learning rate of LoRA; of the vectors ten times as much")] = 1e-3,
    draws: Annotated[int, typer.Option(min=1, help="noises that are tried for each train triple")] = 32,
) -> None:
    """Train and measure."""
    out, model, work = metrics.resolve(), model.resolve(), work.resolve()
    make_inputs(work, model)
    os.chdir(work)
    backbone = read_params(Backbone)
    data, stored = read_data(Sources(), backbone), Path(f"noises-{draws}.pt")
    if not stored.is_file():
        base = Denoiser.load(backbone, CPU, "none")
        base.transformer.set_attention_backend("_native_math")
        torch.save(coupled(base, data, draws), stored)
    noises, error = torch.load(stored)
    inputs = Inputs(model, backbone, data, load_module(backbone, "vae"), noises, epochs, rate)
    values: dict[str, Any] = json.loads(out.read_text(encoding="utf-8")) if out.is_file() else {}
    for name in variant or list(VARIANTS):
        values |= {name: inputs.explored(name), "coupling_error": error, "epochs": epochs}
        write_json(values, out, DIGITS)
        print(name, values[name])


if __name__ == "__main__":
    typer.run(main)
