"""PSNR and SSIM of reconstructions as the authors of VQ-WAE take them: `python -m benchmarks.enlarged`, after
`dvc repro reconstruction`.

Table 2 of arXiv 2302.05917, by which tokenizers of 32x32 images are compared (SQ-VAE 26.11 dB, VQ-WAE 25.93), does not say which of
the two PSNRs it has, nor that images are enlarged. The authors' script does (github.com/VuongLong/VQ-WAE, commit b324f97,
evaluations/evaluation.py): original and reconstruction are stored as 8-bit PNG, each is enlarged to 256x256 by Pillow's `resize`
with its default filter, and the PSNR of each image is averaged; SSIM has uniform windows of 11x11 pixels on these. The default
filter is bicubic since Pillow 7.0 and was nearest-neighbour before, which leaves the PSNR of an image as it is; both are given.
What follows is written from that description, for the images of artifacts/.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial

import numpy as np
import pandas as pd
from jaxtyping import UInt8
from PIL import Image
from skimage.metrics import structural_similarity

from benchmarks.peers import positive
from tessera import scores
from tessera.core import files
from tessera.core.errors import InputError
from tessera.images import arrays
from tessera.studies.pages import markdown

SIDE, WINDOW = 256, 11
FILTERS = {"bicubic": Image.Resampling.BICUBIC, "nearest": Image.Resampling.NEAREST}


def enlarged(pixels: UInt8[np.ndarray, "h w c"], resampling: Image.Resampling) -> UInt8[np.ndarray, "256 256 3"]:
    """An image in 256x256 pixels; a grey one in three equal channels."""
    image = Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels)
    return np.asarray(image.resize((SIDE, SIDE), resampling).convert("RGB"))


def scored(
    originals: UInt8[np.ndarray, "n h w c"], again: UInt8[np.ndarray, "n h w c"], resampling: Image.Resampling
) -> tuple[float, float]:
    """Means over images of PSNR in dB and SSIM."""
    found = []
    for pair in zip(originals, again, strict=True):
        a, b = (enlarged(pixels, resampling)[None] for pixels in pair)
        similar = structural_similarity(a[0], b[0], win_size=WINDOW, channel_axis=-1, data_range=255)
        found.append((scores.psnr_db(scores.mse(a, b))[0], similar))
    psnr, ssim = np.mean(found, 0)
    return float(psnr), float(ssim)


def table(split: str, count: int) -> pd.DataFrame:
    """
    Raises:
        InputError: the images or their reconstructions are not there.
    """
    pixels = []
    for folder, stage in (("dataset", "dataset"), ("reconstruction", "reconstruction")):
        path = files.ARTIFACTS / folder / f"{split}.npy"
        if not path.exists():
            raise InputError(f"{path}: there is no such file; `dvc repro {stage}` makes it")
        pixels.append(files.load_array(path))
    where = arrays.evenly(len(pixels[0]), count)
    originals, again = (np.asarray(each[where]) for each in pixels)
    error = scores.mse(originals, again)
    own = {
        "enlarged by": "not enlarged",
        "psnr_db": float(scores.psnr_db(error.mean())),
        "psnr_db_per_image": float(scores.psnr_db(error).mean()),
        "ssim": float(scores.ssim(originals, again).mean()),
    }
    rows = [own]
    for name, resampling in FILTERS.items():
        psnr, ssim = scored(originals, again, resampling)
        rows.append({"enlarged by": name, "psnr_db_per_image": psnr, "ssim": ssim})
    return pd.DataFrame(rows).assign(images=len(originals))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.enlarged",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--split", choices=("val", "test"), default="test", help="default test")
    parser.add_argument(
        "--images", type=partial(positive, int), default=2000, help="at most, evenly spaced (default 2000)"
    )
    options = parser.parse_args(argv)
    try:
        found = table(options.split, options.images)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(markdown(found.map(lambda value: f"{value:.4g}" if isinstance(value, float) else value).replace("nan", "-")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
