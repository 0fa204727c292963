#!/usr/bin/env bash
# PyTorch 2.14.1, CPU, float32: the bits of torch.nn.functional.linear on an input that is not contiguous depend on whether its weight
# has requires_grad, even within torch.no_grad().
#
#   frozen weight equals trainable weight, permuted input:    False, largest difference 1.9e-06
#   frozen weight equals trainable weight, contiguous input:  True
#
# So a model that is frozen for LoRA (requires_grad_(False)) does not give the bits of the same model before, where a layer takes a
# permuted tensor: Krea 2 in diffusers 0.42.1 has such a one, the projector of its text fusion. A test of equality with a pipeline has to
# freeze the pipeline's weights as well.
#
# Exits non-zero if the behaviour changes.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python=${FINDINGS_PYTHON:-}
if [ -z "$python" ]; then
    python3 -m venv "$folder/venv"
    python=$folder/venv/bin/python
    "$python" -m pip install --quiet "torch==2.14.1" numpy
fi

"$python" - <<'PY'
import sys

import torch
from torch.nn.functional import linear

torch.manual_seed(0)
permuted, weight = torch.randn(3, 15, 12, 8).permute(0, 1, 3, 2), torch.randn(1, 12)
found = []
with torch.no_grad():
    for name, given in (("permuted", permuted), ("contiguous", permuted.contiguous())):
        frozen, trainable = linear(given, weight), linear(given, weight.clone().requires_grad_())
        found.append(torch.equal(frozen, trainable))
        print(f"frozen weight equals trainable weight, {name} input: {found[-1]}, {(frozen - trainable).abs().max().item():.1e}")
if found != [False, True]:
    sys.exit("the behaviour has changed; expected [False, True]")
PY
