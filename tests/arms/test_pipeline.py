"""An adapter in an unmodified pipeline of diffusers: the images of `sgpipe generate`, and no trace afterwards."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline, StableDiffusion3Pipeline
from msgspec import structs
from numpy.typing import NDArray
from torch import nn

from sgpipe import GraphAdapter
from sgpipe.arms.adapter import build, save_adapter
from sgpipe.arms.generation import GraphGenerator
from sgpipe.arms.kinds.base import Sections
from sgpipe.arms.resolve import resolve
from sgpipe.backbones.config import Backbone
from sgpipe.backbones.denoiser import Denoiser
from sgpipe.errors import ModelError, ParamsError
from sgpipe.graph_encoder.config import GraphTokens
from sgpipe.graphs.scene_graph import given_graph
from sgpipe.training.config import Times
from tests.tiny import SIDE, TOKENS, backbone_of, write_pipeline, write_sd3_pipeline
from tests.training.world import ARMS, LORA, tiny_train

DOG, STEPS = "dog, above, cat", 4


DOG, CAT = "dog, above, cat", "cat, on, table; dog, above, cat"
STEPS = 4


def write_adapter(folder: Path, backbone: Backbone, kind: str = "graph", alpha: float = LORA.alpha) -> Path:
    """An adapter for times from 0.6 whose LoRA and tokens are random, so that it acts."""
    sections = Sections(structs.replace(LORA, alpha=alpha), tiny_train(times=Times(low=0.6)), GraphTokens(), backbone)
    arm = resolve(kind, ARMS[kind], sections)
    model = build(Denoiser.load(backbone, torch.device("cpu")), backbone, arm, 0.7)
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in model.trainable().values():
            weight.add_(0.3 * torch.randn(weight.shape, generator=draw))
    save_adapter(folder, model, arm, backbone, {})
    return folder


@dataclass
class Place:
    """A pipeline as a user has it, the folder it is from, and an adapter of its base."""

    pipe: Any
    backbone: Backbone
    adapter: Path

    def images(self, prompts: list[str], seeds: list[int], call: Any = None, **options: Any) -> NDArray[np.uint8]:
        """0–255, by the pipeline itself or what stands for it."""
        random = [torch.Generator().manual_seed(seed) for seed in seeds]
        own = {"guidance_scale": 1.0, "num_inference_steps": STEPS, "output_type": "np", "generator": random}
        size = {} if call else {"height": SIDE, "width": SIDE, "max_sequence_length": TOKENS}
        made = (call or self.pipe)(prompts, **{**own, **size, **options}).images
        return (made * 255).round().astype(np.uint8)

    def generated(self, prompts: list[str], graphs: list[str | None], seeds: list[int]) -> NDArray[np.uint8]:
        """What `sgpipe generate` gives."""
        generator = GraphGenerator.load(self.backbone.model, self.adapter)
        scenes = [None if graph is None else given_graph(graph) for graph in graphs]
        return generator.sample(prompts, scenes, seeds, steps=STEPS, size=SIDE)


@pytest.fixture(scope="module", params=["flux", "sd3"])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Place:
    root = tmp_path_factory.mktemp(request.param)
    if request.param == "flux":
        backbone, kind = backbone_of(write_pipeline(root / "tiny")), FluxPipeline
    else:
        backbone, kind = backbone_of(write_sd3_pipeline(root / "tiny"), single_blocks=0), StableDiffusion3Pipeline
    pipe = kind.from_pretrained(backbone.model)
    pipe.set_progress_bar_config(disable=True)
    return Place(pipe, backbone, write_adapter(root / "adapter", backbone))


@pytest.fixture
def applied(place: Place) -> Iterator[GraphAdapter]:
    adapter = GraphAdapter.from_pretrained(place.adapter).apply(place.pipe)
    yield adapter
    adapter.unload()


TEXT = "a photo of dog and cat on a plain background"


def traces(transformer: nn.Module) -> list[Any]:
    """All that a module's tree consists of: objects by identity, weights bit by bit."""
    found: list[Any] = []
    for name, part in transformer.named_modules():
        for key, value in vars(part).items():
            held = {k: id(v) for k, v in value.items()} if isinstance(value, dict) else value
            found.append((name, id(part), key, held))
    return [*found, *((name, w.requires_grad, w.detach().clone().numpy().tobytes()) for name, w in transformer.named_parameters())]


def test_a_call_gives_what_generate_gives(place: Place, applied: GraphAdapter) -> None:
    """Two of four steps are at the adapter's times; the others are the base's."""
    assert [t for t in (1.0, 0.75, 0.5, 0.25) if t >= 0.6] == [1.0, 0.75]
    for graph in (DOG, "cat, on, table; dog, above, cat", ""):
        found = place.images([TEXT], [3], applied, graph=graph)
        assert np.array_equal(found, place.generated([TEXT], [graph], [3])), graph
        assert not np.array_equal(found, place.images([TEXT], [3]))


def test_without_a_graph_and_outside_the_call_it_is_the_base(place: Place, applied: GraphAdapter) -> None:
    base = place.generated([TEXT], [None], [3])
    assert np.array_equal(place.images([TEXT], [3]), base)
    assert np.array_equal(place.images([TEXT], [3], applied), base)


def test_each_image_of_a_batch_has_its_own_graph(place: Place, applied: GraphAdapter) -> None:
    """Graphs of different sizes are masked, and an image is what it is alone but for rounding."""
    graphs, seeds = [DOG, "cat, on, table; dog, above, cat", "", "cat, above, dog"], [3, 4, 5, 3]
    together = place.images([TEXT] * 4, seeds, applied, graph=graphs).astype(int)
    assert np.array_equal(place.images(TEXT, seeds, applied, graph=graphs), together)  # type: ignore[arg-type]
    for image, graph, seed in zip(together, graphs, seeds, strict=True):
        assert np.abs(image - place.images([TEXT], [seed], applied, graph=graph)[0]).max() <= 1
    assert not np.array_equal(together[0], together[3])
    twice = place.images([TEXT], [3, 4], applied, graph=DOG, num_images_per_prompt=2).astype(int)
    assert np.abs(twice[0] - together[0]).max() <= 1


def test_under_guidance_negative_prompts_have_no_graph(place: Place, applied: GraphAdapter) -> None:
    """`sgpipe` guides by two forwards; SD3's pipeline by one of both, whose rows it masks."""
    key = "true_cfg_scale" if isinstance(place.pipe, FluxPipeline) else "guidance_scale"
    found = place.images([TEXT], [3], applied, graph=DOG, negative_prompt="", **{key: 2.5}).astype(int)
    generator = GraphGenerator.load(place.backbone.model, place.adapter, guidance=2.5)
    wanted = generator.sample([TEXT], [given_graph(DOG)], [3], steps=STEPS, size=SIDE)
    assert np.abs(found - wanted).max() <= 1
    assert np.abs(found - place.images([TEXT], [3], applied, graph=DOG)).max() > 1


def test_unload_leaves_no_trace(place: Place) -> None:
    before, image = traces(place.pipe.transformer), place.images([TEXT], [3])
    adapter = GraphAdapter.from_pretrained(place.adapter).apply(place.pipe)
    assert traces(place.pipe.transformer) != before
    adapter.set_strength(0.5)
    place.images([TEXT], [3], adapter, graph=DOG)
    with pytest.raises(ZeroDivisionError):
        place.images([TEXT], [3], adapter, graph=DOG, callback_on_step_end=lambda *_: 1 / 0)
    assert np.array_equal(place.images([TEXT], [3]), image)
    adapter.unload()
    assert traces(place.pipe.transformer) == before
    assert np.array_equal(place.images([TEXT], [3]), image)
    adapter.unload()
    with pytest.raises(ModelError, match=r"in no pipeline; call apply"):
        adapter(TEXT, graph=DOG)


def test_strength_multiplies_the_updates_of_weights(place: Place, tmp_path: Path) -> None:
    """Half the strength is half of α; tokens have none."""
    found = []
    for folder, strength in ((place.adapter, 0.5), (write_adapter(tmp_path / "half", place.backbone, alpha=LORA.alpha / 2), 1)):
        adapter = GraphAdapter.from_pretrained(folder)
        adapter.set_strength(strength)
        adapter.apply(place.pipe)
        found.append(place.images([TEXT], [3], adapter, graph=DOG))
        adapter.set_strength(1)
        assert np.array_equal(place.images([TEXT], [3], adapter, graph=DOG), found[-1]) == (strength == 1)
        adapter.unload()
    assert np.array_equal(*found)
    tokens = GraphAdapter.from_pretrained(write_adapter(tmp_path / "tokens", place.backbone, "projector_only"))
    tokens.set_strength(2)
    before = traces(place.pipe.transformer)
    with pytest.raises(ParamsError, match="set_strength: got 2; an adapter of kind TokensAlone has no weights to scale"):
        tokens.apply(place.pipe)
    assert traces(place.pipe.transformer) == before


def test_what_does_not_fit_is_refused_and_changes_nothing(place: Place, applied: GraphAdapter, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="applied to a pipeline already"):
        applied.apply(place.pipe)
    other = GraphAdapter.from_pretrained(place.adapter)
    with pytest.raises(ModelError, match=r"has LoRA of its own \(default\)"):
        other.apply(place.pipe)
    with pytest.raises(ModelError, match=r"got a list; valid: FluxPipeline, StableDiffusion3Pipeline"):
        other.apply([])
    with pytest.raises(ParamsError, match="got 2 prompts and 3 graphs"):
        applied([TEXT] * 2, graph=[DOG] * 3)
    with pytest.raises(ParamsError, match="got None in a list"):
        applied(TEXT, graph=[DOG, None])  # type: ignore[list-item]
    with pytest.raises(ParamsError, match="prompt_embeds: a graph joins the encoding"):
        applied(graph=DOG, prompt_embeds=torch.zeros(1, 1, 1))


def test_another_base_is_refused_and_an_unknown_one_is_said(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write = write_pipeline if isinstance(place.pipe, FluxPipeline) else write_sd3_pipeline
    pipe = type(place.pipe).from_pretrained(write(tmp_path / "other", seed=1))
    before, adapter = traces(pipe.transformer), GraphAdapter.from_pretrained(place.adapter)
    with pytest.raises(ModelError, match="trained on another base"):
        adapter.apply(pipe)
    assert traces(pipe.transformer) == before and adapter.pipe is None
    pipe.transformer.register_to_config(_name_or_path="elsewhere")
    adapter.apply(pipe)
    assert "not checked; it was trained on" in capsys.readouterr().err


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import sys, sgpipe; sys.exit(any(m in sys.modules for m in ('torch', 'numpy', 'diffusers', 'msgspec')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    with pytest.raises(AttributeError, match="public are GraphAdapter"):
        getattr(__import__("sgpipe"), "GraphAdaptor")  # noqa: B009
