"""Every block of Python that README and docs show is Python, and runs word by word where it needs nothing that is not here."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.documented import PYTHON

Names = dict[str, Any]
ELSEWHERE = {"docs/diffusers.md:1": "tests/commands/test_models.py", "docs/lora.md:1": "tests/commands/test_models.py"}
"""What runs on the embedded checkpoint, and where."""
NOT_RUN = {"docs/experiments.md:1": "a run's own id; tests/tracking/test_images_and_models.py loads a logged model by its id"}


@pytest.mark.parametrize("block", PYTHON)
def test_a_block_is_python(block: str) -> None:
    compile(PYTHON[block], block, "exec")


def a_scene(folder: Path) -> Names:
    from sgworld.world.compose import compose
    from sgworld.world.raster import render
    from sgworld.world.reader import read
    from sgworld.world.specification import SLOTS, Caption

    return {
        "Caption": Caption, "compose": compose, "SLOTS": SLOTS, "render": render, "read": read, "rng": np.random.default_rng(0),
    }  # fmt: skip


def the_scene_is_read(found: Names) -> None:
    said = [["cat", "dog", "left of"], ["ball", "dog", "holding"]]  # who is the subject is open
    shown, reading = found["triples"], found["reading"]
    assert [each for each in said if each not in [[*sorted((s, o)), p] for s, p, o in shown]] == []
    assert {reading.between(subject, object_) for subject, _, object_ in shown} == set(shown)
    assert len(reading.objects) == 3 and len(reading.relations) >= len(shown)
    assert reading.duplicates == () and found["pixels"].shape == (64, 64, 3)


def a_pipeline(folder: Path) -> Names:
    """Of 19 blocks; calling it is a forward of its transformer."""
    from sgpipe.attention_maps.options import MapOptions
    from sgpipe.attention_maps.stream import concept_stream
    from tests.attention_maps import conftest

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conftest, "GRID", (32, 32))
        arguments, concepts = conftest.batch(1)

    class Pipeline:
        transformer = conftest.build(blocks=19)

        @torch.no_grad()
        def __call__(self, _: Any) -> None:
            self.transformer(**arguments)

    return {"MapOptions": MapOptions, "concept_stream": concept_stream, "pipeline": Pipeline(), "concept_embeds": concepts}


def maps_are_of_the_patches(found: Names) -> None:
    for kind in ("saliency", "cross"):
        assert found[kind].shape == (1, found["concept_embeds"].shape[1], 32, 32)
        assert found[kind].dtype == torch.float32 and found[kind].std() > 0
    assert set(found["stream"].maps()) == {"early", "middle", "late", "single"}


def an_encoder(folder: Path) -> Names:
    """CGIP of random weights in the stage's folder, and a tiny FLUX."""
    from sgpipe.backbones.base import TextCondition
    from sgpipe.backbones.denoiser import Denoiser
    from sgpipe.backbones.rectified_flow import noise
    from sgpipe.graph_encoder.batches import batch_graphs
    from sgpipe.graph_encoder.cgip import Cgip, CgipConfig
    from sgpipe.graph_encoder.checkpoints import load_encoder, save_encoder
    from sgpipe.graph_encoder.config import GraphTokens
    from sgpipe.graph_encoder.injection import prepend
    from sgpipe.graph_encoder.open_vocabulary import NameTable
    from sgpipe.graph_encoder.tokens import GraphTokenizer
    from sgpipe.graph_encoder.vocabulary import Vocabulary
    from sgpipe.graphs.scene_graph import parse_graph
    from sgpipe.relations.predicates import PREDICATES
    from tests.tiny import SIDE, backbone_of, write_pipeline

    torch.manual_seed(0)
    words = ("dog", "cat", "table")
    config = CgipConfig(1 + len(words), 1 + len(PREDICATES), width=16, embed=8, layers=1)
    save_encoder(folder / "outputs/graph_encoder", Cgip(config), Vocabulary.of(words, PREDICATES))
    denoiser = Denoiser.load(backbone_of(write_pipeline(folder / "tiny")), torch.device("cpu"))
    return {
        "parse_graph": parse_graph, "load_encoder": load_encoder, "Path": Path, "batch_graphs": batch_graphs, "prepend": prepend,
        "GraphTokenizer": GraphTokenizer, "params": GraphTokens(layout="roles", relation="encoder"), "denoiser": denoiser,
        "names": NameTable({word: torch.randn(24) for word in words}),
        "prompt": TextCondition(torch.randn(1, 7, 24), torch.randn(1, 20)),
        "latents": noise([0], denoiser.layout.latent_shape(SIDE)), "t": torch.ones(1),
    }  # fmt: skip


def the_graph_is_in_the_velocity(found: Names) -> None:
    assert found["tokens"].counts == (6,), "three of each triple"
    without = found["denoiser"].velocity(found["latents"], found["t"], found["prompt"])
    assert found["velocity"].shape == found["latents"].shape and not torch.allclose(found["velocity"], without)


def a_probe(folder: Path) -> Names:
    from sgpipe.attention_maps.scores import GroupMaps
    from sgpipe.probes.noise_aware import load_noise_aware, save_noise_aware
    from tests.probes.test_noise_aware import make

    save_noise_aware(make(), {"group": "middle"}, folder / "outputs/probes/middle/noise_aware")
    maps = GroupMaps(*(torch.randn(2, 3, 4, 4, requires_grad=True) for _ in range(2)))
    return {"load_noise_aware": load_noise_aware, "Path": Path, "torch": torch, "group_maps": maps, "t": torch.full((2,), 0.6)}


def logits_are_differentiable(found: Names) -> None:
    assert found["logits"].shape == (2, len(found["probe"].classes))
    found["logits"][:, 0].sum().backward()
    assert found["group_maps"].saliency.grad.abs().sum() > 0


HERE: dict[str, tuple[Callable[[Path], Names], Callable[[Names], None]]] = {
    "docs/world.md:1": (a_scene, the_scene_is_read),
    "docs/attention_maps.md:1": (a_pipeline, maps_are_of_the_patches),
    "docs/graph_encoder.md:1": (an_encoder, the_graph_is_in_the_velocity),
    "docs/probes.md:1": (a_probe, logits_are_differentiable),
}
"""What a block finds in scope, and what must hold after it."""


@pytest.mark.parametrize("block", HERE)
def test_a_block_runs(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given, holds = HERE[block]
    monkeypatch.chdir(tmp_path)
    names = given(tmp_path)
    exec(compile(PYTHON[block], block, "exec"), names)
    holds(names)


def test_every_block_is_run_or_has_a_reason() -> None:
    assert sorted([*HERE, *ELSEWHERE, *NOT_RUN]) == sorted(PYTHON)
    for block, file in ELSEWHERE.items():
        assert f'PYTHON["{block}"]' in (Path(__file__).parents[2] / file).read_text(encoding="utf-8")
