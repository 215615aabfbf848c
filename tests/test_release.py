"""What is exported: models, cards, sums; and that the folder and the wheel are all that a stranger needs."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from committed import ROOT, project
from conftest import labelled, pictures
from ruamel.yaml import YAML

import tessera
from tessera import export
from tessera.commands import trained
from tessera.core import files, models
from tessera.core.contracts import Sampling
from tessera.core.errors import InputError
from tessera.core.run import Run
from tessera.core.seeding import seed_globally
from tessera.release import card, sums
from tessera.runtime import provenance

FILES = {
    "README.md", "SHA256SUMS", "prior/sampling.json",
    *(f"{kind}/{name}" for kind in ("tokenizer", "prior")
      for name in ("README.md", "model.safetensors", "recipe.json", "code.json")),
}  # fmt: skip
PSNR = 21.987


@pytest.fixture
def run(tiny_run: Callable[[], Run], raw: dict[str, Any]) -> Run:
    """A tiny run in the working folder, as `dvc repro` leaves one: code, params, cards, metrics, and the card of its data."""
    run = tiny_run()
    Path("src").symlink_to(ROOT / "src")
    raw["dataset"]["source"] = "/home/somebody/drawings.parquet"
    with open("params.yaml", "w") as stream:
        YAML(typ="safe").dump(raw, stream)
    for kind in ("tokenizer", "prior"):
        recipe = models.read_recipe(run.folder(kind))
        text = models.card(f"artifacts/{kind}", recipe, {"seed": 7, kind: {"name": recipe.name}}, {}, ["a note"])
        (run.folder(kind) / models.CARD).write_text(text)
    files.write_json(run.folder("samples") / "facts.json", {"sets": ["samples"], "sampling": Sampling()._asdict()})
    files.write_json(Path("metrics/reconstruction.json"), {"test": {"psnr_db": PSNR}})
    files.write_json(Path("metrics/dataset.json"), {"rows": {"train": 12, "val": 6, "test": 5}, "families": 12})
    files.write_json(Path("metrics/evaluation/two_sample.json"), {"test": {"all": {"features": 0.75}}})
    files.write_json(Path("metrics/evaluation/frechet.json"), {"all": {"images": 5, "fd_x": {"samples_test": 3.25}}})
    return run


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """`said(status, *arguments)`: what the command export printed that ended with this status."""

    def start(status: int, *arguments: str) -> str:
        ended: Any = None
        try:
            ended = export.main(arguments)
        except SystemExit as end:
            ended = end.code
        assert ended == status
        return "".join(capsys.readouterr())

    return start


def below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


# the command


def test_an_exported_folder_holds_models_cards_and_sums_and_nothing_else(run, said):
    assert "models/mine: README.md, SHA256SUMS, prior, tokenizer; " in said(0, "mine")
    folder = Path("models/mine")
    assert below(folder) == FILES
    assert [path.name for path in Path("models").iterdir()] == ["mine"]
    x = torch.rand(3, 3, 8, 8) * 2 - 1
    with torch.no_grad():
        own, theirs = run.tokenizer(), tessera.load(str(folder / "tokenizer"))
        assert torch.equal(own.encode(x), theirs.encode(x))
        samples = [prior.sample(2, torch.Generator().manual_seed(0))
                   for prior in (run.prior(), tessera.load(str(folder / "prior")))]  # fmt: skip
    assert torch.equal(*samples)


def test_an_exported_prior_says_how_its_run_drew_samples(run, said):
    own = {"temperature": 1.0, "top_k": 0, "top_p": 0.95, "guidance": {"cluster": 2.0}}
    files.write_json(run.folder("samples") / "facts.json", {"sets": ["samples"], "sampling": own})
    said(0, "mine")
    assert trained.Trained(Path("models/mine")).sampling() == Sampling(**own)
    assert "prior/sampling.json" in sums.read(Path("models/mine"))


def test_the_same_run_is_exported_to_the_same_bytes(run, said):
    said(0, "mine")
    before = sums.of(Path("models/mine"))
    assert "error: models/mine is there already. Choose another name, or replace it by --again" in said(1, "mine")
    Path("models/mine/stale.txt").write_text("of an earlier export")
    said(0, "mine", "--again")
    assert sums.of(Path("models/mine")) == before


def test_an_export_that_fails_leaves_what_was_there(run, said, monkeypatch):
    said(0, "mine")
    before = sums.of(Path("models/mine"))
    (run.folder("prior") / models.CARD).write_text("no params")
    assert "artifacts/prior/README.md has no section Params" in said(1, "mine", "--again")
    assert sums.of(Path("models/mine")) == before
    assert [path.name for path in Path("models").iterdir()] == ["mine"]


@pytest.mark.parametrize("name", ["../mine", "/mine", ".mine", "a/b", "", "a b"])
def test_a_name_that_leaves_the_folder_is_refused(name, workspace, said):
    assert "NAME: must be a name of letters, digits and . _ -" in said(2, name)
    assert not Path("models").exists()


REFUSED: dict[str, tuple[Callable[[Run], Any], str]] = {
    "no prior": (lambda run: shutil.rmtree(run.folder("prior")), "artifacts has no prior/recipe.json. Run `dvc repro samples`"),
    "no codes": (lambda run: shutil.rmtree(run.folder("codes")), "artifacts has no codes/made_from.json"),
    "no samples": (lambda run: shutil.rmtree(run.folder("samples")), "artifacts has no samples/facts.json"),
    "other codes": (
        lambda run: files.write_json(run.folder("prior") / provenance.MADE_FROM, {"artifacts/codes": "0" * 32}),
        "artifacts/prior was made from artifacts/codes 00000000",
    ),
    "other code": (
        lambda run: files.write_json(run.folder("tokenizer") / provenance.CODE, {"src/tessera/networks/conv.py": "0"}),
        "artifacts/tokenizer was made with another src/tessera/networks/conv.py than lies here",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_models_that_do_not_belong_together_are_not_exported(case, run, said):
    spoil, why = REFUSED[case]
    spoil(run)
    assert why in said(1, "mine")
    assert not Path("models").exists()


def test_without_the_packages_of_onnx_the_extra_is_named_before_any_work(run, said, monkeypatch):
    from tessera.release import onnx_files

    monkeypatch.setattr(onnx_files, "PACKAGES", ("numpy", "no_such_package"))
    out = said(1, "mine", "--onnx")
    assert (
        "error: --onnx needs no_such_package, which is not installed. Run `python -m pip install 'tessera[onnx]'`"
        in out
    )
    assert not Path("models").exists()


def test_labels_go_with_a_prior_that_needs_them(run, said):
    recipe = models.read_recipe(run.folder("prior"))
    recipe = recipe._replace(arguments=recipe.arguments | labelled(2).facts)
    seed_globally(0, "labels")
    text = (run.folder("prior") / models.CARD).read_text()
    models.save(run.folder("prior"), models.build(recipe), recipe, text)
    said(0, "mine")
    assert tessera.load("models/mine/prior").conditioning["label"].names == ("round", "square")
    card_of_it = Path("models/mine/prior/README.md").read_text()
    assert "given label of an image (`recipe.json` has what there is)" in card_of_it
    assert "It can be asked for label of its training set" in card_of_it


# cards


def test_a_card_says_data_licence_figures_use_limits_params_and_sum(run, said):
    said(0, "mine", "--license", "mit")
    folder = Path("models/mine")
    for kind in ("tokenizer", "prior"):
        text = (folder / kind / "README.md").read_text()
        head = card.read_header(text)
        assert (head["library_name"], head["license"]) == ("tessera", "mit")
        assert re.findall(r"^## (.*)$", text, re.M) == [
            "Use", "Data and licence", "Figures", "Limits", "Params", "Files",
        ]  # fmt: skip
        assert (
            "Trained on `drawings`: 12 images in train, 6 images in val, 5 images in test, of which it learned" in text
        )
        assert "The licence of the data is not stated beside them; the weights are under `mit`" in text
        assert files.sha256(folder / kind / models.WEIGHTS) in text
        assert f"```yaml\nseed: 7\n{kind}:\n" in text
        assert "- a note\n" in text
        assert "somebody" not in text, "the path of a machine"
    tokenizer, prior = ((folder / kind / "README.md").read_text() for kind in ("tokenizer", "prior"))
    assert "| PSNR of the reconstructions, of the mean error | 21.99 dB | `reconstruction: test.psnr_db` |" in tokenizer
    (index,) = card.read_header(tokenizer)["model-index"]
    (result,) = index["results"]
    assert [(metric["type"], metric["value"]) for metric in result["metrics"]] == [("psnr", PSNR)]
    assert "A classifier tells samples from real images in 75.0 % of the cases" in prior
    assert "| 3 | `evaluation/frechet: all.fd_x.samples_test` |" in prior
    assert "of 4 values" in tokenizer or "of 8 values" in tokenizer


def test_the_python_of_a_card_runs(run, said):
    said(0, "mine")
    for page in Path("models/mine").rglob("README.md"):
        for text in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
            exec(compile(text, str(page), "exec"), names := {})
            assert names["images"].abs().max() <= 1


def test_the_licence_of_the_data_is_read_from_the_card_beside_them(run, said, raw):
    Path("set").mkdir()
    Path("set/README.md").write_text("---\nlicense: cc-by-4.0\n---\n\n# Drawings\n")
    raw["dataset"]["source"] = "set/drawings.parquet"
    assert export.data_of(raw)[:2] == ("drawings", "cc-by-4.0")
    raw["dataset"]["source"] = "set"
    assert export.data_of(raw)[:2] == ("set", "cc-by-4.0")
    Path("set/README.md").write_text("no header\n")
    assert export.data_of(raw)[:2] == ("set", "")
    raw["dataset"]["split"]["by"] = "random"
    assert export.data_of(raw).families == 0


@pytest.mark.parametrize(
    "text", ["", "# Title\n---\na: 1\n---\n", "---\na: [\n---\n", "---\n- a\n---\n", "---\na: 1\n"]
)
def test_a_header_that_is_none_is_empty(text):
    assert card.read_header(text) == {}


def test_figures_of_the_committed_metrics_are_all_found(monkeypatch):
    """A renamed metric would vanish from the cards without a word."""
    monkeypatch.chdir(project())
    found = {(figure.file, figure.key) for seam in card.FIGURES for figure, _ in card.figures(seam)}
    wanted = {(figure.file, figure.key) for figures in card.FIGURES.values() for figure in figures}
    assert {key for _, key in wanted - found} == {"all.test.nll_bound_bits_per_code"}, "of priors that are not exact"
    assert any(file == "evaluation/frechet" for file, _ in found)


# sums


def test_sums_are_those_of_sha256sum(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/b c").write_bytes(b"abc")
    sums.write(tmp_path)
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, appendix B.1
    assert (tmp_path / "SHA256SUMS").read_text() == f"{digest}  a/b c\n"
    sums.require(tmp_path)
    (tmp_path / "a/b c").write_bytes(b"abd")
    sums.require(tmp_path, "c/")
    with pytest.raises(InputError, match="a/b c is another file"):
        sums.require(tmp_path, "a/")


@pytest.mark.parametrize("line", ["abc  a", f"{'0' * 64}  ../a", f"{'0' * 64}  /a", f"{'0' * 64} a"])
def test_a_line_that_is_no_sum_is_named(line, tmp_path):
    (tmp_path / "SHA256SUMS").write_text(line + "\n")
    with pytest.raises(InputError, match="is no line of `sha256sum`"):
        sums.require(tmp_path)


# the wheel

STRANGER = """
import sys
from importlib.util import find_spec
from pathlib import Path
import tessera
from tessera import encode, sample
assert Path(tessera.__file__).is_relative_to(sys.argv[1]), tessera.__file__
assert find_spec("stages") is None, "the repository is not here"
assert not sample.main(["-n", "2", "--out", "a.png", "--models", "models/mine"])
assert not encode.main(["photos", "a.npz", "--models", "models/mine"])
ours = [m.__file__ for name, m in sys.modules.items() if name.partition(".")[0] == "tessera"]
assert all(Path(file).is_relative_to(sys.argv[1]) for file in ours), ours
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make wheel` builds, of a copy of the sources."""
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    rules = re.search(r"^wheel: setup\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.M)
    for command in rules[1].splitlines():
        words = command.split()
        program = [sys.executable, *words[1:]] if words[0] == "python" else words
        done = subprocess.run(program, cwd=folder, capture_output=True, text=True, check=False)
        assert not done.returncode, done.stderr
    (made,) = (folder / "dist").iterdir()
    return made


def test_the_wheel_carries_the_library_and_nothing_else(wheel):
    assert wheel.name == f"tessera-{tessera.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        about = archive.read(f"tessera-{tessera.__version__}.dist-info/METADATA").decode()
        licences = [name for name in archive.namelist() if name.endswith("licenses/LICENSE")]
    sources = {path.relative_to(ROOT / "src").as_posix() for path in (ROOT / "src/tessera").rglob("*.py")}
    assert names == sources | {"tessera/py.typed", "tessera/playground/page/redraw.js"}
    assert licences
    assert "Provides-Extra: onnx" in about
    assert "License-Expression: Apache-2.0" in about


def test_a_stranger_needs_the_wheel_and_the_folder_alone(run, said, wheel, tmp_path, monkeypatch):
    """The wheel in a folder, the torch that is there, and no repository."""
    said(0, "mine")
    clean, site = tmp_path / "clean", tmp_path / "site"
    shutil.copytree("models", clean / "models")
    for index, image in enumerate(pictures(2)):
        files.write_picture(clean / "photos" / f"{index}.png", image)
    command = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "-q", "--no-deps", "--no-index"]
    subprocess.run([*command, "--target", str(site), str(wheel)], check=True)
    assert {path.name for path in site.iterdir()} == {"tessera", f"tessera-{tessera.__version__}.dist-info"}
    monkeypatch.setenv("PYTHONPATH", str(site))
    done = subprocess.run(
        [sys.executable, "-c", STRANGER, str(site)], cwd=clean, capture_output=True, text=True, check=False
    )
    assert not done.returncode, done.stderr
    assert "a.png: 2 samples of models/mine/prior" in done.stdout
    assert np.load(clean / "a.npz")["names"].tolist() == ["0.png", "1.png"]


# the committed models


def committed(name: str) -> bytes | None:
    """A file of the last commit; None if it has none of this name."""
    command = ["git", "show", f"HEAD:{name}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
    return done.stdout if done.returncode == 0 else None


@pytest.fixture
def default(tmp_path: Path) -> Path:
    """models/default as it is committed, whatever a user has written there since."""
    if not (ROOT / ".git").exists():
        pytest.skip("no repository: models/default is read from the last commit")
    names = subprocess.run(
        ["git", "ls-tree", "-r", "--name-only", "HEAD", "models/default"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()  # fmt: skip
    if not names:
        pytest.skip("models/default is not committed yet; `python -m tessera.export default --onnx --again` makes it")
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(committed(name))
    return tmp_path / "models/default"


def test_the_committed_sums_are_those_of_the_committed_files_and_cards(default):
    assert sums.read(default) == sums.of(default)
    for kind in ("tokenizer", "prior"):
        assert files.sha256(default / kind / models.WEIGHTS) in (default / kind / "README.md").read_text()


def test_the_committed_cards_are_of_the_committed_run(default):
    """Figures and params: after another run, the models are to be exported again."""
    params = YAML(typ="safe").load(committed("params.yaml"))
    for kind in ("tokenizer", "prior"):
        text = (default / kind / "README.md").read_text()
        (index,) = card.read_header(text)["model-index"]
        for metric in index["results"][0]["metrics"]:
            file, key = re.search(r"\((\S+): (\S+)\)$", metric["name"]).groups()
            value = json.loads(committed(f"metrics/{file}.json"))
            for part in key.split("."):
                value = value[part]
            assert metric["value"] == value, (
                f"{kind}: {file}: {key}; run python -m tessera.export default --onnx --again"
            )
        stated = yaml.safe_load(re.search(r"```yaml\n(.*?)```", text.partition(card.PARAMS)[2], re.DOTALL)[1])
        assert stated["seed"] == params["seed"]
        for section, values in stated.items():
            if isinstance(values, dict):
                assert values == {name: params[section].get(name) for name in values}, f"{kind}: {section}"


def test_the_committed_models_draw_pictures(default, tmp_path, monkeypatch):
    from tessera import sample

    monkeypatch.chdir(tmp_path)
    assert not sample.main(["-n", "2", "--out", "a.png"])
    assert (tmp_path / "a.png").stat().st_size > 500


def test_the_committed_onnx_files_agreed_with_torch(default):
    text = (default / "README.md").read_text()
    assert re.search(r"on the [\d,]+ test images: 0 of [\d,]+ codes differ from torch's", text)
