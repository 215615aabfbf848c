"""How noisy the headline is: `python -m studies.noise`, after `dvc repro features`.

Scores against the test images of sets of as many images, which share none: the training images, cut into such sets, and as
many sets of samples, drawn anew from the prior in artifacts/. Prints means and standard deviations as a Markdown table.
"""

from __future__ import annotations

import argparse
import sys

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from stages import samples as drawing
from studies import tables
from tessera import presets
from tessera.core.params import Params, read
from tessera.core.run import Run
from tessera.core.seeding import numpy_generator
from tessera.features.frechet import distance
from tessera.features.neighbours import overlap
from tessera.images import arrays
from tessera.runtime import provenance
from tessera.runtime.devices import Runtime

OF = "noise"  # names the streams of this study: the committed samples are drawn from others


@torch.no_grad()
def new_samples(count: int, threads: int) -> Float[np.ndarray, "n f"]:
    """Features of samples that are not the committed ones."""
    params = Params(presets.applied(read(), {"samples.count": count, "runtime.threads": threads}))
    run = Run(params, runtime=Runtime(params.runtime))
    drawn = drawing.draw(OF, run.prior(), run.tokenizer(), run)["images"]
    extractor = run.extractor("scorer")
    batches = arrays.batches(count, params.value("features.batch_size"))
    return np.concatenate([extractor(arrays.to_model(drawn[where])).numpy() for where in batches])


def scores(real: Float[np.ndarray, "m f"], fake: Float[np.ndarray, "m f"], k: int) -> dict[str, float]:
    return {"fd": distance(fake, real), **overlap(real, fake, k)._asdict()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=0, help="0: one per core")
    threads = parser.parse_args().threads
    params = Params(read())
    provenance.require_together("dataset", "extractor", "tokenizer", "prior", "features")
    run = Run(params)
    real, train = (np.asarray(run.features(name)) for name in ("test", "train"))
    train = train[numpy_generator(params.seed, OF, "train").permutation(len(train))]
    sets = len(train) // len(real)
    features = {"training images (the floor)": train, "samples": new_samples(sets * len(real), threads)}
    k = params.config("evaluation", "coverage").neighbours
    rows = []
    for name, array in features.items():
        found = pd.DataFrame([scores(real, part, k) for part in np.split(array[: sets * len(real)], sets)])
        cells = {column: f"{found[column].mean():.2f} ± {found[column].std():.2f}" for column in found}
        rows.append({"set": name, "draws": sets, "images each": len(real), **cells})
    print(tables.markdown(pd.DataFrame(rows)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
