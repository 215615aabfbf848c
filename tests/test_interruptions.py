"""Killed and disturbed training under dvc: nothing is lost, nothing is recorded as what it is not."""

from __future__ import annotations

import re
import signal
import time
from pathlib import Path

import pytest
from copies import begin_and_stop, commit, copied, edit, restore, run, start, wait_for_step

from tessera.core.models import load_weights

pytestmark = pytest.mark.pipeline


@pytest.fixture(scope="module")
def repo(tmp_path_factory) -> Path:
    """A copy whose data set is prepared."""
    copy = copied(tmp_path_factory.mktemp("copy"))
    run("dvc", "repro", "dataset", cwd=copy)
    commit(copy, "run")
    return copy


LONGER = {"tokenizer.training.epochs": 30}


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
        restore(repo, "dataset")
        edit(repo, LONGER)
        begin_and_stop(repo, signal.SIGTERM, *experiment)
        assert re.search(r"resuming tokenizer at step \d+", run(*experiment, cwd=repo))
    finally:
        restore(repo, "dataset")


def test_an_input_edited_during_the_run_fails_the_stage_by_name(repo):
    try:
        edit(repo, {"tokenizer.training.epochs": 20})
        process = start(repo, "dvc", "repro", "tokenizer")
        process.began = time.time()
        wait_for_step(repo, process, 4)
        edit(repo, {"quantizer.beta": 0.9})
        output = process.communicate(timeout=90)[0]
        assert process.returncode != 0
        assert "quantizer.beta changed while tokenizer ran" in output
    finally:
        restore(repo, "dataset")
