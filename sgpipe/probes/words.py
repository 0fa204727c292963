"""Where is the relation in the text stream? Linear probes of the text rows of single words, before the first and after each block.

A word's vector is the mean over its rows. The probe is linear: least squares on one-hot classes of standardised vectors, with the
ridge penalty that does best on validation rows. It costs one forward per image, prompt and time, and a singular value
decomposition per fit.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from sgpipe.backbones.base import TextCondition
from sgpipe.backbones.denoiser import Denoiser
from sgpipe.backbones.truncation import Tokenizers
from sgpipe.errors import DataError
from sgpipe.probes.config import Probes
from sgpipe.probes.controls import shuffled, word_trace
from sgpipe.probes.data import Indices, Pairs
from sgpipe.probes.fit import interval
from sgpipe.probes.splits import Groups, split
from sgpipe.relations.predicates import PREDICATES, phrase
from sgpipe.runs.progress import through

WORDS: Final = ("subject", "relation", "object")
PENALTIES: Final = tuple(10.0**power for power in range(-2, 4))
"""Of ridge regression, in units of the number of training rows."""
Floats = NDArray[np.float64]


def word_spans(tokenizers: Tokenizers, text: str, subject: str, predicate: str | None, object_: str) -> dict[str, range]:
    """Rows of the encoder of names that hold each word of a prompt: the relation's is its phrase, absent for None.

    Words are looked for in this order, each after the one before; without a relation the prompt names the two in any order. Raises
    `DataError` for one that the prompt does not say whole.
    """
    said = {"subject": subject, **({"relation": phrase(predicate)} if predicate else {}), "object": object_}
    found: dict[str, range] = {}
    after = 0
    for name, word in said.items():
        mentions = (each for each in tokenizers.mentions(text, [word])[word] if each not in found.values())
        span = next((each for each in mentions if each.start >= after), None)
        if span is None:
            raise DataError(f"prompt {text!r}: its {name} {word!r} is not among its tokens; see backbone.max_sequence_length")
        found[name], after = span, span.stop if predicate else 0
    return found


def text_rows(denoiser: Denoiser, latents: Tensor, t: Tensor, prompts: TextCondition, guidance: float | None) -> Iterator[Tensor]:
    """The text encoder's rows `[B, T, width]`, then the text rows `[B, T, D]` after every block that puts them out."""
    blocks = denoiser.family.by_blocks(denoiser.transformer)
    prompts = prompts.to(denoiser.device, denoiser.dtype)
    yield prompts.states
    rows = denoiser.prefix(latents, t, prompts, 0, guidance)
    for index in range(len(blocks.blocks)):
        rows = blocks.run(rows, prompts, index + 1)
        if rows.text is None:
            return
        yield rows.text


@dataclass(frozen=True)
class WordRows:
    """Vectors of words in the prompts of noised images, one row per image and prompt, and what is asked of them.

    `vectors[place][word]` is `[M, D]`, NaN where the prompt has no such word; place 0 is the text encoder's output, place i + 1
    what stands after block i. The rest has the names and meanings of `MapSet`.
    """

    vectors: Sequence[Mapping[str, Floats]]
    labels: Indices
    said: Indices
    conditions: NDArray[np.object_]
    triples: Indices
    classes: tuple[str, ...]

    @classmethod
    def of(cls, vectors: Sequence[Mapping[str, Floats]], items: pa.Table, pairs: Pairs) -> "WordRows":
        """Of the rows of `ITEMS` that the vectors are of."""
        columns = {name: items[name].to_pylist() for name in ("predicate", "prompt_predicate", "condition", "triple_id")}
        classes = tuple(name for name in PREDICATES if name in set(columns["predicate"]))
        index: dict[str | None, int] = {name: i for i, name in enumerate(classes)}
        return cls(
            vectors,
            np.array([index[name] for name in columns["predicate"]], np.int64),
            np.array([index.get(name, -1) for name in columns["prompt_predicate"]], np.int64),
            np.array(columns["condition"], dtype=object),
            np.array([pairs.row_of[name] for name in columns["triple_id"]], np.int64),
            classes,
        )


@torch.no_grad()
def word_vectors(
    denoiser: Denoiser, latents: Tensor, t: Tensor, prompts: TextCondition, spans: Sequence[Mapping[str, range]],
    words_from: int, guidance: float | None,
) -> list[dict[str, Floats]]:  # fmt: skip
    """`WordRows.vectors` of a batch, whose words stand at `spans` from row `words_from` on."""
    found = []
    for rows in text_rows(denoiser, latents, t, prompts, guidance):
        rows = rows.float().cpu()
        own: dict[str, Floats] = {}
        for word in WORDS:
            vectors = np.full((len(rows), rows.shape[2]), np.nan)
            for n, span in enumerate(spans):
                if word in span:
                    vectors[n] = rows[n, words_from + span[word].start : words_from + span[word].stop].mean(dim=0).numpy()
            own[word] = vectors
        found.append(own)
    return found


def ridge(vectors: Floats, labels: Indices, train: Indices, val: Indices, asked: Indices) -> Indices:
    """Classes that a linear probe fitted on the rows `train` gives the rows `asked` of vectors `[N, D]`."""
    centre, spread = vectors[train].mean(axis=0), vectors[train].std(axis=0)
    spread = np.where(spread > 0, spread, 1.0)
    inputs = {name: (vectors[rows] - centre) / spread for name, rows in (("train", train), ("val", val), ("asked", asked))}
    targets = np.eye(int(labels.max()) + 1)[labels[train]]
    left, sizes, right = np.linalg.svd(inputs["train"], full_matrices=False)
    onto, offset = left.T @ (targets - targets.mean(axis=0)), targets.mean(axis=0)

    def logits(name: str, penalty: float) -> Floats:
        shrunk = sizes / (sizes**2 + penalty * len(train))
        return inputs[name] @ (right.T @ (shrunk[:, None] * onto)) + offset

    scores = [(logits("val", penalty).argmax(axis=1) == labels[val]).mean() for penalty in PENALTIES]
    return logits("asked", PENALTIES[int(np.argmax(scores))]).argmax(axis=1)


def word_figures(rows: WordRows, pairs: Pairs, names: Mapping[str, Tensor], config: Probes) -> dict[str, Any]:
    """Figures by place and word, and what they are made of.

    Probes are fitted on relational prompts. `accuracy` is on those of held-out groups; `controls` are the same with labels
    permuted (`shuffled`) and a linear probe on the embeddings of the two names (`names`); `selectivity` is accuracy less the
    stronger of these, with a 95 % interval by bootstrap over groups. `prompts` tells, on the same images, what the answers name
    under true, wrong and neutral prompts (`word_trace`): under a wrong one the prompt's relation or the image's.
    `gains[word]` `[places, fits · test rows]` is right or wrong, less that of the stronger control; `groups` that of each row.
    """
    groups, told = Groups.of(pairs, config.folds), np.flatnonzero(rows.conditions == "relational")
    named = torch.stack([torch.cat([names[name] for name in pair]) for pair in pairs.names]).double().numpy()
    embedded = named[pairs.of_row[rows.triples]]
    parts = [split(pairs, groups, config.folds, config.seed, repeat) for repeat in range(config.seeds)]
    places = [{part: told[each.rows(rows.triples[told], part)] for part in ("train", "val", "test")} for each in parts]
    every = [each.rows(rows.triples, "test") for each in parts]
    tested = np.concatenate([each["test"] for each in places])
    by_names = np.concatenate([ridge(embedded, rows.labels, p["train"], p["val"], p["test"]) for p in places])
    right_by_names = (by_names == rows.labels[tested]).astype(float)
    of_group = groups.of_triple[rows.triples[tested]]
    mixed = [shuffled(rows.labels, rows.triples, each, config.seed + n) for n, each in enumerate(parts)]
    found: list[dict[str, Any]] = []
    gains: dict[str, list[Floats]] = {word: [] for word in WORDS}
    for place, vectors in enumerate(through(rows.vectors, "fitting the probes of a block", "block")):
        for word, own in vectors.items():
            there = np.flatnonzero(~np.isnan(own[:, 0]))
            answers = np.concatenate([ridge(own, rows.labels, p["train"], p["val"], p["test"]) for p in places])
            right = (answers == rows.labels[tested]).astype(float)
            chance = [
                ridge(own, labels, p["train"], p["val"], p["test"]) == labels[p["test"]]
                for labels, p in zip(mixed, places, strict=True)
            ]
            by_chance = np.concatenate(chance).astype(float)
            controls = {"shuffled": float(by_chance.mean()), "names": float(right_by_names.mean())}
            gain = right - (right_by_names if controls["names"] >= controls["shuffled"] else by_chance)
            asked = [each[np.isin(each, there)] for each in every]
            traced = np.concatenate([ridge(own, rows.labels, p["train"], p["val"], a) for p, a in zip(places, asked, strict=True)])
            low, high = interval(right, of_group, config.resamples, config.seed)
            least, most = interval(gain, of_group, config.resamples, config.seed)
            found.append({
                "word": word, "block": place - 1, "accuracy": float(right.mean()), "accuracy_low": low, "accuracy_high": high,
                "controls": controls, "selectivity": float(gain.mean()), "selectivity_low": least, "selectivity_high": most,
                "prompts": word_trace(rows, np.concatenate(asked), traced),  # type: ignore[arg-type]
            })  # fmt: skip
            gains[word].append(gain)
    return {"rows": found, "gains": {word: np.stack(each) for word, each in gains.items()}, "groups": of_group}


def gain_rows(gains: Mapping[str, Floats], of_group: Indices) -> pa.Table:
    """`gains` of `word_figures` as a table: `group`, `word`, `block` (−1 for the text encoder's output), `gain`."""
    parts = [
        pa.table({
            "group": of_group, "word": [word] * len(gain), "block": np.full(len(gain), place - 1), "gain": gain,
        })
        for word, each in gains.items() for place, gain in enumerate(each)
    ]  # fmt: skip
    return pa.concat_tables(parts)


def group_figures(
    gains: Mapping[str, Floats], of_group: Indices, blocks: Mapping[str, Sequence[int]], config: Probes
) -> list[dict[str, Any]]:
    """Selectivity by word and layer group: the mean over its blocks, with the interval of that mean."""
    found = []
    for name, indices in blocks.items():
        for word, gain in gains.items():
            inside = [index + 1 for index in indices if index + 1 < len(gain)]
            mean = gain[inside].mean(axis=0)
            low, high = interval(mean, of_group, config.resamples, config.seed)
            found.append(
                {"group": name, "word": word, "selectivity": float(mean.mean()), "selectivity_low": low, "selectivity_high": high}
            )
    return found
