#!/usr/bin/env bash
# Title:    FSQ does not give its own codes back
# Packages: vector-quantize-pytorch 1.32.0, torch 2.15.0, numpy 2.4.6
# Expected: A quantizer is a projection: what it put out, put in again, comes out the same, as with nearest codes (VectorQuantize)
#           and with signs (LFQ).
# Instead:  FSQ bounds by tanh before it rounds, its own codes too. tanh(1) = 0.76, so the outer levels slide inwards. Of 3 to
#           16 levels only 3 and 5 come back whole, and each set of levels in the paper's table 1 (Mentzer et al. 2023,
#           arXiv 2309.15505) from 2^8 to 2^16 has others. `codes_to_indices`, which does not bound, gives every index back.
# Seen:     (8, 6, 5): 80 of 240 codes keep their index; (8, 5, 5, 5): 500 of 1,000; (7, 5, 5, 5, 5): 3,125 of 4,375;
#           (5, 5, 5): 125 of 125; nearest codes: 256 of 256; signs: 256 of 256; codes_to_indices: all, with every set;
#           (8, 6, 5) put in twice: 80 different codes are left, their mean size falls from 0.533 to 0.434
# Date:     2026-11-28
# Matters:  Whoever edits or mixes code vectors (interpolation, inpainting, a diffusion prior over them) and quantizes again with
#           the same module changes codes that nobody touched, always towards the middle. A test that puts codes in again
#           fails without any mistake in the tokenizer.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -c 'import ensurepip' 2>/dev/null || { apt-get update -qq && apt-get install -y -qq python3-venv; } >/dev/null
python3 -m venv "$work/venv"
echo "installing torch, which is large ..."
"$work/venv/bin/python" -m pip install -q --disable-pip-version-check torch==2.15.0 vector-quantize-pytorch==1.32.0 numpy==2.4.6

cd "$work"
CUDA_VISIBLE_DEVICES="" "$work/venv/bin/python" - <<'PYTHON'
import sys

import torch
from vector_quantize_pytorch import FSQ, LFQ, VectorQuantize

torch.manual_seed(0)


def kept(codes, quantizer):
    """How many of all codes [K,D], put in again, are given their own index."""
    return int((quantizer(codes[None])[1].flatten() == torch.arange(len(codes))).sum())


seen, by_lookup = {}, {}
with torch.no_grad():
    for levels in [(8, 6, 5), (8, 5, 5, 5), (7, 5, 5, 5, 5), (5, 5, 5)]:
        fsq = FSQ(list(levels)).eval()
        indices = torch.arange(fsq.codebook_size)
        codes = fsq.indices_to_codes(indices)
        seen[levels] = kept(codes, fsq), len(codes)
        by_lookup[levels] = bool((fsq.codes_to_indices(codes) == indices).all())
    vq = VectorQuantize(dim=8, codebook_size=256).eval()
    seen["nearest codes"] = kept(vq.codebook, vq), 256
    lfq = LFQ(dim=8, codebook_size=256).eval()
    seen["signs"] = kept(lfq.indices_to_codes(torch.arange(256)), lfq), 256

    fsq = FSQ([8, 6, 5]).eval()
    codes = fsq.indices_to_codes(torch.arange(240))[None]
    for passes in range(3):
        print(f"(8, 6, 5) put in {passes} times: {len(codes[0].unique(dim=0))} different codes, mean size {codes.abs().mean():.3f}")
        codes = fsq(codes)[0]
    whole = [n for n in range(3, 17) if kept((fsq := FSQ([n, 5]).eval()).indices_to_codes(torch.arange(5 * n)), fsq) == 5 * n]

for name, (same, of) in seen.items():
    print(f"{name}: {same:,} of {of:,} codes keep their index")
print(f"numbers of levels, of 3 to 16, that come back whole: {whole}")
print(f"by codes_to_indices every index comes back: {all(by_lookup.values())}")

expected = {(8, 6, 5): (80, 240), (8, 5, 5, 5): (500, 1000), (7, 5, 5, 5, 5): (3125, 4375), (5, 5, 5): (125, 125),
            "nearest codes": (256, 256), "signs": (256, 256)}  # fmt: skip
if seen != expected or whole != [3, 5] or not all(by_lookup.values()):
    sys.exit(f"the behaviour has changed: expected was {expected}")
PYTHON
