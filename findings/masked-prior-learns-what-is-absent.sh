#!/usr/bin/env bash
# Title:    The masked-token wrapper of x-transformers, as it comes, trains the model away from its data
# Packages: x-transformers 2.31.10, torch 2.15.0, numpy 2.4.6
# Expected: `NonAutoregressiveWrapper` (MaskGIT) returns a loss whose descent makes the masked codes likely. Its weights of the
#           loss, on unless they are switched off, are those of masked diffusion (Sahoo et al. 2024, arXiv 2406.07524, eq. 10):
#           with the part m of the codes masked, linear schedule, the cross entropy counts 1/m.
# Instead:  Equation 10 multiplies its negative weight with the log-likelihood, the wrapper multiplies it with the cross entropy.
#           The sign is turned, so descent makes the data unlikely, without bound. The sizes are turned too: -1/(1-m).
#           With `use_simple_mdlm_loss_weight=False` it learns.
# Seen:     weights for m = 0.9, 0.5, 0.1: -10.0, -2.0, -1.1 (the equation: 1.1, 2.0, 10.0);
#           200 steps on one grid of 16 codes (untrained, the cross entropy of its codes is 2.89; chance is 6 % right):
#           as it comes: the loss falls from -11 to -101, the cross entropy rises to 13.8, 0 % of the drawn codes are right;
#           weights off: the cross entropy falls to 0.03, 100 % right
# Date:     2026-11-29
# Matters:  The curve of the loss falls as that of a good training does, and a checkpoint that is chosen by it is the worst one. The
#           samples are valid codes that the data never have at their places, so the tokenizer or the metric gets the blame.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -c 'import ensurepip' 2>/dev/null || { apt-get update -qq && apt-get install -y -qq python3-venv; } >/dev/null
python3 -m venv "$work/venv"
echo "installing torch, which is large ..."
"$work/venv/bin/python" -m pip install -q --disable-pip-version-check torch==2.15.0 x-transformers==2.31.10 numpy==2.4.6

cd "$work"
CUDA_VISIBLE_DEVICES="" "$work/venv/bin/python" -W ignore - <<'PYTHON'
import random
import sys

import torch
from torch.nn.functional import cross_entropy
from x_transformers import Encoder, NonAutoregressiveWrapper, TransformerWrapper

torch.set_num_threads(1)
MASK = 16
grid = torch.arange(16)[None]  # the only image of the data: 4x4 codes, each code of the codebook at one place


def wrapped(**options):
    torch.manual_seed(0)
    random.seed(0)  # the wrapper draws from both
    layers = Encoder(dim=32, depth=2, heads=2, attn_dim_head=16)
    return NonAutoregressiveWrapper(
        TransformerWrapper(num_tokens=MASK + 1, max_seq_len=16, attn_layers=layers), mask_id=MASK, **options
    )


@torch.no_grad()
def of_the_data(model):
    """Cross entropy in nats of the grid's codes when all are masked, computed without the wrapper."""
    model.eval()
    value = float(cross_entropy(model.net(torch.full((1, 16), MASK))[0], grid[0]))
    model.train()
    return value


def trained(**options):
    """First and last loss, cross entropy before and after, share of the drawn codes that are right."""
    model = wrapped(**options)
    adam = torch.optim.Adam(model.parameters(), lr=1e-3)
    before, losses = of_the_data(model), []
    for _ in range(200):
        loss = model(grid.expand(32, -1)).loss
        adam.zero_grad()
        loss.backward()
        adam.step()
        losses.append(loss.item())
    right = (model.generate(batch_size=64) == grid).float().mean().item()
    return losses[0], losses[-1], before, of_the_data(model), right


masked = torch.tensor([0.9, 0.5, 0.1])
weights = wrapped().loss_weight_fn(1 - masked)  # the wrapper's time runs from all masked to none
print("masked parts 0.9, 0.5, 0.1: weights", [round(w, 1) for w in weights.tolist()],
      "of equation 10", [round(w, 1) for w in (1 / masked).tolist()])  # fmt: skip

runs = {"as it comes": trained(), "weights off": trained(use_simple_mdlm_loss_weight=False)}
for name, (first, last, before, after, right) in runs.items():
    print(f"{name}: loss {first:.1f} to {last:.1f}, cross entropy {before:.2f} to {after:.2f}, {right:.0%} right")

first, last, before, after, right = runs["as it comes"]
*_, learned, plain_right = runs["weights off"]
away = last < first < 0 and after > 1.5 * before and right < 0.02
turned = torch.allclose(weights, -1 / (1 - masked), rtol=1e-3)
if not away or not turned or learned > 0.2 or plain_right < 0.9:
    sys.exit("the behaviour has changed: with its weights the wrapper was expected to leave the data, without them to learn them")
PYTHON
