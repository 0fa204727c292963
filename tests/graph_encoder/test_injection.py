"""Graph tokens in transformers of every family: a batch of mixed graphs gives what each gives alone, and nothing gives nothing."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch
from diffusers import Flux2Transformer2DModel, FluxTransformer2DModel, SD3Transformer2DModel
from torch import Tensor

from sgpipe.backbones.base import TextCondition
from sgpipe.backbones.denoiser import Denoiser
from sgpipe.backbones.families import FAMILIES
from sgpipe.backbones.truncation import ClipAndT5
from sgpipe.errors import DataError
from sgpipe.graph_encoder.config import GraphTokens
from sgpipe.graph_encoder.injection import GatedResidual, named_spans, prepend
from sgpipe.graph_encoder.open_vocabulary import NameTable
from sgpipe.graph_encoder.tokens import GraphTokenizer, Tokens
from sgpipe.graphs.scene_graph import SceneGraph
from sgpipe.relations.predicates import neutral_prompt, relational_prompt
from sgworld.language import t5_tokenizer

TEXT, WORDS = 10, 5
GRAPHS = (
    SceneGraph.of("dog", "left of", "cat"),
    SceneGraph(),
    SceneGraph(("dog", "cat", "tree"), ((0, "on", 1), (2, "behind", 1))),
    SceneGraph.of("cat", "on", "tree"),
)


class Inputs(NamedTuple):
    latents: Tensor
    t: Tensor
    text: TextCondition


KINDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "FluxPipeline": (
        FluxTransformer2DModel,
        {"num_single_layers": 2, "axes_dims_rope": (2, 2, 4), "in_channels": 4, "pooled_projection_dim": 6},
    ),
    "Flux2KleinPipeline": (
        Flux2Transformer2DModel,
        {"num_single_layers": 2, "axes_dims_rope": (2, 2, 2, 2), "in_channels": 4, "guidance_embeds": False},
    ),
    "StableDiffusion3Pipeline": (
        SD3Transformer2DModel,
        {"in_channels": 1, "out_channels": 1, "caption_projection_dim": 16, "sample_size": 8, "pooled_projection_dim": 6},
    ),
}


@pytest.fixture(scope="module", params=[(name, backend) for name in KINDS for backend in ("native", "_native_math")])
def denoiser(request: pytest.FixtureRequest) -> Iterator[Denoiser]:
    """A random transformer of each family under both attention settings."""
    name, backend = request.param
    kind, own = KINDS[name]
    shared = {"num_layers": 2, "attention_head_dim": 8, "num_attention_heads": 2, "joint_attention_dim": TEXT}
    torch.manual_seed(0)
    model = kind(**shared, **own).eval().requires_grad_(False)
    family = FAMILIES[name]
    family.prepare(model)
    model.set_attention_backend(backend)
    vae = {"latent_channels": 1, "block_out_channels": [1]}
    if name == "Flux2KleinPipeline":
        vae |= {"_class_name": "AutoencoderKLFlux2", "patch_size": [2, 2]}
    layout = family.layout({**model.config, "_class_name": kind.__name__}, vae)
    yield Denoiser(family, model, layout, {}, torch.device("cpu"))
    model.set_attention_backend("native")


@pytest.fixture(scope="module")
def inputs(denoiser: Denoiser) -> Inputs:
    generator = torch.Generator().manual_seed(3)
    count = len(GRAPHS)
    text = TextCondition(torch.randn(count, WORDS, TEXT, generator=generator), torch.randn(count, 6, generator=generator))
    shape = count, denoiser.layout.latent_channels, 4, 6
    return Inputs(torch.randn(shape, generator=generator), torch.rand(count, generator=generator), text)


@pytest.fixture(scope="module")
def names() -> NameTable:
    generator = torch.Generator().manual_seed(4)
    return NameTable({name: torch.randn(TEXT, generator=generator) for name in ("dog", "cat", "tree")})


def made(params: GraphTokens) -> GraphTokenizer:
    torch.manual_seed(5)
    return GraphTokenizer(params, TEXT, text_scale=1.0)


def velocity(denoiser: Denoiser, inputs: Inputs, text: TextCondition) -> Tensor:
    return denoiser.velocity(inputs.latents, inputs.t, text)


def only(inputs: Inputs, n: int) -> Inputs:
    return Inputs(inputs.latents[n : n + 1], inputs.t[n : n + 1], inputs.text.rows()[n])


def test_mixed_graphs_in_one_batch_are_each_alone(denoiser: Denoiser, inputs: Inputs, names: NameTable) -> None:
    tokenizer = made(GraphTokens())
    tokens = tokenizer(GRAPHS, None, names)
    assert tokens.counts == (2, 0, 3, 2)
    together = velocity(denoiser, inputs, prepend(tokens, inputs.text))
    padded = velocity(denoiser, inputs, replace(prepend(tokens, inputs.text), mask=None))
    for n, graph in enumerate(GRAPHS):
        own = only(inputs, n)
        text = prepend(tokenizer([graph], None, names), own.text)
        assert text.mask is None
        alone = velocity(denoiser, own, text)[0]
        assert (together[n] - alone).abs().max() < 5e-6
        if tokens.counts[n] < 3:
            assert (padded[n] - alone).abs().max() > 1e-3, "without the mask padding would be read"


@pytest.mark.parametrize("checkpointing", [False, True])
def test_masked_padding_gets_no_gradient_and_every_token_does(
    denoiser: Denoiser, inputs: Inputs, names: NameTable, checkpointing: bool
) -> None:
    tokens = made(GraphTokens())(GRAPHS, None, names)
    states = tokens.states.detach().requires_grad_()
    transformer: Any = denoiser.transformer
    if checkpointing:
        transformer.enable_gradient_checkpointing()
    transformer.train(checkpointing)
    text = prepend(Tokens(states, tokens.counts, tokens.owner), inputs.text)
    with torch.enable_grad():
        velocity(denoiser, inputs, text).square().mean().backward()
    transformer.disable_gradient_checkpointing()
    transformer.eval()
    assert states.grad is not None
    assert torch.equal(states.grad.abs().sum(-1) > 0, tokens.mask)


def test_padding_is_never_read(denoiser: Denoiser, inputs: Inputs, names: NameTable) -> None:
    tokens = made(GraphTokens())(GRAPHS, None, names)
    disturbed = Tokens(tokens.states.masked_fill(~tokens.mask[..., None], 7.0), tokens.counts, tokens.owner)
    first, other = (velocity(denoiser, inputs, prepend(each, inputs.text)) for each in (tokens, disturbed))
    assert torch.equal(first, other)


def test_empty_graphs_change_no_bit(denoiser: Denoiser, inputs: Inputs, names: NameTable) -> None:
    empty = made(GraphTokens())([SceneGraph(), SceneGraph(("dog",)), SceneGraph(), SceneGraph()], None, names)
    assert prepend(empty, inputs.text) is inputs.text


def test_a_mask_as_long_as_the_batch_is_no_query_mask(denoiser: Denoiser, inputs: Inputs, names: NameTable) -> None:
    """As many samples as rows of the joint sequence: a mask `[N, S]` would be taken for one of queries by keys."""
    tokens = made(GraphTokens())([*GRAPHS, GRAPHS[0]], None, names)
    rows = [*range(len(GRAPHS)), 0]
    text = TextCondition.cat([inputs.text.rows()[n] for n in rows])
    image = 4 * 6 // denoiser.layout.patch**2
    joint = text.states.shape[1] + tokens.states.shape[1] + image
    many = [n % len(rows) for n in range(joint)]
    repeated = Tokens(tokens.states[many], tuple(tokens.counts[n] for n in many), tokens.owner[many])
    whole = prepend(repeated, TextCondition.cat([text.rows()[n] for n in many]))
    latents, t = (part[[rows[n] for n in many]] for part in (inputs.latents, inputs.t))
    assert whole.mask is not None and len(whole.mask) == joint == whole.mask.shape[1] + image
    found = denoiser.velocity(latents, t, whole)
    alone = velocity(denoiser, inputs, prepend(made(GraphTokens())(GRAPHS, None, names), inputs.text))
    assert (found - alone[[rows[n] for n in many]]).abs().max() < 5e-6


def test_the_order_of_graph_tokens_means_something_where_text_has_positions(
    denoiser: Denoiser, inputs: Inputs, names: NameTable
) -> None:
    """Text has position 0 throughout, so graph tokens are a set and their direction must be in what they hold; not so in FLUX.2."""
    own = only(inputs, 2)
    tokens = made(GraphTokens())([GRAPHS[2]], None, names)
    turned = Tokens(tokens.states.flip(1), tokens.counts, tokens.owner.flip(1))
    first, other = (velocity(denoiser, own, prepend(each, own.text)) for each in (tokens, turned))
    changed = (first - other).abs().max()
    assert changed > 1e-4 if denoiser.family.pipeline == "Flux2KleinPipeline" else changed < 5e-6


def test_half_precision_text_keeps_its_precision(inputs: Inputs, names: NameTable) -> None:
    text = inputs.text.to(torch.device("cpu"), torch.bfloat16)
    found = prepend(made(GraphTokens())(GRAPHS, None, names), text)
    assert found.states.dtype == torch.bfloat16
    assert torch.equal(found.states[:, 3:], text.states)


SPANS = [{0: range(1, 2), 1: range(3, 5)}, {}, {0: range(0, 1), 1: range(1, 2), 2: range(4, 5)}, {0: range(2, 3), 1: range(0, 1)}]


def test_residual_adds_nothing_at_first_and_learns(inputs: Inputs) -> None:
    tokenizer, residual = made(GraphTokens(injection="residual")), GatedResidual()
    states = inputs.text.states
    tokens = tokenizer(GRAPHS)
    found = residual(tokens, states, SPANS)
    assert torch.equal(found, states)
    (found * torch.randn(found.shape, generator=torch.Generator().manual_seed(0))).sum().backward()
    assert residual.gate.grad is not None and residual.gate.grad.abs() > 0
    one = states[:1]
    assert residual(tokenizer([SceneGraph()]), one, [{}]) is one


def test_residual_adds_at_the_named_words_only(inputs: Inputs) -> None:
    tokens, residual = made(GraphTokens(injection="residual"))(GRAPHS), GatedResidual()
    residual.gate.data.fill_(0.5)
    states = inputs.text.states.clone()
    states[1, 0, 0] = -0.0
    change = residual(tokens, states, SPANS) - states
    named = torch.zeros(len(GRAPHS), WORDS, dtype=torch.bool)
    for n, spans in enumerate(SPANS):
        for place, positions in spans.items():
            for position in positions:
                named[n, position] = True
                wanted = torch.tanh(torch.tensor(0.5)) * tokens.states[n, place]
                assert torch.allclose(change[n, position], wanted, atol=1e-6)
    assert not change[~named].any()
    kept = residual(tokens, states, SPANS)[~named]
    assert torch.equal(torch.signbit(kept), torch.signbit(states[~named]))


def test_spans_find_the_words_of_objects() -> None:
    """In "a hot dog on dog near dog"."""
    mentions = {"dog": [range(2, 3), range(4, 5), range(6, 7)], "hot dog": [range(1, 3)], "cat": []}
    graph = SceneGraph(("dog", "hot dog", "dog", "cat"), ((0, "on", 1), (2, "on", 0)))
    assert named_spans(graph, mentions) == {1: range(1, 3), 0: range(4, 5), 2: range(6, 7)}
    with pytest.raises(DataError, match="does not mention object 1, 'cat', of the graph `dog, on, cat`"):
        named_spans(SceneGraph.of("dog", "on", "cat"), mentions)
    assert list(named_spans(SceneGraph.of("dog", "on", "cat"), mentions, every=False)) == [0]
    with pytest.raises(DataError, match="does not mention object 2, 'dog'"):
        named_spans(graph, {**mentions, "dog": mentions["dog"][:2]})


@pytest.mark.parametrize("prompt", [relational_prompt("dog", "left of", "cat"), neutral_prompt("cat", "dog")])
def test_spans_in_prompts_of_a_t5_tokenizer(prompt: str) -> None:
    tokenizers = ClipAndT5(None, t5_tokenizer(), 16)
    spans = named_spans(SceneGraph.of("dog", "left of", "cat"), tokenizers.mentions(prompt, ["dog", "cat"]))
    words = prompt.split()
    assert {index: list(span) for index, span in spans.items()} == {0: [words.index("dog")], 1: [words.index("cat")]}
