#!/usr/bin/env bash
# Title:    litdata stores the indices of a palette image without the palette
# Packages: litdata 0.2.76, torch 2.15.0, torchvision 0.29.2, Pillow 13.0.0, numpy 2.4.6
# Expected: `optimize` stores an image that `Image.open` gave, and `StreamingDataset` gives the same image back, as it does for RGB,
#           RGBA and grey images; or it says that a kind of image is not supported.
# Instead:  Of an image of mode P (PNG of up to 256 colours, GIF) it stores the index of each pixel, size and mode. The palette, and
#           which entry is transparent, are left behind. What comes back is of mode P as before, and every pixel is
#           black when it is converted. Nothing warns; the same files, stored by their paths, keep their colours.
# Seen:     RGB, RGBA and grey PNG: the same pixels; palette PNG, palette PNG with transparency, GIF: all pixels black and opaque
#           (173, 134 and 173 grey levels off); the same six files stored by their paths: six with their colours
# Date:     2026-11-29
# Matters:  Emoji, icons, pixel art and logos are often palette PNGs, mixed with RGB ones in one folder. Their part of the data
#           becomes black squares, as valid as before by size and mode, which are trained on and scored; no image is easier to
#           reconstruct. `convert("RGBA")` before storing mends it.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -c 'import ensurepip' 2>/dev/null || { apt-get update -qq && apt-get install -y -qq python3-venv; } >/dev/null
python3 -m venv "$work/venv"
echo "installing torch, which is large ..."
"$work/venv/bin/python" -m pip install -q --disable-pip-version-check \
  torch==2.15.0 torchvision==0.29.2 litdata==0.2.76 pillow==13.0.0 numpy==2.4.6

cd "$work"
cat >store.py <<'PYTHON'
import sys

import numpy as np
from litdata import StreamingDataset, optimize
from PIL import Image

NAMES = ["rgb.png", "rgba.png", "grey.png", "palette.png", "palette-with-transparency.png", "palette.gif"]


def draw():
    """A red disc on yellow, or on nothing, in each of the modes."""
    y, x = np.indices((64, 64)) - 31.5
    disc = (x**2 + y**2 < 24**2)[..., None]
    on_yellow = Image.fromarray(np.where(disc, [220, 40, 60], [250, 220, 90]).astype(np.uint8))
    on_nothing = Image.fromarray((disc * [220, 40, 60, 255]).astype(np.uint8))
    images = [on_yellow, on_nothing, on_yellow.convert("L"), on_yellow.quantize(8), on_nothing.quantize(8), on_yellow.quantize(8)]
    for name, image in zip(NAMES, images, strict=True):
        image.save(name)


def pixels(image):
    return np.asarray(image.convert("RGBA")).astype(int)


def stored(function, folder):
    optimize(function, NAMES, folder, chunk_bytes="1MB", num_workers=1, keep_data_ordered=True)
    return StreamingDataset(folder)


if __name__ == "__main__":  # litdata starts workers that import this file
    draw()
    report = open("seen.txt", "w")  # stdout is litdata's, which tells its progress there
    seen = {}
    for name, back in zip(NAMES, stored(Image.open, "as-images"), strict=True):
        before = pixels(Image.open(name))
        after = pixels(back)
        shown = before[..., 3] > 0
        seen[name] = bool((before == after).all()), bool((after == [0, 0, 0, 255]).all())
        same, black = seen[name]
        off = np.sqrt(np.mean((before - after)[shown][:, :3] ** 2))
        line = f"{name}: came back as {back.mode}, same pixels {same}, all black and opaque {black}"
        print(f"{line}, {off:.0f} grey levels off", file=report)
    kept = 0
    for name, back in zip(NAMES, stored(str, "by-path"), strict=True):  # decoded to [channels, height, width]
        before = pixels(Image.open(name))
        shown = before[..., 3] > 0
        colours = np.broadcast_to(np.moveaxis(np.asarray(back)[:3], 0, -1), (*shown.shape, 3))
        kept += bool((colours[shown] == before[shown][:, :3]).all())
    print(f"stored by their paths: {kept} of {len(NAMES)} have their colours", file=report)
    report.close()
    expected = {name: (False, True) if name.startswith("palette") else (True, False) for name in NAMES}
    if seen != expected or kept != len(NAMES):
        sys.exit(f"the behaviour has changed: expected was {expected}")
PYTHON
"$work/venv/bin/python" -W ignore store.py >log.txt 2>&1 || { cat seen.txt log.txt; exit 1; }
cat seen.txt
