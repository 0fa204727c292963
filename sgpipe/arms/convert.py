"""An adapter's LoRA in kohya's naming for FLUX.1, which ComfyUI and others read.

Query, key and value are one projection there (`img_attn_qkv`): with LoRA W + (α/r) B A each, the fused one has A = [A_q; A_k; A_v]
of rank 3r, B block-diagonal, and α three times as large, so that α/r stays. A projection without LoRA has zeros.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from sgpipe.arms.lora import LORA_FILE, load_tensors
from sgpipe.backbones.strict import write_tensors
from sgpipe.errors import ModelError

_DOUBLE: Final = {
    "img_attn_qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "img_attn_proj": ("attn.to_out.0",),
    "txt_attn_qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "txt_attn_proj": ("attn.to_add_out",),
}
_SINGLE: Final = {"linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"), "linear2": ("proj_out",)}
_STREAMS: Final = (("transformer_blocks", "double_blocks", _DOUBLE), ("single_transformer_blocks", "single_blocks", _SINGLE))
_MLP_RATIO = 4


def to_kohya(weights: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """`lora_unet_<module>.lora_down.weight`, `.lora_up.weight` and `.alpha` of weights as diffusers names them.

    Raises `ModelError` for a module that has no place there.
    """
    left = {name.removeprefix("transformer."): value for name, value in weights.items()}
    found: dict[str, Tensor] = {}
    for stream, theirs, modules in _STREAMS:
        for index in sorted({int(name.split(".")[1]) for name in left if name.startswith(f"{stream}.")}):
            for module, parts in modules.items():
                pairs = [[left.pop(f"{stream}.{index}.{part}.lora_{side}.weight", None) for side in "AB"] for part in parts]
                given = next((pair for pair in pairs if pair[0] is not None), None)
                if given is None or given[0] is None or given[1] is None:
                    continue
                (rank, into), out = given[0].shape, given[1].shape[0]
                widths = [out * (_MLP_RATIO if part == "proj_mlp" else 1) for part in parts]
                downs = [given[0].new_zeros(rank, into) if a is None else a for a, _ in pairs]
                ups = [given[1].new_zeros(width, rank) if b is None else b for width, (_, b) in zip(widths, pairs, strict=True)]
                key = f"lora_unet_{theirs}_{index}_{module}"
                found[f"{key}.lora_down.weight"] = torch.cat(downs)
                found[f"{key}.lora_up.weight"] = torch.block_diag(*ups)
                found[f"{key}.alpha"] = torch.tensor(alpha * len(parts))
    if left:
        raise ModelError(f"{', '.join(sorted(left)[:3])}: kohya's naming of FLUX.1 has no place for these")
    return found


def write_kohya(folder: Path, alpha: float, out: Path) -> int:
    """Write the LoRA of an adapter's folder as `out` and read it back by diffusers; how many modules it has.

    Raises `ModelError` for an adapter without LoRA, and if what diffusers reads is not the same: B A · α/r module by module.
    """
    if not (folder / LORA_FILE).is_file():
        raise ModelError(f"{folder}: has no {LORA_FILE}: nothing to convert; graph tokens have no place in that format")
    weights = load_tensors(folder / LORA_FILE)
    converted = to_kohya(weights, alpha)
    write_tensors(converted, out)
    _check(weights, alpha, out)
    return len(converted) // 3


def _check(weights: Mapping[str, Tensor], alpha: float, out: Path) -> None:
    from diffusers import FluxPipeline

    read = FluxPipeline.lora_state_dict(str(out.parent), weight_name=out.name, local_files_only=True)
    missing = weights.keys() - read.keys()
    worst = 0.0
    for name, value in read.items():
        module, _, side = name.rpartition(".lora_")
        if not side.startswith("A"):
            continue
        own = read[f"{module}.lora_B.weight"].double() @ value.double()
        if name in weights:
            down, up = weights[name].double(), weights[f"{module}.lora_B.weight"].double()
            wanted = up @ down * (alpha / len(down))
        else:
            wanted = torch.zeros_like(own)
        worst = max(worst, float((own - wanted).abs().max() / wanted.abs().max().clamp(min=1e-12)))
    if missing or worst > 1e-5:
        out.unlink()
        raise ModelError(
            f"{out}: diffusers reads another LoRA than was written (missing {len(missing)}, error {worst:.2g}); report this"
        )
