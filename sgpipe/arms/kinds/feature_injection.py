"""Kind `feature_injection`: attention features of a reference image of the relation, written into the sample; nothing is trained.

At each step with t ≥ `low` the reference, noised to t by the sample's own noise, goes through the transformer under its own prompt.
What the attention of the chosen blocks puts out for its image rows is blended into that of the sample in the same blocks:
h ← (1 − w) h + w h_ref. At t = 1 both are the same noise, so the first step with features of the reference is the second.
"""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from msgspec import Meta, Struct

from sgpipe.arms.config import ArmOptions
from sgpipe.arms.kinds.base import External, Generator, Sections
from sgpipe.backbones.config import Backbone
from sgpipe.errors import DataError, ModelError, ParamsError
from sgpipe.params.blocks import Blocks

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import Tensor

    from sgpipe.arms.generation import GraphGenerator
    from sgpipe.backbones.base import TextCondition
    from sgpipe.graphs.scene_graph import SceneGraph

FILE = "references.json"
"""`{"left of": {"image": "a.png", "prompt": "a photo of dog left of cat"}, …}`, images beside it."""
Weight = Annotated[float, Meta(gt=0.0, le=1.0, description="w, the share of the reference's features")]
Low = Annotated[float, Meta(ge=0.0, lt=1.0, description="least t at which features are written")]


class FeatureOptions(ArmOptions, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which references, where their features go, and how much of them."""

    references: Annotated[str, Meta(min_length=1, description=f"folder with {FILE}: an image and its prompt for each class")]
    blocks: Annotated[Blocks | None, Meta(description="double-stream blocks; null takes `lora.blocks`")] = None
    weight: Weight = 0.5
    low: Low = 0.5


class FeatureSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """As the options, with the generator that they are about."""

    references: str
    blocks: Blocks
    weight: Weight
    low: Low
    backbone: Backbone
    guidance: float | None


class FeatureInjection(External):
    """The base with attention features of a reference image of the graph's first class."""

    options = FeatureOptions
    settings = FeatureSettings

    @classmethod
    def resolve(cls, key: str, options: FeatureOptions, sections: Sections) -> FeatureSettings:
        """The options; guidance is that of `train`. Raises `ParamsError` for a seed, triples or a rate, and without blocks."""
        for name in ("seed", "triples", "learning_rate"):
            if (value := getattr(options, name)) is not None:
                raise ParamsError(f"{key}.{name}: got {value}; kind feature_injection trains nothing; leave it out")
        given, knob = (sections.lora.blocks, "lora.blocks") if options.blocks is None else (options.blocks, f"{key}.blocks")
        blocks = Blocks(given.resolve(sections.backbone.double_blocks, knob))
        if not blocks.indices:
            raise ParamsError(f"{knob}: got none; kind feature_injection writes features into double-stream blocks; name some")
        return FeatureSettings(
            references=options.references, blocks=blocks, weight=options.weight, low=options.low, backbone=sections.backbone,
            guidance=sections.train.guidance,
        )  # fmt: skip

    @classmethod
    def files(cls, settings: FeatureSettings) -> dict[str, Path]:
        """The references."""
        return {"references": Path(settings.references)}

    @classmethod
    def open(cls, settings: FeatureSettings, device: "torch.device") -> Generator:
        """The base, and the references by class. Raises `DataError` for references that cannot be read."""
        from sgpipe.arms.generation import GraphGenerator

        base = GraphGenerator.load(
            settings.backbone.model, None, device=str(device), backbone=settings.backbone, guidance=settings.guidance
        )
        return Injected(base, settings, read_references(Path(settings.references)))


def read_references(folder: Path) -> "dict[str, tuple[NDArray[np.uint8], str]]":
    """Image `[H, W, 3]` and prompt by class. Raises `DataError` for a file that is missing or not one of references."""
    import numpy as np
    from PIL import Image

    path = folder / FILE
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))
        found = {}
        for name, each in listed.items():
            with Image.open(folder / each["image"]) as image:
                found[name] = np.asarray(image.convert("RGB")), str(each["prompt"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path}: no references ({error}); write {{class: {{image: file, prompt: text}}}} beside the images"
        ) from None
    return found


class Injected:
    """Samples of the base with features of references; a graph without triples or without a reference of its class has none."""

    def __init__(
        self, base: "GraphGenerator", settings: FeatureSettings, references: "Mapping[str, tuple[NDArray[np.uint8], str]]"
    ) -> None:
        self.base, self.settings, self._references = base, settings, references
        taps = base.denoiser.family.taps(base.denoiser.transformer)
        double = [tap for tap in taps.blocks if tap.stream == "double"]
        self._outputs = [double[index].output for index in settings.blocks.indices or ()]
        self._latents: dict[tuple[str, int], Tensor] = {}
        self._said: set[str] = set()

    def sample(
        self, prompts: Sequence[str], graphs: "Sequence[SceneGraph | None]", seeds: Sequence[int], *, steps: int, size: int
    ) -> "NDArray[np.uint8]":
        """Images `[N, size, size, 3]`; a class without a reference is said once. Raises `ModelError` without a graph."""
        import numpy as np

        from sgpipe.backbones.images import decode

        if any(graph is None for graph in graphs):
            raise ModelError("sample: got no graph; sample the base for that, or give an empty graph")
        classes = [graph.triples[0][1] if graph is not None and graph.triples else None for graph in graphs]
        for name in sorted({name for name in classes if name is not None and name not in self._references} - self._said):
            self._said.add(name)
            print(f"warning: no reference shows {name!r}: its images are the base's", file=sys.stderr)
        images = np.zeros((len(prompts), size, size, 3), np.uint8)
        injected = [row for row, name in enumerate(classes) if name in self._references]
        plain = [row for row in range(len(prompts)) if row not in injected]
        if plain:
            images[plain] = self.base.sample(
                [prompts[i] for i in plain], [None] * len(plain), [seeds[i] for i in plain], steps=steps, size=size
            )
        for start in range(0, len(injected), self.base.batch):
            part = injected[start : start + self.base.batch]
            latents = self.latents(
                [prompts[i] for i in part], [str(classes[i]) for i in part], [seeds[i] for i in part], steps, size
            )
            images[part] = decode(self.base.denoiser.family, self.base.vae, latents)
        return images

    def latents(self, prompts: Sequence[str], classes: Sequence[str], seeds: Sequence[int], steps: int, size: int) -> "Tensor":
        """Latents `[N, C, h, w]` of prompts with a reference's features each."""
        import torch

        from sgpipe.backbones.rectified_flow import noise

        denoiser, guidance = self.base.denoiser, self.base.guidance
        text, told = (self.base.texts.prompts(said) for said in (prompts, [self._references[name][1] for name in classes]))
        empty = self.base.texts.prompts([""]) if denoiser.layout.classifier_free(guidance) else None
        shown = torch.cat([self._encoded(name, size) for name in classes])
        start = noise(seeds, denoiser.layout.latent_shape(size)).to(shown)

        def velocity(latents: "Tensor", t: "Tensor") -> "Tensor":
            if t[0].item() < self.settings.low:
                return denoiser.velocity(latents, t, text, guidance, empty)
            with self.writing(self.features(shown, start, t, told)):
                return denoiser.velocity(latents, t, text, guidance, empty)

        return denoiser.sample(text, seeds, size, steps, velocity=velocity)

    def features(self, shown: "Tensor", start: "Tensor", t: "Tensor", told: "TextCondition") -> "list[Tensor]":
        """Attention outputs `[B, N, D]` of references `[B, C, h, w]`, noised to t by `start`, in each chosen block."""
        import torch

        from sgpipe.backbones.rectified_flow import interpolate

        denoiser = self.base.denoiser
        found: list[Tensor] = []
        scale = self.base.guidance if denoiser.layout.guidance else None
        with ExitStack() as stack, torch.no_grad():
            for output in self._outputs:
                handle = output.register_forward_pre_hook(lambda module, args: found.append(args[0]))
                stack.callback(handle.remove)
            denoiser.velocity(interpolate(shown, start, t.to(shown.device)), t, told, scale)
        return found

    @contextmanager
    def writing(self, features: "Sequence[Tensor]") -> Iterator[None]:
        """Within the body forwards blend `features` into the attention outputs of the chosen blocks."""
        weight = self.settings.weight

        def blend(reference: "Tensor") -> Any:
            return lambda module, args: (args[0].lerp(reference.to(args[0]), weight), *args[1:])

        with ExitStack() as stack:
            for output, reference in zip(self._outputs, features, strict=True):
                stack.callback(output.register_forward_pre_hook(blend(reference)).remove)
            yield

    def _encoded(self, name: str, size: int) -> "Tensor":
        """The reference's latents `[1, C, h, w]`, the mode of the VAE's posterior at this size."""
        import numpy as np
        from PIL import Image

        from sgpipe.backbones.images import encode

        key = name, size
        if key not in self._latents:
            family, vae = self.base.denoiser.family, self.base.vae
            pixels = np.asarray(Image.fromarray(self._references[name][0]).resize((size, size), Image.Resampling.LANCZOS))
            mean, _ = encode(family, vae, [pixels])
            self._latents[key] = family.normalised(family.statistics(vae), mean).to(self.base.denoiser.device)
        return self._latents[key]
