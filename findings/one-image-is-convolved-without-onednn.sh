#!/usr/bin/env bash
# Title:    Whether oneDNN computes a 1x1 convolution depends on which axis its rows lie along, and on the number of threads
# Packages: torch 2.15.0, numpy 2.3.5
# Expected: A 1x1 convolution in float32 on a CPU is one product of matrices, so the same numbers in memory, as one tall image
#           or as many short ones, take the same kernel: oneDNN's, as convolutions do.
# Instead:  As one image it takes torch's old kernel (`_slow_conv2d_forward`) on one thread, however large it is, and on several
#           threads up to 20,480 numbers. From 16 images on it takes oneDNN's, whatever the threads.
# Seen:     2,048 rows of 96 numbers to 192, channels last, float32. One thread: 1x2048 rows _slow_conv2d_forward, 32x64 rows
#           mkldnn_convolution. Two threads: 1x2048 mkldnn_convolution, 1x192 _slow_conv2d_forward, 16x12 mkldnn_convolution
# Date:     2026-11-29
# Matters:  Linear layers of transformers and priors are such convolutions. On AMD's processors oneDNN takes half of the time of
#           MKL, by which torch multiplies matrices, so it pays to convolve; laid out as one image it was slower than before.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -c 'import ensurepip' 2>/dev/null || { apt-get update -qq && apt-get install -y -qq python3-venv; } >/dev/null
python3 -m venv "$work/venv"
echo "installing torch, which is large ..."
"$work/venv/bin/python" -m pip install -q --disable-pip-version-check torch==2.15.0 numpy==2.3.5

cd "$work"
CUDA_VISIBLE_DEVICES="" "$work/venv/bin/python" - <<'PYTHON'
import sys

import torch
from torch.nn.functional import conv2d
from torch.profiler import ProfilerActivity, profile

torch.manual_seed(0)
ONEDNN, OWN = "mkldnn_convolution", "_slow_conv2d_forward"
weight = torch.randn(192, 96, 1, 1)


def kernel(threads, images, rows):
    """Which kernel convolves `rows` rows of each image; the numbers lie in memory row by row in either case."""
    torch.set_num_threads(threads)
    x = torch.randn(images * rows, 96)
    with profile(activities=[ProfilerActivity.CPU]) as seen, torch.no_grad():
        made = conv2d(x.view(images, rows, 1, 96).permute(0, 3, 1, 2), weight)
    same = torch.allclose(made.permute(0, 2, 3, 1).reshape(-1, 192), x @ weight[:, :, 0, 0].T, atol=1e-3)
    names = {event.name.removeprefix("aten::") for event in seen.events()}
    return ([name for name in (ONEDNN, OWN) if name in names] or ["neither"])[0] if same else "wrong result"


expected = {
    (1, 1, 2048): OWN, (1, 15, 128): OWN, (1, 16, 128): ONEDNN, (1, 32, 64): ONEDNN,
    (2, 1, 2048): ONEDNN, (2, 1, 192): OWN, (2, 16, 12): ONEDNN,
}  # fmt: skip
found = {case: kernel(*case) for case in expected}
for (threads, images, rows), name in found.items():
    print(f"{threads} threads, {images:2} x {rows:4} rows: {name}")
if found != expected:
    sys.exit("the behaviour has changed")
PYTHON
