"""The embedded FLUX: 19 double-stream and 2 single-stream blocks, trained as a rectified flow on the bank's pictures."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm
from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5Tokenizer

from sgpipe.runs.atomic import atomic_path
from sgworld.bank import NEUTRAL, SIDE, Bank, row_chances
from sgworld.coupling import Coupling
from sgworld.flow import STEPS, flow_loss
from sgworld.language import POOLED_WIDTH, T5_WIDTH, TOKENS, token_ids
from sgworld.training import quick_products, step_generator, train_model
from sgworld.vae import CHANNELS, encode

DOUBLE_BLOCKS, SHALLOW_BLOCKS = 19, 6
HEADS, HEAD_WIDTH = 4, 32


def build_transformer(seed: int, double_blocks: int = DOUBLE_BLOCKS) -> FluxTransformer2DModel:
    """FLUX's architecture at hidden size 128 (4 heads of 32), for 8×8 image tokens of 2×2 latents of 4 channels."""
    torch.manual_seed(seed)
    return FluxTransformer2DModel(
        patch_size=1,
        in_channels=4 * CHANNELS,
        num_layers=double_blocks,
        num_single_layers=2,
        attention_head_dim=HEAD_WIDTH,
        num_attention_heads=HEADS,
        joint_attention_dim=T5_WIDTH,
        pooled_projection_dim=POOLED_WIDTH,
        guidance_embeds=False,
        axes_dims_rope=(8, 12, 12),
    )


def evenly(few: int, many: int) -> list[int]:
    """Of which of `few` blocks each of `many` is a copy, where all have about as many."""
    return [index * few // many for index in range(many)]


def shallow_of(deep: FluxTransformer2DModel, double_blocks: int) -> FluxTransformer2DModel:
    """A transformer of those double-stream blocks that are no copies when `deepen` makes `deep` from it; the opposite of `deepen`.

    What the other blocks have learned since is lost: it computes another function, which a little training brings near again.
    """
    many = len(deep.transformer_blocks)
    state = deep.state_dict()
    blocks = {k: v for k, v in state.items() if k.startswith("transformer_blocks.")}
    kept = {k: v for k, v in state.items() if k not in blocks}
    for number in range(double_blocks):
        source = f"transformer_blocks.{evenly(double_blocks, many).index(number)}."
        kept |= {f"transformer_blocks.{number}.{k.removeprefix(source)}": v for k, v in blocks.items() if k.startswith(source)}
    shallow = build_transformer(0, double_blocks)
    shallow.load_state_dict(kept)
    return shallow


@torch.no_grad()
def deepen(shallow: FluxTransformer2DModel, sources: Sequence[int], seed: int) -> FluxTransformer2DModel:
    """A transformer with more double-stream blocks that computes the same function.

    Block i is block `sources[i]` of `shallow`; where the one before it has the same source, it is a copy whose output projections
    are zero, so that it passes both streams through until training fills them; its gates are its source's. Closed gates (as
    adaLN-Zero starts, Peebles & Xie 2023) pass through, too, but what they open for is another block's output: after 2,000 steps
    and more they were at 0.01–0.1, where the others' are 0.3–0.8.
    """
    deep = build_transformer(seed, len(sources))
    deep.load_state_dict({k: v for k, v in shallow.state_dict().items() if not k.startswith("transformer_blocks")}, strict=False)
    for index, (block, source) in enumerate(zip(deep.transformer_blocks, sources, strict=True)):
        block.load_state_dict(shallow.transformer_blocks[source].state_dict())
        if index and sources[index - 1] == source:
            for part in output_projections(block):
                part.weight.zero_()
                part.bias.zero_()
    return deep


def output_projections(block: Any) -> tuple[nn.Linear, ...]:
    """What a double-stream block adds to its streams: the last layers of attention and MLP, image rows' and text rows'."""
    return block.attn.to_out[0], block.ff.net[2], block.attn.to_add_out, block.ff_context.net[2]


def assemble(folder: Path, vae: AutoencoderKL, transformer: FluxTransformer2DModel, shift: float = 1.0) -> FluxPipeline:
    """The pipeline of the text encoders in `folder`, `vae` and `transformer`; an Euler scheduler, unshifted as FLUX.1-schnell's.

    The configurations of VAE and transformer forget the folder they were read from, so that the saved bytes do not depend on it.
    """
    for part in (vae, transformer):
        part.register_to_config(_name_or_path="mini-flux")
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=shift, use_dynamic_shifting=False),
        vae=vae,
        text_encoder=CLIPTextModel.from_pretrained(folder / "text_encoder"),
        tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        text_encoder_2=T5EncoderModel.from_pretrained(folder / "text_encoder_2"),
        tokenizer_2=T5Tokenizer.from_pretrained(folder / "tokenizer_2"),
        transformer=transformer,
    )


@torch.no_grad()
def encode_texts(pipeline: FluxPipeline, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """T5 states `[B, 16, 96]` and CLIP's pooled vectors `[B, 64]`, as the pipeline itself computes them."""
    states = pipeline.text_encoder_2(token_ids(pipeline.tokenizer_2, texts)).last_hidden_state
    return states, pipeline.text_encoder(token_ids(pipeline.tokenizer, texts)).pooler_output


def packed_latents(bank: Bank, vae: AutoencoderKL, path: Path) -> NDArray[np.float16]:
    """Shifted, scaled and packed latents `[N, 64, 32]` of the whole bank, computed once and memory-mapped."""
    if not path.is_file():
        count = len(bank.triples)
        with atomic_path(path) as temporary:
            stored = np.lib.format.open_memmap(temporary, "w+", np.float16, (count, 64, 4 * CHANNELS))
            for start in tqdm(range(0, count, 256), desc="encoding pictures", unit="batch", mininterval=2):
                means = torch.from_numpy(encode(vae, bank.pictures[start : start + 256]))
                latents = (means - vae.config.shift_factor) * vae.config.scaling_factor
                stored[start : start + 256] = FluxPipeline._pack_latents(latents, *latents.shape).numpy()
            stored.flush()
    return np.load(path, mmap_mode="r")


@dataclass(frozen=True)
class Schedule:
    """Steps of the shallow part and of the deep one (or of training on), the last of which the rate falls to zero over.

    After each number of `shallow_steps`, ascending, a deep model is made and trained; what comes out is the mean of their weights.
    """

    shallow_steps: tuple[int, ...]
    steps: int
    decay: int
    batch: int
    rate: float
    compiled: bool
    rarity: float = 0.0
    """How much more often pictures of rare names are drawn (see `bank.row_chances`)."""


def fit(
    model: FluxTransformer2DModel, bank: Bank, latents: NDArray[np.float16], encoders: FluxPipeline, folder: Path,
    schedule: Schedule, *, seed: int, steps: int, warmup: int, decay: int, average: float,
) -> FluxTransformer2DModel:  # fmt: skip
    """Rectified flow on `bank` (see `flow`); returns the averaged model.

    Caption, noise and times are drawn anew at every step. Matrix products are in the precision that is faster on the machine.
    `compiled` fuses each block's pointwise work (twice as fast, after half a minute).
    """
    batch, rate = schedule.batch, schedule.rate
    image_ids = FluxPipeline._prepare_latent_image_ids(batch, 8, 8, torch.device("cpu"), torch.float32)
    text_ids = torch.zeros(TOKENS, 3)
    chances = row_chances(bank.triples, schedule.rarity)
    coupling = Coupling(bank, latents)
    model.set_attention_backend("_native_math")
    if schedule.compiled:
        torch._dynamo.config.automatic_dynamic_shapes = False
        model.compile_repeated_blocks(fullgraph=True)

    def losses(step: int, _: int) -> tuple[Tensor, dict[str, Tensor]]:
        rng, generator = np.random.default_rng((seed, step)), step_generator(seed, step)
        rows = rng.choice(len(chances), size=batch, p=chances)
        captions = coupling.captions(rows, rng.random(batch) < NEUTRAL)
        texts = [coupling.text(rng, number) for number in captions]
        encoded = encode_texts(encoders, texts)

        def velocity(states: Tensor, times: Tensor, first: int) -> Tensor:
            with quick_products():
                return model(
                    hidden_states=states,
                    encoder_hidden_states=encoded[0][first:],
                    pooled_projections=encoded[1][first:],
                    timestep=times,
                    img_ids=image_ids,
                    txt_ids=text_ids,
                ).sample.float()

        return flow_loss(generator, velocity, coupling, captions), {}

    return train_model(
        model, losses, folder, steps=steps, samples=batch, rate=rate, warmup=warmup, decay=decay, average=average,
        muon="transformer_blocks", muon_rate=2 * rate,
    )  # fmt: skip


def mean_weights(models: Sequence[FluxTransformer2DModel]) -> FluxTransformer2DModel:
    """The mean of the weights of models that share their past, made in the first of them (Wortsman et al. 2022, Model soups)."""
    states = [model.state_dict() for model in models]
    models[0].load_state_dict({name: torch.stack([state[name] for state in states]).mean(0) for name in states[0]})
    return models[0]


def _train(
    shallow: FluxTransformer2DModel, bank: Bank, latents: NDArray[np.float16], encoders: FluxPipeline, folder: Path,
    schedule: Schedule, seed: int, warmup: int,
) -> FluxTransformer2DModel:  # fmt: skip
    """Train few double-stream blocks first, then all 19 (see `deepen`), from each of the points that `schedule` names."""
    trained = []
    for steps in schedule.shallow_steps:
        average = fit(
            shallow, bank, latents, encoders, folder / "shallow", schedule,
            seed=seed, steps=steps, warmup=warmup, decay=0, average=0.999,
        )  # fmt: skip
        deep = deepen(average, evenly(SHALLOW_BLOCKS, DOUBLE_BLOCKS), seed)
        trained.append(
            fit(
                deep, bank, latents, encoders, folder / f"deep-{steps}", schedule,
                seed=seed + 1, steps=schedule.steps, warmup=50, decay=schedule.decay, average=0.995,
            )
        )  # fmt: skip
    return mean_weights(trained)


def train_flux(bank: Bank, parts: Path, vae_folder: Path, folder: Path, out: Path, schedule: Schedule, *, seed: int) -> None:
    """Train the generator in two parts and save the pipeline.

    The transformer's weights are stored in float16, half the size and far below what a picture shows.
    """
    vae = AutoencoderKL.from_pretrained(vae_folder)
    latents = packed_latents(bank, vae, folder / "latents.npy")
    shallow = build_transformer(seed, SHALLOW_BLOCKS)
    deep = _train(shallow, bank, latents, assemble(parts, vae, shallow), folder, schedule, seed, warmup=200)
    assemble(parts, vae, deep.half()).save_pretrained(out, safe_serialization=True)


def train_on(bank: Bank, start: Path, folder: Path, out: Path, schedule: Schedule, *, seed: int) -> None:
    """Train the transformer of the pipeline in `start` on, its other parts as they are, and save the pipeline to `out`.

    With shallow steps it is cut down to few blocks first, which learn three times as fast, and deepened again (see `Schedule`).
    """
    vae = AutoencoderKL.from_pretrained(start / "vae")
    latents = packed_latents(bank, vae, folder / "latents.npy")
    transformer = FluxTransformer2DModel.from_pretrained(start, subfolder="transformer").float()
    encoders = assemble(start, vae, transformer)
    if schedule.shallow_steps:
        few = shallow_of(transformer, SHALLOW_BLOCKS)
        trained = _train(few, bank, latents, encoders, folder, schedule, seed, warmup=50)
    else:
        trained = fit(
            transformer, bank, latents, encoders, folder / "onward", schedule,
            seed=seed, steps=schedule.steps, warmup=50, decay=schedule.decay, average=0.995,
        )  # fmt: skip
    assemble(start, vae, trained.half()).save_pretrained(out, safe_serialization=True)


def draw(pipeline: FluxPipeline, prompts: Sequence[str], seeds: Sequence[int]) -> NDArray[np.uint8]:
    """One picture `[N, 64, 64, 3]` per prompt, in 4 Euler steps without guidance; the noise of each depends on its seed alone."""
    pipeline.set_progress_bar_config(disable=True)
    pictures = pipeline(
        list(prompts),
        height=SIDE,
        width=SIDE,
        num_inference_steps=STEPS,
        guidance_scale=0.0,
        max_sequence_length=TOKENS,
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        output_type="np",
    ).images
    return (pictures * 255).round().astype(np.uint8)
