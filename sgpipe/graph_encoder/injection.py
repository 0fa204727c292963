"""How graph tokens enter a generator's text context: before the prompt's tokens, or added to those of the named words."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from sgpipe.backbones.base import TextCondition
from sgpipe.errors import DataError
from sgpipe.graph_encoder.tokens import Tokens
from sgpipe.graphs.scene_graph import SceneGraph


def prepend(tokens: Tokens, text: TextCondition, enter: int = 0) -> TextCondition:
    """Put graph tokens before a prompt's states `[N, T, D]`, to join them at block `enter`.

    Graphs without tokens give the very condition that came in. A batch of graphs of different sizes is padded and masked, so that
    each sample gets what it gets alone.
    """
    if tokens.states.shape[1] == 0:
        return text
    states = torch.cat([tokens.states.to(text.states.dtype), text.states], dim=1)
    mask = None
    if text.mask is not None or len(set(tokens.counts)) > 1:
        prompt = torch.ones(text.states.shape[:2], dtype=torch.bool) if text.mask is None else text.mask
        mask = torch.cat([tokens.mask, prompt.to(tokens.mask.device)], dim=1)
    before = text if enter else None
    return TextCondition(states, text.pooled, mask, text.prepended + tokens.states.shape[1], enter, before)


def named_spans(graph: SceneGraph, mentions: Mapping[str, Sequence[range]], every: bool = True) -> dict[int, range]:
    """Which rows of a tokenised prompt stand for each related object of a graph: object number to positions.

    `mentions` are all rows that hold a name (`Tokenizers.mentions`). Longer names choose first ("hot dog" before "dog"), objects of
    one name take its mentions in turn. Raises `DataError` for an object that the prompt does not mention, unless not `every` one
    must be there.
    """
    related = sorted({index for s, _, o in graph.triples for index in (s, o)})
    spans: dict[int, range] = {}
    taken: set[int] = set()
    for index in sorted(related, key=lambda i: -max(map(len, mentions[graph.objects[i]]), default=0)):
        span = next((each for each in mentions[graph.objects[index]] if taken.isdisjoint(each)), None)
        if span is not None:
            spans[index] = span
            taken.update(span)
        elif every:
            raise DataError(
                f"the prompt does not mention object {index}, {graph.objects[index]!r}, of the graph `{graph}`; "
                f"residual injection adds to words, so name it in the prompt or set graph_tokens.injection to prepend"
            )
    return spans


class GatedResidual(nn.Module):
    """Adds tanh(gate)·token to the prompt's states at the words of the token's object; the gate starts at 0, which adds nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.zeros(()))

    def forward(self, tokens: Tokens, encoder_hidden_states: Tensor, spans: Sequence[Mapping[int, range]]) -> Tensor:
        """States `[N, T, D]`; `spans[n]` gives the positions of the objects of graph n. Other positions keep their bits."""
        rows = [
            (n, position, place)
            for n, (count, own) in enumerate(zip(tokens.counts, tokens.owner.tolist(), strict=True))
            for place in range(count)
            for position in spans[n][own[place]]
        ]
        if not rows:
            return encoder_hidden_states
        found = torch.tensor(rows, device=encoder_hidden_states.device)
        graph, position, place = found.unbind(1)
        added = torch.tanh(self.gate) * tokens.states[graph, place]
        change = torch.zeros_like(encoder_hidden_states).index_put(
            (graph, position), added.to(encoder_hidden_states.dtype), accumulate=True
        )
        touched = torch.zeros(encoder_hidden_states.shape[:2], dtype=torch.bool, device=change.device).index_put(
            (graph, position), torch.ones_like(graph, dtype=torch.bool)
        )
        return torch.where(touched[..., None], encoder_hidden_states + change, encoder_hidden_states)
