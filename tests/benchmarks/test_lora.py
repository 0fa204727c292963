"""Settings of the recipe trial, and figures that are what they say on images whose content is known."""

import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks import lora_recipe
from benchmarks.lora_recipe import changed, measure
from sgpipe.arms.config import ArmOptions
from sgpipe.arms.kinds.base import Sections
from sgpipe.errors import ParamsError
from sgpipe.graphs.scene_graph import SceneGraph
from sgpipe.relations.predicates import neutral_prompt
from sgpipe.training.config import Train
from sgpipe.training.examples import Example
from sgworld.scenes import pair_scene, render


def test_settings_are_yaml_at_dotted_keys() -> None:
    sections: dict[str, Any] = {"lora": {"blocks": "7..12"}, "train": {"losses": {"flow": 1}}, "graph_tokens": {}}
    found = changed(sections, ["lora.blocks=[0..6]", "train.losses.margin.weight=0.3", "graph_tokens.relation=encoder"])
    assert found["lora"]["blocks"] == ["0..6"]
    assert found["train"]["losses"] == {"flow": 1, "margin": {"weight": 0.3}}
    assert found["graph_tokens"] == {"relation": "encoder"}
    for wrong in ("lora.blocks", "backbone.model=x"):
        with pytest.raises(ParamsError, match=r"write <section>.*sections: lora, train, arms, graph_tokens"):
            changed(sections, [wrong])


@dataclass
class Obedient:
    """Draws what the graph says by rule, and without one always the first name left of the second."""

    def sample(self, prompts: list[str], graphs: list[SceneGraph | None], seeds: list[int], *, size: int) -> np.ndarray:
        images = []
        for graph, seed in zip(graphs, seeds, strict=True):
            said = ("dog", "left of", "tree")
            if graph is not None and graph.triples:
                s, p, o = graph.triples[0]
                said = graph.objects[s], p, graph.objects[o]
            images.append(render(pair_scene(np.random.default_rng(seed), *said)))
        return np.stack(images)


def test_a_generator_that_obeys_scores_full_and_one_that_cannot_read_does_not() -> None:
    examples = []
    for predicate in ("left of", "right of", "above", "below"):
        graph = SceneGraph.of("dog", predicate, "tree")
        examples.append(Example(predicate, graph, graph.reversed(), {"neutral": neutral_prompt("dog", "tree")}, ("", "", "")))
    found = measure(Obedient(), examples, "neutral", 2, 64)  # type: ignore[arg-type]
    assert found["images"] == 8
    assert found["graph_right"] == found["graph_role"] == found["swapped_right"] == found["swap_follow_rate"] == 1
    assert found["base_present"] == found["graph_present"] == 1
    assert found["base_right"] == found["empty_right"] == 0.25 and found["base_role"] == 0.5
    assert found["shuffled_right"] == 0


def test_a_preset_is_tried_at_each_learning_rate(repo_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each with the preset's other values and on development triples; figures by rate, seed and prompt."""
    tried: list[Train] = []
    shown = {
        "graph_present": 0.5, "graph_right": 0.8, "graph_role": 0.9, "swap_follow_rate": 0.25, "images": 8.0,
        "base_present": 1.0,
    }  # fmt: skip

    def trained(
        name: str, options: ArmOptions, sections: Sections, *rest: Any
    ) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
        assert (name, options.kind) == ("graph", "graph_lora")
        tried.append(sections.train)
        assert sections.graph_tokens.encoder == "outputs/graph_encoder"
        return {"steps": 1.0}, {"neutral": shown, "relational": {**shown, "graph_present": 1.0}}

    asked: list[float] = []
    data = SimpleNamespace(train=range(6), held_out=range(2))
    monkeypatch.setattr(lora_recipe, "try_recipe", trained)
    monkeypatch.setattr(lora_recipe, "read_data", lambda *given: asked.append(given[2]) or data)
    lora_recipe.main(
        preset="predecessor-miniature", rates=[1e-4, 3e-3], trainings=2, params=repo_root / "params.yaml",
        prompts=["neutral", "relational"], metrics=tmp_path / "rate.json",
    )  # fmt: skip
    assert [(each.optimiser.learning_rate, each.seed) for each in tried] == [(1e-4, 0), (1e-4, 1), (3e-3, 0), (3e-3, 1)]
    assert {each.dev for each in tried} == {0.2} and asked == [0.2]
    for each in tried:
        assert (each.ema_decay, each.times.density, each.losses.contrastive) == (None, "uniform", False)
        assert each.optimiser.token_lr_multiplier == 1 and each.conditions.shares() == {"relational": 1}
    found = json.loads((tmp_path / "rate.json").read_text())
    assert list(found["rates"]) == ["0.0001", "0.003"] and found["preset"] == "predecessor-miniature"
    of_one = found["rates"]["0.003"]["seed_1"]
    assert of_one["neutral"]["present_and_right"] == 0.4 and of_one["relational"]["present_and_right"] == 0.8
    assert of_one["neutral"]["relation_accuracy"] == 0.8
