"""Killed and disturbed training under dvc: nothing is lost, nothing is recorded as what it is not."""

from __future__ import annotations

import re
import signal
import sys
import time
from pathlib import Path

import pytest
from copies import begin_and_stop, commit, copied, edit, restore, run, start, wait_for_step

from tessera.core.models import load_weights

pytestmark = pytest.mark.pipeline


@pytest.fixture(scope="module")
def repo(tmp_path_factory) -> Path:
    """A copy whose data set and feature networks are there."""
    copy = copied(tmp_path_factory.mktemp("copy"))
    run("dvc", "repro", "extractor", cwd=copy)
    commit(copy, "run")
    return copy


LONGER = {"tokenizer.training.epochs": 8}


def test_killed_training_resumes_with_the_same_bits(repo):
    """KILL under repro, TERM under `exp run --temp`: the same command goes on, and ends as if never stopped."""
    try:
        edit(repo, LONGER)
        begin_and_stop(repo, signal.SIGKILL, "dvc", "repro", "tokenizer")
        assert re.search(r"resuming tokenizer at step \d+", run("dvc", "repro", "tokenizer", cwd=repo))
        resumed = load_weights(repo / "artifacts/tokenizer/model.safetensors")
        assert "resuming" not in run("dvc", "repro", "-f", "-s", "tokenizer", cwd=repo)
        whole = load_weights(repo / "artifacts/tokenizer/model.safetensors")
        assert all(resumed[name].equal(whole[name]) for name in whole)

        experiment = ("dvc", "exp", "run", "--temp", "-S", "tokenizer.training.lr=0.003", "tokenizer")
        restore(repo, "dataset", "extractor")
        edit(repo, LONGER)
        begin_and_stop(repo, signal.SIGTERM, *experiment)
        assert re.search(r"resuming tokenizer at step \d+", run(*experiment, cwd=repo))
    finally:
        restore(repo, "dataset", "extractor")


def test_another_codebook_size_is_fitted_without_training_again(repo):
    """A post-hoc codebook: another K, of another kind, finds the scratch of the finished autoencoder."""
    vae = {f"tokenizer.vae.{name}": 4 for name in ("channels", "outer_channels", "block_channels", "latent_dim")}
    stage = (sys.executable, "-m", "stages.tokenizer")
    try:
        edit(repo, {"tokenizer.name": "vae", "quantizer.name": "kmeans", "quantizer.geodesic.latents": 64, **vae})
        steps = re.search(r"tokenizer: 100%\S* *(\d+)/\1", run(*stage, cwd=repo))[1]
        first = load_weights(repo / "artifacts/tokenizer/model.safetensors")
        edit(repo, {"quantizer.name": "geodesic", "quantizer.codebook_size": 5})
        assert f"resuming tokenizer at step {steps}" in run(*stage, cwd=repo)
        other = load_weights(repo / "artifacts/tokenizer/model.safetensors")
        assert (first["quantizer.codes"].shape, other["quantizer.codes"].shape) == ((8, 4), (5, 4))
        assert all(other[name].equal(first[name]) for name in first if not name.startswith("quantizer."))
    finally:
        restore(repo, "dataset", "extractor")


def test_an_input_edited_during_the_run_fails_the_stage_by_name(repo):
    try:
        edit(repo, {"tokenizer.training.epochs": 13})  # not those of a finished run, which dvc would take
        process = start(repo, "dvc", "repro", "tokenizer")
        process.began = time.time()
        wait_for_step(repo, process, 4)
        edit(repo, {"quantizer.beta": 0.9})
        output = process.communicate(timeout=90)[0]
        assert process.returncode != 0
        assert "quantizer.beta changed while tokenizer ran" in output
    finally:
        restore(repo, "dataset", "extractor")
