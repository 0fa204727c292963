"""One command per stage of dvc.yaml: read parameters and what earlier stages wrote, call `sgpipe`, write outputs and metrics.

Where stages find each other's outputs, as dvc.yaml says.
"""

from pathlib import Path

CANONICAL = Path("outputs/canonical")
TRIPLES_FILE = Path("outputs/curated/triples.parquet")
MAP_TRIPLES_FILE = Path("outputs/curated/map_triples.parquet")
NEGATIVES_FILE = Path("outputs/negatives/negatives.parquet")
PROMPTS = Path("outputs/prompts")
LATENTS = Path("outputs/latents")
SALIENCY = Path("outputs/saliency")
SALIENCY_NOISED = Path("outputs/saliency_noised")
PROBES = Path("outputs/probes")
RESOLVED = Path("outputs/resolved")
SGDIFF = Path("outputs/sgdiff")
LORA = Path("outputs/lora")
IMAGES = Path("outputs/images")
JUDGED = Path("outputs/judged")
EVALUATION = Path("outputs/evaluation")
METRICS = Path("metrics")
PLOTS = Path("plots")
