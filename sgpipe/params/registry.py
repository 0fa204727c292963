"""The sections of params.yaml and where each is defined. Named by string, so that a stage imports only what it reads."""

from importlib import import_module
from typing import Final

SECTIONS: Final[dict[str, str]] = {
    "data": "sgpipe.datasets.config:Data",
    "canonicalize": "sgpipe.datasets.config:Canonicalize",
    "curate": "sgpipe.graphs.config:Curate",
    "negatives": "sgpipe.graphs.config:Negatives",
    "backbone": "sgpipe.backbones.config:Backbone",
    "cache_prompts": "sgpipe.backbones.config:CachePrompts",
    "cache_latents": "sgpipe.backbones.config:CacheLatents",
    "graph_encoder": "sgpipe.graph_encoder.config:GraphEncoder",
    "maps": "sgpipe.attention_maps.config:Maps",
    "saliency": "sgpipe.attention_maps.config:Saliency",
    "saliency_noised": "sgpipe.attention_maps.config:NoisedMaps",
    "probes": "sgpipe.probes.config:Probes",
    "graph_tokens": "sgpipe.graph_encoder.config:GraphTokens",
    "lora": "sgpipe.arms.config:Lora",
    "train": "sgpipe.training.config:Train",
    "arms": "sgpipe.arms.config:Arms",
    "evaluate": "sgpipe.evaluation.config:Evaluate",
    "judge": "sgpipe.evaluation.config:JudgeParams",
    "statistics": "sgpipe.evaluation.config:Statistics",
    "ablation": "sgpipe.evaluation.config:Ablation",
    "report": "sgpipe.report.config:Report",
    "compute": "sgpipe.runs.config:Compute",
    "tracking": "sgpipe.tracking.config:Tracking",
}


def section_type(name: str) -> type:
    """What describes section `name`: a struct, or a class that has `decode` of its own (`arms`, whose kinds have theirs)."""
    module, _, attribute = SECTIONS[name].partition(":")
    return getattr(import_module(module), attribute)
