"""Tables of priors on the same codes: `python -m studies.priors TABLE [ROW ...]`.

Each row is params.yaml with a few other values of the sections `codes` and `prior`, trained on codes of the tokenizer that
`dvc repro codes` left in artifacts/, augmented anew, and judged by the extractor there. Samples are compared with the
**validation** images, so that choosing by these tables leaves the test split alone. One CSV row per run goes to
docs/results/TABLE.csv; `--show` prints the file as a Markdown table, mean and standard deviation over seeds.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from stages import codes as encoding
from stages import prior as step
from stages import samples as drawing
from studies import tables
from tessera import presets
from tessera.core import models
from tessera.core.params import Params, read
from tessera.core.run import Run
from tessera.core.seeding import seed_globally
from tessera.evaluation import frechet, memorisation
from tessera.features import neighbours
from tessera.images import arrays
from tessera.runtime import provenance
from tessera.runtime.devices import Runtime
from tessera.training.loop import Fitted, fit

OF = "priors"  # names the streams of this study


SHORT = {"prior.training.epochs": 15, "prior.training.patience": 0, "prior.annealing": 0.0, "prior.augmented": 0.9}
MILD = {
    "codes.copies": 10,
    "codes.augmentation.flip": 0.5,
    "codes.augmentation.shift": 1,
    "codes.augmentation.scale": 0.0,
}
STRONG = {
    "codes.copies": 20,
    "codes.augmentation.flip": 0.5,
    "codes.augmentation.shift": 2,
    "codes.augmentation.scale": 0.1,
}


def prior(name: str, **values: Any) -> dict[str, Any]:
    places = dict.fromkeys(("conditional", "label_dropout", "augmented", "annealing"), "prior")
    places |= dict.fromkeys(("epochs", "lr"), "prior.training")
    return {"prior.name": name} | {f"{places.get(key, f'prior.{name}')}.{key}": value for key, value in values.items()}


NARROWING = {"augmented": 0.95, "annealing": 0.4}
SNAIL = {"channels": 96, "blocks": 3, "layers": 2}
TABLES: dict[str, dict[str, dict[str, Any]]] = {
    "priors": {
        "uniform": prior("uniform"),
        "histogram": prior("histogram"),
        "ngram": prior("ngram"),
        "rnn": prior("rnn"),
        "pixelcnn": prior("pixelcnn"),
        "pixelcnn, blind spot": prior("pixelcnn", architecture="masked"),
        "pixelsnail": prior("pixelsnail", channels=128, blocks=3, layers=2),
        "transformer": prior("transformer", kv_heads=4, lr=1e-3),
        "transformer, random orders": prior("transformer", kv_heads=4, random_order=0.7, lr=1e-3),
        "masked": prior("masked", lr=1e-3),
    },
    "kv-heads": {
        f"4 heads of queries, {heads} of keys and values": prior("transformer", kv_heads=heads, lr=1e-3)
        for heads in (4, 1, 2)
    },
    "levers": {
        "pixelcnn, 30 epochs, stronger, annealed": STRONG | prior("pixelcnn", epochs=30, **NARROWING),
        "the same, recoloured": STRONG | {"codes.augmentation.recolour": 0.5}
        | prior("pixelcnn", epochs=30, augmented=0.95, annealing=0.5),
        "pixelsnail, 30 epochs, stronger, annealed": STRONG | prior("pixelsnail", epochs=30, **NARROWING, **SNAIL),
        "the same, conditional": STRONG | prior("pixelsnail", epochs=30, conditional=True, **NARROWING, **SNAIL),
    },
    "capacity": {
        f"{blocks} x {layers} layers of {channels}": STRONG
        | prior("pixelsnail", **NARROWING, channels=channels, blocks=blocks, layers=layers)
        for channels, blocks, layers in ((64, 3, 2), (96, 3, 2), (128, 3, 2), (96, 2, 2), (96, 3, 4))
    },
    "longer": {
        f"{epochs} epochs": STRONG | prior("pixelsnail", epochs=epochs, **NARROWING, **SNAIL) for epochs in (15, 30, 60)
    },
}  # fmt: skip


def run_row(table: str, name: str, seed: int, threads: int) -> dict[str, Any]:
    provenance.require_together("dataset", "extractor", "tokenizer", "codes")
    values = {**SHORT, **MILD, **TABLES[table][name], "seed": seed, "runtime.threads": threads}
    params = Params(presets.applied(read(), values))
    run = Run(params, runtime=Runtime(params.runtime))
    torch.set_num_threads(threads or torch.get_num_threads())
    with TemporaryDirectory() as folder:
        encoding.encode(run.tokenizer(), run, Path(folder))
        copies = np.load(Path(folder) / "augmented.npy")
    run.augmented_codes = lambda: copies
    data = step.Data.of(run)
    recipe = models.prior_recipe(params, run.grids, run.codebook_sizes, data.classes)
    seed_globally(seed, "prior", "initialisation")
    objective = step.Objective(models.build(recipe))
    begun = time.perf_counter()
    fitted = step.fitted(objective, data) or fit(
        step.task(objective, data), params.value("prior.training"), seed, run.runtime
    )
    return {"row": name, "seed": seed} | judged(objective.prior.eval(), fitted, time.perf_counter() - begun, run)


def judged(model: Any, fitted: Fitted, seconds: float, run: Run) -> dict[str, Any]:
    row = next(row for row in fitted.history if row["epoch"] == fitted.epoch)
    begun = time.perf_counter()
    drawn = drawing.draw(OF, model, run.tokenizer(), run)
    sampled = time.perf_counter() - begun
    return {
        "kept_epoch": fitted.epoch, "epochs": fitted.history[-1]["epoch"],
        "parameters": sum(p.numel() for p in model.parameters()),
        "receptive_field": receptive_field(model, run),
        "likelihood": "exact" if model.exact else "bound",
        "train_bits_per_image": row["train_nll_bits_per_image"], "val_bits_per_image": row["val_nll_bits_per_image"],
        "val_accuracy": row["val_accuracy"], "times_chance": row["val_accuracy"] * run.codebook_sizes[0],
        **compared(drawn["images"], run), "train_seconds": seconds, "sample_seconds": sampled,
    }  # fmt: skip


@torch.no_grad()
def receptive_field(model: Any, run: Run) -> int:
    """How many of the other codes the prediction of the last code in order sees: a change of them changes it."""
    codes = torch.from_numpy(np.array(run.codes("val")[:4], np.int64))
    labels = torch.full((4,), model.classes) if model.classes else None
    last = codes.shape[1] - 1
    hidden = torch.zeros(codes.shape, dtype=torch.bool)
    hidden[:, last] = True

    def logits(given: torch.Tensor) -> torch.Tensor:
        arguments = (given, labels) if model.exact else (given, labels, hidden)
        return model.logits(*arguments)[-1][:, -1]

    before, seen = logits(codes), 0
    for t in range(last):
        changed = codes.clone()
        changed[:, t] = (codes[:, t] + 1) % run.codebook_sizes[0]
        seen += not torch.equal(logits(changed), before)
    return seen


def compared(pixels: np.ndarray, run: Run, repeats: int = 4) -> dict[str, float]:
    """Samples against as many validation images in the scorer's features; `floor` is what training images reach in their
    place. Fréchet distances are means over random subsets of that size."""
    extractor, val = run.extractor("scorer"), run.images("val")
    draws = np.random.default_rng(0)
    sets = {
        name: np.concatenate([f.numpy() for _, f in arrays.map_batches(extractor, np.asarray(array), 256)])
        for name, array in {"samples": pixels, "val": val, "train": run.images("train")}.items()
    }
    n = len(sets["val"])

    def against_val(name: str) -> float:
        some = [sets[name][draws.choice(len(sets[name]), n, replace=False)] for _ in range(repeats)]
        return float(np.mean([frechet.distance(part, sets["val"]) for part in some]))

    overlap = neighbours.overlap(
        sets["val"], sets["samples"][:n], run.params.raw["evaluation"]["coverage"]["neighbours"]
    )
    far = {name: neighbours.nearest(sets[name], sets["train"])[1] for name in ("samples", "val")}
    copied = memorisation.compare(far["samples"], far["val"], run.params.raw["evaluation"]["memorisation"]["quantile"])
    return {
        "fd": against_val("samples"), "floor": against_val("train"),
        "kid": frechet.kid(sets["samples"], sets["val"], 100, min(150, n // 2), 0).mean,
        "precision": overlap.precision, "recall": overlap.recall, "coverage": overlap.coverage,
        "memorisation_ratio": copied["median_ratio"], "near_share": copied["near_share"],
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=list(TABLES))
    parser.add_argument("rows", nargs="*", help="some of its rows; default all")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    parser.add_argument("--threads", type=int, default=0, help="0: one per core")
    parser.add_argument("--show", action="store_true")
    options = parser.parse_args()
    if options.show:
        print(tables.show(options.table))
        return 0
    for name in options.rows or TABLES[options.table]:
        for seed in options.seeds:
            row = run_row(options.table, name, seed, options.threads)
            tables.write(options.table, row, TABLES[options.table])
            print(row, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
