"""Published and own weights: exactly the expected tensors, nothing that runs, and never without the right names."""

import json
import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sgpipe.errors import DataError, ModelError
from sgpipe.graph_encoder.batches import batch_graphs
from sgpipe.graph_encoder.cgip import Cgip, CgipConfig
from sgpipe.graph_encoder.checkpoints import load_encoder, load_module, load_sgdiff, save_encoder
from sgpipe.graph_encoder.config import GraphEncoder
from sgpipe.graph_encoder.open_vocabulary import NameTable, OpenVocabularyConfig, OpenVocabularyEncoder
from sgpipe.graph_encoder.vocabulary import Vocabulary
from sgpipe.graphs.scene_graph import SceneGraph

CONFIG = CgipConfig(objects=4, predicates=3, width=12, embed=8, layers=2)
VOCABULARY = Vocabulary.of(["dog", "cat", "skateboard"], ["on", "near"])
GRAPH = SceneGraph.of("dog", "around/near", "cat")


@pytest.fixture
def model() -> Cgip:
    torch.manual_seed(0)
    return Cgip(CONFIG)


@pytest.fixture
def names(tmp_path: Path) -> Path:
    path = tmp_path / "vocab.json"
    VOCABULARY.write(path)
    return path


def published(model: Cgip, prefix: str = "") -> dict[str, Any]:
    """A file as SGDiff's pre-training saves it: wrapper prefix, the frozen CLIP, optimiser with a NumPy number."""
    state = OrderedDict((prefix + name, tensor) for name, tensor in model.state_dict().items())
    state[f"{prefix}clip_model.visual.proj"] = torch.zeros(3, 3)
    state[f"{prefix}clip_model.logit_scale"] = torch.zeros(())
    return {
        "epoch": 3,
        "name": "sip_vg",
        "state_dict": state,
        "optimizer": {"state": {}, "param_groups": [{"lr": np.float64(1e-4), "params": [0]}]},
    }


@pytest.mark.parametrize("prefix", ["", "module.", "module.module."])
def test_published_files_load(tmp_path: Path, model: Cgip, names: Path, prefix: str) -> None:
    torch.save(published(model, prefix), tmp_path / "sip.pt")
    found, vocabulary = load_sgdiff(tmp_path / "sip.pt", names)
    assert found.config == CONFIG and vocabulary == VOCABULARY and not found.training
    assert all(torch.equal(a, b) for a, b in zip(found.parameters(), model.parameters(), strict=True))


def test_a_bare_state_dict_loads(tmp_path: Path, model: Cgip, names: Path) -> None:
    torch.save(model.state_dict(), tmp_path / "sip.pt")
    assert load_sgdiff(tmp_path / "sip.pt", names)[0].config == CONFIG


class _Runs:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("touch executed",)


def test_a_pickle_with_code_is_refused_and_does_not_run(
    tmp_path: Path, model: Cgip, names: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({**published(model), "name": _Runs()}, "sip.pt")
    with pytest.raises(ModelError, match=r"sip\.pt: refused: the file asks to run or build (posix|os)\.system"):
        load_sgdiff(Path("sip.pt"), names)
    assert not Path("executed").exists()


def _without(state: dict[str, Tensor]) -> None:
    del state["graph_projection.bias"]


def _misnamed(state: dict[str, Tensor]) -> None:
    state["clip_modell.proj"] = torch.zeros(1)


def _misshapen(state: dict[str, Tensor]) -> None:
    state["graph_net.gconvs.1.net2.2.weight"] = torch.zeros(8, 13)


def _not_finite(state: dict[str, Tensor]) -> None:
    state["graph_projection.bias"] = torch.full((8,), float("nan"))


def _twice(state: dict[str, Tensor]) -> None:
    state["module.logit_scale"] = torch.zeros(())


def _no_table(state: dict[str, Tensor]) -> None:
    state.clear()
    state["conv1.weight"] = torch.zeros(1)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_without, "graph_projection.bias is missing"),
        (_misnamed, "clip_modell.proj is unexpected"),
        (_misshapen, r"graph_net.gconvs.1.net2.2.weight is \(8, 13\), expected \(8, 12\)"),
        (_not_finite, "graph_projection.bias holds values that are not finite"),
        (_twice, "logit_scale is given twice"),
        (_no_table, "no CGIP encoder: 'obj_embeddings.weight' is missing or no table; found conv1.weight"),
    ],
)
def test_every_other_difference_is_an_error(tmp_path: Path, model: Cgip, names: Path, damage: Any, said: str) -> None:
    state = dict(model.state_dict())
    damage(state)
    torch.save({"state_dict": state}, tmp_path / "sip.pt")
    with pytest.raises(ModelError, match=said):
        load_sgdiff(tmp_path / "sip.pt", names)


def test_files_that_are_no_weights_are_named(tmp_path: Path, names: Path) -> None:
    path = tmp_path / "sip.pt"
    with pytest.raises(ModelError, match="no such file"):
        load_sgdiff(path, names)
    for content in (b"", b"<html>not found</html>"):
        path.write_bytes(content)
        with pytest.raises(ModelError, match=r"sip\.pt: "):
            load_sgdiff(path, names)
    torch.save({"state_dict": {"a": 1}}, path)
    with pytest.raises(ModelError, match="no state_dict"):
        load_sgdiff(path, names)


def test_the_vocabulary_is_required_and_must_fit(tmp_path: Path, model: Cgip) -> None:
    weights, path = tmp_path / "sip.pt", tmp_path / "vocab.json"
    torch.save(published(model), weights)
    with pytest.raises(DataError, match=r"vocab\.json: no such vocabulary; weights do not say"):
        load_sgdiff(weights, path)
    Vocabulary.of(["dog", "cat"], ["on", "near"]).write(path)
    with pytest.raises(DataError, match=r"3 object names, .*sip\.pt has rows for 4"):
        load_sgdiff(weights, path)
    path.write_text(json.dumps({"object_idx_to_name": ["dog", "cat", "x", "__image__"], "pred_idx_to_name": ["__in_image__"]}))
    with pytest.raises(DataError, match=r"vocab\.json: vocabulary: object 0 is 'dog', it must be '__image__'"):
        load_sgdiff(weights, path)
    path.write_text("[]")
    with pytest.raises(DataError, match=r"vocab\.json: not a JSON object"):
        load_sgdiff(weights, path)


def test_a_vocabulary_names_each_row_once_but_for_gaps() -> None:
    with pytest.raises(DataError, match="object 'dog' has two rows"):
        Vocabulary.of(["dog", "dog"], ["on"])
    with pytest.raises(DataError, match="it names no predicate"):
        Vocabulary(("__image__",), ())
    gaps = Vocabulary.of(["dog", "NONE", "NONE", "cat"], ["on"])
    assert gaps.nodes(["cat"]).tolist() == [4]
    with pytest.raises(DataError, match="'NONE' is not in"):
        gaps.nodes(["NONE"])


def test_an_unknown_name_is_an_error_with_near_names_and_what_to_do() -> None:
    with pytest.raises(
        DataError,
        match=r"'skatebord' .* did you mean 'skateboard'\?; or set graph_encoder\.kind to open_vocabulary, which takes any name$",
    ):
        VOCABULARY.nodes(["dog", "skatebord"])
    assert GraphEncoder(tower="a", pretrained="b", kind="open_vocabulary").kind == "open_vocabulary"
    with pytest.raises(DataError, match=r"object 'zzz' is not in .* valid: "):
        VOCABULARY.nodes(["zzz"])
    with pytest.raises(DataError, match="object '__in_image__' is not in"):
        VOCABULARY.nodes(["__in_image__"])
    with pytest.raises(DataError, match=r"predicate 'nera' .* did you mean 'near'"):
        VOCABULARY.edges(["nera"])


def test_own_cgip_round_trip(tmp_path: Path, model: Cgip) -> None:
    block = nn.Linear(2, 2)
    save_encoder(tmp_path, model, VOCABULARY, block)
    found, vocabulary = load_encoder(tmp_path)
    assert vocabulary == VOCABULARY and found.config == CONFIG
    batch = batch_graphs([GRAPH], VOCABULARY)
    assert torch.equal(found(batch).pooled, model(batch).pooled)
    loaded = nn.Linear(2, 2)
    load_module(loaded, tmp_path / "reconstruction.safetensors")
    assert torch.equal(loaded.weight, block.weight)
    with pytest.raises(DataError, match="without its vocabulary"):
        save_encoder(tmp_path, model)


def test_own_open_vocabulary_round_trip(tmp_path: Path) -> None:
    torch.manual_seed(0)
    encoder = OpenVocabularyEncoder(OpenVocabularyConfig(text=6, width=8, embed=4, layers=1))
    save_encoder(tmp_path, encoder)
    found, vocabulary = load_encoder(tmp_path)
    assert vocabulary is None and found.config == encoder.config
    batch = batch_graphs([GRAPH], NameTable({name: torch.randn(6) for name in ("dog", "near", "cat")}))
    assert torch.equal(found(batch).pooled, encoder(batch).pooled)


def test_a_damaged_folder_is_named(tmp_path: Path, model: Cgip) -> None:
    with pytest.raises(ModelError, match=r"encoder\.json: no such file"):
        load_encoder(tmp_path)
    save_encoder(tmp_path, model, VOCABULARY)
    (tmp_path / "encoder.safetensors").write_bytes(b"cut")
    with pytest.raises(ModelError, match=r"encoder\.safetensors: not a readable safetensors file"):
        load_encoder(tmp_path)
    (tmp_path / "encoder.json").write_text('{"kind": "other"}')
    with pytest.raises(ModelError, match="kind is 'other'; valid: cgip, open_vocabulary"):
        load_encoder(tmp_path)
    (tmp_path / "encoder.json").write_text('{"kind": "cgip", "width": "wide"}')
    with pytest.raises(ModelError, match="not the sizes of a graph encoder"):
        load_encoder(tmp_path)
