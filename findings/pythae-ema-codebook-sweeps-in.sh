#!/usr/bin/env bash
# Title:    The unused codes of pythae's EMA codebook leap to 400 times the latents in the first step, and sweep back in
# Packages: pythae 0.1.2, torch 2.15.0, numpy 2.4.6
# Expected: A codebook of running means starts with counts and sums that fit together; a code that no latent of a batch chose stays
#           where it is.
# Instead:  `QuantizerEMA` starts with counts of 0 and sums of random numbers up to 1 / K. After a step the count of a code that
#           nobody chose is the smoothing term, 1e-5, so the code is its sum divided by that. Counts then grow by the same term and
#           sums decay, so all unused codes come back on straight lines through the range of the latents, and are chosen there.
#           What looks like a fault of the start is a restart of unused codes, which nothing says and nobody can switch.
# Seen:     K 256, 16 dimensions, 1,024 normal latents a step: unused codes reach 386.7 after the first step, 33.4 after 11 and 3.6
#           after 101; 197 codes are chosen in step 11. With counts of 1 and sums equal to the codebook no code is beyond 2 after any of these,
#           and in step 11 39 codes are chosen; 300 steps later 253 and 132
# Date:     2026-11-29
# Matters:  Whoever repeats pythae's EMA from its decay alone gets another method, with a codebook that collapses where pythae's does
#           not. Norms and usage of the first hundred steps are of this transient; 387 squared is beyond float16.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -c 'import ensurepip' 2>/dev/null || { apt-get update -qq && apt-get install -y -qq python3-venv; } >/dev/null
python3 -m venv "$work/venv"
echo "installing torch, which is large ..."
"$work/venv/bin/python" -m pip install -q --disable-pip-version-check torch==2.15.0 pythae==0.1.2 numpy==2.4.6

cd "$work"
CUDA_VISIBLE_DEVICES="" "$work/venv/bin/python" -W ignore - <<'PYTHON'
import sys

import torch
from pythae.models import VQVAEConfig
from pythae.models.vq_vae.vq_vae_utils import QuantizerEMA

K, D, LOOKED = 256, 16, (1, 11, 101, 301)
torch.set_num_threads(1)


def looked(fitting):
    """Step -> codes that its latents chose, and the largest number in the codebook after it."""
    torch.manual_seed(0)
    config = VQVAEConfig(input_dim=(3, 32, 32), latent_dim=D, num_embeddings=K, use_ema=True, decay=0.99)
    config.embedding_dim = D
    made, rng, seen = QuantizerEMA(config).train(), torch.Generator().manual_seed(1), {}
    if fitting:
        made.cluster_size.fill_(1.0)
        made.ema_embed.copy_(made.embeddings)
    for step in range(1, max(LOOKED) + 1):
        chosen = made(torch.randn(16, 8, 8, D, generator=rng)).quantized_indices.unique()
        if step in LOOKED:
            seen[step] = len(chosen), float(made.embeddings.abs().max())
    return seen


seen = {"as it is": looked(False), "counts and sums that fit": looked(True)}
for name, found in seen.items():
    print(f"{name}: " + "; ".join(f"step {step}: {chosen} codes chosen, the largest number {largest:.1f}"
                                  for step, (chosen, largest) in found.items()))  # fmt: skip
plain, fitting = seen.values()
if not (plain[1][1] > 300 and plain[101][1] < 5 and fitting[301][1] < 3 and plain[11][0] > 3 * fitting[11][0]):
    sys.exit("the behaviour has changed: expected were codes beyond 300 after a step, within 5 after 101, and three times as many "
             "in use after 11")
PYTHON
