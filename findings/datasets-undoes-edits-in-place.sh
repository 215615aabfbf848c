#!/usr/bin/env bash
# Title:    An image that was edited in place enters a data set as it was before
# Packages: datasets 5.2.0, Pillow 13.0.0, numpy 2.4.6
# Expected: `Dataset.from_dict({"image": [image]})` holds the image that was handed to it.
# Instead:  Of an image that `Image.open(path)` made, only the path is kept, and the file is read again later. What was done to
#           the image in between by methods that work in place, as `thumbnail` and `paste` do, is gone without a word; what
#           `resize` returned is kept, since a new image knows no path.
# Seen:     resize to 32x32: the data set holds 32x32; thumbnail to 32x32: the data set holds 256x256;
#           a quarter painted white: 0 of 65,536 pixels changed in the data set
# Date:     2026-11-28
# Matters:  `thumbnail` is the usual way to bring images to one size. Loaders that resize once more hide it: the same script
#           then trains on images that were shrunk by another filter, or that keep the borders and stamps that were
#           painted over.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -c 'import ensurepip' 2>/dev/null || { apt-get update -qq && apt-get install -y -qq python3-venv; } >/dev/null
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install -q --disable-pip-version-check datasets==5.2.0 pillow==13.0.0 numpy==2.4.6

export HF_HOME="$work/hf" HF_HUB_OFFLINE=1 HF_DATASETS_DISABLE_PROGRESS_BARS=1
cd "$work"
"$work/venv/bin/python" - <<'PYTHON'
import sys

import datasets
import numpy as np
from PIL import Image

Image.fromarray(np.random.default_rng(0).integers(0, 200, (256, 256, 3), np.uint8)).save("picture.png")


def held(image):
    return datasets.Dataset.from_dict({"image": [image]})[0]["image"]


resized = held(Image.open("picture.png").resize((32, 32)))
print(f"resize to 32x32: the data set holds {resized.width}x{resized.height}")

shrunk = Image.open("picture.png")
shrunk.thumbnail((32, 32))
thumbnail = held(shrunk)
print(f"thumbnail to {shrunk.width}x{shrunk.height}: the data set holds {thumbnail.width}x{thumbnail.height}")

painted = Image.open("picture.png")
painted.paste((255, 255, 255), (0, 0, 128, 128))
changed = (np.asarray(held(painted)) != np.asarray(Image.open("picture.png"))).any(-1)
print(f"a quarter painted white: {changed.sum():,} of {changed.size:,} pixels changed in the data set")

if resized.size != (32, 32) or thumbnail.size != (256, 256) or changed.any():
    sys.exit("the behaviour has changed: resized images or those edited in place are held otherwise than described above")
PYTHON
