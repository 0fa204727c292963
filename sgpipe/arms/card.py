"""The model card of an adapter: `README.md` with YAML in front, as model hubs read it. The same adapter gives the same bytes."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

CARD = "README.md"
LICENCES: Final = {
    "black-forest-labs/FLUX.1-schnell": "apache-2.0",
    "black-forest-labs/FLUX.2-klein-4B": "apache-2.0",
    "black-forest-labs/FLUX.2-klein-base-4B": "apache-2.0",
    "models/mini-flux": "apache-2.0",
}
"""Of the bases that NOTICE.md lists with one that leaves an adapter to its maker; of others the card says to read theirs."""

_SECTIONS = """\
# {arm}: scene-graph adapter of {base}

Says by a scene graph which object stands where. Kind `{kind}`: {parts}. Trained with sgpipe on
{names} names and the predicates {predicates}, graphs of at most {triples}; other names and predicates were not seen in training.

## Use

```python
import torch
from diffusers import {pipeline}
from sgpipe import GraphAdapter

pipe = {pipeline}.from_pretrained("{base}")
adapter = GraphAdapter.from_pretrained("path/to/this/folder").apply(pipe)
image = adapter(graph="{example}", num_inference_steps={steps}, generator=torch.Generator().manual_seed(0)).images[0]
```

`load_lora_weights` takes `pytorch_lora_weights.safetensors` alone; without its graph tokens an adapter is told no graph.

## Training

{training}

## Measured

{measured}
"""
NOT_MEASURED: Final = "Nothing yet: `sgpipe adapter card` adds the figures of an evaluation."


def card_text(about: Mapping[str, Any], pipeline: str, results: "Sequence[EvalResult]" = (), measured: str = NOT_MEASURED) -> str:
    """The card of the adapter that `about` (its `adapter.json`) describes, for a pipeline class; `results` are hubs' figures."""
    from huggingface_hub import ModelCardData

    base, train, settings = about["backbone"]["model"], about["train"], about["settings"]
    seen = about.get("trained_on") or {"names": [], "predicates": [], "triples": 0}
    lora, tokens = settings.get("lora"), settings.get("graph_tokens")
    parts = []
    if lora is not None and about["lora_modules"]:
        parts.append(
            f"LoRA of rank {lora['rank']} and α {lora['alpha']:g} on {about['lora_modules']} projections of blocks {lora['blocks']}"
        )
    if tokens is not None:
        parts.append(f"graph tokens of layout `{tokens['layout']}`")
    names, predicates = seen["names"], seen["predicates"]
    subject, object_ = (names[0], names[-1]) if len(names) > 1 else ("dog", "cat")
    example = f"{subject}, {predicates[0] if predicates else 'left of'}, {object_}"
    rows = {
        "losses": ", ".join(f"{name} {_weight(term):g}" for name, term in train["losses"].items() if _weight(term)),
        "times": f"{train['times']['low']:g} to {train['times']['high']:g}, where it works in sampling"
        if train["active_timesteps"] == "trained"
        else "all",
        "epochs, batch size, seed": f"{train['epochs']}, {train['batch_size']}, {train['seed']}",
        "learning rate": f"{train['optimiser']['learning_rate']:g}",
        "resolution": f"{about['backbone']['resolution']} pixels",
    }
    data = ModelCardData(
        base_model=base,
        library_name="diffusers",
        license=LICENCES.get(base, "unknown"),
        pipeline_tag="text-to-image",
        tags=["text-to-image", "lora", "scene-graph", "diffusers", "sgpipe"],
        model_name=about["arm"],
        eval_results=list(results) or None,
    )
    body = _SECTIONS.format(
        arm=about["arm"],
        base=base,
        kind=about["kind"],
        parts=" and ".join(parts) or "see adapter.json",
        names=len(names),
        predicates=", ".join(predicates) or "of its training",
        triples=f"{seen['triples']} {'triple' if seen['triples'] == 1 else 'triples'}",
        pipeline=pipeline,
        example=example,
        steps=train["times"]["steps"],
        training="\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())]),
        measured=measured,
    )
    licence = (
        ""
        if base in LICENCES
        else "\nThe licence of the base holds for what is derived from it: read it before you publish this.\n"
    )
    return f"---\n{data.to_yaml()}\n---\n\n{body}{licence}"


def _weight(term: Any) -> float:
    return float(term["weight"] if isinstance(term, Mapping) else term)
