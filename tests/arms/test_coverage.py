"""What an adapter was not trained on is said by name; what its training would not see is refused."""

import pytest

from sgpipe.arms.coverage import uncovered
from sgpipe.backbones.families import open_tokenizers
from sgpipe.backbones.truncation import ClipAndT5
from sgpipe.errors import DataError
from sgpipe.graphs.scene_graph import SceneGraph
from tests.training.world import World


def test_names_and_predicates_outside_the_training_are_said() -> None:
    graph = SceneGraph(("dog", "cat", "sofa"), ((0, "left of", 1), (2, "riding", 0)))
    about = {"names": ["cat", "dog"], "predicates": ["left of"], "triples": 2}
    said = uncovered(graph, "a photo of dog and sofa", about)
    assert len(said) == 2 and "'sofa' is no name" in said[0] and "'riding' is no predicate" in said[1]
    assert uncovered(SceneGraph.of("dog", "left of", "cat"), "Cat, and dog left of", about) == []
    assert len(uncovered(graph, "", None)) == 1


def test_a_training_of_truncated_relations_is_refused(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """At 12 tokens the longest lose "background" alone, at 7 the object."""
    whole = open_tokenizers(world.backbone)
    short = ClipAndT5(whole.clip, whole.t5, 7)
    monkeypatch.setattr("sgpipe.training.examples.open_tokenizers", lambda backbone: short)
    with pytest.raises(DataError, match=r"relational prompts of train triples: .*max_sequence_length to 1\d"):
        world.data()
