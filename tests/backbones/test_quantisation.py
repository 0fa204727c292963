"""A quantised base: what is asked of the libraries, and refusals where it cannot be had."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel
from torch import nn

from sgpipe.arms.config import Lora
from sgpipe.arms.kinds.base import Base
from sgpipe.arms.kinds.text_lora import TextLora, TextLoraSettings
from sgpipe.arms.model import ArmModel
from sgpipe.backbones import loading
from sgpipe.backbones.base import TextCondition
from sgpipe.backbones.denoiser import Denoiser
from sgpipe.backbones.loading import load_module, place, quantiser
from sgpipe.backbones.source import identity
from sgpipe.errors import ParamsError
from sgpipe.params.blocks import Blocks
from tests.tiny import backbone_of

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


def test_without_a_gpu_or_the_package_it_is_refused(schnell: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = backbone_of(schnell, quantisation="nf4")
    with pytest.raises(ParamsError, match="got nf4; bitsandbytes needs a CUDA GPU, and the model is to run on cpu"):
        Denoiser.load(backbone, CPU)

    def absent(name: str) -> str:
        raise loading.PackageNotFoundError(name)

    monkeypatch.setattr(loading, "version", absent)
    with pytest.raises(ParamsError, match="bitsandbytes is not installed; `pip install bitsandbytes`"):
        quantiser(backbone, CUDA)


@pytest.mark.parametrize("kind, bits", [("int8", (True, False)), ("nf4", (False, True))])
def test_only_the_transformer_is_quantised_as_asked(
    schnell: Path, monkeypatch: pytest.MonkeyPatch, kind: str, bits: tuple[bool, bool]
) -> None:
    """What diffusers is handed, where the package is there; the other parts are loaded as ever."""
    monkeypatch.setattr(loading, "version", lambda name: "0.48.0")
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0.48.0")
    given: list[dict[str, Any]] = []

    def from_pretrained(path: Path, **how: Any) -> tuple[nn.Module, dict[str, Any]]:
        given.append(how)
        return nn.Linear(1, 1), {"missing_keys": [], "unexpected_keys": [], "mismatched_keys": []}

    monkeypatch.setattr(FluxTransformer2DModel, "from_pretrained", from_pretrained)
    backbone = backbone_of(schnell, quantisation=kind, dtype="bfloat16")
    load_module(backbone, "transformer", CUDA)
    (how,) = given
    config = how["quantization_config"]
    assert (config.load_in_8bit, config.load_in_4bit) == bits
    assert how["device_map"] == {"": CUDA} and how["torch_dtype"] == torch.bfloat16
    if kind == "nf4":
        assert (config.bnb_4bit_quant_type, config.bnb_4bit_compute_dtype) == ("nf4", torch.bfloat16)
    vae = load_module(backbone, "vae", CUDA)
    assert all(weight.dtype == torch.bfloat16 and weight.device == CPU for weight in vae.parameters())


def test_a_quantised_module_is_not_moved() -> None:
    module = nn.Linear(2, 2, device="meta")
    module.is_quantized = True  # type: ignore[assignment]
    place(module, CPU, "none")
    assert module.weight.device.type == "meta"
    with pytest.raises(ParamsError, match=r"compute\.offload: got sequential; a quantised transformer stays"):
        place(module, CPU, "sequential")


def test_latents_have_the_precision_of_what_is_not_quantised(schnell: Path) -> None:
    """Quantised weights are integers; the first of a FLUX transformer's is one of them."""
    denoiser = Denoiser.load(backbone_of(schnell, dtype="bfloat16"), CPU)
    first = next(iter(denoiser.transformer.parameters()))
    packed = nn.Parameter(first.detach().to(torch.int8), requires_grad=False)
    denoiser.transformer.time_text_embed.timestep_embedder.linear_1.weight = packed  # type: ignore[union-attr, assignment]
    assert next(iter(denoiser.transformer.parameters())) is packed
    assert denoiser.dtype == torch.bfloat16


def test_what_a_quantised_transformer_makes_is_told_apart(schnell: Path) -> None:
    plain, packed = backbone_of(schnell), backbone_of(schnell, quantisation="int8")
    assert identity(plain, ["transformer"]) != identity(packed, ["transformer"])
    assert identity(plain, iter(["vae"])) == identity(packed, iter(["vae"]))
    assert "quantisation" not in identity(plain, ["transformer"])


@pytest.mark.parametrize("kind, error", [("int8", 0.05), ("nf4", 0.3)])
def test_lora_trains_on_a_quantised_base(schnell: Path, monkeypatch: pytest.MonkeyPatch, kind: str, error: float) -> None:
    """bitsandbytes itself, where it is installed; diffusers wants a GPU for it, and without one its refusal is taken out."""
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is no dependency: `pip install bitsandbytes` runs this test")
    from diffusers.quantizers.bitsandbytes import bnb_quantizer

    device = CUDA if torch.cuda.is_available() else CPU
    if device == CPU:
        for each in (bnb_quantizer.BnB4BitDiffusersQuantizer, bnb_quantizer.BnB8BitDiffusersQuantizer):
            monkeypatch.setattr(each, "validate_environment", lambda *_, **__: None)
        monkeypatch.setattr(loading, "quantiser", lambda backbone, _: quantiser(backbone, CUDA))
    draw = torch.Generator().manual_seed(0)
    latents, states, pooled = (torch.randn(shape, generator=draw) for shape in ((2, 4, 16, 16), (2, 12, 24), (2, 20)))
    lora, found = Lora(Blocks.parse("1..2"), rank=4), {}
    for quantisation in (None, kind):
        backbone = backbone_of(schnell, dtype="bfloat16", quantisation=quantisation)
        denoiser = Denoiser.load(backbone, device)
        denoiser.transformer.requires_grad_(False)
        adapter = TextLora.build(TextLoraSettings(lora), Base(denoiser, backbone, seed=0, text_scale=1.0))
        weights = adapter.parameters()["lora"]
        assert denoiser.dtype == torch.bfloat16 and all(w.dtype == torch.float32 for w in weights.values())
        denoiser.transformer.train()  # bitsandbytes packs narrow weights for a CPU's inference and fails
        model = ArmModel(denoiser, adapter, None, torch.bfloat16)
        given = states.to(device).requires_grad_()
        velocity = model.velocity(latents, torch.tensor([0.7, 0.9]), TextCondition(given, pooled.to(device)))
        velocity.float().square().mean().backward()
        reached = {name for name, weight in weights.items() if weight.grad is not None and weight.grad.any()}
        assert reached == {name for name in weights if ".lora_B." in name}
        assert given.grad is not None and given.grad.any()
        found[quantisation] = velocity.detach().float()
    assert 0 < (found[kind] - found[None]).norm() / found[None].norm() < error
