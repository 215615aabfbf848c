#!/usr/bin/env bash
# Title:    Fused attention of few places trains several times slower in bfloat16 than in float32 on a CPU
# Packages: torch 2.15.0, numpy 2.3.5
# Expected: On a processor with bfloat16 instructions (AMX) a bfloat16 step of `scaled_dot_product_attention` takes at most as
#           long as a float32 step, as matrix products and convolutions do. And what torch chooses by itself, its fused kernel, is not
#           slower than its own plain one.
# Instead:  For sequences as short as the grids of image tokenizers the fused kernel takes several times as long in bfloat16, all
#           of it in the backward pass. The plain kernel in bfloat16, which is never chosen, and float32 are both faster.
# Seen:     forward and backward of 32 images, 4 heads, 64 places (8x8 codes), 16 channels a head, one thread, medians in turns,
#           Xeon with amx_bf16: float32 1.0, bfloat16 6.5, bfloat16 by the plain kernel 1.6, as multiples of the first
# Date:     2026-11-28
# Matters:  Under autocast attention is cast to bfloat16. It took two thirds of a training step of a PixelSNAIL, which was then
#           no faster in bfloat16 than in float32; with attention alone kept in float32 it is 1.4 times as fast.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -c 'import ensurepip' 2>/dev/null || { apt-get update -qq && apt-get install -y -qq python3-venv; } >/dev/null
python3 -m venv "$work/venv"
echo "installing torch, which is large ..."
"$work/venv/bin/python" -m pip install -q --disable-pip-version-check torch==2.15.0 numpy==2.3.5

cd "$work"
CUDA_VISIBLE_DEVICES="" "$work/venv/bin/python" - <<'PYTHON'
import statistics
import sys
import time
from contextlib import nullcontext

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

torch.manual_seed(0)
torch.set_num_threads(1)
print("amx_bf16:", torch.cpu.get_capabilities().get("amx_bf16", False))


def seconds(dtype, plain=False):
    q, k, v = (torch.randn(32, 4, 64, 16, dtype=dtype, requires_grad=True) for _ in range(3))
    begun = time.process_time()
    with sdpa_kernel(SDPBackend.MATH) if plain else nullcontext():
        scaled_dot_product_attention(q, k, v, is_causal=True).sum().backward()
    return time.process_time() - begun


ways = {
    "float32": (torch.float32,), "bfloat16": (torch.bfloat16,), "bfloat16 by the plain kernel": (torch.bfloat16, True),
}  # fmt: skip
for way in ways.values():
    seconds(*way)
turns = [{name: seconds(*way) for name, way in ways.items()} for _ in range(15)]
median = {name: statistics.median(turn[name] for turn in turns) for name in ways}
ratio = {name: value / median["float32"] for name, value in median.items()}
print(*(f"{name}: {value:.1f}" for name, value in ratio.items()), sep="\n")
if ratio["bfloat16"] < 2 or ratio["bfloat16"] < 1.5 * ratio["bfloat16 by the plain kernel"]:
    sys.exit("the behaviour has changed: bfloat16 was expected to take at least twice as long as float32")
PYTHON
