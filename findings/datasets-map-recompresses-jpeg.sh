#!/usr/bin/env bash
# Title:    A `map` that only looks at an image compresses it again
# Packages: datasets 5.2.0, Pillow 13.0.0, numpy 2.4.6
# Expected: `data.map(lambda row: {"width": row["image"].width})` adds a column and leaves the images as they are, as it
#           leaves every other column and as `filter` does with the same function.
# Instead:  Where the table holds JPEG bytes, as Parquet files of images do, an image that the function reads is
#           decoded, and written to the new table as a JPEG of Pillow's default quality, 75. Reading it is enough, nothing warns.
#           `filter`, and `map` with `input_columns`, hand the bytes on as they are.
# Seen:     source: 28,701 bytes; map reading the label: same bytes; filter reading the image: same bytes;
#           map with input_columns: same bytes; map reading the image: 9,024 bytes, 33.3 dB from the source
# Date:     2026-11-28
# Matters:  A tokenizer whose data went through such a `map` (aspect ratios, hashes, a count of colours) is trained and
#           scored on other images than its peers. An error of 33 dB is of the size of what good tokenizers lose, and the
#           blocks of 8x8 pixels that come with it become a feature of the data.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -c 'import ensurepip' 2>/dev/null || { apt-get update -qq && apt-get install -y -qq python3-venv; } >/dev/null
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install -q --disable-pip-version-check datasets==5.2.0 pillow==13.0.0 numpy==2.4.6

export HF_HOME="$work/hf" HF_HUB_OFFLINE=1 HF_DATASETS_DISABLE_PROGRESS_BARS=1
cd "$work"
"$work/venv/bin/python" - <<'PYTHON'
import io
import sys

import datasets
import numpy as np
from PIL import Image

# a photograph-like picture: smooth shades, an edge and fine grain
y, x = np.mgrid[:256, :256] / 255
shades = np.stack([x, y, (x + y) / 2], axis=-1) * 180 + 40 * ((x - 0.5) ** 2 + (y - 0.5) ** 2 < 0.1)[..., None]
grain = np.random.default_rng(0).normal(0, 6, (256, 256, 1))
buffer = io.BytesIO()
Image.fromarray((shades + grain).clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=95)
source = buffer.getvalue()

features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
rows = [{"image": {"bytes": source, "path": None}, "label": 0}]
datasets.Dataset.from_list(rows, features=features).to_parquet("images.parquet")
data = datasets.load_dataset("parquet", data_files="images.parquet", split="train")

tables = {
    "as loaded": data,
    "map reading the label": data.map(lambda row: {"twice": 2 * row["label"]}),
    "filter reading the image": data.filter(lambda row: row["image"].width > 0),
    "map with input_columns": data.map(lambda image: {"width": image.width}, input_columns="image"),
    "map reading the image": data.map(lambda row: {"width": row["image"].width}),
}


def content(table):
    return table.cast_column("image", datasets.Image(decode=False))[0]["image"]["bytes"]


def pixels(data):
    return np.asarray(Image.open(io.BytesIO(data)), np.float64)


print(f"source: {len(source):,} bytes")
for name, table in tables.items():
    held = content(table)
    error = np.mean((pixels(held) - pixels(source)) ** 2)
    print(f"{name}: " + ("same bytes" if held == source else f"{len(held):,} bytes, {10 * np.log10(255**2 / error):.1f} dB"))

changed = [name for name, table in tables.items() if content(table) != source]
if changed != ["map reading the image"]:
    sys.exit(f"the behaviour has changed: images differ from the source after: {', '.join(changed) or 'nothing'}")
PYTHON
