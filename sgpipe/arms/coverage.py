"""Out-of-vocabulary input of an adapter: names, predicates, words and graph sizes that its training did not show it."""

from collections.abc import Iterable, Mapping
from typing import Any, Final

from sgpipe.graphs.scene_graph import SceneGraph, suggestion
from sgpipe.relations.predicates import neutral_prompt, phrase

TRAINED_ON: Final = "trained_on"
"""Key of `adapter.json`."""


def training_vocabulary(graphs: Iterable[SceneGraph]) -> dict[str, Any]:
    """Names and predicates of the training graphs, sorted, and the most triples that one of them has."""
    names: set[str] = set()
    predicates: set[str] = set()
    most = 0
    for graph in graphs:
        names.update(graph.objects)
        predicates.update(predicate for _, predicate, _ in graph.triples)
        most = max(most, len(graph.triples))
    return {"names": sorted(names), "predicates": sorted(predicates), "triples": most}


def uncovered(graph: SceneGraph, prompt: str, trained_on: Mapping[str, Any] | None) -> list[str]:
    """One sentence for each name, predicate or word of a prompt outside `trained_on`, and for a larger graph than any there.

    None (an adapter that does not state its training) is said, too.
    """
    if trained_on is None:
        return ["the adapter does not state the names that it was trained on; train it again to have them checked"]
    names, predicates = trained_on["names"], trained_on["predicates"]
    said = [
        f"{name!r} is no name that the adapter was trained on; {suggestion(name, names)}"
        for name in dict.fromkeys(graph.objects)
        if name not in names
    ]
    said += [
        f"{predicate!r} is no predicate that the adapter was trained on; {suggestion(predicate, predicates)}"
        for predicate in dict.fromkeys(predicate for _, predicate, _ in graph.triples)
        if predicate not in predicates
    ]
    if len(graph.triples) > trained_on["triples"]:
        said.append(
            f"the graph has {len(graph.triples)} triples, the adapter was trained on graphs of {trained_on['triples']} at most: "
            "expect objects or relations to be left out"
        )
    texts = [neutral_prompt("", ""), *names, *map(phrase, predicates), *graph.objects]
    known = {word for text in texts for word in text.split()}
    said += [
        f"the word {word!r} of the prompt is in no text that the adapter was trained on"
        for word in dict.fromkeys(prompt.lower().replace(",", " ").split())
        if word not in known
    ]
    return said
