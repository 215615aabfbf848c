"""How noisy the headline is: `python -m benchmarks.noise`, after `dvc repro features`.

Scores against the reconstructions of the test images of sets of as many images, which share none: reconstructions of the training
images, cut into such sets, and as many sets of samples, drawn anew from the prior in artifacts/. Prints means and standard
deviations as a Markdown table.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Shaped

from stages import samples as drawing
from tessera import presets
from tessera.core.errors import InputError
from tessera.core.params import Params, read
from tessera.core.run import Run
from tessera.core.seeding import numpy_generator
from tessera.features.clipped import coverage
from tessera.features.frechet import distance
from tessera.images import arrays
from tessera.runtime import provenance
from tessera.runtime.devices import Runtime
from tessera.runtime.settings import Settings
from tessera.studies.pages import markdown

OF = "noise"  # names the streams of these samples: the committed ones are drawn from others


@torch.no_grad()
def new_samples(count: int, threads: int) -> Float[np.ndarray, "n f"]:
    """Features of samples that are not the committed ones."""
    params = Params(presets.applied(read(), {"samples.count": count, "runtime.threads": threads}))
    run = Run(params, runtime=Runtime(params.section("runtime", Settings)))
    sampled = drawing.sample_set(OF, run.prior(), run.tokenizer(), run).images
    extractor = run.scorer()
    batches = arrays.batches(count, params.value("features.batch_size"))
    return np.concatenate([extractor(arrays.to_model(sampled[where])).numpy() for where in batches])


def scores(
    real: Float[np.ndarray, "m f"], fake: Float[np.ndarray, "m f"], families: Shaped[np.ndarray, " m"], k: int
) -> dict[str, float]:
    return {"fd": distance(fake, real), "clipped_coverage": coverage(real, fake, families, k)}


def measured(threads: int) -> pd.DataFrame:
    params = Params(read())
    provenance.require_together("dataset", "scorer", "tokenizer", "prior", "features")
    run = Run(params)
    real, train = (np.asarray(run.features(name)) for name in ("reconstruction", "reconstruction_train"))
    train = train[numpy_generator(params.seed, OF, "train").permutation(len(train))]
    sets = len(train) // len(real)
    features = {"training images (the floor)": train, "samples": new_samples(sets * len(real), threads)}
    k, families = params.config("evaluation", "coverage").neighbours, run.families("reconstruction")
    rows = []
    for name, array in features.items():
        found = pd.DataFrame([scores(real, part, families, k) for part in np.split(array[: sets * len(real)], sets)])
        cells = {column: f"{found[column].mean():.2f} ± {found[column].std():.2f}" for column in found}
        rows.append({"set": name, "draws": sets, "images each": len(real), **cells})
    return pd.DataFrame(rows)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.noise", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=0, help="0: one per core")
    options = parser.parse_args(argv)
    try:
        table = measured(options.threads)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(markdown(table))
    return 0


if __name__ == "__main__":
    sys.exit(main())
