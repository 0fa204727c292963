#!/usr/bin/env bash
# diffusers 0.42.1: `apply_layer_skip` on FLUX hands the image's rows on as text and the text's as image, and raises nothing.
#
# A well-informed guess: LayerSkipConfig(indices=[i], fqn="transformer_blocks") leaves block i out, so that its inputs go on as they are.
# Seen: TransformerBlockSkipHook always returns (hidden_states, encoder_hidden_states), while a FluxTransformerBlock returns them the
# other way round (as TransformerBlockRegistry says: return_hidden_states_index 1). From the skipped block on the two streams are
# exchanged; the transformer's output then has as many rows as the *text* had.
# Output: rows of the velocity: 6 of 6 without, 4 of 6 with the skipped block (the text has 4)
# Exits with 1 if the behaviour changes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if [ -z "${FINDINGS_PYTHON:-}" ]; then
    python3 -m venv "$work/venv"
    "$work/venv/bin/pip" install --quiet torch==2.14.1 diffusers==0.42.1
    FINDINGS_PYTHON="$work/venv/bin/python"
fi
cd "$work"
"$FINDINGS_PYTHON" - <<'PYTHON'
import sys

import torch
from diffusers import FluxTransformer2DModel
from diffusers.hooks import LayerSkipConfig, apply_layer_skip

model = FluxTransformer2DModel(
    in_channels=4, num_layers=2, num_single_layers=1, attention_head_dim=8, num_attention_heads=2, joint_attention_dim=12,
    pooled_projection_dim=6, axes_dims_rope=(2, 2, 4),
)


def rows() -> int:
    with torch.no_grad():
        return model(
            hidden_states=torch.randn(1, 6, 4), encoder_hidden_states=torch.randn(1, 4, 12), pooled_projections=torch.randn(1, 6),
            timestep=torch.ones(1), img_ids=torch.zeros(6, 3), txt_ids=torch.zeros(4, 3),
        ).sample.shape[1]


before = rows()
apply_layer_skip(model, LayerSkipConfig(indices=[1], fqn="transformer_blocks"))
after = rows()
print(f"rows of the velocity: {before} of 6 without, {after} of 6 with the skipped block (the text has 4)")
sys.exit(0 if (before, after) == (6, 4) else 1)
PYTHON
