#!/usr/bin/env bash
# Title:    The README's remedy for unused codes makes half of the codebook raw latents of the last batch, at every step
# Packages: vector-quantize-pytorch 1.32.0, torch 2.15.0, numpy 2.4.6
# Expected: `threshold_ema_dead_code=2` with `kmeans_init=True`, as the README recommends, replaces the few codes that no latent
#           chooses, and stops once all are in use.
# Instead:  The threshold is a number of latents, not a share. A code is dead while the running mean of its latents per step is below
#           2, and comes back with a count of just 2, so that it is dead again after the next step unless twice as many chose it. With
#           fewer than 2 K latents in a batch not all codes can be above: replacement never ends, and nothing warns.
# Seen:     K 512, 16 dimensions, normal latents, decay 0.8; codes replaced per step, mean of steps 251 to 300, and squared error of
#           other latents afterwards, with the threshold 2 and with 0:
#             256 latents a step: 182.0 codes (error 0.606 and 0.580); 512: 250.6 (0.586, 0.559); 1,024: 122.8 (0.565, 0.545);
#             4,096: 0.0 (0.542, 0.542)
# Date:     2026-11-29
# Matters:  A batch of 8 images with 8x8 codes has 512 latents: half of its 512 codes are noise of one batch whenever weights are
#           saved, and the codes of one image change from step to step. Scale the threshold to latents / K, such as a tenth of it.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -c 'import ensurepip' 2>/dev/null || { apt-get update -qq && apt-get install -y -qq python3-venv; } >/dev/null
python3 -m venv "$work/venv"
echo "installing torch, which is large ..."
"$work/venv/bin/python" -m pip install -q --disable-pip-version-check torch==2.15.0 vector-quantize-pytorch==1.32.0 numpy==2.4.6

cd "$work"
CUDA_VISIBLE_DEVICES="" "$work/venv/bin/python" -W ignore - <<'PYTHON'
import sys

import torch
from vector_quantize_pytorch import VectorQuantize

K, D, STEPS, LAST, PLACES = 512, 16, 300, 50, 64
torch.set_num_threads(1)


def trained(threshold, images):
    """Mean number of codes that equal a latent of the batch after a step, over the last steps; and the error of other latents."""
    torch.manual_seed(0)
    made = VectorQuantize(dim=D, codebook_size=K, kmeans_init=True, threshold_ema_dead_code=threshold, rotation_trick=False)
    rng, replaced = torch.Generator().manual_seed(1), 0
    other = torch.randn(64, PLACES, D, generator=rng)
    for step in range(STEPS):
        latents = torch.randn(images, PLACES, D, generator=rng)
        made(latents)
        if step >= STEPS - LAST:
            nearest = torch.cdist(made.codebook.detach(), latents.flatten(0, 1)).amin(1)
            replaced += int((nearest < 1e-6).sum())
    quantized, _, _ = made.eval()(other)
    return replaced / LAST, float((quantized - other).square().mean())


seen = {}
for images in (4, 8, 16, 64):
    seen[images] = trained(2, images), trained(0, images)
    (replaced, error), (_, plain) = seen[images]
    print(f"{PLACES * images} latents a step, K {K}: {replaced:.1f} codes replaced at each step; error {error:.3f}, without the remedy {plain:.3f}")
few, enough = seen[8], seen[64]
if not (few[0][0] > K / 4 and few[0][1] > 1.03 * few[1][1] and enough[0][0] < 1):
    sys.exit("the behaviour has changed: expected were a quarter of the codes or more replaced at each step with K latents in a batch, "
             "and none with 8 K")
PYTHON
