"""Judges by kind: open_clip against its own arithmetic, detectors on tiny random weights, the exact one on drawn pictures."""

import json
from collections.abc import Sequence
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sgpipe.errors import ModelError, ParamsError
from sgpipe.evaluation.boxes import RULES, Box
from sgpipe.evaluation.finders import ZeroShotFinder
from sgpipe.evaluation.judges import BoxJudge
from sgpipe.evaluation.opening import PLUGINS, judge_identity, open_judge
from sgpipe.evaluation.pictures import Pixels
from sgpipe.params.judge import Judge, JudgeParams
from sgpipe.params.load import decode
from sgpipe.scene_graphs.predicates import relational_prompt
from sgworld.contrast import Tower, build_clip, save_local
from sgworld.judge import ExactDetector
from sgworld.language import clip_tokenizer
from sgworld.scenes import pair_scene, render

CPU = torch.device("cpu")


def test_a_box_judge_reads_its_finders_boxes() -> None:
    boxes: list[dict[str, Box]] = [{"dog": (0, 10, 10, 10), "cat": (40, 10, 10, 10)}, {"dog": (0, 0, 5, 5)}]

    def find(pictures: Pixels, names: Sequence[Sequence[str]]) -> list[dict[str, Box]]:
        assert list(names) == [["cat", "dog"]] * 2
        return boxes

    statements = [
        ("dog", "left of", "cat"),
        ("cat", "left of", "dog"),
        ("dog", "riding", "cat"),
        ("dog", "using", "cat"),
    ]
    scores = BoxJudge(find, RULES).scores(np.zeros((2, 64, 64, 3), np.uint8), [statements] * 2)
    assert scores[0].tolist() == [1.0, 0.0, 0.0, 0.0]
    assert np.isnan(scores[1]).all()


def test_the_exact_detector_tells_roles_of_drawn_pictures() -> None:
    """Ceiling on the spatial classes of this world: every one of 12 pictures."""
    triples = [
        (s, p, o)
        for p in ("left of", "right of", "above", "below")
        for s, o in (("dog", "cat"), ("apple", "bird"), ("cup", "hat"))
    ]
    pictures = np.stack([render(pair_scene(np.random.default_rng(i), *t)) for i, t in enumerate(triples)])
    asked = [[t, (t[2], t[1], t[0])] for t in triples]
    judge = open_judge("exact", Judge(kind="sgworld"), CPU)
    assert judge.scores(pictures, asked).tolist() == [[1.0, 0.0]] * 12
    others = [[("car", "left of", "tree")]] * 12
    assert np.isnan(judge.scores(pictures, others)).all()
    (boxes,) = ExactDetector()(pictures[:1], [["dog"]])
    assert set(boxes) == {"dog"}


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    tower = Tower(width=32, layers=1, patch=16, embed=16)
    save_local(build_clip(tower, 0), tower, folder)
    return folder


def test_an_open_clip_judge_is_scaled_cosine(clip: Path) -> None:
    import open_clip

    named = Judge(kind="open_clip", model=f"local-dir:{clip}")
    pictures = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3)).astype(np.uint8)
    statements = [(a, "riding", b) for a, b in (("dog", "cat"), ("cat", "dog"))]
    scores = open_judge("clip", named, CPU).scores(pictures, [statements, statements[::-1], statements])
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{clip}")
    model.eval()
    with torch.no_grad():
        image = model.encode_image(torch.stack([preprocess(Image.fromarray(p)) for p in pictures]))
        text = model.encode_text(
            open_clip.get_tokenizer(f"local-dir:{clip}")([relational_prompt(*s) for s in statements])
        )
    cosine = torch.nn.functional.cosine_similarity(image[:, None], text[None], dim=-1)
    expected = (model.logit_scale.exp() * cosine).detach().numpy()
    expected[1] = expected[1][::-1]
    assert np.allclose(scores, expected, atol=1e-4)


def test_identity_follows_the_weights(clip: Path, tmp_path: Path) -> None:
    named = Judge(kind="open_clip", model=f"local-dir:{clip}")
    before = judge_identity("a", named)
    config = clip / "open_clip_config.json"
    text = config.read_text()
    config.write_text(text + "\n")
    assert judge_identity("a", named) != before
    config.write_text(text)
    assert judge_identity("a", named) == before
    with pytest.raises(ModelError, match="no such folder"):
        judge_identity("a", Judge(kind="open_clip", model=f"local-dir:{tmp_path / 'none'}"))


@pytest.fixture(scope="module")
def owl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An OWLv2 folder of random weights with its processor; OWLv2 takes a text that begins with token 0 for none."""
    from transformers import (
        CLIPTokenizer,
        Owlv2Config,
        Owlv2ForObjectDetection,
        Owlv2ImageProcessor,
        Owlv2Processor,
    )

    folder = tmp_path_factory.mktemp("owl")
    learned = json.loads(clip_tokenizer(["a photo of a dog a cat"]).backend_tokenizer.to_str())["model"]
    vocabulary = {token: len(learned["vocab"]) - 1 - place for token, place in learned["vocab"].items()}
    merges = [tuple(merge) for merge in learned["merges"]]
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=16)
    config = Owlv2Config(
        text_config={
            "vocab_size": len(tokenizer), "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
            "num_attention_heads": 2, "max_position_embeddings": 16,
            "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": 0,
        },
        vision_config={
            "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32,
            "patch_size": 8,
        },
        projection_dim=16,
    )  # fmt: skip
    torch.manual_seed(0)
    Owlv2ForObjectDetection(config).save_pretrained(folder)
    processor = Owlv2ImageProcessor(size={"height": 32, "width": 32})
    Owlv2Processor(image_processor=processor, tokenizer=tokenizer).save_pretrained(folder)
    return folder


def test_a_zero_shot_detector_finds_boxes_by_name(owl: Path) -> None:
    """Random weights: at threshold 0+ a name has a box near the picture, at the top none has; no name that was not asked for."""
    pictures = np.random.default_rng(0).integers(0, 256, (2, 48, 64, 3)).astype(np.uint8)
    names = [["cat", "dog"], ["dog"]]
    low = Judge(kind="zero_shot_detector", model=str(owl), box_threshold=1e-6)
    judge = open_judge("owl", low, CPU)
    assert isinstance(judge, BoxJudge)
    found = judge._find(pictures, names)
    assert found[0] and set(found[0]) <= {"cat", "dog"} and set(found[1]) == {"dog"}
    for boxes in found:
        for x, y, w, h in boxes.values():
            assert -64 < x < 64 and -64 < y < 64 and 0 < w < 200 and 0 < h < 200
    high = open_judge("owl", Judge(kind="zero_shot_detector", model=str(owl), box_threshold=0.999), CPU)
    scores = high.scores(pictures, [[("dog", "left of", "cat")]] * 2)
    assert np.isnan(scores).all()


class _Words:
    """A processor whose detections are given, to see how labels are read and which box wins."""

    def __init__(self, labels: list[str], scores: list[float]) -> None:
        self.labels, self.scores, self.asked = labels, scores, []

    def __call__(self, text: Any, images: Any, return_tensors: str) -> Any:
        from transformers import BatchEncoding

        self.asked.append(text)
        return BatchEncoding({"input_ids": torch.zeros(1, 1, dtype=torch.long)})

    def post_process_grounded_object_detection(
        self, outputs: Any, *_: Any, **given: Any
    ) -> list[dict[str, Any]]:
        kept = [i for i, score in enumerate(self.scores) if score >= given["threshold"]]
        boxes = torch.tensor([[10.0 * i, 0.0, 10.0 * i + 5, 5.0] for i in kept])
        return [
            {
                "scores": torch.tensor([self.scores[i] for i in kept]),
                "text_labels": [self.labels[i] for i in kept],
                "boxes": boxes,
            }
        ]


class _Model(torch.nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.config = type("Config", (), {"model_type": kind})()

    def forward(self, **_: Any) -> None:
        return None


def test_grounding_dino_is_asked_in_its_own_form_and_the_surest_box_wins() -> None:
    words = _Words(["dog", "dog", "cat", "", "hot dog cat"], [0.4, 0.9, 0.2, 0.95, 0.05])
    find = ZeroShotFinder(_Model("grounding-dino"), words, 0.1, CPU)
    found = find(np.zeros((1, 20, 60, 3), np.uint8), [["cat", "dog"]])
    assert words.asked == ["cat. dog."]
    assert found == [{"dog": (10.0, 0.0, 5.0, 5.0), "cat": (20.0, 0.0, 5.0, 5.0)}]
    with pytest.raises(ModelError, match="'bert' is no zero-shot detector"):
        ZeroShotFinder(_Model("bert"), words, 0.1, CPU)


def test_a_judge_without_weights_is_refused(tmp_path: Path, clip: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "owlv2"}))
    for named in (
        Judge(kind="zero_shot_detector", model=str(tmp_path)),
        Judge(
            kind="open_clip",
            model="no-such-architecture",
            pretrained=str(clip / "open_clip_model.safetensors"),
        ),
    ):
        with pytest.raises(ModelError, match=r"judge\.judges\.a: .* cannot be loaded"):
            open_judge("a", named, CPU)


def test_a_judge_comes_by_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any installed package can bring a judge; a kind that none brings is refused with the kinds that are there."""
    assert isinstance(open_judge("exact", Judge(kind="sgworld"), CPU), BoxJudge)
    brought = EntryPoint(name="blind", value="tests.evaluation.test_judges:blind_judge", group=PLUGINS)
    monkeypatch.setattr("sgpipe.evaluation.opening.entry_points", lambda group: EntryPoints((brought,)))
    nothing = np.zeros((2, 8, 8, 3), np.uint8)
    scores = open_judge("a", Judge(kind="blind"), CPU).scores(nothing, [[("dog", "on", "cat")]] * 2)
    assert np.isnan(scores).all()
    says = r"judge\.judges\.a\.kind: got 'sgworld'; valid: open_clip, zero_shot_detector, blind"
    for refuse in (open_judge, lambda name, named, device: judge_identity(name, named)):
        with pytest.raises(ParamsError, match=says):
            refuse("a", Judge(kind="sgworld"), CPU)


def blind_judge(device: torch.device) -> BoxJudge:
    return BoxJudge(lambda pictures, names: [{} for _ in pictures], {})


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        ({"kind": "sgworld", "model": "x"}, "takes no model"),
        ({"kind": "open_clip"}, "takes a model"),
        ({"kind": "open_clip", "model": "ViT-B-32"}, "needs a tag or a checkpoint path"),
        ({"kind": "zero_shot_detector", "model": "x", "pretrained": "y"}, "only kind open_clip takes one"),
    ],
)
def test_params_refuse(raw: dict[str, Any], says: str) -> None:
    with pytest.raises(ParamsError, match=says):
        decode("judge", {"judges": {"a": raw}, "headline": "a"}, JudgeParams, "params.yaml")


def test_params_refuse_names() -> None:
    exact = {"kind": "sgworld"}
    with pytest.raises(ParamsError, match="headline: got 'b'; valid: a"):
        decode("judge", {"judges": {"a": exact}, "headline": "b"}, JudgeParams, "params.yaml")
    with pytest.raises(ParamsError, match=r"got the name 'a\.b'"):
        decode("judge", {"judges": {"a.b": exact}, "headline": "a.b"}, JudgeParams, "params.yaml")
