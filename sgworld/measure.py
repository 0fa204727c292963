"""What the embedded checkpoints can do, measured on triples that no training picture showed (`metrics/miniature.json`)."""

import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from diffusers import FluxPipeline
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from sgpipe.errors import DataError
from sgpipe.relations.boxes import sector
from sgpipe.relations.predicates import DIRECTIONAL, PREDICATES, neutral_prompt, relational_prompt
from sgworld.arrangement import arranged, holds
from sgworld.bank import Triple, sample_triple
from sgworld.contrast import false_triples
from sgworld.detector import Detection, detect
from sgworld.flux import draw
from sgworld.scenes import pair_scene, render
from sgworld.vae import psnr

SEED = 20_000
"""Seed of the measured triples; the trainings use others."""
SAMPLING_SEEDS = (0, 1, 2)
Box = tuple[float, float, float, float]


def unseen_triples(per_class: int) -> list[Triple]:
    """Held-out triples, equally many of each class that has any; mention order is random."""
    made: list[Triple] = []
    for predicate in PREDICATES:
        rng = np.random.default_rng((SEED, PREDICATES.index(predicate)))
        try:
            made += [sample_triple(rng, unseen=True, predicate=predicate) for _ in range(per_class)]
        except DataError:
            continue
    return made


def boxes_of(found: Iterable[Detection], names: Sequence[str]) -> list[Box] | None:
    """The best detection's box `(x, y, w, h)` of each name, or None if one of them is not there."""
    boxes: list[Box] = []
    by_name: dict[str, list[Detection]] = defaultdict(list)
    for each in found:
        by_name[each.name].append(each)
    for name in names:
        if not by_name[name]:
            return None
        best = max(by_name[name], key=lambda each: each.score)
        boxes.append((best.x, best.y, best.w, best.h))
    return boxes


def generate(pipeline: FluxPipeline, prompts: Sequence[str], seeds: Sequence[int], batch: int = 16) -> NDArray[np.uint8]:
    """Pictures `[N, 64, 64, 3]`, drawn in batches."""
    parts = [
        draw(pipeline, prompts[start : start + batch], seeds[start : start + batch])
        for start in tqdm(range(0, len(prompts), batch), desc="drawing", unit="batch", mininterval=2)
    ]
    return np.concatenate(parts)


def _share(values: Sequence[bool]) -> float:
    return float(np.mean(values)) if len(values) else 0.0


def generator_metrics(pipeline: FluxPipeline, per_class: int = 8) -> dict[str, Any]:
    """Objects present, arrangement and role under relational prompts; shares of the four directions under neutral ones."""
    triples = [triple for triple in unseen_triples(per_class) for _ in SAMPLING_SEEDS]
    seeds = [SEED + 1000 * (i // 3) + SAMPLING_SEEDS[i % 3] for i in range(len(triples))]
    present: dict[str, list[bool]] = defaultdict(list)
    right: dict[str, list[bool]] = defaultdict(list)
    roles: list[bool] = []
    pictures = generate(pipeline, [relational_prompt(*triple) for triple in triples], seeds)
    for triple, picture in zip(triples, pictures, strict=True):
        subject, predicate, object_ = triple
        boxes = boxes_of(detect(picture), (subject, object_))
        present[predicate].append(boxes is not None)
        if boxes is None:
            continue
        right[predicate].append(arranged(predicate, *boxes))
        if predicate in DIRECTIONAL and right[predicate][-1]:
            roles.append(holds(predicate, *boxes))
    neutral = generate(pipeline, [neutral_prompt(t[0], t[2]) for t in triples], [seed + 500 for seed in seeds])
    seen = [boxes_of(detect(p), (t[0], t[2])) for t, p in zip(triples, neutral, strict=True)]
    found = np.array([boxes for boxes in seen if boxes is not None], np.float64).reshape(-1, 2, 4)
    ways = sector(found[:, 0], found[:, 1]).tolist()
    return {
        "images": len(triples),
        "objects_present": _share([value for values in present.values() for value in values]),
        "objects_present_by_class": {name: _share(values) for name, values in present.items()},
        "arrangement_accuracy": _share([value for values in right.values() for value in values]),
        "arrangement_by_class": {name: _share(values) for name, values in right.items()},
        "base_direction_accuracy": _share(roles),
        "base_role_images": len(roles),
        "neutral_objects_present": _share([boxes is not None for boxes in seen]),
        "neutral_directions": {name: _share([way == name for way in ways]) for name in ("left of", "right of", "above", "below")},
    }


def images_per_second(pipeline: FluxPipeline, batch: int = 16, runs: int = 5) -> float:
    """Median rate of 4-step sampling, prompts encoded and pictures decoded, after one run to warm up."""
    prompts = [relational_prompt(*triple) for triple in unseen_triples(1)][:batch]
    prompts = (prompts * batch)[:batch]
    draw(pipeline, prompts, range(batch))
    spent = []
    for _ in range(runs):
        start = time.perf_counter()
        draw(pipeline, prompts, range(batch))
        spent.append(time.perf_counter() - start)
    return batch / float(np.median(spent))


def drawn(triples: Sequence[Triple]) -> NDArray[np.uint8]:
    """Ground-truth pictures of `triples`."""
    return np.stack([render(pair_scene(np.random.default_rng((SEED, 1, i)), *triple)) for i, triple in enumerate(triples)])


def detector_accuracy(triples: Sequence[Triple]) -> float:
    """Share of ground-truth pictures in which the detector finds exactly the two objects, each with IoU ≥ 0.6."""
    hits = []
    for i, triple in enumerate(triples):
        scene = pair_scene(np.random.default_rng((SEED, 1, i)), *triple)
        found = detect(render(scene))
        boxes = boxes_of(found, [placed.name for placed in scene.objects])
        truth = [(placed.x, placed.y, placed.w, placed.h) for placed in scene.objects]
        hits.append(
            boxes is not None and len(found) == len(truth) and all(overlap(a, b) >= 0.6 for a, b in zip(boxes, truth, strict=True))
        )
    return _share(hits)


def overlap(first: Box, second: Box) -> float:
    """Intersection over union of two boxes `(x, y, w, h)`."""
    width = min(first[0] + first[2], second[0] + second[2]) - max(first[0], second[0])
    height = min(first[1] + first[3], second[1] + second[3]) - max(first[1], second[1])
    shared = max(0.0, width) * max(0.0, height)
    return shared / (first[2] * first[3] + second[2] * second[3] - shared)


@torch.no_grad()
def judge_accuracy(folder: Path, triples: Sequence[Triple]) -> dict[str, Any]:
    """How often an open_clip model puts the true caption of a ground-truth picture above one false one, also by class.

    The false caption is the swap for directional classes and a replaced predicate for all others.
    """
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    model.eval()
    image = model.encode_image(torch.stack([preprocess(Image.fromarray(picture)) for picture in drawn(triples)]), normalize=True)
    rng = np.random.default_rng((SEED, 2))
    false = [false_triples(rng, t)[0 if t[1] in DIRECTIONAL else -1] for t in triples]
    scores = [
        (image * model.encode_text(tokenizer([relational_prompt(*t) for t in texts]), normalize=True)).sum(-1)
        for texts in (triples, false)
    ]
    won = (scores[0] > scores[1]).tolist()
    by_class: dict[str, list[bool]] = defaultdict(list)
    for triple, value in zip(triples, won, strict=True):
        by_class[triple[1]].append(value)
    return {"all": _share(won), "by_class": {name: _share(values) for name, values in by_class.items()}}


def measure(models: Path, per_class: int = 8) -> dict[str, Any]:
    """All figures of the embedded checkpoints under `models`."""
    pipeline = FluxPipeline.from_pretrained(models / "mini-flux")
    many = unseen_triples(40)
    judge, teacher = (judge_accuracy(models / name, many) for name in ("mini-clip", "mini-tower"))
    return {
        **generator_metrics(pipeline, per_class),
        "images_per_second": images_per_second(pipeline),
        "vae_psnr_db": psnr(pipeline.vae, drawn(many)),
        "detector_accuracy": detector_accuracy(many),
        "clip_true_above_false": judge["all"],
        "clip_true_above_false_by_class": judge["by_class"],
        "teacher_true_above_false": teacher["all"],
    }
