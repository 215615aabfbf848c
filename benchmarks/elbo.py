"""What a codebook costs a VAE: `python -m benchmarks.elbo`, after `dvc exp run $(python -m tessera.presets geodesic-mnist) prior`.

Bounds on the log-likelihood of test images, nats an image, on one and the same VAE: its own evidence lower bound, and those
of its codes, log p(x) >= log p(x | codes) + log p(codes), which holds for the codes that any encoder picks. p(x | z) is
Bernoulli with the decoded intensities, as in training; codes are rated by their frequencies in the train split (order 0)
and, for the codebook that artifacts/ has, by the trained prior, if it is trained. Draws docs/results/elbo.png and prints a
Markdown table.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from tessera import statistics
from tessera.core import files, seams
from tessera.core.errors import InputError
from tessera.core.params import Params, read
from tessera.core.run import Run
from tessera.core.seeding import generator
from tessera.images import arrays, pictures
from tessera.runtime import provenance
from tessera.studies.pages import markdown, short
from tessera.tokenizers.vae import divergence

PATH, COUNT, BATCH, SHOWN = Path("docs/results/elbo.png"), 2000, 250, 12
FITTED_ON = 5000  # training images, whose latents each codebook is fitted to


def bernoulli(x: Float[Tensor, "b c h w"], decoded: Float[Tensor, "b c h w"]) -> float:
    """log p(x | z), nats an image, mean over the batch."""
    probability = ((decoded + 1) / 2).clamp(0, 1)
    return -float(F.binary_cross_entropy(probability, (x + 1) / 2, reduction="sum")) / len(x)


def evidence(vae: Any, x: Tensor, rng: torch.Generator) -> tuple[float, float]:
    """log p(x | z) of one z ~ q(z | x), and the KL to N(0, I)."""
    mean, log_variance = vae.posterior(x)
    noise = torch.randn(mean.shape, generator=rng)
    return bernoulli(x, vae.decode_vectors((mean + (log_variance / 2).exp() * noise,))), float(
        divergence(mean, log_variance)
    )


def codebooks(vae: Any, run: Run) -> dict[str, Any]:
    """Both post-hoc quantizers, fitted to the latents of the same training images."""
    x = arrays.to_model(run.images("train")[:FITTED_ON])
    latents = vae.latents(x)[0].movedim(1, 3).flatten(0, 2)
    found = {}
    for name in ("kmeans", "geodesic"):
        quantizer = seams.plugin("quantizers", name).build(run.params.config("quantizer", name), latents.shape[1])
        quantizer.fit(latents, generator(run.params.seed, "elbo", name))
        found[name] = quantizer.eval()
    return found


def order_zero(train: Int[np.ndarray, "n t"], test: Int[np.ndarray, "m t"], k: int) -> float:
    """-log p(codes), nats an image, by frequencies of the training codes; each code counts once more than it occurs."""
    fraction = (np.bincount(train.ravel(), minlength=k) + 1) / (train.size + k)
    return -float(np.log(fraction)[test].sum(1).mean())


@torch.no_grad()
def measured(run: Run) -> tuple[pd.DataFrame, np.ndarray]:
    vae, rng = run.tokenizer(), generator(run.params.seed, "elbo")
    test = run.images("test")[:COUNT]
    batches = [arrays.to_model(test[where]) for where in arrays.batches(len(test), BATCH)]
    pairs = [evidence(vae, x, rng) for x in batches]
    likelihood, kl = np.mean(pairs, axis=0)
    rows = [{"codes": "none: N(0, I)", "log p(x|z)": likelihood, "rate": kl, "bound": likelihood - kl}]
    shown, train = min(SHOWN, len(test)), run.images("train")[:FITTED_ON]
    sheet = [test[:shown], arrays.to_pixels(vae.decode_vectors(vae.latents(batches[0][:shown])))]
    for name, quantizer in codebooks(vae, run).items():
        quantized = [quantizer(vae.latents(x)[0]) for x in batches]
        decoded = [vae.decode_vectors((level.z_q,)) for level in quantized]
        likelihood = float(np.mean([bernoulli(x, y) for x, y in zip(batches, decoded, strict=True)]))
        seen = [quantizer(vae.latents(arrays.to_model(train[where]))[0]).codes.flatten(1).numpy()
                for where in arrays.batches(len(train), BATCH)]  # fmt: skip
        codes = np.concatenate([level.codes.flatten(1).numpy() for level in quantized])
        rate = order_zero(np.concatenate(seen), codes, quantizer.codebook_sizes[0])
        fraction = statistics.frequencies(codes, quantizer.codebook_sizes[0])
        rows.append({"codes": f"{name}, order 0", "log p(x|z)": likelihood, "rate": rate, "bound": likelihood - rate,
                     "usage": statistics.usage(fraction), "perplexity": statistics.perplexity(fraction)})  # fmt: skip
        if name == run.params.value("quantizer.name") and (files.METRICS / "prior.json").exists():
            bits = files.read_json(files.METRICS / "prior.json")["val"]["nll_bits_per_code"]
            rate = bits * math.log(2) * codes.shape[1]
            rows.append(
                {"codes": f"{name}, trained prior", "log p(x|z)": likelihood, "rate": rate, "bound": likelihood - rate}
            )
        sheet.append(arrays.to_pixels(decoded[0][:shown]))
    return pd.DataFrame(rows), pictures.sheet(np.concatenate(sheet), shown)


def require_vae(params: Params) -> None:
    """
    Raises:
        InputError: the tokenizer of params.yaml, which artifacts/ has, is no VAE with a post-hoc codebook.
    """
    if params.value("tokenizer.name") != "vae":
        raise InputError(
            f"tokenizer.name must be vae, whose model artifacts/tokenizer then is, got {params.value('tokenizer.name')}; run "
            "`dvc exp run $(python -m tessera.presets geodesic-mnist) prior` before"
        )


def main(argv: Sequence[str] | None = None) -> int:
    argparse.ArgumentParser(
        prog="python -m benchmarks.elbo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args(argv)
    try:
        params = Params(read())
        require_vae(params)
        provenance.require_together("dataset", "tokenizer")
        table, sheet = measured(Run(params))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    files.write_picture(PATH, sheet)
    print(markdown(table.map(short)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
