"""ONNX files of tokenizers against torch, where the packages of the extra `onnx` are installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import pictures
from kinds import KINDS, run_of

from tessera.codebooks import codebook
from tessera.networks.doubling import Doubling
from tessera.release import card, onnx_files
from tessera.release.onnx_files import Agreement

lacking = [name for name in onnx_files.PACKAGES if importlib.util.find_spec(name) is None]
needs_packages = pytest.mark.skipif(bool(lacking), reason=f"not installed: {', '.join(lacking)} (the extra onnx)")


@pytest.fixture
def tokenizer(tiny_run: Any) -> Any:
    return tiny_run().tokenizer()


@needs_packages
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_tokenizer_agrees_on_every_code(kind, tiny_run, raw, runtime, tmp_path):
    """For any number of images, which is not that of the example of the export."""
    tiny_run()
    tokenizer = run_of(kind, raw, runtime, "").tokenizer()
    onnx_files.write(tokenizer, tmp_path)
    for n in (1, 7, 70):
        found = onnx_files.compare(tokenizer, tmp_path, pictures(n))
        assert (found.images, found.codes, found.other_codes) == (n, n * tokenizer.space.length, 0)
        assert found.largest < 1e-4


@needs_packages
def test_the_files_are_the_same_each_time_and_name_no_machine(tokenizer, tmp_path):
    import onnx

    for name in ("one", "two"):
        onnx_files.write(tokenizer, tmp_path / name)
    for name in (onnx_files.ENCODER, onnx_files.DECODER):
        content = (tmp_path / "one" / name).read_bytes()
        assert content == (tmp_path / "two" / name).read_bytes()
        assert str(Path.cwd()).encode() not in content
        assert b".py" not in content
        model = onnx.load(tmp_path / "one" / name)
        (given,), (made,) = model.graph.input, model.graph.output
        assert {given.name, made.name} == {"images", "codes"}
        for value in (given, made):
            assert value.type.tensor_type.shape.dim[0].dim_param == "n"
    assert codebook.nearest.__module__ == codebook.__name__, "what was exchanged for the export is back"
    assert Doubling.forward.__module__ == Doubling.__module__


@needs_packages
def test_another_tokenizer_is_noticed(tokenizer, tmp_path):
    onnx_files.write(tokenizer, tmp_path)
    with torch.no_grad():
        tokenizer.quantizer.codes.copy_(tokenizer.quantizer.codes.flip(0))
    found = onnx_files.compare(tokenizer, tmp_path, pictures(6))
    assert found.other_codes > 0
    assert found.other_values > 0


@pytest.mark.parametrize("k", [1, 2, 50])
def test_the_plain_search_finds_what_the_fast_one_finds(k):
    rng = np.random.default_rng(0)
    z, book = (torch.from_numpy(rng.integers(-3, 4, (n, 4)).astype(np.float32)) for n in (200, k))  # with many ties
    assert torch.equal(onnx_files._nearest(z, book), codebook.nearest(z, book))


def test_the_plain_transposed_convolution_is_the_fast_one():
    layer, x = Doubling(5, 3), torch.randn(2, 5, 4, 6)
    assert torch.allclose(onnx_files._transposed(layer, x), layer(x), atol=1e-6)


def test_a_card_counts_what_differs():
    text = card.onnx_part(Agreement(365, 23360, 2, 1121280, 16, 1.62e-6))
    assert "on the 365 test images: 2 of 23,360 codes differ from torch's" in text
    assert "16 of 1,121,280 8-bit values differ, and no value by more than 2e-06" in text
