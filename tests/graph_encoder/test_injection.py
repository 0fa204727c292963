"""Graph tokens in a FLUX transformer: a batch of mixed graphs gives what each gives alone, and nothing gives nothing."""

from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel
from diffusers.models.attention_dispatch import attention_backend
from torch import Tensor

from sgpipe.errors import DataError
from sgpipe.graph_encoder.config import GraphTokens
from sgpipe.graph_encoder.injection import GatedResidual, TextContext, named_spans, prepend
from sgpipe.graph_encoder.open_vocabulary import NameTable
from sgpipe.graph_encoder.tokens import GraphTokenizer, Tokens
from sgpipe.graphs.scene_graph import SceneGraph
from sgpipe.relations.predicates import neutral_prompt, relational_prompt
from sgworld.language import t5_tokenizer

TEXT, WORDS, IMAGE = 10, 5, 6
GRAPHS = (
    SceneGraph.of("dog", "left of", "cat"),
    SceneGraph(),
    SceneGraph(("dog", "cat", "tree"), ((0, "on", 1), (2, "behind", 1))),
    SceneGraph.of("cat", "on", "tree"),
)


@pytest.fixture(scope="module")
def transformer() -> FluxTransformer2DModel:
    torch.manual_seed(0)
    model = FluxTransformer2DModel(
        in_channels=4,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=TEXT,
        pooled_projection_dim=6,
        axes_dims_rope=(2, 2, 4),
    )
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def inputs() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    count = len(GRAPHS)
    return {
        "hidden_states": torch.randn(count, IMAGE, 4, generator=generator),
        "encoder_hidden_states": torch.randn(count, WORDS, TEXT, generator=generator),
        "pooled_projections": torch.randn(count, 6, generator=generator),
        "timestep": torch.rand(count, generator=generator),
    }


@pytest.fixture(scope="module")
def names() -> NameTable:
    generator = torch.Generator().manual_seed(4)
    return NameTable({name: torch.randn(TEXT, generator=generator) for name in ("dog", "cat", "tree")})


def made(params: GraphTokens) -> GraphTokenizer:
    torch.manual_seed(5)
    return GraphTokenizer(params, TEXT, text_scale=1.0)


def velocity(model: FluxTransformer2DModel, inputs: dict[str, Tensor], context: TextContext) -> Tensor:
    image_ids = torch.stack([torch.zeros(IMAGE), torch.arange(IMAGE) // 3, torch.arange(IMAGE) % 3], 1)
    given: dict[str, Any] = {**inputs, "encoder_hidden_states": context.encoder_hidden_states}
    return model(
        **given,
        txt_ids=context.txt_ids,
        img_ids=image_ids,
        joint_attention_kwargs=context.joint_attention_kwargs(IMAGE),
        return_dict=False,
    )[0]


def only(inputs: dict[str, Tensor], n: int) -> dict[str, Tensor]:
    return {name: value[n : n + 1] for name, value in inputs.items()}


def context_of(tokens: Tokens, inputs: dict[str, Tensor]) -> TextContext:
    return prepend(tokens, inputs["encoder_hidden_states"], torch.zeros(WORDS, 3))


def test_mixed_graphs_in_one_batch_are_each_alone(
    transformer: FluxTransformer2DModel, inputs: dict[str, Tensor], names: NameTable
) -> None:
    tokenizer = made(GraphTokens())
    tokens = tokenizer(GRAPHS, None, names)
    assert tokens.counts == (2, 0, 3, 2)
    together = velocity(transformer, inputs, context_of(tokens, inputs))
    unmasked = context_of(tokens, inputs)
    unmasked = TextContext(unmasked.encoder_hidden_states, unmasked.txt_ids, None)
    padded = velocity(transformer, inputs, unmasked)
    for n, graph in enumerate(GRAPHS):
        own = only(inputs, n)
        context = context_of(tokenizer([graph], None, names), own)
        assert context.mask is None
        alone = velocity(transformer, own, context)[0]
        assert (together[n] - alone).abs().max() < 5e-6
        if tokens.counts[n] < 3:
            assert (padded[n] - alone).abs().max() > 1e-3, "without the mask padding would be read"


BACKENDS = ("_native_math", "native")
"""What `attention: math` and `attention: native` set."""


@pytest.mark.parametrize("count", [2, WORDS + IMAGE + 4], ids=["pair", "as many graphs as joint tokens"])
def test_graphs_of_one_and_three_triples_are_each_alone_under_every_backend(
    transformer: FluxTransformer2DModel, names: NameTable, count: int
) -> None:
    """A mask `[N, S]` would fail under the math backend, or be taken for `[L, S]` where N is the joint sequence's length."""
    one = SceneGraph.of("dog", "left of", "cat")
    three = SceneGraph(("dog", "cat", "tree", "dog"), ((0, "on", 1), (2, "behind", 1), (3, "left of", 2)))
    graphs = [three if n % 3 == 1 else one for n in range(count)]
    generator = torch.Generator().manual_seed(7)
    batch = {
        "hidden_states": torch.randn(count, IMAGE, 4, generator=generator),
        "encoder_hidden_states": torch.randn(count, WORDS, TEXT, generator=generator),
        "pooled_projections": torch.randn(count, 6, generator=generator),
        "timestep": torch.rand(count, generator=generator),
    }
    tokenizer = made(GraphTokens())
    context = context_of(tokenizer(graphs, None, names), batch)
    assert context.mask is not None
    found = {}
    for backend in BACKENDS:
        with attention_backend(backend):
            found[backend] = velocity(transformer, batch, context)
            for n, graph in enumerate(graphs):
                own = only(batch, n)
                alone = velocity(transformer, own, context_of(tokenizer([graph], None, names), own))[0]
                assert (found[backend][n] - alone).abs().max() < 1e-6
    assert (found["native"] - found["_native_math"]).abs().max() < 1e-6


@pytest.mark.parametrize("checkpointing", [False, True])
def test_masked_padding_gets_no_gradient_and_every_token_does(
    transformer: FluxTransformer2DModel, inputs: dict[str, Tensor], names: NameTable, checkpointing: bool
) -> None:
    tokens = made(GraphTokens())(GRAPHS, None, names)
    states = tokens.states.detach().requires_grad_()
    if checkpointing:
        transformer.enable_gradient_checkpointing()
    transformer.train(checkpointing)
    context = context_of(Tokens(states, tokens.counts, tokens.owner), inputs)
    with torch.enable_grad():
        velocity(transformer, inputs, context).square().mean().backward()
    transformer.disable_gradient_checkpointing()
    transformer.eval()
    assert states.grad is not None
    assert torch.equal(states.grad.abs().sum(-1) > 0, tokens.mask)


def test_padding_is_never_read(
    transformer: FluxTransformer2DModel, inputs: dict[str, Tensor], names: NameTable
) -> None:
    tokens = made(GraphTokens())(GRAPHS, None, names)
    disturbed = Tokens(tokens.states.masked_fill(~tokens.mask[..., None], 7.0), tokens.counts, tokens.owner)
    first, other = (velocity(transformer, inputs, context_of(each, inputs)) for each in (tokens, disturbed))
    assert torch.equal(first, other)


def test_empty_graphs_change_no_bit(
    transformer: FluxTransformer2DModel, inputs: dict[str, Tensor], names: NameTable
) -> None:
    ids = torch.zeros(WORDS, 3)
    states = inputs["encoder_hidden_states"]
    empty = made(GraphTokens())([SceneGraph(), SceneGraph(("dog",)), SceneGraph(), SceneGraph()], None, names)
    context = prepend(empty, states, ids)
    assert context.encoder_hidden_states is states and context.txt_ids is ids
    assert context.joint_attention_kwargs(IMAGE) == {}
    plain = velocity(transformer, inputs, TextContext(states, ids, None))
    assert torch.equal(velocity(transformer, inputs, context), plain)


def test_the_order_of_graph_tokens_means_nothing(
    transformer: FluxTransformer2DModel, inputs: dict[str, Tensor], names: NameTable
) -> None:
    """Text has position 0 throughout, so graph tokens are a set and their direction must be in what they hold."""
    own = only(inputs, 2)
    tokens = made(GraphTokens())([GRAPHS[2]], None, names)
    turned = Tokens(tokens.states.flip(1), tokens.counts, tokens.owner.flip(1))
    first, other = (velocity(transformer, own, context_of(each, own)) for each in (tokens, turned))
    assert (first - other).abs().max() < 5e-6


def test_half_precision_text_keeps_its_precision(inputs: dict[str, Tensor], names: NameTable) -> None:
    states = inputs["encoder_hidden_states"].bfloat16()
    context = prepend(made(GraphTokens())(GRAPHS, None, names), states, torch.zeros(WORDS, 3))
    assert context.encoder_hidden_states.dtype == torch.bfloat16
    assert torch.equal(context.encoder_hidden_states[:, 3:], states)


SPANS = [
    {0: range(1, 2), 1: range(3, 5)},
    {},
    {0: range(0, 1), 1: range(1, 2), 2: range(4, 5)},
    {0: range(2, 3), 1: range(0, 1)},
]


def test_residual_adds_nothing_at_first_and_learns(inputs: dict[str, Tensor]) -> None:
    tokenizer, residual = made(GraphTokens(injection="residual")), GatedResidual()
    states = inputs["encoder_hidden_states"]
    tokens = tokenizer(GRAPHS)
    found = residual(tokens, states, SPANS)
    assert torch.equal(found, states)
    (found * torch.randn(found.shape, generator=torch.Generator().manual_seed(0))).sum().backward()
    assert residual.gate.grad is not None and residual.gate.grad.abs() > 0
    one = states[:1]
    assert residual(tokenizer([SceneGraph()]), one, [{}]) is one


def test_residual_adds_at_the_named_words_only(inputs: dict[str, Tensor]) -> None:
    tokens, residual = made(GraphTokens(injection="residual"))(GRAPHS), GatedResidual()
    residual.gate.data.fill_(0.5)
    states = inputs["encoder_hidden_states"].clone()
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
    ids = {"dog": [7], "hot dog": [5, 7], "cat": [8]}
    graph = SceneGraph(("dog", "hot dog", "dog", "cat"), ((0, "on", 1), (2, "on", 0)))
    prompt = [1, 5, 7, 2, 7, 3, 7, 0, 0]
    assert named_spans(graph, prompt, ids) == {1: range(1, 3), 0: range(4, 5), 2: range(6, 7)}
    with pytest.raises(DataError, match="does not mention object 1, 'cat', of the graph `dog, on, cat`"):
        named_spans(SceneGraph.of("dog", "on", "cat"), prompt, ids)
    with pytest.raises(DataError, match="does not mention object 2, 'dog'"):
        named_spans(graph, prompt[:5], ids)


@pytest.mark.parametrize("prompt", [relational_prompt("dog", "left of", "cat"), neutral_prompt("cat", "dog")])
def test_spans_in_prompts_of_a_t5_tokenizer(prompt: str) -> None:
    tokenizer = t5_tokenizer()
    ids = {name: tokenizer(name, add_special_tokens=False).input_ids for name in ("dog", "cat")}
    prompt_ids = tokenizer(prompt, padding="max_length", max_length=16).input_ids
    spans = named_spans(SceneGraph.of("dog", "left of", "cat"), prompt_ids, ids)
    words = prompt.split()
    assert {index: list(span) for index, span in spans.items()} == {
        0: [words.index("dog")],
        1: [words.index("cat")],
    }
