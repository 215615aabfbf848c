"""Tables of tokenizers, everything else fixed: `python -m studies.tokenizers TABLE [ROW ...]`.

Each row is params.yaml with a few other values, trained on the data set and judged by the extractor that
`dvc repro extractor` left in artifacts/. One CSV row per run goes to docs/results/TABLE.csv, which replaces the same run's
older row; `--show` prints the file as a Markdown table, mean and standard deviation over seeds. Scores are of the
validation split, so that choosing by these tables leaves the test split alone; the CIFAR-10 table has test columns too,
since the published one has.
"""

from __future__ import annotations

import argparse
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from stages import tokenizer as step
from studies import tables
from tessera import presets
from tessera.codes import statistics
from tessera.core import files, models
from tessera.core.params import Params, read
from tessera.core.run import Run
from tessera.evaluation.frechet import distance
from tessera.images import arrays, pictures, scores
from tessera.runtime.devices import Runtime
from tessera.training.loop import Fitted

SHORT = {"tokenizer.training.epochs": 30, "tokenizer.snapshot_epochs": [0]}  # the default schedule has 100
VAE = {"tokenizer.name": "vae", "tokenizer.vae.kl_weight": 0.002}


def quantizer(name: str, **values: Any) -> dict[str, Any]:
    shared = {"estimator", "distance", "beta", "codebook_size", "code_dim", "restart"}
    return {"quantizer.name": name} | {
        f"quantizer.{key}" if key in shared else f"quantizer.{name}.{key}": value for key, value in values.items()
    }


EIGHTH = {  # of the presets' 100 epochs, as a CPU bears them; in bfloat16, about twice as fast where it has AMX
    "tokenizer.training.epochs": 12,
    "tokenizer.training.precision": "bf16",
    "tokenizer.snapshot_epochs": [0, 3, 6, 9, 12],
}
HALF = EIGHTH | {"tokenizer.training.epochs": 50, "tokenizer.snapshot_epochs": [0, 12, 25, 37, 50]}
UNIFORM = {"quantizer.initialisation": "uniform"}
BETAS = (0.1, 0.25, 0.5, 1.0, 2.0)
TABLES: dict[str, dict[str, dict[str, Any]]] = {
    "quantizers": {
        "ema": quantizer("ema"),
        "ema, rotation": quantizer("ema", estimator="rotation"),
        "ema, cosine": quantizer("ema", distance="cosine"),
        "ema, rotation, cosine": quantizer("ema", estimator="rotation", distance="cosine"),
        "gradient": quantizer("gradient"),
        "gradient, rotation": quantizer("gradient", estimator="rotation"),
        "simvq": quantizer("simvq"),
        "simvq, rotation": quantizer("simvq", estimator="rotation"),
        "fsq 8x6x5": quantizer("fsq"),
        "lfq": quantizer("lfq"),
        "residual 2 x 16": quantizer("residual", codebook_size=16),
        "residual 2 x 16, rotation": quantizer("residual", codebook_size=16, estimator="rotation"),
        "vae, kmeans": VAE | quantizer("kmeans"),
        "vae, geodesic": VAE | quantizer("geodesic"),
    },
    "losses": {
        "mse": {},
        "mse + ssim": {"losses.ssim.weight": 0.1},
        "mse + ssim + perceptual": {"losses.ssim.weight": 0.1, "losses.perceptual.weight": 0.1},
    },
    "sizes": {size: presets.overrides(f"vqvae-{size}") for size in ("small", "medium", "large", "xlarge")},
    "precision": {"float32": {}, "bfloat16": {"tokenizer.training.precision": "bf16"}},
    "cifar10": {
        f"beta {beta}": presets.overrides("rotation-cifar10") | EIGHTH | {"quantizer.beta": beta}
        for beta in BETAS
    },
    "cifar10-uniform": {
        f"beta {beta}": presets.overrides("rotation-cifar10") | EIGHTH | UNIFORM | {"quantizer.beta": beta}
        for beta in BETAS
    },
    "cifar10-long": {"50 epochs": presets.overrides("rotation-cifar10") | HALF},
    "cifar10-sizes": {
        size: presets.overrides("rotation-cifar10" + suffix) | EIGHTH
        for size, suffix in {"small": "-small", "medium": "", "large": "-large", "xlarge": "-xlarge"}.items()
    },
}  # fmt: skip


def run_row(table: str, name: str, seed: int, threads: int) -> dict[str, Any]:
    raw = read()
    short = {} if table.startswith("cifar10") else SHORT
    raw = presets.applied(raw, {**short, **TABLES[table][name], "seed": seed, "runtime.threads": threads})
    params = Params(raw)
    run = Run(params, runtime=Runtime(params.runtime))
    recipe = models.tokenizer_recipe(params, run.image_shape)
    data = step.Data.of(run)
    objective = step.objective(recipe, run)
    fitted = step.train(objective, data, run)
    tokenizer = step.with_codebook(objective.tokenizer, recipe, data, run)
    row = {"row": name, "seed": seed, "epochs": params.value("tokenizer.training").epochs, "kept_epoch": fitted.epoch,
           "parameters": sum(p.numel() for p in tokenizer.parameters())}  # fmt: skip
    if table.startswith("cifar10"):
        path = tables.FOLDER / f"{table}-{name.replace(' ', '-')}.png"
        files.write_picture(path, by_epoch(fitted, data))
        for split in ("train", "test"):
            row |= {f"{split}_{key}": value for key, value in published(tokenizer, run.images(split), params).items()}
        return row
    return row | judged(tokenizer, run)


@torch.no_grad()
def judged(tokenizer: nn.Module, run: Run) -> dict[str, float]:
    """Of the validation split: codes over all of it, and pictures as 8-bit images; `psnr_db` of the mean MSE,
    `ssim` with uniform windows (`nn.scores`)."""
    pixels, codes, decoded = run.images("val"), [], []
    for where in arrays.batches(len(pixels), 256):
        codes.append(tokenizer.encode(arrays.to_model(pixels[where])))
        decoded.append(arrays.to_pixels(tokenizer.decode(codes[-1])))
    pictures, extractor = np.concatenate(decoded), run.extractor("scorer")
    features = [extractor(arrays.to_model(set_)).numpy() for set_ in (pictures, np.asarray(pixels))]
    grids = statistics.split_grids(torch.cat(codes).numpy(), tokenizer.grids)
    shares = [statistics.frequencies(grid, k) for grid, k in zip(grids, tokenizer.codebook_sizes, strict=True)]
    return {
        "codes": sum(h * w for h, w in tokenizer.grids),
        "bits": sum(h * w * np.log2(k) for (h, w), k in zip(tokenizer.grids, tokenizer.codebook_sizes, strict=True)),
        "usage": np.mean([statistics.usage(p) for p in shares]),
        "perplexity": np.mean([statistics.perplexity(p) for p in shares]),
        "psnr_db": float(scores.psnr_db(scores.mse(pictures, pixels).mean())),
        "ssim": scores.ssim(pictures, pixels).mean(),
        "fd": distance(*features),
    }


def by_epoch(fitted: Fitted, data: step.Data) -> np.ndarray:
    """Originals, and under them their reconstructions at the snapshot epochs, one row each."""
    epochs = sorted(int(name.partition("/")[0]) for name in fitted.snapshots if name.endswith("/reconstruction"))
    rows = [data.shown, *(fitted.snapshots[f"{epoch}/reconstruction"].numpy() for epoch in epochs)]
    return pictures.sheet(np.concatenate(rows), len(data.shown))


@torch.no_grad()
def published(tokenizer: nn.Module, pixels: np.ndarray, params: Params, count: int = 10_000) -> dict[str, float]:
    """Columns of the published table, of the first images: total = reconstruction + (1 + beta) codebook."""
    sums, codes, n = np.zeros(2), [], min(count, len(pixels))
    for where in arrays.batches(n, 500):
        x = arrays.to_model(pixels[where])
        output = tokenizer(x)
        (level,) = output.quantized
        terms = nn.functional.mse_loss(output.reconstruction, x), level.reported["codebook_error"]
        sums += np.array([float(term) for term in terms]) * len(x)
        codes.append(level.codes.flatten())
    reconstruction, codebook = sums / n
    share = statistics.frequencies(torch.cat(codes).numpy(), tokenizer.codebook_sizes[0])
    total = reconstruction + (1 + params.raw["quantizer"]["beta"]) * codebook
    return {
        "total": total, "reconstruction": reconstruction, "codebook": codebook,
        "perplexity": statistics.perplexity(share), "usage": statistics.usage(share),
        "psnr_db": float(scores.psnr_db(reconstruction / 4)),
    }  # fmt: skip


def speed(threads: int, rounds: int = 40) -> pd.DataFrame:
    """Images a second of a training step of every quantizer, taking turns in one process: the fastest round counts."""
    import time

    torch.set_num_threads(threads)
    steps, taken = {}, {}
    for name, values in TABLES["quantizers"].items():
        if values["quantizer.name"] == "geodesic":
            continue  # trained as the row before it
        params = Params(presets.applied(read(), values))
        run = Run(params, runtime=Runtime(params.runtime))
        data, objective = step.Data.of(run), step.objective(models.tokenizer_recipe(params, run.image_shape), run)
        optimizer = torch.optim.Adam([p for p in objective.parameters() if p.requires_grad], fused=True)
        steps[name] = (objective.train(), optimizer, data.batch(np.arange(32), torch.Generator())[0])
    for _ in range(rounds):
        for name, (objective, optimizer, x) in steps.items():
            start = time.perf_counter()
            optimizer.zero_grad()
            sum(objective(x).values()).backward()
            optimizer.step()
            taken[name] = min(taken.get(name, 1e9), time.perf_counter() - start)
    rows = [(name, 32 / seconds, taken["ema"] / seconds) for name, seconds in taken.items()]
    return pd.DataFrame(rows, columns=["row", "images_per_second", "of_ema"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=[*TABLES, "speed"])
    parser.add_argument("rows", nargs="*", help="some of its rows; default all")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    parser.add_argument("--threads", type=int, default=0, help="0: one per core")
    parser.add_argument("--show", action="store_true")
    options = parser.parse_args()
    if options.table == "speed":
        print(tables.markdown(speed(options.threads or torch.get_num_threads()).map(tables.short)))
    elif options.show:
        print(tables.show(options.table))
    else:
        for name in options.rows or TABLES[options.table]:
            for seed in options.seeds:
                # a process each: Accelerate takes one precision for the life of a process
                with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
                    row = fresh.submit(run_row, options.table, name, seed, options.threads).result()
                tables.write(options.table, row, TABLES[options.table])
                print(row, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
