#!/usr/bin/env bash
# Title:    The Trainer of denoising-diffusion-pytorch squeezes images that are not square, and crops nothing
# Packages: denoising-diffusion-pytorch 2.3.4, torch 2.15.0, numpy 2.4.6
# Expected: Its data set resizes, then takes a centre crop: a photograph 200 wide and 100 high becomes the middle square of
#           its scaled self, and a disc in it stays a disc.
# Instead:  `GaussianDiffusion(image_size=64)` keeps the size as a pair, the Trainer hands the pair to torchvision's Resize, and
#           Resize scales to a pair without regard to proportions (to a single number it would scale the shorter side). The centre crop
#           after it finds an image that is already square. The same data set given the number crops.
# Seen:     a disc of 79 pixels in an image 200 wide and 100 high, shown at 64x64: by the Trainer 51 high and 25 wide, by the
#           data set with the number 51 high and 51 wide
# Date:     2026-11-28
# Matters:  Whoever points it at a folder of photographs learns and samples squeezed ones, without a word in the log; distances to
#           square crops, the usual reference, are then those of the squeezing. Crop before.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -c 'import ensurepip' 2>/dev/null || { apt-get update -qq && apt-get install -y -qq python3-venv; } >/dev/null
python3 -m venv "$work/venv"
echo "installing torch, which is large ..."
"$work/venv/bin/python" -m pip install -q --disable-pip-version-check torch==2.15.0 denoising-diffusion-pytorch==2.3.4 numpy==2.4.6

cd "$work"
CUDA_VISIBLE_DEVICES="" "$work/venv/bin/python" - <<'PYTHON'
import sys
from pathlib import Path

import numpy as np
from denoising_diffusion_pytorch import GaussianDiffusion, Trainer, Unet
from PIL import Image

rows, columns = np.mgrid[:100, :200]
image = np.full((100, 200, 3), 255, np.uint8)
image[(rows - 50) ** 2 + (columns - 100) ** 2 < 40**2] = 0
Path("images").mkdir()
for index in range(100):  # the least that the Trainer takes
    Image.fromarray(image).save(f"images/{index:03d}.png")


def disc(images):
    """Height and width of the dark disc in the first image."""
    dark = images[0][0].numpy() < 0.5
    return int(dark.any(1).sum()), int(dark.any(0).sum())


diffusion = GaussianDiffusion(Unet(dim=8), image_size=64)
trainer = Trainer(diffusion, "images", calculate_fid=False)
seen = {"by the Trainer": disc(trainer.ds), "by its data set, given a number": disc(type(trainer.ds)("images", 64))}
for name, (height, width) in seen.items():
    print(f"{name}: the disc is {height} high and {width} wide")
if seen != {"by the Trainer": (51, 25), "by its data set, given a number": (51, 51)}:
    sys.exit("the behaviour has changed: expected was a disc of 51x25 by the Trainer, of 51x51 by its data set, given a number")
PYTHON
