"""One command per stage of dvc.yaml: read parameters and what earlier stages wrote, call `sgpipe`, write outputs and metrics.

Where stages find each other's outputs, as dvc.yaml says; and how long their threads wait for one another, which is said here since
OpenMP reads it when PyTorch is loaded.
"""

import os
from pathlib import Path

if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "20000000")
"""GNU's OpenMP, which PyTorch brings on Linux, lets a thread fall asleep after 3 ms (300 000 turns) of waiting for another. Beside
any other process the other one is often away for longer, and a thread that sleeps is woken behind that process, at every operation.
Now it waits 200 ms, as LLVM's and Intel's OpenMP do (KMP_BLOCKTIME). Who sets OMP_WAIT_POLICY or GOMP_SPINCOUNT is heeded. Bits of
results depend on the number of threads, not on how they wait.
"""

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
