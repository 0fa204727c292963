#!/usr/bin/env bash
# diffusers 0.42.1: ZImageTransformer2DModel takes n_kv_heads, writes it into its configuration, and ignores it: keys and values always
# have as many heads as queries.
#
#   n_kv_heads 1 of 2 heads: configuration says 1, to_k maps 32 to 32
#   n_kv_heads 2 of 2 heads: configuration says 2, to_k maps 32 to 32
#
# The published models have as many of both, so nothing shows. A plan of memory or of LoRA's size that believes the configuration is
# wrong for any other number.
#
# Exits non-zero if the behaviour changes.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python=${FINDINGS_PYTHON:-}
if [ -z "$python" ]; then
    python3 -m venv "$folder/venv"
    python=$folder/venv/bin/python
    "$python" -m pip install --quiet "diffusers==0.42.1" "transformers==5.23.0" "torch==2.14.1"
fi

"$python" - 2>/dev/null <<'PY'
import sys

from diffusers import ZImageTransformer2DModel

found = []
for heads in (1, 2):
    model = ZImageTransformer2DModel(
        in_channels=4, dim=32, n_layers=1, n_heads=2, n_kv_heads=heads, cap_feat_dim=24, axes_dims=[4, 6, 6], axes_lens=[64, 32, 32]
    )
    keys = model.layers[0].attention.to_k
    found.append((model.config.n_kv_heads, keys.in_features, keys.out_features))
    print(f"n_kv_heads {heads} of 2 heads: configuration says {found[-1][0]}, to_k maps {keys.in_features} to {keys.out_features}")
if found != [(1, 32, 32), (2, 32, 32)]:
    sys.exit("the behaviour has changed")
PY
