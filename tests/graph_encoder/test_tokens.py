"""Graph tokens: how many, for whom, of which size; nothing for nothing; directions that differ."""

import msgspec
import pytest
import torch
import torch.nn.functional as F

from sgpipe.errors import DataError, ModelError
from sgpipe.graph_encoder.batches import GraphEncoding, batch_graphs
from sgpipe.graph_encoder.config import GraphTokens
from sgpipe.graph_encoder.open_vocabulary import NameTable, OpenVocabularyConfig, OpenVocabularyEncoder
from sgpipe.graph_encoder.tokens import GraphTokenizer, Tokens, binding_codes
from sgpipe.graphs.scene_graph import SceneGraph, Triple
from sgpipe.relations.predicates import PREDICATE_INDEX

TEXT = 12
ONE = SceneGraph.of("dog", "left of", "cat")
MANY = SceneGraph(("tree", "dog", "cat", "dog"), ((1, "left of", 2), (1, "on", 3), (2, "behind", 3), (1, "left of", 2)))
LONE = SceneGraph(("dog", "cat"))
GRAPHS = (ONE, SceneGraph(), MANY, LONE)
LAYOUTS = [
    GraphTokens(layout="triple", relation="encoder", global_token=True),
    GraphTokens(layout="roles", relation="encoder"),
    GraphTokens(layout="objects", relation="encoder"),
    GraphTokens(layout="objects"),
    GraphTokens(layout="objects", injection="residual"),
    GraphTokens(layout="edges"),
]
COUNTS = [(2, 0, 5, 0), (3, 0, 12, 0), (2, 0, 3, 0), (2, 0, 3, 0), (2, 0, 3, 0), (3, 0, 7, 0)]


@pytest.fixture(scope="module")
def names() -> NameTable:
    generator = torch.Generator().manual_seed(2)
    words = ("dog", "cat", "tree", "left of", "right of", "on", "behind")
    return NameTable({word: torch.randn(TEXT, generator=generator) for word in words})


def encode(names: NameTable, *graphs: SceneGraph) -> GraphEncoding:
    torch.manual_seed(0)
    return OpenVocabularyEncoder(OpenVocabularyConfig(TEXT, width=16, embed=8, layers=2))(batch_graphs(graphs, names))


def tokenizer(params: GraphTokens) -> GraphTokenizer:
    torch.manual_seed(1)
    return GraphTokenizer(params, TEXT, text_scale=1.5, embed=8)


def make(params: GraphTokens, names: NameTable, *graphs: SceneGraph) -> Tokens:
    return tokenizer(params)(graphs, encode(names, *graphs), names)


@pytest.mark.parametrize(("params", "counts"), zip(LAYOUTS, COUNTS, strict=True))
def test_a_batch_gives_what_each_graph_gives_alone(params: GraphTokens, counts: tuple[int, ...], names: NameTable) -> None:
    together = make(params, names, *GRAPHS)
    assert together.counts == counts
    assert together.mask.sum(1).tolist() == list(counts)
    assert not together.states[~together.mask].any() and (together.owner[~together.mask.cpu()] == -1).all()
    for n, graph in enumerate(GRAPHS):
        alone = make(params, names, graph)
        assert alone.counts == (counts[n],)
        assert torch.equal(alone.owner[0], together.owner[n, : counts[n]])
        assert (alone.states[0] - together.states[n, : counts[n]]).abs().sum() < 1e-4


def test_tokens_of_an_object_are_its_own_embedding_plus_what_its_triples_say(names: NameTable) -> None:
    made = tokenizer(GraphTokens())
    found = made([MANY], None, names)
    table = {p: made.table[row] for p, row in PREDICATE_INDEX.items()}
    dog, cat, other = (names.vectors[name] for name in ("dog", "cat", "dog"))
    code = 0.5 * binding_codes(torch.arange(4), 2, TEXT)
    wanted = [
        dog + 1.5 * (2 * table["left of"][0] + code[0, 0] + code[3, 0] + table["on"][0] + code[1, 0]),
        cat + 1.5 * (2 * table["left of"][1] + code[0, 1] + code[3, 1] + table["behind"][0] + code[2, 0]),
        other + 1.5 * (table["on"][1] + code[1, 1] + table["behind"][1] + code[2, 1]),
    ]
    assert found.owner.tolist() == [[1, 2, 3]]
    assert torch.allclose(found.states[0], torch.stack(wanted), atol=1e-5)
    added = tokenizer(GraphTokens(injection="residual"))([MANY])
    assert torch.allclose(added.states[0], torch.stack(wanted) - torch.stack([dog, cat, other]), atol=1e-5)


def test_a_graph_of_one_triple_has_no_code(names: NameTable) -> None:
    made = tokenizer(GraphTokens())
    table = made.table[PREDICATE_INDEX["left of"]]
    wanted = torch.stack([names.vectors["dog"], names.vectors["cat"]]) + 1.5 * table
    for alone in (made([ONE], None, names), made([SceneGraph(), ONE, MANY], None, names)):
        row = alone.counts.index(2)
        assert torch.equal(alone.states[row, :2], wanted)


def test_an_edge_token_is_made_of_both_ends_names_and_its_predicate(names: NameTable) -> None:
    made = tokenizer(GraphTokens(layout="edges"))
    found = made([MANY, ONE], None, names)
    assert found.counts == (7, 3) and found.owner.tolist() == [[1, 2, 3, -1, -1, -1, -1], [0, 1, -1, -1, -1, -1, -1]]
    dog, cat = names.vectors["dog"], names.vectors["cat"]
    assert torch.equal(found.states[0, :3], torch.stack([dog, cat, dog])), "an object's token is its name"
    for row, (subject, predicate, object_) in enumerate(MANY.named):
        ends = torch.cat([names.vectors[subject], names.vectors[object_]])
        wanted = 1.5 * (made.projections[0](ends) + made.table[PREDICATE_INDEX[predicate]])
        assert torch.allclose(found.states[0, 3 + row], wanted, atol=1e-5)


@pytest.mark.parametrize("params", [GraphTokens(), GraphTokens(layout="edges")])
def test_what_a_prompt_says_stands_for_names_and_the_others_are_read_alone(params: GraphTokens, names: NameTable) -> None:
    """As if the name's vector were another one, for this object of this graph alone."""
    made, own = tokenizer(params), torch.arange(TEXT) / 5.0
    plain = made([ONE, MANY], None, names)
    found = made([ONE, MANY], None, names, [{0: own}, {}])
    assert torch.equal(found.states[1], plain.states[1]) and torch.equal(found.states[0, 1], plain.states[0, 1])
    other = NameTable(names.vectors | {"dog": own})
    assert torch.allclose(found.states[0], made([ONE, MANY], None, other).states[0], atol=1e-6)
    assert not torch.allclose(found.states[0, 0], plain.states[0, 0])


def test_codes_of_triples_and_roles_are_all_different_and_of_size_one() -> None:
    codes = binding_codes(torch.arange(16), 3, 64).flatten(0, 1)
    assert torch.allclose(codes.square().mean(1), torch.ones(48), atol=1e-5)
    apart = torch.cdist(codes, codes) + torch.eye(48) * 9
    assert apart.min() > 1.0
    turned = binding_codes(torch.arange(16), 2, 64)
    turns = (turned[:, 0] * turned[:, 1]).mean(1)
    assert turns.std() < 1e-6, "the other end of a triple is the same turn away for every triple"


TWO = (
    ("pairs", ((0, "left of", 1), (2, "left of", 3)), ((0, "left of", 3), (2, "left of", 1))),
    ("cycle", ((0, "on", 1), (1, "on", 2), (2, "on", 0)), ((0, "on", 2), (2, "on", 1), (1, "on", 0))),
)


@pytest.mark.parametrize("params", LAYOUTS)
@pytest.mark.parametrize(("one", "other"), [each[1:] for each in TWO], ids=[each[0] for each in TWO])
def test_tokens_say_which_two_objects_are_related(
    params: GraphTokens, one: tuple[Triple, ...], other: tuple[Triple, ...], names: NameTable
) -> None:
    """The same objects, predicates and roles, told of other pairs: as sets, the tokens differ."""
    objects = ("dog", "cat", "tree", "ball")
    table = NameTable(names.vectors | {"ball": names.vectors["on"].flip(0)})
    states = []
    for triples in (one, other):
        made = make(params, table, SceneGraph(objects, triples))
        said = made.states[0]
        if params.injection == "residual":
            said = said + torch.stack([table.vectors[objects[owner]] for owner in made.owner[0].tolist()])
        states.append(said)
    first, second = states
    nearest = torch.cdist(first, second).min(1).values
    assert nearest.max() > 0.3


@pytest.mark.parametrize("params", LAYOUTS)
def test_swapped_roles_give_other_tokens_and_every_weight_learns(params: GraphTokens, names: NameTable) -> None:
    made = tokenizer(params)
    pair = [ONE, ONE.reversed()]
    tokens = made(pair, encode(names, *pair), names)
    cosine = F.cosine_similarity(tokens.states[0].flatten(), tokens.states[1].flatten(), dim=0)
    assert cosine < 0.99
    (tokens.states[0] - tokens.states[1]).square().sum().backward()
    silent = [name for name, p in made.named_parameters() if p.grad is None]
    assert silent == []


def test_more_triples_than_rows_keep_the_first(names: NameTable) -> None:
    many = SceneGraph(("dog", "cat"), ((0, "left of", 1), (1, "on", 0)) * 9)
    encoded = encode(names, many)
    assert encoded.dropped.tolist() == [3]
    found = tokenizer(GraphTokens(layout="triple", relation="encoder"))([many], encoded)
    assert found.counts == (15,)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"injection": "residual", "layout": "roles", "relation": "encoder"}, "residual adds to the words of objects"),
        ({"injection": "residual", "global_token": True}, "without global_token; got layout objects"),
        ({"layout": "triple"}, "got table; layout triple has encoder alone: set relation to encoder"),
        ({"layout": "edges", "relation": "encoder"}, "got encoder; layout edges has table alone: set relation to table"),
        ({"names": "prompt", "injection": "residual"}, "layout objects, injection residual; .* set names to alone"),
        ({"names": "prompt", "layout": "roles", "relation": "encoder"}, "layout roles, injection prepend"),
    ],
)
def test_parameters_that_contradict_are_refused(given: dict[str, object], said: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=said):
        msgspec.convert(given, GraphTokens)


def test_what_is_missing_is_named(names: NameTable) -> None:
    with pytest.raises(ModelError, match="read a graph encoder, and none is given"):
        GraphTokenizer(GraphTokens(global_token=True), TEXT, text_scale=1.0)
    with pytest.raises(ModelError, match="no encoding is given"):
        tokenizer(GraphTokens(layout="triple", relation="encoder"))([ONE])
    with pytest.raises(ModelError, match="needs the text embeddings"):
        tokenizer(GraphTokens())([ONE])
    with pytest.raises(DataError, match=r"predicate 'beside' is not in the table of the graph tokens"):
        tokenizer(GraphTokens())([SceneGraph.of("dog", "beside", "cat")], None, names)
