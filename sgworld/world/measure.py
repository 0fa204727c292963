"""What the generator of this world can do, by the exact reader, on captions that its training never said."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from diffusers import FluxPipeline
from PIL import Image
from tqdm import tqdm

from sgpipe.relations.predicates import PREDICATES
from sgworld.contrast import Statements
from sgworld.flow import STEPS
from sgworld.world.captions import sample_caption
from sgworld.world.classes import open_triples
from sgworld.world.reader import Reading, read
from sgworld.world.reading import same
from sgworld.world.specification import Caption
from sgworld.world.sprites import CELL, SIDE, Pixels
from sgworld.world.statements import unseen

SEED = 20_000
SAMPLING_SEEDS = (0, 1, 2)
HELD = {2: ("triple",), 3: ("triple", "combination"), 4: ("triple", "combination")}
"""What is held out of the measured captions, by their number of objects."""
PAIRS, PER_PAIR = 10, 48
"""Neutral captions whose classes are counted, and images of each."""


def draw(pipeline: FluxPipeline, prompts: Sequence[str], seeds: Sequence[int], batch: int = 48) -> Pixels:
    """One image `[N, 64, 64, 3]`, 0–255, per prompt, in 4 Euler steps without guidance; its noise depends on its seed alone."""
    pipeline.set_progress_bar_config(disable=True)
    parts = []
    for start in tqdm(range(0, len(prompts), batch), desc="drawing", unit="batch", mininterval=2):
        chosen = slice(start, start + batch)
        images = pipeline(
            list(prompts[chosen]),
            height=SIDE,
            width=SIDE,
            num_inference_steps=STEPS,
            guidance_scale=0.0,
            max_sequence_length=pipeline.tokenizer_2.model_max_length,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds[chosen]],
            output_type="np",
        ).images
        parts.append((images * 255).round().astype(np.uint8))
    return np.concatenate(parts)


def _shown(caption: Caption, reading: Reading) -> bool:
    return set(caption.names) <= {each.name for each in reading.objects}


def relational(pipeline: FluxPipeline, captions: int) -> dict[str, Any]:
    """Objects, duplicates, classes and roles under captions that say relations: `captions` of each number of objects, 3 seeds."""
    values: dict[str, Any] = {"objects_present": {}, "duplicates": {}, "relation_type": {}}
    by_class: dict[str, list[bool]] = {name: [] for name in PREDICATES}
    first_is_subject: list[bool] = []
    for objects, held in HELD.items():
        rng = np.random.default_rng((SEED, objects))
        drawn = [sample_caption(rng, held=held[i % len(held)], neutral=0.0, objects=objects) for i in range(captions)]
        texts = [caption.text() for caption in drawn]
        seeds = [SEED + 1000 * i + seed for i in range(captions) for seed in SAMPLING_SEEDS]
        repeated = [caption for caption in drawn for _ in SAMPLING_SEEDS]
        readings = read(draw(pipeline, [text for text in texts for _ in SAMPLING_SEEDS], seeds))
        values["objects_present"][str(objects)] = float(np.mean([_shown(*each) for each in zip(repeated, readings, strict=True)]))
        values["duplicates"][str(objects)] = float(np.mean([bool(reading.duplicates) for reading in readings]))
        right = []
        for caption, reading in zip(repeated, readings, strict=True):
            for a, p, b in caption.relations:
                found = reading.between(a, b)
                one, other = (found is not None and same(found, way) for way in ((a, p, b), (b, p, a)))
                right.append(one or other)
                by_class[p].append(right[-1])
                if one != other and {(p, a), (p, b)} <= set(open_triples(a, b)):
                    first_is_subject.append(one)
        values["relation_type"][str(objects)] = float(np.mean(right))
    values["relation_type_by_class"] = {name: float(np.mean(each)) for name, each in by_class.items() if each}
    values["relation_type_all"] = float(np.mean([hit for each in by_class.values() for hit in each]))
    values["roles_first_is_subject"] = float(np.mean(first_is_subject)) if first_is_subject else None
    values["roles_samples"] = len(first_is_subject)
    return values


def arrangements_shown(readings: Sequence[Reading], names: Sequence[str]) -> int:
    """In how many ways, to the cell, images that have all names show these: those that are shown at least twice."""
    counted = Counter(
        tuple(sorted((each.name, round(each.x / CELL), round(each.y / CELL)) for each in reading.objects if each.name in names))
        for reading in readings
        if set(names) <= {each.name for each in reading.objects}
    )
    return sum(count >= 2 for count in counted.values())


def _by_caption(pipeline: FluxPipeline, captions: Sequence[Caption], count: int, first: int) -> list[list[Reading]]:
    """What `count` images of each caption show, one noise each, of seeds from `first` on."""
    prompts = [caption.text() for caption in captions for _ in range(count)]
    readings = read(draw(pipeline, prompts, range(first, first + len(prompts))))
    return [readings[start : start + count] for start in range(0, len(readings), count)]


def variety(pipeline: FluxPipeline, captions: int = PAIRS, per_caption: int = PER_PAIR) -> dict[str, Any]:
    """In how many ways one triple is drawn, over `per_caption` noises: the least and the mean of `captions` captions."""
    rng = np.random.default_rng((SEED, 78))
    drawn = [sample_caption(rng, neutral=0.0, objects=2) for _ in range(captions)]
    readings = _by_caption(pipeline, drawn, per_caption, SEED + 8_000_000)
    ways = [arrangements_shown(mine, caption.names) for caption, mine in zip(drawn, readings, strict=True)]
    return {"ways_of_a_triple_least": min(ways), "ways_of_a_triple_mean": float(np.mean(ways))}


def neutral(pipeline: FluxPipeline, pairs: int = PAIRS, per_pair: int = PER_PAIR) -> dict[str, Any]:
    """Under captions of two names: objects present, how often a class is read, and the largest share of one class of a pair."""
    rng = np.random.default_rng((SEED, 77))
    captions = [sample_caption(rng, neutral=1.0, objects=2) for _ in range(pairs)]
    readings = _by_caption(pipeline, captions, per_pair, SEED + 7_000_000)
    largest, classes, shown = [], 0, []
    for caption, mine in zip(captions, readings, strict=True):
        shown += [_shown(caption, reading) for reading in mine]
        counted = Counter(found[1] for reading in mine if (found := reading.between(*caption.names)) is not None)
        classes += sum(counted.values())
        largest.append(max(counted.values(), default=0) / per_pair)
    return {
        "neutral_objects_present": float(np.mean(shown)),
        "neutral_class_read": classes / (pairs * per_pair),
        "neutral_largest_class": float(np.max(largest)),
        "neutral_largest_class_mean": float(np.mean(largest)),
    }


@torch.no_grad()
def true_above_false(folder: Path, shown: Statements) -> float:
    """How often an open_clip model puts a picture's true text above its false one."""
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    model.eval()
    image = model.encode_image(torch.stack([preprocess(Image.fromarray(each)) for each in shown.pictures]), normalize=True)
    true, false = (model.encode_text(tokenizer(list(texts)), normalize=True) for texts in (shown.true, [t for _, t in shown.false]))
    return float(((image * true).sum(-1) > (image * false).sum(-1)).double().mean())


def measure(models: Path, captions: int = 96) -> dict[str, Any]:
    """All figures of the checkpoints in `models/{mini-flux,mini-clip,mini-tower}`; judge and teacher where they are there."""
    pipeline = FluxPipeline.from_pretrained(models / "mini-flux")
    values = {
        "images": len(HELD) * len(SAMPLING_SEEDS) * captions,
        **relational(pipeline, captions),
        **neutral(pipeline),
        **variety(pipeline),
    }
    shown = unseen(SEED, 960)
    for name, key in (("mini-clip", "clip_true_above_false"), ("mini-tower", "teacher_true_above_false")):
        if (models / name).is_dir():
            values[key] = true_above_false(models / name, shown)
    return values
