"""reconstruction: dataset, tokenizer -> artifacts/reconstruction/, metrics and pictures of the reconstructions

Measures how much of an image the codes keep, and whether the autoencoder or the quantization loses the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import UInt8
from pydantic import Field

from tessera import scores
from tessera.core import files
from tessera.core.contracts import Device, Tokenizer
from tessera.core.params import Strict
from tessera.core.run import SPLITS, Run
from tessera.images import arrays, pictures
from tessera.runtime.stage import enter

SHOWN, COLUMNS = 48, 12
PICTURES = ("psnr_db", "psnr_db_per_image", "ssim", "ssim_gaussian")  # scores of pictures


class Settings(Strict):
    batch_size: int = Field(ge=1, description="images per forward pass")


def main(run: Run) -> None:
    tokenizer, tables = run.tokenizer(), {}
    for split in SPLITS:
        tables[split] = decoded(
            tokenizer,
            run.images(split),
            run.folder("reconstruction") / f"{split}.npy",
            run.params.section("reconstruction", Settings).batch_size,
            run.runtime.device,
        ).assign(name=run.table(split)["name"], family=run.table(split)["family"])
    splits = summary(tables)
    files.write_metrics("reconstruction", metrics(splits))
    files.write_table(files.PLOTS / "reconstruction" / "splits.csv", splits)
    files.write_table(files.PLOTS / "reconstruction" / "images.csv", tables["test"])
    pairs = picture(run.images("test"), run.images("test", "reconstruction"), tables["test"])
    files.write_picture(files.PLOTS / "reconstruction" / "test.png", pairs)


def decoded(
    tokenizer: Tokenizer, pixels: UInt8[np.ndarray, "n h w c"], path: Path, batch_size: int, device: Device
) -> pd.DataFrame:
    """Write the reconstructions to `path`, batch by batch, and return the scores of each image.

    Columns: `mse` (in units of [-1,1]^2, as the loss); on 8-bit images `psnr_db` of each, `ssim` with uniform windows and
    `ssim_gaussian`; and `mse_from_z`, the error if the latents are decoded without quantization.
    """

    def both(x: torch.Tensor) -> torch.Tensor:
        latents = tokenizer.latents(x)
        z_q = tuple(level.z_q for level in tokenizer.quantize(latents))
        return torch.stack([tokenizer.decode_vectors(z_q), tokenizer.decode_vectors(latents)], dim=1)

    rows = []
    with files.streamed_array(path, pixels.shape, np.uint8) as out:
        for where, pair in arrays.map_batches(both, pixels, batch_size, device):
            quantized, continuous = arrays.to_pixels(pair[:, 0]), arrays.to_pixels(pair[:, 1])
            out[where] = quantized
            error = scores.mse(quantized, pixels[where])
            columns = {
                "mse": scores.symmetric(error),
                "psnr_db": scores.psnr_db(error),
                "ssim": scores.ssim(quantized, pixels[where]),
                "ssim_gaussian": scores.ssim_gaussian(quantized, pixels[where]),
                "mse_from_z": scores.symmetric(scores.mse(continuous, pixels[where])),
            }
            rows.append(pd.DataFrame(columns))
    return pd.concat(rows, ignore_index=True)


def summary(tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """One row per split, with both conventions of PSNR and of SSIM (`scores`): `psnr_db` of the mean MSE, `psnr_db_per_image` the
    mean over images, which is larger (Jensen); `ssim` with uniform windows, `ssim_gaussian` with Gaussian ones. `by_family`
    counts each family once: about half of the emoji are tone variants."""
    rows = []
    for split, table in tables.items():
        means = _measures(lambda values: values.mean(), table)
        by_family = _measures(partial(scores.by_family, families=list(table["family"])), table)
        from_z = {"psnr_db_from_z": _psnr(table["mse_from_z"].mean())}
        named = {f"{name}_by_family": by_family[name] for name in PICTURES}
        rows.append({"split": split, **means, **from_z, **named})
    return pd.DataFrame(rows)


def _measures(mean: Callable[[np.ndarray], float], table: pd.DataFrame) -> dict[str, float]:
    mse, psnr_db, *similar = (mean(table[name].to_numpy()) for name in ("mse", "psnr_db", "ssim", "ssim_gaussian"))
    return {"mse": mse, **dict(zip(PICTURES, (_psnr(mse), psnr_db, *similar), strict=True))}


def metrics(splits: pd.DataFrame) -> dict[str, Any]:
    """Metrics of the test split; of the validation split only those that the gate judges, since it must not see the test split."""
    test, val = (splits.set_index("split").loc[split] for split in ("test", "val"))
    by_family = {name: test[f"{name}_by_family"] for name in PICTURES}
    headline = {name: test[name] for name in ("mse", *PICTURES, "psnr_db_from_z")}
    return {"test": {**headline, "by_family": by_family}, "val": {name: val[name] for name in ("mse", *PICTURES)}}


def _psnr(mse: float) -> float:
    return float(scores.psnr_db(scores.unit(mse)))


def picture(
    originals: UInt8[np.ndarray, "n h w c"], reconstructions: UInt8[np.ndarray, "n h w c"], table: pd.DataFrame
) -> UInt8[np.ndarray, "height width c"]:
    """Originals over reconstructions, one image per family, evenly spaced, not selected by quality."""
    first = np.sort(np.unique(table["family"].to_numpy(str), return_index=True)[1])
    chosen = first[arrays.evenly(len(first), SHOWN)]
    return pictures.rows_of_pairs(originals[chosen], reconstructions[chosen], COLUMNS)


if __name__ == "__main__":
    enter(main)
