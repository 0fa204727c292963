"""A twin of SGDiff learns, and one that was killed ends with the same bytes."""

from pathlib import Path

import pytest
import torch
from msgspec.structs import replace
from torch import Tensor

from sgpipe.errors import DataError, ModelError
from sgpipe.graph_encoder.checkpoints import save_encoder
from sgpipe.graphs.scene_graph import SceneGraph
from sgpipe.sgdiff.config import Twin
from sgpipe.sgdiff.model import SgDiff
from sgpipe.sgdiff.training import TrainingSet, fresh_twin, train
from tests.sgdiff.small import VOCABULARY, small

GRAPHS = [SceneGraph.of("dog", "left of", "cat"), SceneGraph.of("cat", "left of", "dog"), SceneGraph.of("cat", "on", "mat")]
IDS = ["a", "b", "c"]
TWIN = Twin(base=32, steps=6, batch_size=4, learning_rate=2e-3, save_every=2)
CPU = torch.device("cpu")


class Latents:
    """Latents of each triple: one constant image per graph."""

    def latents(self, ids: list[str]) -> Tensor:
        return torch.stack([torch.full((4, 4, 4), IDS.index(each) - 1.0) for each in ids])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoder")
    save_encoder(folder, small().encoder, VOCABULARY)
    return folder


def twin(folder: Path, seed: int = 0) -> tuple[SgDiff, TrainingSet]:
    from diffusers import AutoencoderKL

    torch.manual_seed(1)
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8), down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=4, norm_num_groups=4, layers_per_block=1, scaling_factor=0.5, shift_factor=0.1,
    )  # fmt: skip
    model = fresh_twin(folder, vae, 16, TWIN, seed, CPU)
    return model, TrainingSet.of(model, IDS, GRAPHS, Latents())  # type: ignore[arg-type]


def state(model: SgDiff) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.predictor.state_dict().items()}


def test_killed_and_resumed_it_ends_with_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    whole, data = twin(folder)
    start = state(whole)
    engine = train(whole, data, TWIN, 0, tmp_path / "whole")
    assert engine.step == 6 and engine.taken == 6
    wanted = state(whole)
    assert not torch.equal(start["local.weight"], wanted["local.weight"])

    class Killed(BaseException):
        pass

    killed, data = twin(folder)
    draw, calls = data.latents.latents, 0

    def dying(ids: list[str]) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise Killed
        return draw(ids)

    data.latents.latents = dying  # type: ignore[method-assign,assignment]
    with pytest.raises(Killed):
        train(killed, data, TWIN, 0, tmp_path / "killed")
    again, data = twin(folder)
    assert train(again, data, TWIN, 0, tmp_path / "killed").taken == 4
    found = state(again)
    assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_the_seed_decides(folder: Path) -> None:
    first, again, other = (state(twin(folder, seed)[0])["local.weight"] for seed in (3, 3, 4))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_it_learns_and_its_folder_samples(folder: Path, tmp_path: Path) -> None:
    """A predictor of zero has a loss of 1, about what an untrained one has."""
    untrained = train(*twin(folder), replace(TWIN, steps=1), 0, tmp_path / "one")
    assert untrained.intervals[0].means["loss"] > 0.9
    model, data = twin(folder)
    engine = train(model, data, replace(TWIN, steps=40, save_every=40, ema_decay=0.9), 0, tmp_path / "state")
    assert engine.intervals[-1].means["loss"] < 0.6
    model.save(tmp_path / "twin")
    again = SgDiff.load(tmp_path / "twin")
    latents = [each.latents(GRAPHS[:1], [7], 5, 1.0) for each in (model, again)]
    torch.testing.assert_close(*latents, atol=1e-4, rtol=0)
    images = again.decode(latents[1])
    wanted = model.first_stage.decode(latents[1] / 0.5 + 0.1).sample
    assert images.shape == (1, 16, 16, 3)
    assert abs(images[0] / 255 - ((wanted[0] + 1) / 2).clamp(0, 1).permute(1, 2, 0).numpy()).max() <= 1 / 255


def test_what_cannot_be_trained_on_is_refused(folder: Path) -> None:
    model, _ = twin(folder)
    with pytest.raises(DataError, match="no train triples"):
        TrainingSet.of(model, [], [], Latents())  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="a VQModel; a twin is trained on the latents of an AutoencoderKL"):
        fresh_twin(folder, small().first_stage, 16, TWIN, 0, CPU)
    with pytest.raises(ModelError, match="got 24, latents of 6; the U-Net needs a multiple of 4"):
        fresh_twin(folder, model.first_stage, 24, TWIN, 0, CPU)
