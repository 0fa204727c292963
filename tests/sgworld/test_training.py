"""The trainings end in standard formats, and one that was interrupted ends where an uninterrupted one does."""

import json
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from diffusers import FluxPipeline
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import Dataset

from sgpipe.errors import DataError, StateError
from sgpipe.relations.predicates import INVERSE
from sgpipe.runs.checkpoints import checkpoints, read_checkpoint
from sgpipe.runs.processes import Processes
from sgworld.bank import draw_bank
from sgworld.contrast import contrastive_loss, false_triples
from sgworld.flux import build_transformer, deepen, draw, encode_texts, evenly, mean_weights, output_projections, shallow_of
from sgworld.language import POOLED_WIDTH, T5_WIDTH, TOKENS, t5_tokenizer, words
from sgworld.measure import images_per_second
from sgworld.recipe import Recipe, continue_flux, train
from sgworld.training import Ahead, learning_rate, step_generator, train_model


def fit(folder: Path, stop: int | None = None) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Nine steps of a small regression, perhaps stopped on the way: the averaged weights, and the last ones."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))

    def losses(step: int, _: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        if step == stop:
            raise KeyboardInterrupt
        x = torch.randn(8, 3, generator=step_generator(1, step))
        return (model(x) - x.sum(1, keepdim=True)).square().mean(), {}

    train_model(model, losses, folder, steps=9, samples=8, rate=0.1, warmup=2, decay=4, muon="0.", muon_rate=0.2)
    stored = read_checkpoint(checkpoints(folder)[-1])
    assert stored is not None
    return model.state_dict(), stored["tensors"]


def equal(one: tuple[dict[str, torch.Tensor], ...], other: tuple[dict[str, torch.Tensor], ...]) -> bool:
    pairs = zip(one, other, strict=True)
    return all(torch.equal(a[name], b[name]) for a, b in pairs for name in a | b)


class Squares(Dataset[int]):
    def __getitem__(self, index: int) -> int:
        return index**2


@pytest.mark.parametrize(("index", "count", "wanted"), [(0, 1, [4, 9, 16]), (0, 3, [36, 81, 144]), (2, 3, [64, 121, 196])])
def test_each_process_makes_its_own_batch_of_a_step(index: int, count: int, wanted: list[int]) -> None:
    ahead = Ahead(Squares(), 2, 5, Processes(index, count, torch.device("cpu")))
    assert list(ahead) == wanted


def test_the_mean_of_two_models_is_that_of_each_weight() -> None:
    first, second = (build_transformer(seed, double_blocks=1) for seed in (0, 1))
    wanted = (first.x_embedder.weight + second.x_embedder.weight) / 2
    assert torch.allclose(mean_weights([first, second]).x_embedder.weight, wanted)
    assert torch.allclose(mean_weights([second]).x_embedder.weight, second.x_embedder.weight)


def test_interrupted_and_resumed_is_uninterrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sgworld.training.SAVE_SECONDS", 0.0)
    whole = fit(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "cut", stop=5)
    assert [path.name for path in checkpoints(tmp_path / "cut")] == ["step-00000004.pt", "step-00000005.pt"]
    assert equal(fit(tmp_path / "cut"), whole)
    assert not torch.equal(whole[0]["0.weight"], whole[1]["0.weight"])


def test_a_damaged_checkpoint_starts_the_training_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sgworld.training.SAVE_SECONDS", 0.0)
    whole = fit(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "cut", stop=5)
    for path in checkpoints(tmp_path / "cut"):
        path.write_bytes(b"")
    assert equal(fit(tmp_path / "cut"), whole)


def test_a_longer_training_goes_on_from_a_shorter_one(tmp_path: Path) -> None:
    """Of a model that was left with its averaged weights: what goes on are the last ones."""
    torch.manual_seed(0)
    model = nn.Linear(3, 1)

    def losses(step: int, _: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        return model(torch.randn(8, 3, generator=step_generator(1, step))).square().mean(), {}

    start = {name: value.clone() for name, value in model.state_dict().items()}
    found = []
    for name, lengths in (("at once", (7,)), ("in two", (4, 7))):
        model.load_state_dict(start)
        for steps in lengths:
            train_model(model, losses, tmp_path / name, steps=steps, samples=8, rate=0.1, warmup=1)
        found.append({key: value.clone() for key, value in model.state_dict().items()})
    assert all(torch.equal(found[0][name], found[1][name]) for name in start)
    lines = [json.loads(line)["step"] for line in (tmp_path / "in two" / "log.jsonl").open()]
    assert lines == [7] and not model.training


def test_a_loss_that_is_not_finite_stops_with_its_step(tmp_path: Path) -> None:
    model = nn.Linear(1, 1)
    with pytest.raises(StateError, match=r"step 0: .*sgworld/recipe\.py"):
        train_model(model, lambda *_: (model(torch.tensor([[float("nan")]])).sum(), {}), tmp_path, steps=3, samples=1, rate=0.1)


def test_learning_rate_rises_stays_and_falls() -> None:
    rates = [learning_rate(step, 100, 10, 20) for step in range(100)]
    assert rates[0] == 0.1 and rates[9:80] == [1.0] * 71
    assert rates[90] == 0.5 and rates[99] == 0.05


@torch.no_grad()
def test_a_deepened_transformer_computes_the_same_and_all_of_it_can_learn() -> None:
    shallow = build_transformer(0, double_blocks=2)
    deep = deepen(shallow, evenly(2, 5), seed=1)
    generator = torch.Generator().manual_seed(2)
    inputs = {
        "hidden_states": torch.randn(2, 64, shallow.config.in_channels, generator=generator),
        "encoder_hidden_states": torch.randn(2, TOKENS, T5_WIDTH, generator=generator),
        "pooled_projections": torch.randn(2, POOLED_WIDTH, generator=generator),
        "timestep": torch.tensor([0.3, 1.0]),
        "img_ids": FluxPipeline._prepare_latent_image_ids(2, 8, 8, torch.device("cpu"), torch.float32),
        "txt_ids": torch.zeros(TOKENS, 3),
    }
    assert len(deep.transformer_blocks) == 5
    assert torch.equal(shallow(**inputs).sample, deep(**inputs).sample)
    with torch.enable_grad():
        deep(**inputs).sample.square().mean().backward()
    for block in deep.transformer_blocks:
        for part in output_projections(block):
            assert part.weight.grad is not None and bool(part.weight.grad.abs().sum() > 0)


def test_cutting_a_deepened_transformer_down_gives_back_what_it_was_made_from() -> None:
    shallow = build_transformer(0, double_blocks=2)
    again = shallow_of(deepen(shallow, evenly(2, 5), seed=1), 2).state_dict()
    assert all(torch.equal(value, again.pop(name)) for name, value in shallow.state_dict().items()) and not again


def test_the_language_has_a_piece_for_every_word() -> None:
    tokenizer = t5_tokenizer()
    assert all(len(tokenizer.tokenize(word)) == 1 for word in words())
    assert tokenizer.unk_token_id not in tokenizer("a zebra").input_ids


def test_false_triples_swap_roles_and_replace_the_class() -> None:
    rng = np.random.default_rng(0)
    made = false_triples(rng, ("dog", "left of", "cat"))
    assert made[0] == ("cat", "left of", "dog") and made[1] == ("dog", INVERSE["left of"], "cat")
    assert all(p != "touching" for _, p, _ in false_triples(rng, ("dog", "touching", "cat")))
    assert len(false_triples(rng, ("dog", "touching", "cat"))) == 2


def test_contrastive_loss_against_its_definition() -> None:
    torch.manual_seed(0)
    image, text, negative = (nn.functional.normalize(torch.randn(n, 5), dim=-1) for n in (3, 3, 4))
    owner = torch.tensor([0, 0, 1, 2])
    rows = []
    for i in range(3):
        logits = [*(2 * image[i] @ t for t in text), *(2 * image[i] @ n for n, k in zip(negative, owner, strict=True) if k == i)]
        rows.append(torch.logsumexp(torch.stack(logits), 0) - logits[i])
    columns = [torch.logsumexp(2 * image @ t, 0) - 2 * image[i] @ t for i, t in enumerate(text)]
    expected = (torch.stack(rows).mean() + torch.stack(columns).mean()) / 2
    assert torch.allclose(contrastive_loss(image, text, negative, owner, torch.tensor(2.0)), expected)


@pytest.mark.slow
def test_every_checkpoint_is_in_its_standard_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few steps of each training: what is written loads without this package, and sampling is a function of the seed."""
    monkeypatch.setattr("sgworld.recipe.whole_bank", lambda folder: draw_bank(folder, 256, 1))
    small = Recipe(
        pictures=256, language_steps=2, vae_steps=2, shallow_steps=(1, 2), flux_steps=2, flux_decay=1,
        clip_steps=1, tower_steps=1, pairs=4, flux_batch=4, batch=4, compiled=False,
    )  # fmt: skip
    train(tmp_path / "state", tmp_path / "models", recipe=small)
    pipeline = FluxPipeline.from_pretrained(tmp_path / "models/mini-flux")
    assert len(pipeline.transformer.transformer_blocks) == 19
    assert len(pipeline.transformer.single_transformer_blocks) == 2
    assert pipeline.transformer.config.guidance_embeds is False
    prompt = "a photo of dog left of cat on a plain background"
    states, pooled = encode_texts(pipeline, [prompt])
    expected_states, expected_pooled, _ = pipeline.encode_prompt(prompt, None, max_sequence_length=TOKENS)
    assert torch.allclose(states, expected_states, atol=1e-5) and torch.equal(pooled, expected_pooled)
    first = draw(pipeline, [prompt, prompt], [1, 2])
    assert first.shape == (2, 64, 64, 3)
    assert np.abs(first[0].astype(int) - draw(pipeline, [prompt], [1])[0]).max() <= 1
    assert images_per_second(pipeline, batch=2, runs=1) > 0
    onward = tmp_path / "onward"
    continue_flux(
        tmp_path / "models/mini-flux", tmp_path / "state", onward,
        steps=1, decay=1, shallow_steps=(1,), recipe=small,
    )  # fmt: skip
    weights = [load_file(f / "transformer/diffusion_pytorch_model.safetensors") for f in (tmp_path / "models/mini-flux", onward)]
    assert any(not torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    for part in ("text_encoder", "text_encoder_2", "vae"):
        name = "diffusion_pytorch_model.safetensors" if part == "vae" else "model.safetensors"
        assert (onward / part / name).read_bytes() == (tmp_path / "models/mini-flux" / part / name).read_bytes()
    assert not [path for path in onward.rglob("*.json") if str(tmp_path) in path.read_text()]
    with pytest.raises(DataError, match="name another"):
        continue_flux(onward, tmp_path / "state", onward, steps=1, decay=1, recipe=small)
    for name in ("mini-clip", "mini-tower"):
        model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'models' / name}")
        assert preprocess.transforms[0].size == (64, 64)
        tokens = open_clip.get_tokenizer(f"local-dir:{tmp_path / 'models' / name}")([prompt])
        assert model.encode_text(tokens).shape == (1, model.visual.output_dim)
