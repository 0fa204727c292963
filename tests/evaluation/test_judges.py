"""Judges by kind: open_clip against its own arithmetic, detectors on tiny random weights, the exact one on drawn images."""

from collections.abc import Sequence
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sgpipe.errors import ModelError, ParamsError
from sgpipe.evaluation.config import Judge
from sgpipe.evaluation.judge_factory import PLUGINS, judge_identity, open_judge
from sgpipe.evaluation.judges import BoxJudge, ZeroShotFinder
from sgpipe.evaluation.samples import Pixels
from sgpipe.relations.boxes import RULES, Box
from sgpipe.relations.predicates import relational_prompt
from sgworld.judge import ExactDetector
from sgworld.scenes import pair_scene, render

CPU = torch.device("cpu")


def test_a_box_judge_reads_its_finders_boxes() -> None:
    boxes: list[dict[str, Box]] = [{"dog": (0, 10, 10, 10), "cat": (40, 10, 10, 10)}, {"dog": (0, 0, 5, 5)}]

    def find(images: Pixels, names: Sequence[Sequence[str]]) -> list[dict[str, Box]]:
        assert list(names) == [["cat", "dog"]] * 2
        return boxes

    statements = [("dog", "left of", "cat"), ("cat", "left of", "dog"), ("dog", "riding", "cat"), ("dog", "using", "cat")]
    scores = BoxJudge(find, RULES).scores(np.zeros((2, 64, 64, 3), np.uint8), [statements] * 2)
    assert scores[0].tolist() == [1.0, 0.0, 0.0, 0.0]
    assert np.isnan(scores[1]).all()


def test_the_exact_detector_tells_roles_of_drawn_pictures() -> None:
    """Ceiling on the spatial classes of this world: every one of 12 images."""
    triples = [
        (s, p, o) for p in ("left of", "right of", "above", "below") for s, o in (("dog", "cat"), ("apple", "bird"), ("cup", "hat"))
    ]
    images = np.stack([render(pair_scene(np.random.default_rng(i), *t)) for i, t in enumerate(triples)])
    asked = [[t, (t[2], t[1], t[0])] for t in triples]
    judge = open_judge("exact", Judge(kind="sgworld"), CPU)
    assert judge.scores(images, asked).tolist() == [[1.0, 0.0]] * 12
    others = [[("car", "left of", "tree")]] * 12
    assert np.isnan(judge.scores(images, others)).all()
    (boxes,) = ExactDetector()(images[:1], [["dog"]])
    assert set(boxes) == {"dog"}


def test_an_open_clip_judge_is_scaled_cosine(clip: Path) -> None:
    import open_clip

    named = Judge(kind="open_clip", model=f"local-dir:{clip}")
    images = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3)).astype(np.uint8)
    statements = [(a, "riding", b) for a, b in (("dog", "cat"), ("cat", "dog"))]
    scores = open_judge("clip", named, CPU).scores(images, [statements, statements[::-1], statements])
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{clip}")
    model.eval()
    with torch.no_grad():
        image = model.encode_image(torch.stack([preprocess(Image.fromarray(p)) for p in images]))
        text = model.encode_text(open_clip.get_tokenizer(f"local-dir:{clip}")([relational_prompt(*s) for s in statements]))
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


def test_a_zero_shot_detector_finds_boxes_by_name(owl: Path) -> None:
    """Random weights: at threshold 0+ a name has a box near the image, at the top none has; no name that was not asked for."""
    images = np.random.default_rng(0).integers(0, 256, (2, 48, 64, 3)).astype(np.uint8)
    names = [["cat", "dog"], ["dog"]]
    low = Judge(kind="zero_shot_detector", model=str(owl), box_threshold=1e-6)
    judge = open_judge("owl", low, CPU)
    assert isinstance(judge, BoxJudge)
    found = judge._find(images, names)
    assert found[0] and set(found[0]) <= {"cat", "dog"} and set(found[1]) == {"dog"}
    for boxes in found:
        for x, y, w, h in boxes.values():
            assert -64 < x < 64 and -64 < y < 64 and 0 < w < 200 and 0 < h < 200
    high = open_judge("owl", Judge(kind="zero_shot_detector", model=str(owl), box_threshold=0.999), CPU)
    scores = high.scores(images, [[("dog", "left of", "cat")]] * 2)
    assert np.isnan(scores).all()


class _GroundingDino(torch.nn.Module):
    """A model whose boxes are given: per box the probability of each token it fires on, by place in the text."""

    def __init__(self, fires: Sequence[dict[int, float]], kind: str = "grounding-dino") -> None:
        super().__init__()
        self.config, self.fires, self.seen = SimpleNamespace(model_type=kind), fires, {}

    def forward(self, **inputs: torch.Tensor) -> SimpleNamespace:
        self.seen = inputs
        probabilities = torch.full((1, len(self.fires), 256), 0.001)
        for box, tokens in enumerate(self.fires):
            for place, probability in tokens.items():
                probabilities[0, box, place] = probability
        logits = probabilities.logit()
        logits[..., inputs["input_ids"].shape[1] :] = -torch.inf
        boxes = torch.tensor([[(box + 0.5) / 10, 0.5, 0.1, 0.5] for box in range(len(self.fires))])
        return SimpleNamespace(logits=logits, pred_boxes=boxes[None])


@pytest.fixture(scope="module")
def dino_processor() -> Any:
    from transformers import BertTokenizer, GroundingDinoImageProcessor, GroundingDinoProcessor

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "-", "'"]
    words = ["t", "shirt", "man", "s", "hat", "hot", "dog", "fire", "hydrant", "snow", "##board", "cat"]
    tokenizer = BertTokenizer(vocab={token: place for place, token in enumerate([*special, *words])})
    return GroundingDinoProcessor(GroundingDinoImageProcessor(size={"height": 32, "width": 32}), tokenizer)


@pytest.mark.parametrize(
    ("names", "fires", "boxes"),
    [
        (["man", "t-shirt"], [{1: 0.8}, {3: 0.9, 4: 0.9, 5: 0.9}], {"man": 0, "t-shirt": 1}),
        (["hat", "man's hat"], [{1: 0.7, 6: 0.4}, {1: 0.2, 3: 0.5, 4: 0.3, 5: 0.3, 6: 0.6}], {"hat": 0, "man's hat": 1}),
        (["dog", "hot dog"], [{1: 0.3, 3: 0.9, 4: 0.9}, {1: 0.6, 4: 0.5}], {"dog": 1, "hot dog": 0}),
        (["fire hydrant", "snowboard"], [{2: 0.3}, {4: 0.2, 5: 0.9}, {1: 0.4, 2: 0.4}], {"fire hydrant": 2, "snowboard": 1}),
        (["cat", "шапка"], [{1: 0.05}, {3: 0.2}], {"шапка": 1}),
        (["cat", "dog"], [{3: 0.4}, {3: 0.9}, {1: 0.2}, {0: 0.95, 2: 0.95, 5: 0.95}, {1: 0.05, 3: 0.05}], {"dog": 1, "cat": 2}),
        (["cat", "dog"], [{1: 0.5, 3: 0.6}], {"dog": 0}),
        (["\u0301", "cat"], [{2: 0.5}], {"cat": 0}),
    ],
)  # fmt: skip
def test_grounding_dino_gives_a_box_to_the_name_whose_tokens_it_fires_on(
    dino_processor: Any, names: list[str], fires: list[dict[int, float]], boxes: dict[str, int]
) -> None:
    """Hyphens, apostrophes, several words, word pieces, unknown words, a name within another; dots and [CLS] are no name."""
    model = _GroundingDino(fires)
    (found,) = ZeroShotFinder(model, dino_processor, 0.1, CPU)(np.zeros((1, 20, 60, 3), np.uint8), [names])
    assert set(found) == set(boxes)
    for name, place in boxes.items():
        assert found[name] == pytest.approx((6.0 * place, 5.0, 6.0, 10.0), abs=1e-4)
    text = dino_processor.tokenizer(". ".join(names) + ".")["input_ids"]
    assert model.seen["input_ids"].tolist() == [text] and "offset_mapping" not in model.seen


def test_a_model_that_is_no_detector_is_refused(dino_processor: Any) -> None:
    with pytest.raises(ModelError, match="'bert' is no zero-shot detector"):
        ZeroShotFinder(_GroundingDino([], "bert"), dino_processor, 0.1, CPU)


def test_owl_is_asked_for_names_and_boxes_are_joined_by_their_place(owl: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Names within one another, with hyphens and apostrophes; a query that is too long for OWL is cut, and said once."""
    from transformers import AutoProcessor

    class Owl(torch.nn.Module):
        config = SimpleNamespace(model_type="owlv2")

        def forward(self, **inputs: torch.Tensor) -> SimpleNamespace:
            logits = torch.tensor([[[0.1, 0.9, 0.2], [0.3, 0.4, 0.8], [0.7, 0.2, 0.1], [0.05, 0.02, 0.01]]]).logit()
            boxes = torch.tensor([[[(box + 0.5) / 10, 0.1, 0.1, 0.1] for box in range(4)]])
            return SimpleNamespace(logits=logits, pred_boxes=boxes)

    names = ["dog", "hot dog", "man's t-shirt"]
    find = ZeroShotFinder(Owl(), AutoProcessor.from_pretrained(owl), 0.1, CPU)
    found, again = find(np.zeros((2, 20, 20, 3), np.uint8), [names, names])
    said = capsys.readouterr().err.splitlines()
    assert found == again and len(said) == 1
    assert 'owlv2 reads 16 tokens; what it is asked for "man\'s t-shirt" has 18 and is cut' in said[0]
    assert {name: round(box[0]) for name, box in found.items()} == {"dog": 4, "hot dog": 0, "man's t-shirt": 2}


def test_a_judge_comes_by_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any installed package can bring a judge; a kind that none brings is refused with the kinds that are there."""
    assert isinstance(open_judge("exact", Judge(kind="sgworld"), CPU), BoxJudge)
    brought = EntryPoint(name="blind", value="tests.evaluation.test_judges:blind_judge", group=PLUGINS)
    monkeypatch.setattr("sgpipe.evaluation.judge_factory.entry_points", lambda group: EntryPoints((brought,)))
    nothing = np.zeros((2, 8, 8, 3), np.uint8)
    scores = open_judge("a", Judge(kind="blind"), CPU).scores(nothing, [[("dog", "on", "cat")]] * 2)
    assert np.isnan(scores).all()
    says = r"judge\.judges\.a\.kind: got 'sgworld'; valid: open_clip, zero_shot_detector, blind"
    for refuse in (open_judge, lambda name, named, device: judge_identity(name, named)):
        with pytest.raises(ParamsError, match=says):
            refuse("a", Judge(kind="sgworld"), CPU)


def blind_judge(device: torch.device) -> BoxJudge:
    return BoxJudge(lambda images, names: [{} for _ in images], {})
