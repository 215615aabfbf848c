#!/usr/bin/env bash
# Title:    `amp=True` of denoising-diffusion-pytorch's Trainer, as in its README, computes in float32 on a CPU and says fp16
# Packages: denoising-diffusion-pytorch 2.3.4, accelerate 1.15.0, torch 2.15.0, numpy 2.4.6
# Expected: Without a GPU, `Trainer(amp=True)`, which means float16, is refused, warns, or computes in a type that the processor has.
# Instead:  accelerate turns autocast on for float16 only where there is an accelerator, and leaves the CPU in float32 without a word;
#           its property mixed_precision goes on to say fp16. bfloat16, which the processor can, has to be asked for by name.
# Seen:     amp=True: says fp16, the first convolution answers in float32; with mixed_precision_type="bf16": says bf16, answers in
#           bfloat16; amp=False: says no, answers in float32
# Date:     2026-11-30
# Matters:  Logs and tables of trainings on a CPU then name a precision that they did not have, and a comparison "both in mixed precision"
#           compares float32 with something else. Look at the type of an activation, not at the property.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -c 'import ensurepip' 2>/dev/null || { apt-get update -qq && apt-get install -y -qq python3-venv; } >/dev/null
python3 -m venv "$work/venv"
echo "installing torch, which is large ..."
"$work/venv/bin/python" -m pip install -q --disable-pip-version-check torch==2.15.0 denoising-diffusion-pytorch==2.3.4 accelerate==1.15.0 numpy==2.4.6

cd "$work"
CUDA_VISIBLE_DEVICES="" "$work/venv/bin/python" - <<'PYTHON'
import sys
from pathlib import Path

import numpy as np
from accelerate.state import AcceleratorState
from denoising_diffusion_pytorch import GaussianDiffusion, Trainer, Unet
from PIL import Image

Path("images").mkdir()
rng = np.random.default_rng(0)
for index in range(100):  # the least that the Trainer takes
    Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(f"images/{index:03d}.png")


def trained(**asked):
    """What the Trainer says its precision is, and the types in which the first convolution of the U-Net answered during an update."""
    AcceleratorState._reset_state(reset_partial_state=True)  # else the second Trainer would keep the precision of the first
    unet = Unet(dim=8, dim_mults=(1, 2))
    types = set()
    unet.init_conv.register_forward_hook(lambda _, given, answer: types.add(str(answer.dtype)))
    trainer = Trainer(GaussianDiffusion(unet, image_size=16), "images", train_num_steps=1, train_batch_size=16,
                      gradient_accumulate_every=1, calculate_fid=False, save_and_sample_every=10, **asked)  # fmt: skip
    trainer.train()
    return trainer.accelerator.mixed_precision, sorted(types)


seen = {
    "amp=True": trained(amp=True),
    "amp=True, mixed_precision_type='bf16'": trained(amp=True, mixed_precision_type="bf16"),
    "amp=False": trained(),
}
for asked, (said, types) in seen.items():
    print(f"{asked}: the Trainer says {said}, and the convolution answers in {', '.join(types)}")
wanted = [("fp16", ["torch.float32"]), ("bf16", ["torch.bfloat16"]), ("no", ["torch.float32"])]
if list(seen.values()) != wanted:
    sys.exit(f"the behaviour has changed: expected was {wanted}")
PYTHON
