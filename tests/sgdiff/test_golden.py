"""The official code's outputs at reduced width: noise predictor, first stage, schedule, sampler, conditioning, training target."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from sgpipe.backbones.strict import check_state
from sgpipe.graph_encoder.cgip import Cgip
from sgpipe.optim.weights import Average
from sgpipe.sgdiff.model import SgDiff
from sgpipe.sgdiff.names import first_stage_name
from sgpipe.sgdiff.networks import FirstStageConfig, NoisePredictor, PredictorConfig, first_stage
from sgpipe.sgdiff.published import predictor_names
from sgpipe.sgdiff.schedule import DdimTables, alphas_cumprod, betas, ddim, diffused, registered_buffers
from tests.graph_encoder.golden import CONFIG, golden
from tests.graph_encoder.golden import golden_batch as graphs_of_case
from tests.sgdiff.small import VOCABULARY

PRECISIONS = [(torch.float64, 1e-11), (torch.float32, 1e-4)]
Golden = dict[str, Tensor]


def weights(tensors: Golden) -> Golden:
    return {name: value for name, value in tensors.items() if "/" not in name}


@pytest.fixture(scope="module")
def unet(reference_dir: Path) -> Golden:
    parts = ("sgdiff_unet", "sgdiff_unet_output_blocks")
    return {name: value for part in parts for name, value in load_file(reference_dir / f"golden/{part}.safetensors").items()}


@pytest.fixture(scope="module")
def pixels(reference_dir: Path) -> Golden:
    return load_file(reference_dir / "golden/sgdiff_first_stage.safetensors")


@pytest.fixture(scope="module")
def sampler(reference_dir: Path) -> Golden:
    return load_file(reference_dir / "golden/sgdiff_ddim.safetensors")


def predictor_of(unet: Golden, dtype: torch.dtype) -> NoisePredictor:
    """The golden weights under our names; every one is used."""
    predictor = NoisePredictor(PredictorConfig(base=32, context=32))
    names, given = predictor_names(predictor), weights(unet)
    assert sorted(names.values()) == sorted(given)
    state = {name: given[published].to(dtype) for name, published in names.items()}
    check_state(state, predictor.state_dict(), "golden", "")
    predictor.load_state_dict(state)
    return predictor.to(dtype)


def stage_of(pixels: Golden, dtype: torch.dtype) -> torch.nn.Module:
    stage = first_stage(FirstStageConfig(base=32, codes=512))
    own, given = stage.state_dict(), weights(pixels)
    names = {name: first_stage_name(name, 4) for name in own}
    assert sorted(names.values()) == sorted(given)
    stage.load_state_dict({name: given[published].to(dtype).reshape(own[name].shape) for name, published in names.items()})
    return stage.to(dtype).eval()


def generator_of(unet: Golden, pixels: Golden, dtype: torch.dtype) -> SgDiff:
    """All parts; the encoder is not the golden one and stands there for its width."""
    return SgDiff(Cgip(CONFIG), VOCABULARY, predictor_of(unet, dtype), stage_of(pixels, dtype), 128)


@pytest.mark.parametrize("case", ["a_main", "b_rect", "c_full"])
@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@torch.no_grad()
def test_noise_predictor(unet: Golden, case: str, dtype: torch.dtype, tolerance: float) -> None:
    predictor = predictor_of(unet, dtype)
    context = predictor.context(unet[f"{case}/in/c_local"].to(dtype), unet[f"{case}/in/c_global"][:, 0].to(dtype))
    assert (context - unet[f"{case}/out64/context"]).abs().max() < tolerance
    epsilon = predictor(unet[f"{case}/in/x"].to(dtype), unet[f"{case}/in/timesteps"], context)
    assert (epsilon - unet[f"{case}/out64/eps"]).abs().max() < tolerance


@torch.no_grad()
def test_rows_that_a_graph_lacks_are_attended_to(unet: Golden) -> None:
    """Image 0 of a_main has four triples: dropping its eleven zero rows changes ε by more than 1 (golden: 1.3367)."""
    predictor = predictor_of(unet, torch.float64)
    context = predictor.context(unet["a_main/in/c_local"][:1].double(), unet["a_main/in/c_global"][:1, 0].double())
    assert torch.equal(context[0, 4:15], predictor.local.bias.expand(11, -1))
    x, t = unet["a_main/in/x"][:1].double(), unet["a_main/in/timesteps"][:1]
    dropped = predictor(x, t, torch.cat([context[:, :4], context[:, 15:]], dim=1))
    assert (dropped - unet["a_main/out64/eps"][:1]).abs().max() == pytest.approx(1.3367294173, abs=1e-9)


@pytest.mark.parametrize("case", ["a_square", "b_rect"])
@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@torch.no_grad()
def test_first_stage(pixels: Golden, case: str, dtype: torch.dtype, tolerance: float) -> None:
    stage = stage_of(pixels, dtype)
    latents = stage.encode(pixels[f"{case}/in/image"].to(dtype)).latents
    assert (latents - pixels[f"{case}/out64/h"]).abs().max() < tolerance
    _, _, (_, _, indices) = stage.quantize(latents)
    assert torch.equal(indices.reshape(pixels[f"{case}/out/indices"].shape), pixels[f"{case}/out/indices"])
    for name, how in (("decoded", {}), ("decoded_not_quantised", {"force_not_quantize": True})):
        assert (stage.decode(latents, **how).sample - pixels[f"{case}/out64/{name}"]).abs().max() < tolerance


def test_schedule(sampler: Golden) -> None:
    assert (betas() - sampler["schedule/betas64"]).abs().max() < 1e-15
    assert (alphas_cumprod() - sampler["schedule/alphas_cumprod64"]).abs().max() < 1e-15
    for name, table in registered_buffers().items():
        wanted = sampler[f"schedule/buffer32/{name}"]
        unit = torch.nextafter(wanted.abs(), torch.tensor(torch.inf)) - wanted.abs()
        assert ((table - wanted).abs() <= unit).all(), name


@pytest.mark.parametrize("steps", [10, 200])
def test_ddim_tables(sampler: Golden, steps: int) -> None:
    tables, key = DdimTables.of(steps, 1.0), f"timetable{steps}"
    assert torch.equal(tables.timesteps, sampler[f"{key}/steps"])
    assert torch.equal(tables.alphas.float(), sampler[f"{key}/alphas32"])
    assert torch.equal(tables.alphas_previous, sampler[f"{key}/alphas_prev"])
    assert (tables.sigmas - sampler[f"{key}/sigmas_eta1"]).abs().max() < 1e-15


@pytest.mark.parametrize("eta", [0, 1])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 2e-3)])
@torch.no_grad()
def test_ten_steps(unet: Golden, sampler: Golden, eta: int, dtype: torch.dtype, tolerance: float) -> None:
    predictor, tables = predictor_of(unet, dtype), DdimTables.of(10, eta, dtype)
    context = predictor.context(sampler["run10/in/c_local"].to(dtype), sampler["run10/in/c_global"][:, 0].to(dtype))
    asked: list[int] = []

    def predict(x: Tensor, t: Tensor) -> Tensor:
        asked.append(int(t[0]))
        return predictor(x, t, context)

    noise = sampler["run10/in/noise"].to(dtype)
    found = list(ddim(predict, sampler["run10/in/x_T"].to(dtype), tables, lambda taken: noise[taken]))
    assert asked == sampler["run10/time_order"].tolist()
    for step, x in enumerate(found, 1):
        assert (x - sampler[f"run10/eta{eta}/out64/x"][step]).abs().max() < tolerance, step


@pytest.mark.timeout(900)
@pytest.mark.slow
@torch.no_grad()
def test_two_hundred_steps(unet: Golden, sampler: Golden) -> None:
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 4e-3)):
        predictor, tables = predictor_of(unet, dtype), DdimTables.of(200, 0.0, dtype)
        context = predictor.context(sampler["run10/in/c_local"].to(dtype), sampler["run10/in/c_global"][:, 0].to(dtype))
        start = sampler["run10/in/x_T"].to(dtype)
        *_, x = ddim(lambda x, t: predictor(x, t, context), start, tables, lambda _: torch.zeros(()))  # noqa: B023
        assert (x - sampler["run200/eta0/out64/x_0"]).abs().max() < tolerance


@torch.no_grad()
def test_decoding_of_a_sample(unet: Golden, pixels: Golden, sampler: Golden) -> None:
    """Latents are snapped to the codebook, decoded and truncated to 8 bits: in float64 all but four of 98,304 values are equal,
    as they are between the official precisions; in float32 all but one in a thousand.
    """
    latents, wanted = sampler["run10/eta1/out/x"][-1], sampler["run10/eta1/decode/uint8_saved"].numpy().astype(int)
    for dtype, differing in ((torch.float64, 4), (torch.float32, 98)):
        model = generator_of(unet, pixels, dtype)
        off = abs(model.decode(latents.to(dtype)).astype(int) - wanted)
        assert off.max() <= 1 and (off > 0).sum() <= differing
    image = model.first_stage.decode(latents).sample
    assert (image - sampler["run10/eta1/decode/image32"]).abs().max() < 1e-4


@pytest.mark.parametrize("case", ["a_mixed", "b_native"])
@pytest.mark.parametrize(("dtype", "tolerance", "loose"), [(torch.float64, 1e-12, 1e-11), (torch.float32, 5e-6, 1e-4)])
@torch.no_grad()
def test_from_graphs_to_noise(
    reference_dir: Path, unet: Golden, case: str, dtype: torch.dtype, tolerance: float, loose: float
) -> None:
    wanted = load_file(reference_dir / "golden/sgdiff_conditioning.safetensors")
    tensors = golden(reference_dir)
    encoder = Cgip(CONFIG)
    encoder.load_state_dict(weights(tensors))
    encoded = encoder.to(dtype)(graphs_of_case(tensors, case))
    predictor = predictor_of(unet, dtype)
    context = predictor.context(encoded.local, encoded.pooled)
    assert (encoded.local - wanted[f"{case}/out64/c_local"]).abs().max() < tolerance
    assert (encoded.pooled - wanted[f"{case}/out64/c_global"][:, 0]).abs().max() < tolerance
    assert (context - wanted[f"{case}/out64/context"]).abs().max() < tolerance
    epsilon = predictor(wanted[f"{case}/in/x"].to(dtype), wanted[f"{case}/in/timesteps"], context)
    assert (epsilon - wanted[f"{case}/out64/eps"]).abs().max() < loose


@torch.no_grad()
def test_training_target_and_average(unet: Golden, sampler: Golden) -> None:
    start, noise, t = (sampler[f"train/in/{name}"] for name in ("x_start", "noise", "t"))
    noisy = diffused(start, noise, t)
    assert (noisy - sampler["train/out/x_noisy"]).abs().max() < 1e-6
    predictor = predictor_of(unet, torch.float32)
    context = predictor.context(sampler["run10/in/c_local"], sampler["run10/in/c_global"][:, 0])
    loss = torch.nn.functional.mse_loss(predictor(noisy, t, context), noise)
    assert (loss - sampler["train/out/loss"]).abs() < 1e-5
    seen = sampler["train/ema/weights"]
    average = Average({"w": seen[0]}, 0.9999)
    for step in range(1, len(seen)):
        average.update({"w": seen[step]}, step)
        assert (average.values["w"] - sampler["train/ema/shadow"][step]).abs().max() < 1e-6
