#!/usr/bin/env bash
# diffusers 0.42.1 with torch 2.14.1: the double-stream blocks of a FLUX that `compile_repeated_blocks(fullgraph=True, dynamic=False)`
# compiled share one limit of compiled forms, torch's 8, and blocks whose weights are frozen count apart from the others, even where
# no gradient is taken.
#
# One would think that each block has its own limit, or, since "repeated blocks are compiled once", that freezing some of them changes
# nothing. A training that holds its first blocks fails at half as many batch sizes as one that trains all, with an error, since a
# full graph has no eager form to fall back to:
#
#   batch sizes before FailOnRecompileLimitHit, of 12
#   4 blocks trained, gradients:                 8
#   2 of 4 blocks frozen, gradients:             4
#   2 of 4 blocks frozen, without gradients:     4
#   2 of 4 blocks frozen, both at each size:     2
#
# So who leads some samples of a batch by the model's own steps (other batch sizes, without gradients) and holds blocks needs a larger
# `torch._dynamo.config.recompile_limit`.
#
# Exits non-zero if the behaviour changes.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python=${FINDINGS_PYTHON:-}
if [ -z "$python" ]; then
    python3 -m venv "$folder/venv"
    python=$folder/venv/bin/python
    "$python" -m pip install --quiet "torch==2.14.1" "diffusers==0.42.1" "transformers==5.23.0" accelerate
fi

"$python" - <<'PY'
import logging
import sys
import warnings

import torch
from diffusers import FluxTransformer2DModel

warnings.filterwarnings("ignore")
logging.disable(logging.WARNING)


def sizes_taken(frozen, modes):
    torch._dynamo.reset()
    model = FluxTransformer2DModel(
        patch_size=1, in_channels=4, num_layers=4, num_single_layers=0, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=8, pooled_projection_dim=8, axes_dims_rope=(2, 2, 4),
    )
    for block in model.transformer_blocks[:frozen]:
        block.requires_grad_(False)
    model.compile_repeated_blocks(fullgraph=True, dynamic=False, backend="eager")
    for size in range(1, 13):
        for gradients in modes:
            try:
                with torch.set_grad_enabled(gradients):
                    model(
                        hidden_states=torch.randn(size, 4, 4), encoder_hidden_states=torch.randn(size, 3, 8),
                        pooled_projections=torch.randn(size, 8), timestep=torch.ones(size),
                        img_ids=torch.zeros(4, 3), txt_ids=torch.zeros(3, 3),
                    )
            except Exception as error:
                assert type(error).__name__ == "FailOnRecompileLimitHit", error
                return size - 1
    return 12


found = [sizes_taken(0, (True,)), sizes_taken(2, (True,)), sizes_taken(2, (False,)), sizes_taken(2, (False, True))]
print(f"4 blocks trained, gradients:                 {found[0]}")
print(f"2 of 4 blocks frozen, gradients:             {found[1]}")
print(f"2 of 4 blocks frozen, without gradients:     {found[2]}")
print(f"2 of 4 blocks frozen, both at each size:     {found[3]}")
sys.exit(found != [8, 4, 4, 2])
PY
