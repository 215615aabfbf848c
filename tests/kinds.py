"""Tokenizers of every kind of grids, tiny and hardly trained, with their codes and a prior: what extensions run on."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from conftest import trained, write_tokenizer

from tessera import conditions
from tessera.core import models
from tessera.core.params import Params
from tessera.core.run import Run
from tessera.core.seeding import generator, seed_globally
from tessera.images.arrays import to_model

KINDS = {  # tokenizer, quantizer, values of the tokenizer
    "vqvae": ("vqvae", "ema", {"downsampling": 2}),
    "residual": ("vqvae", "residual", {"downsampling": 2}),
    "fsq": ("vqvae", "fsq", {"downsampling": 2}),
    "vqvae2": ("vqvae2", "gradient", {"downsampling": 2, "top_downsampling": 2}),
    "vqvae2, residual": ("vqvae2", "residual", {"downsampling": 2, "top_downsampling": 4}),
    "prologue": ("prologue", "ema", {"downsampling": 2, "count": 3, "codebook_size": 8}),
    "vae, kmeans": ("vae", "kmeans", {"latent": "spatial", "downsampling": 2}),
    "vae of vectors, kmeans": ("vae", "kmeans", {"latent": "vector"}),
    "pixels": ("pixels", "ema", {"levels": 4}),
}
LEVELS = {"vqvae2", "vqvae2, residual"}  # kinds with several
GRIDS = {  # the same, for what asks of grids alone
    "one grid": ("vqvae", "ema", {"downsampling": 4}),
    "residual": ("vqvae", "residual", {"downsampling": 4}),
    "two levels": ("vqvae2", "gradient", {"downsampling": 2, "top_downsampling": 2}),
    "global codes": ("prologue", "ema", {"downsampling": 4, "count": 3, "codebook_size": 8}),
}

_made: dict[str, Any] = {}


def run_of(kind: str, raw: dict[str, Any], runtime: Any, key: str) -> Run:
    """A run of the extension `key`; the artefacts of `tiny_run` are there, and those of this tokenizer take their place."""
    name, quantizer, values = KINDS[kind]
    raw["tokenizer"]["name"], raw["quantizer"]["name"], raw["prior"]["name"] = name, quantizer, "histogram"
    raw["tokenizer"][name] |= values
    run = Run(Params(raw), key, runtime)
    recipe = models.tokenizer_recipe(run.params, run.image_shape)
    if kind not in _made:
        _made[kind] = _tokenizer(recipe, to_model(run.images("train")))
    write_tokenizer(_made[kind], recipe, run)
    recipe = models.prior_recipe(run.params, run.space, conditions.wanted(run))
    prior = models.build(recipe)
    told = conditions.of_split(run, prior.conditioning, "train")
    prior.fit(torch.tensor(run.codes("train")).long(), None if told is None else torch.from_numpy(told))
    models.save(run.folder("prior"), prior, recipe, "")
    return run


def untrained(
    values: tuple[str, str, dict[str, Any]], raw: dict[str, Any], runtime: Any, key: str, prior: str, conditional: bool
) -> Run:
    """A run of the extension `key` whose models are not trained; but the tokenizer of one grid, whose codes differ from image to
    image, stays the one that is there."""
    name, quantizer, own = values
    raw["tokenizer"]["name"], raw["quantizer"]["name"] = name, quantizer
    raw["tokenizer"][name] |= own
    raw["prior"]["name"], raw["prior"]["conditions"]["label"] = prior, 0.1 if conditional else "none"
    run = Run(Params(raw), key, runtime)
    seed_globally(0, "tests")
    recipe = models.tokenizer_recipe(run.params, run.image_shape)
    if models.read_recipe(run.folder("tokenizer")) != recipe:
        tokenizer = models.build(recipe)
        if run.params.post_hoc:
            with torch.no_grad():
                latents = tokenizer(to_model(run.images("train"))).latents[0]
            tokenizer.quantizer.fit(latents.permute(0, 2, 3, 1).flatten(0, 2), generator(0))
        write_tokenizer(tokenizer.eval(), recipe, run)
    recipe = models.prior_recipe(run.params, run.space, conditions.wanted(run))
    models.save(run.folder("prior"), models.build(recipe), recipe, "")
    return run


@torch.enable_grad()  # whatever the caller does
def _tokenizer(recipe: models.Recipe, x: torch.Tensor) -> Any:
    seed_globally(0, "kinds")
    tokenizer = models.build(recipe)
    if not list(tokenizer.parameters()):
        return tokenizer.eval()
    quantizer = getattr(tokenizer, "quantizer", None)
    if not hasattr(quantizer, "fit"):
        return trained(tokenizer, x, 15)
    tokenizer.quantizer = None  # trained as an autoencoder; the quantizer is fitted afterwards
    trained(tokenizer, x, 15)
    tokenizer.quantizer = quantizer
    with torch.no_grad():
        (z,) = tokenizer.latents(x)
    quantizer.fit(z.movedim(1, 3).flatten(0, 2), generator(0, "kinds"))
    return tokenizer.eval()


def apart(run: Run) -> list[int]:
    """The two test images that have the fewest codes in common."""
    codes = run.codes("test")
    differences = (codes[:, None] != codes).sum(2)
    assert differences.max() > 0
    return [int(row) for row in np.unravel_index(differences.argmax(), differences.shape)]
