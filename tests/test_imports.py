"""The code that a model carries: what its plug-ins import, and what a stage says when that has changed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tessera.core import files, models
from tessera.core.errors import InputError
from tessera.core.params import Params
from tessera.runtime import imports, provenance

ROOT = Path(__file__).resolve().parent.parent


def names(*plugins: tuple[str, str]) -> set[str]:
    return {file.relative_to(ROOT).as_posix() for file in imports.model_code(plugins)}


def test_a_model_carries_its_plug_ins_and_what_these_import():
    found = names(("tokenizers", "vqvae"), ("quantizers", "ema"))
    assert {"src/tessera/tokenizers/vqvae.py", "src/tessera/quantizers/ema.py"} <= found
    assert {"src/tessera/codebooks/codebook.py", "src/tessera/networks/conv.py"} <= found
    assert not any(
        name.startswith(("src/tessera/core/", "src/tessera/runtime/", "src/tessera/attention")) for name in found
    )
    assert "src/tessera/quantizers/fsq.py" not in found


def test_what_is_imported_inside_a_function_counts_and_what_type_checkers_see_does_not(tmp_path):
    package = tmp_path / "src/tessera"
    package.mkdir(parents=True)
    (package / "a.py").write_text(
        "if TYPE_CHECKING:\n    from tessera import c\n\ndef f():\n    from tessera.b import x\n"
    )
    (package / "b.py").write_text("import numpy.linalg\n")
    (package / "c.py").write_text("")
    found = imports.closure({package / "a.py"}, tmp_path)
    assert found == {package / "a.py", package / "b.py"}
    assert imports.packages(found) == {"numpy"}


@pytest.fixture
def made(workspace, raw, monkeypatch):
    """A model in artifacts/tokenizer, whose code lies in this folder."""
    for name in names(("tokenizers", "vqvae"), ("quantizers", "ema")):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes((ROOT / name).read_bytes())
    recipe = models.tokenizer_recipe(Params(raw), (3, 8, 8))
    models.save(Path("artifacts/tokenizer"), models.build(recipe), recipe, "")
    provenance.write_code(["artifacts/tokenizer"])
    return Path("artifacts/tokenizer")


def test_code_as_it_was_is_no_matter(made):
    provenance.require_code("codes", ["artifacts/dataset", "artifacts/tokenizer"])
    assert provenance.code(["artifacts/tokenizer"]).keys() == names(("tokenizers", "vqvae"), ("quantizers", "ema"))


@pytest.mark.parametrize("gone", [False, True])
def test_a_model_of_other_code_is_refused_and_the_file_named(made, gone):
    path = Path("src/tessera/codebooks/codebook.py")
    path.unlink() if gone else path.write_bytes(path.read_bytes() + b"# edited\n")
    expected = (
        r"artifacts/tokenizer was made with another src/tessera/codebooks/codebook\.py .*`dvc repro codes`, without -s"
    )
    with pytest.raises(InputError, match=expected):
        provenance.require_code("codes", ["artifacts/tokenizer"])


def test_a_model_that_does_not_say_its_code_is_refused(made):
    (made / provenance.CODE).unlink()
    with pytest.raises(InputError, match=r"artifacts/tokenizer has no code\.json"):
        provenance.require_code("codes", ["artifacts/tokenizer"])


def test_code_is_no_part_of_what_a_model_computes(made):
    """Codes of a model whose code was only commented still belong to it."""
    before = provenance.digest("artifacts/tokenizer", provenance.digests("artifacts/tokenizer"))
    files.write_json(made / provenance.CODE, {})
    assert provenance.digest("artifacts/tokenizer", provenance.digests("artifacts/tokenizer")) == before
