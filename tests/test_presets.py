"""Presets: overrides that are valid, printed as dvc takes them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tessera import presets
from tessera.core import models
from tessera.core.errors import InputError
from tessera.core.params import Params, read

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def _root(monkeypatch):
    monkeypatch.chdir(ROOT)


NAMES = sorted(path.stem for path in (ROOT / "presets").glob("*.yaml"))


@pytest.mark.parametrize("name", NAMES)
def test_preset_is_valid_and_changes_something(name):
    raw = read()
    assert presets.applied(raw, presets.overrides(name)) != raw or name == "vqvae-medium"


@pytest.mark.parametrize("name", NAMES)
def test_arguments_hold_every_override_and_no_space_within(name):
    values = presets.overrides(name)
    printed = presets.arguments(values).split()
    assert printed[::2] == ["-S"] * len(values)
    assert [part.partition("=")[0] for part in printed[1::2]] == list(values)


@pytest.mark.parametrize("size", ["small", "medium", "large", "xlarge"])
def test_size_says_how_many_parameters_it_has(size):
    raw = presets.applied(read(), presets.overrides(f"vqvae-{size}"))
    tokenizer = models.build(models.tokenizer_recipe(Params(raw), (3, 32, 32)))
    count = sum(parameter.numel() for parameter in tokenizer.parameters())
    said = re.search(r"([\d,]+) parameters", (ROOT / "presets" / f"vqvae-{size}.yaml").read_text())[1]
    assert int(said.replace(",", "")) == count


def test_lists_and_text_are_printed_as_dvc_reads_them():
    values = {"quantizer.fsq.levels": [8, 5, 5], "quantizer.name": "fsq", "prior.conditional": True, "seed": 1}
    expected = "-S quantizer.fsq.levels=[8,5,5] -S quantizer.name=fsq -S prior.conditional=true -S seed=1"
    assert presets.arguments(values) == expected


def test_unknown_names_are_refused():
    with pytest.raises(InputError, match=r"there are .*vqvae-"):
        presets.overrides("vqvae-tiny")
    with pytest.raises(InputError, match=r"quantizer\.betta: params\.yaml has no such value"):
        presets.applied(read(), {"quantizer.betta": 1})
    with pytest.raises(InputError, match=r"quantizer\.beta: .*-1"):
        presets.applied(read(), {"quantizer.beta": -1.0})


def test_applying_leaves_the_original():
    raw = read()
    presets.applied(raw, {"seed": 5})
    assert raw == read()
