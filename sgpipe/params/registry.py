"""The sections of params.yaml and where each is defined. Named by string, so that a stage imports only what it reads."""

from importlib import import_module
from typing import Final

SECTIONS: Final[dict[str, str]] = {
    "data": "sgpipe.params.data:Data",
    "canonicalize": "sgpipe.params.canonicalize:Canonicalize",
    "curate": "sgpipe.params.curate:Curate",
    "negatives": "sgpipe.params.negatives:Negatives",
    "backbone": "sgpipe.params.backbone:Backbone",
    "cache_prompts": "sgpipe.params.cache_prompts:CachePrompts",
    "cache_latents": "sgpipe.params.cache_latents:CacheLatents",
    "graph_encoder": "sgpipe.params.graph_encoder:GraphEncoder",
    "maps": "sgpipe.params.maps:Maps",
    "saliency": "sgpipe.params.maps:Saliency",
    "saliency_noised": "sgpipe.params.maps:NoisedMaps",
    "probes": "sgpipe.params.probes:Probes",
    "graph_tokens": "sgpipe.params.graph_tokens:GraphTokens",
    "lora": "sgpipe.params.lora:Lora",
    "evaluate": "sgpipe.params.evaluate:Evaluate",
    "judge": "sgpipe.params.judge:JudgeParams",
    "statistics": "sgpipe.params.evaluate:Statistics",
    "ablation": "sgpipe.params.evaluate:Ablation",
    "report": "sgpipe.params.report:Report",
    "compute": "sgpipe.params.compute:Compute",
    "tracking": "sgpipe.params.tracking:Tracking",
}


def section_type(name: str) -> type:
    """The struct that describes section `name`."""
    module, _, attribute = SECTIONS[name].partition(":")
    return getattr(import_module(module), attribute)
