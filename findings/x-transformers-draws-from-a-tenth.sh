#!/usr/bin/env bash
# Title:    At temperature 1 and the defaults, samples are drawn from a tenth of the codes; of ten codes or fewer, always the likeliest
# Packages: x-transformers 2.31.10, torch 2.15.0
# Expected: `AutoregressiveWrapper.generate(start, n)` at its default temperature of 1 draws from the distribution that was learned.
# Instead:  `filter_logits_fn` is `top_k` by default, with k a tenth of the vocabulary, rounded up. All other codes are never drawn, however
#           probable they are together. With at most ten codes k is 1: "sampling" is the arg max, and every sample is the same.
# Seen:     a model trained on codes that are uniform and independent; distinct next codes among 20,000 draws after one start token,
#           by the defaults, and with filter_kwargs=dict(frac_num_tokens=1.0):
#             256 codes: 26, which have 12.3 % of the learned probability; 256
#             10 codes: 1; 10
# Date:     2026-11-30
# Matters:  A prior over image codes has a flat distribution: here nine tenths of what it learned cannot be drawn, and likelihoods
#           say nothing about such samples. Pass the fraction 1.0 for the model's own distribution.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -c 'import ensurepip' 2>/dev/null || { apt-get update -qq && apt-get install -y -qq python3-venv; } >/dev/null
python3 -m venv "$work/venv"
echo "installing torch, which is large ..."
"$work/venv/bin/python" -m pip install -q --disable-pip-version-check torch==2.15.0 x-transformers==2.31.10

cd "$work"
CUDA_VISIBLE_DEVICES="" "$work/venv/bin/python" -W ignore - <<'PYTHON'
import math
import sys

import torch
from x_transformers import AutoregressiveWrapper, Decoder, TransformerWrapper

LENGTH, STEPS, DRAWS = 16, 200, 20_000
torch.set_num_threads(1)


def trained(codes):
    """A small prior of independent, uniform codes, each sequence after code 0 as a start."""
    torch.manual_seed(0)
    network = TransformerWrapper(num_tokens=codes, max_seq_len=LENGTH, attn_layers=Decoder(dim=32, depth=1, heads=2))
    prior = AutoregressiveWrapper(network)
    optimizer = torch.optim.Adam(prior.parameters(), lr=3e-3)
    for _ in range(STEPS):
        sequences = torch.randint(codes, (64, LENGTH))
        sequences[:, 0] = 0
        optimizer.zero_grad()
        prior(sequences).backward()
        optimizer.step()
    return prior.eval()


def seen(codes):
    prior, start = trained(codes), torch.zeros(DRAWS, 1, dtype=torch.long)
    with torch.no_grad():
        learned = prior.net(start[:1])[0, -1].softmax(0)
    torch.manual_seed(1)
    default = prior.generate(start, 1).unique()
    whole = prior.generate(start, 1, filter_kwargs={"frac_num_tokens": 1.0}).unique()
    print(f"{codes} codes: {len(default)} are drawn by default, with {100 * float(learned[default].sum()):.1f} % of the learned probability; "
          f"{len(whole)} of the model's own distribution")
    return len(default), len(whole)


many, few = seen(256), seen(10)
if not (many[0] == math.ceil(25.6) and many[1] > 250 and few == (1, 10)):
    sys.exit("the behaviour has changed: expected were 26 of 256 codes and 1 of 10")
PYTHON
