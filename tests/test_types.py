"""What lets the type checker (`make lint`) see plug-ins: their functions say the contract, not a class of their own."""

import pytest

from tessera.core import seams
from tessera.core.errors import InputError
from tessera.core.params import Params
from tessera.core.run import Run

CONTRACTS = {  # seam -> the function that its plug-ins export, and the contracts that it may say to return
    "datasets": ("load", {"Source"}),
    "quantizers": ("build", {"Quantizer", "PostHocQuantizer"}),
    "tokenizers": ("build", {"Tokenizer", "GenerativeTokenizer"}),
    "losses": ("build", {"Loss"}),
    "priors": ("build", {"Prior", "ExactPrior", "ClosedFormPrior"}),
    "extractors": ("build", {"Extractor", "TrainedExtractor", "PretrainedExtractor"}),
    "upsamplers": ("build", {"Upsampler"}),
    "diagnostics": ("measure", {"Report"}),
    "evaluation": ("measure", {"Report"}),
    "extensions": ("measure", {"Report"}),
}


@pytest.mark.parametrize(("seam", "name"), [(seam, name) for seam in seams.SEAMS for name in seams.names(seam)])
def test_a_plug_in_says_which_contract_it_keeps(seam, name):
    """A function that said a class of its own would not be held against the contract."""
    function, contracts = CONTRACTS[seam]
    assert getattr(seams.plugin(seam, name), function).__annotations__["return"] in contracts


def test_a_run_without_a_runtime_reads_on_the_cpu():
    run = Run(Params({}))
    assert run.device == "cpu"
    with pytest.raises(AssertionError, match="without a runtime"):
        _ = run.runtime


def test_labels_that_must_be_there_are_missed_by_name(monkeypatch):
    monkeypatch.setattr(Run, "labels", lambda self, split: None)
    with pytest.raises(InputError, match="the data set must have labels"):
        Run(Params({})).required_labels("train")
