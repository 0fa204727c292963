#!/usr/bin/env bash
# diffusers 0.42.1, peft 0.21.2, torch 2: `add_adapter` on a transformer in evaluation mode adds its LoRA modules
# in *training* mode, so that `lora_dropout` acts at inference. `transformer.training` stays False and tells nothing. Expected: an
# adapter added to an evaluated model evaluates.
# Seen: "model.training False, 20 modules in training mode, two forwards differ by up to 0.032"; after .eval(): equal.
# Remedy: call transformer.eval() after add_adapter. Exits non-zero if this changes.
set -euo pipefail
python=${FINDINGS_PYTHON:-}
if [ -z "$python" ]; then
  folder=$(mktemp -d)
  trap 'rm -rf "$folder"' EXIT
  python3 -m venv "$folder/venv"
  python=$folder/venv/bin/python
  "$python" -m pip install --quiet torch "diffusers==0.42.1" "peft==0.21.2" "transformers==5.23.0"
fi
"$python" - <<'PY'
import torch
from diffusers import FluxTransformer2DModel
from peft import LoraConfig

torch.manual_seed(0)
model = FluxTransformer2DModel(
    patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
    joint_attention_dim=8, pooled_projection_dim=8, axes_dims_rope=(4, 4, 8),
).eval()
model.add_adapter(LoraConfig(r=2, lora_dropout=0.5, target_modules=["to_q"], init_lora_weights=False))
given = dict(
    hidden_states=torch.randn(1, 4, 4), encoder_hidden_states=torch.randn(1, 2, 8), pooled_projections=torch.randn(1, 8),
    timestep=torch.tensor([0.5]), img_ids=torch.zeros(4, 3), txt_ids=torch.zeros(2, 3), return_dict=False,
)


def apart() -> float:
    with torch.no_grad():
        return float((model(**given)[0] - model(**given)[0]).abs().max())


training = sum(module.training for module in model.modules())
before = apart()
print(f"model.training {model.training}, {training} modules in training mode, two forwards differ by up to {before:.2g}")
model.eval()
print(f"after .eval(): {apart():.2g}")
assert not model.training and training and before > 0 and apart() == 0
PY
