"""How graph tokens enter a generator's text context: before the prompt's tokens, or added to those of the named words."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sgpipe.errors import DataError
from sgpipe.graph_encoder.tokens import Tokens
from sgpipe.graphs.scene_graph import SceneGraph


@dataclass(frozen=True)
class TextContext:
    """What a FLUX transformer takes as text: `encoder_hidden_states` `[N, S, D]`, `txt_ids` `[S, 3]`.

    `mask` `[N, S]` is false at padding; None where there is none, so that attention runs without one.
    """

    encoder_hidden_states: Tensor
    txt_ids: Tensor
    mask: Tensor | None

    def joint_attention_kwargs(self, image_tokens: int) -> dict[str, Tensor]:
        """Keyword arguments for diffusers' FLUX: no key of padding is attended to, in double and single blocks alike.

        The joint sequence is [text, image] in both kinds of block, and the key mask `[N, 1, 1, S + image_tokens]` reaches every
        attention as `attention_mask`; of diffusers' backends `native` alone would give a mask of two dimensions these axes. Rows
        of padding go on to compute, but nothing reads them.
        """
        if self.mask is None:
            return {}
        image = self.mask.new_ones(len(self.mask), image_tokens)
        return {"attention_mask": torch.cat([self.mask, image], dim=1)[:, None, None]}


def prepend(tokens: Tokens, encoder_hidden_states: Tensor, txt_ids: Tensor) -> TextContext:
    """Put graph tokens before a prompt's states `[N, T, D]`; their position ids are 0, as those of text are in FLUX.

    Graphs without tokens give the very tensors that came in. A batch of graphs of different sizes is padded and masked.
    """
    length = tokens.states.shape[1]
    if length == 0:
        return TextContext(encoder_hidden_states, txt_ids, None)
    states = torch.cat([tokens.states.to(encoder_hidden_states.dtype), encoder_hidden_states], dim=1)
    ids = torch.cat([txt_ids.new_zeros(length, txt_ids.shape[1]), txt_ids])
    mask = None
    if len(set(tokens.counts)) > 1:
        text = torch.ones(encoder_hidden_states.shape[:2], dtype=torch.bool, device=states.device)
        mask = torch.cat([tokens.mask, text], dim=1)
    return TextContext(states, ids, mask)


def named_spans(
    graph: SceneGraph, prompt_ids: Sequence[int], name_ids: Mapping[str, Sequence[int]]
) -> dict[int, range]:
    """Where a tokenised prompt mentions each related object of a graph: object number to positions.

    `name_ids` are token ids of names without special tokens. Longer names choose first ("hot dog" before "dog"), objects of
    one name take its mentions in turn. Raises `DataError` for an object that the prompt does not mention.
    """
    related = sorted({index for s, _, o in graph.triples for index in (s, o)})
    spans: dict[int, range] = {}
    taken: set[int] = set()
    for index in sorted(related, key=lambda i: -len(name_ids[graph.objects[i]])):
        wanted = list(name_ids[graph.objects[index]])
        for start in range(len(prompt_ids) - len(wanted) + 1):
            span = range(start, start + len(wanted))
            if list(prompt_ids[start : span.stop]) == wanted and taken.isdisjoint(span):
                spans[index] = span
                taken.update(span)
                break
        else:
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

    def forward(
        self, tokens: Tokens, encoder_hidden_states: Tensor, spans: Sequence[Mapping[int, range]]
    ) -> Tensor:
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
        touched = torch.zeros(
            encoder_hidden_states.shape[:2], dtype=torch.bool, device=change.device
        ).index_put((graph, position), torch.ones_like(graph, dtype=torch.bool))
        return torch.where(touched[..., None], encoder_hidden_states + change, encoder_hidden_states)
