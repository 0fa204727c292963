#!/usr/bin/env bash
# diffusers 0.42.1: SD3ControlNetModel.from_transformer writes the ControlNet's sizes into the configuration of the transformer that
# it was given; FluxControlNetModel.from_transformer copies it first.
#
#   SD3:  num_layers of the transformer before and after: 3 1, blocks it has: 3, its folder loads again: False
#   FLUX: num_layers of the transformer before and after: 3 3, blocks it has: 3, its folder loads again: True
#
# The transformer goes on working, so nothing is noticed until it is saved: its config.json then names fewer blocks than its file
# has weights, and loading it raises a ValueError about shapes. `from_config({**transformer.config, …})` leaves it as it is.
#
# Exits non-zero if the behaviour changes.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python=${FINDINGS_PYTHON:-}
if [ -z "$python" ]; then
    python3 -m venv "$folder/venv"
    python=$folder/venv/bin/python
    "$python" -m pip install --quiet "diffusers==0.42.1" torch transformers safetensors
fi

cd "$folder"
"$python" - 2>/dev/null <<'PY'
import sys

from diffusers import FluxControlNetModel, FluxTransformer2DModel, SD3ControlNetModel, SD3Transformer2DModel

heads = {"attention_head_dim": 16, "num_attention_heads": 2}
shared = {"num_layers": 3, "joint_attention_dim": 24, "pooled_projection_dim": 20, **heads}
sd3 = SD3Transformer2DModel(sample_size=8, in_channels=4, out_channels=4, caption_projection_dim=32, pos_embed_max_size=8, **shared)
flux = FluxTransformer2DModel(in_channels=16, num_single_layers=1, axes_dims_rope=(4, 6, 6), **shared)
cases = {
    "SD3": (sd3, lambda: SD3ControlNetModel.from_transformer(sd3, num_layers=1, num_extra_conditioning_channels=0)),
    "FLUX": (flux, lambda: FluxControlNetModel.from_transformer(flux, num_layers=1, num_single_layers=0, **heads)),
}
found = {}
for name, (transformer, make) in cases.items():
    before = transformer.config["num_layers"]
    make()
    transformer.save_pretrained(name)
    try:
        whole = len(type(transformer).from_pretrained(name).transformer_blocks) == len(transformer.transformer_blocks)
    except ValueError:
        whole = False
    found[name] = (before, transformer.config["num_layers"], len(transformer.transformer_blocks), whole)
    print(
        f"{name + ':':<5} num_layers of the transformer before and after: {before} {found[name][1]}, "
        f"blocks it has: {found[name][2]}, its folder loads again: {whole}"
    )
expected = {"SD3": (3, 1, 3, False), "FLUX": (3, 3, 3, True)}
if found != expected:
    sys.exit(f"the behaviour has changed; expected {expected}")
PY
