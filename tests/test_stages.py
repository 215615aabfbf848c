"""Every kind of tokenizer through the stages after it, in one process at tiny size: codes, diagnostics, prior, samples,
interpolation, whatever the grids."""

from __future__ import annotations

import importlib
import re
import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ruamel.yaml import YAML

from tessera.core import files
from tessera.core.models import load_weights
from tessera.core.params import Params
from tessera.core.run import SPLITS, Run
from tessera.runtime import stage as entry
from tessera.runtime.validation import problems

ROOT = Path(__file__).resolve().parent.parent

KINDS = {  # tokenizer, quantizer, values of the tokenizer, grids of 8x8 images
    "vqvae": ("vqvae", "ema", {"downsampling": 4}, ((2, 2),)),
    "residual": ("vqvae", "residual", {"downsampling": 4}, ((2, 2),) * 2),
    "fsq": ("vqvae", "fsq", {"downsampling": 4}, ((2, 2),)),
    "vqvae2": ("vqvae2", "gradient", {"downsampling": 2, "top_downsampling": 2}, ((2, 2), (4, 4))),
    "vqvae2, residual": ("vqvae2", "residual", {"downsampling": 2, "top_downsampling": 4}, ((1, 1),) * 2 + ((4, 4),) * 2),
    "prologue": ("prologue", "ema", {"downsampling": 2, "count": 3, "codebook_size": 8}, ((1, 3), (4, 4))),
    "prologue, residual": ("prologue", "residual", {"downsampling": 2, "count": 3}, ((1, 3),) * 2 + ((4, 4),) * 2),
    "vae, geodesic": ("vae", "geodesic", {"latent": "spatial", "downsampling": 2}, ((4, 4),)),
    "vae of vectors, kmeans": ("vae", "kmeans", {"latent": "vector"}, ((1, 1),)),
    "pixels": ("pixels", "ema", {"levels": 4}, ((8, 8),) * 3),
}  # fmt: skip


@pytest.fixture
def stage():
    """`stage("codes")`: the `main` of that stage."""
    sys.path.insert(0, str(ROOT))
    yield lambda name: importlib.import_module(f"stages.{name}").main
    sys.path.remove(str(ROOT))


def chosen(raw: dict[str, Any], kind: str) -> tuple[Params, Any]:
    tokenizer, quantizer, values, grids = KINDS[kind]
    raw["tokenizer"]["name"], raw["quantizer"]["name"] = tokenizer, quantizer
    raw["tokenizer"][tokenizer] |= values
    assert problems(raw) == []
    return Params(raw), grids


@pytest.mark.parametrize("kind", KINDS)
def test_every_tokenizer_goes_all_the_way(kind, raw, tiny_run, stage, runtime):
    raw["codes"]["copies"] = 2
    params, grids = chosen(raw, kind)
    tiny_run()
    run = Run(params, runtime=runtime)
    for name in ("tokenizer", "codes", "reconstruction"):
        stage(name)(run)
    assert run.space.grids == grids
    length, count = run.space.length, {split: len(run.images(split)) for split in SPLITS}
    assert {split: run.codes(split).shape for split in SPLITS} == {split: (n, length) for split, n in count.items()}
    assert run.augmented_codes().shape == (2, count["train"], length)
    assert np.iinfo(run.augmented_codes().dtype).max >= max(run.space.sizes) - 1
    assert files.read_json(Path("metrics/tokenizer.json"))["val"]["perplexity"] >= 1
    for diagnostic in ("usage", "autocorrelation"):
        stage("diagnostics")(Run(params, diagnostic, runtime))
        assert len(files.read_json(Path(f"metrics/diagnostics/{diagnostic}.json"))) == len(grids)
    for name in ("prior", "samples"):
        stage(name)(run)
    own = ["gaussian"] if kind.startswith("vae") else []
    assert list(run.sample_sets) == ["samples", "baseline", *own]
    for of in run.sample_sets:
        assert run.samples(of).shape == (params.value("samples.count"), 8, 8, 3)
    stage("extensions")(Run(params, "interpolation", runtime))
    assert 0 <= files.read_json(Path("metrics/extensions/interpolation.json"))["smoothness"] <= 1
    reconstruction = run.images("test", "reconstruction")
    assert reconstruction.dtype == np.uint8
    assert len(np.unique(reconstruction)) > 2
    if own:
        for name in ("features", "evaluation"):
            stage(name)(Run(params, "frechet", runtime))
        found = files.read_json(Path("metrics/evaluation/frechet.json"))["all"]["fd_classifier"]
        assert found["gaussian_test"] != found["samples_test"]


def test_another_codebook_size_is_fitted_to_the_same_autoencoder(raw, tiny_run, stage, runtime):
    """The weights that training made do not depend on the post-hoc quantizer, be it another K or another kind."""
    from safetensors.torch import load_file

    tiny_run()
    found = {}
    for name, size in (("kmeans", 8), ("kmeans", 5), ("geodesic", 8)):
        raw["quantizer"]["codebook_size"] = size
        raw["quantizer"]["name"] = name
        raw["tokenizer"]["name"] = "vae"
        stage("tokenizer")(Run(Params(raw), runtime=runtime))
        found[name, size] = load_file("artifacts/tokenizer/model.safetensors")
        assert found[name, size]["quantizer.codes"].shape[0] == size
    first, *others = ({k: v for k, v in state.items() if not k.startswith("quantizer.")} for state in found.values())
    for other in others:
        assert first.keys() == other.keys()
        assert all((first[key] == other[key]).all() for key in first)


def test_another_codebook_size_takes_the_checkpoint_of_the_finished_training(
    raw, tiny_run, workspace, monkeypatch, capsys
):
    """As the command runs the stage, with its scratch: another K, and another kind, train nothing again."""
    monkeypatch.setattr(sys, "argv", ["stages/tokenizer.py"])
    monkeypatch.setattr(entry, "_validated", lambda: raw)
    monkeypatch.setattr(entry, "_require_declared_imports", lambda what: None)  # this process has imported all
    for name in ("dvc.yaml", "versions.yaml", "src", "stages"):
        (workspace / name).symlink_to(ROOT / name)
    tiny_run()
    raw["tokenizer"]["name"] = "vae"
    found = []
    for name, size in (("kmeans", 8), ("geodesic", 5)):
        raw["quantizer"] |= {"name": name, "codebook_size": size}
        with open("params.yaml", "w") as stream:
            YAML(typ="safe").dump(raw, stream)
        runpy.run_path(str(ROOT / "stages/tokenizer.py"), run_name="__main__")
        found.append((load_weights(Path("artifacts/tokenizer/model.safetensors")), capsys.readouterr().err))
    (first, said), (other, said_then) = found
    assert "resuming" not in said
    total = re.search(r"tokenizer: 100%\S* *(\d+)/\1", said)[1]
    assert f"resuming tokenizer at step {total}" in said_then
    assert (len(first["quantizer.codes"]), len(other["quantizer.codes"])) == (8, 5)
    assert all(other[name].equal(first[name]) for name in first if not name.startswith("quantizer."))


def test_best_usage_needs_codes_while_training(raw, tiny_run, stage, runtime):
    params, _ = chosen(raw, "vae, geodesic")
    params.raw["tokenizer"]["keep"] = "best_usage"
    tiny_run()
    with pytest.raises(ValueError, match=r"tokenizer\.keep: must be best or last"):
        stage("tokenizer")(Run(params, runtime=runtime))


def test_a_tokenizer_without_weights_says_what_it_does_not_read(raw, tiny_run, stage, runtime, capsys):
    params, _ = chosen(raw, "pixels")
    tiny_run()
    stage("tokenizer")(Run(params, runtime=runtime))
    assert (
        "pixels has nothing to train: tokenizer.training, quantizer and losses are not read" in capsys.readouterr().out
    )
