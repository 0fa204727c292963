"""A FLUX training with random weights and data: all of the preset but what only a checkpoint or Visual Genome could give."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import torch
from diffusers import FluxTransformer2DModel
from msgspec.structs import replace
from torch import Tensor

from sgpipe.arms.adapter import build
from sgpipe.arms.kinds.base import Prompts, Sections
from sgpipe.arms.model import ArmModel
from sgpipe.arms.resolve import resolve
from sgpipe.backbones.base import TextCondition
from sgpipe.backbones.denoiser import Denoiser
from sgpipe.backbones.families.flux import Flux
from sgpipe.backbones.loading import DTYPES
from sgpipe.doctor.published import PUBLISHED
from sgpipe.graph_encoder.cgip import Cgip, CgipConfig
from sgpipe.graph_encoder.checkpoints import save_encoder
from sgpipe.graph_encoder.open_vocabulary import NameTable, texts_of
from sgpipe.graph_encoder.vocabulary import Vocabulary
from sgpipe.graphs.scene_graph import SceneGraph
from sgpipe.presets import FOLDER, preset_path, with_preset
from sgpipe.relations.predicates import PREDICATES, concepts, relational_prompt
from sgpipe.runs.processes import Processes
from sgpipe.training.examples import Data, Example
from sgpipe.training.fit import prepare
from sgpipe.training.loop import Training
from sgpipe.training.objective import Objective

NAMES = ("dog", "cat", "table", "ball", "tree")
SMALL: Final[dict[str, Any]] = {
    "num_layers": 13,
    "num_single_layers": 2,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 64,
    "pooled_projection_dim": 32,
    "axes_dims_rope": [4, 6, 6],
}


@dataclass(frozen=True)
class Work:
    """What is trained: sections of params.yaml, and the transformer's configuration."""

    sections: dict[str, Any]
    transformer: dict[str, Any]
    vae: dict[str, Any]

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the frozen weights."""
        return DTYPES[self.sections["backbone"].dtype]


def work_of(params: Path, preset: str, config: Literal["full", "small"]) -> Work:
    """The preset's training; `small` keeps all but the transformer, the number of tokens and the graph encoder."""
    sections = with_preset(params, preset_path(params.parent / FOLDER, preset))
    parts = PUBLISHED[sections["backbone"].model]
    transformer = dict(parts["transformer"])
    if config == "small":
        transformer |= SMALL
        sections["backbone"] = replace(
            sections["backbone"],
            double_blocks=transformer["num_layers"],
            single_blocks=transformer["num_single_layers"],
            resolution=64,
            max_sequence_length=16,
            dtype="float32",
        )
        sections["graph_encoder"] = replace(sections["graph_encoder"], embed=32, width=32, layers=1)
        sections["train"] = replace(sections["train"], precision="float32")
    return Work(sections, transformer, parts["vae"])


def random_transformer(work: Work, device: torch.device) -> FluxTransformer2DModel:
    """The transformer with PyTorch's initial weights, made on the device itself."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(work.dtype)
    try:
        torch.manual_seed(0)
        with torch.device(device):
            return FluxTransformer2DModel.from_config(work.transformer).eval()
    finally:
        torch.set_default_dtype(before)


class RandomPrompts:
    """Stands where the prompt cache does: one fixed random encoding per text, on the CPU."""

    def __init__(self, work: Work) -> None:
        self._shape = work.sections["backbone"].max_sequence_length, work.transformer["joint_attention_dim"]
        self._pooled, self._dtype = work.transformer["pooled_projection_dim"], work.dtype
        self._rows: dict[str, tuple[Tensor, Tensor]] = {}

    def get(self, texts: list[str]) -> TextCondition:
        for text in texts:
            if text not in self._rows:
                states, pooled = torch.randn(self._shape), torch.randn(self._pooled)
                self._rows[text] = states.to(self._dtype), pooled.to(self._dtype)
        rows = [self._rows[text] for text in texts]
        return TextCondition(torch.stack([states for states, _ in rows]), torch.stack([pooled for _, pooled in rows]))


@dataclass
class RandomLatents:
    """Stands where the latent cache does: one fixed random latent `[C, h, w]` per triple, on the CPU."""

    shape: tuple[int, int, int]
    rows: dict[str, Tensor] = field(default_factory=dict)

    def latents(self, triple_ids: list[str]) -> Tensor:
        return torch.stack([self.rows.setdefault(name, torch.randn(self.shape)) for name in triple_ids])


def random_data(work: Work, count: int) -> Data:
    """Triples of every class with random encodings."""
    examples = []
    for row in range(count):
        said = NAMES[row % 5], PREDICATES[row % len(PREDICATES)], NAMES[(row + 1 + row // 5 % 4) % 5]
        graph = SceneGraph.of(*said)
        prompts = {"relational": relational_prompt(*said)}
        examples.append(Example(str(row), graph, graph.reversed(), prompts, concepts(*said)))
    layout = Flux().layout(work.transformer, work.vae)
    texts = texts_of([graph for each in examples for graph in (each.graph, each.negative)])
    names = NameTable({text: torch.randn(layout.text_width) for text in texts})
    latents = RandomLatents(layout.latent_shape(work.sections["backbone"].resolution))
    return Data(tuple(examples), (), latents, RandomPrompts(work), names)  # type: ignore[arg-type]


class Dataless(ArmModel):
    """For the meta device, which knows no autocast: graph tokens, whose number depends on data, are made on the CPU, and only their
    shapes go on, as `given`, which receives their gradient.
    """

    given: Tensor

    def condition(self, graphs: Any, texts: Any, text: TextCondition, names: NameTable) -> TextCondition:
        found = self.adapter.condition(Prompts(graphs, texts, text, names)).to(torch.device("meta"))
        self.given = found.states.detach().requires_grad_()
        return dataclasses.replace(found, states=self.given)

    def velocity(self, latents: Tensor, t: Tensor, condition: TextCondition) -> Tensor:
        return self.denoiser.velocity(latents, t, condition, self.guidance)


def open_training(work: Work, device: torch.device, folder: Path) -> Training:
    """The preset's arm `graph`, eager and without checkpointing, with random weights on a device (`meta` included)."""
    sections, backbone = work.sections, work.sections["backbone"]
    sizes = sections["graph_encoder"]
    vocabulary = Vocabulary.of(NAMES, PREDICATES)
    encoder = Cgip(CgipConfig(len(vocabulary.objects), len(vocabulary.predicates), sizes.width, sizes.embed, sizes.layers))
    (folder / "graph_encoder").mkdir()
    save_encoder(folder / "graph_encoder", encoder, vocabulary)
    tokens = replace(sections["graph_tokens"], encoder=str(folder / "graph_encoder"))
    eager = replace(sections["train"], compile=False, gradient_checkpointing=False)
    read = Sections.of({**sections, "graph_tokens": tokens, "train": eager})
    arm = resolve("graph", sections["arms"]["graph"], read)
    data = random_data(work, sections["curate"].train)
    transformer, layout = random_transformer(work, device), Flux().layout(work.transformer, work.vae)
    real = torch.device("cpu") if device.type == "meta" else device
    model = build(Denoiser(Flux(), transformer, layout, {}, real), backbone, arm, data.names.rms)
    if device.type == "meta":
        model = Dataless(Denoiser(Flux(), transformer, layout, {}, device), model.adapter, arm.train.guidance)
    prepare(model, arm)
    return Training(Objective(model, data, arm.train.losses), arm.train, folder, Processes(0, 1, device))
