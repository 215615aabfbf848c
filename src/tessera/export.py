"""Export the trained tokenizer and prior, for people without a clone:

    python -m tessera.export NAME

writes models/NAME: safetensors, recipes, model cards, SHA-256 sums. The folder
can be copied anywhere; `tessera.load` and the commands (--models) need it and
the installed package, nothing else. `make wheel` builds the package.

models/default, the committed models, is made from the committed run by

    python -m tessera.export default --onnx --again
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from tessera.commands import line, trained
from tessera.core import files, models
from tessera.core.contracts import Model, Tokenizer
from tessera.core.errors import InputError, listed
from tessera.core.params import read
from tessera.release import card, sums
from tessera.release.card import Data, Subject
from tessera.runtime import pipeline, provenance

KINDS = ("tokenizer", "prior")
COPIED = (models.WEIGHTS, models.RECIPE, provenance.CODE)
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
ONNX = "onnx"  # folder


def arguments() -> line.Parser:
    parser = line.Parser("export", __doc__)
    parser.add_argument("name", type=_name, metavar="NAME", help="of the folder in models/")
    parser.add_argument("--onnx", action="store_true", help="also ONNX files of the tokenizer, compared with torch on the test "
                        "images; needs tessera[onnx]")  # fmt: skip
    parser.add_argument("--license", default="apache-2.0", metavar="ID", help="of the weights, an identifier of hubs")
    parser.add_argument("--again", action="store_true", help="replace a folder of this name")
    return parser


def _name(text: str) -> str:
    if not NAME.fullmatch(text):
        raise argparse.ArgumentTypeError(f"must be a name of letters, digits and . _ -, got {text!r}")
    return text


def main(given: Sequence[str] | None = None) -> int:
    return line.enter(arguments(), work, given)


def work(options: argparse.Namespace) -> None:
    target = trained.EXPORTED / options.name
    if target.exists() and not options.again:
        raise InputError(f"{target} is there already. Choose another name, or replace it by --again")
    if options.onnx:
        from tessera.release import onnx_files

        onnx_files.require_packages()
    require_whole()
    trained.EXPORTED.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=trained.EXPORTED, prefix=f".{options.name}.") as temporary:
        made = Path(temporary) / options.name
        fill(made, options)
        if target.exists():
            target.rename(Path(temporary) / "before")
        made.rename(target)
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    print(f"{target}: {listed(sorted(path.name for path in target.iterdir()))}; {size / 1e6:.1f} MB")


def require_whole() -> None:
    """Check that tokenizer and prior belong together and to the code and params that are here.

    Raises:
        InputError: one is missing, or was made from or with something else. The message names it, and the remedy.
    """
    needed = [*(f"{kind}/{models.RECIPE}" for kind in KINDS), f"codes/{provenance.MADE_FROM}", "samples/facts.json"]
    if lacking := [name for name in needed if not (files.ARTIFACTS / name).exists()]:
        raise InputError(f"{files.ARTIFACTS} has no {listed(lacking)}. Run `dvc repro samples` or `dvc pull`")
    provenance.require_together("dataset", "tokenizer", "codes", "prior")
    provenance.require_code("prior", [f"{files.ARTIFACTS}/{kind}" for kind in KINDS])
    pipeline.require_up_to_date("criteria", (files.METRICS.name,), read())


def fill(folder: Path, options: argparse.Namespace) -> None:
    """Write the models of `artifacts/`, their cards and sums into `folder`."""
    source, data = trained.Trained(files.ARTIFACTS), data_of(read())
    tokenizer, prior = source.tokenizer("cpu"), source.prior("cpu")
    both: dict[str, Model] = {"tokenizer": tokenizer, "prior": prior}
    for kind, model in both.items():
        _copy(files.ARTIFACTS / kind, folder / kind)
        subject = _subject(options.name, kind, model, tokenizer, source)
        params = card.read_params(files.ARTIFACTS / kind / models.CARD)
        text = card.of_model(
            subject, data, options.license, params, card.figures(subject.recipe.seam), prior.conditioning.names
        )
        _write(folder / kind / models.CARD, text)
    files.write_json(folder / "prior" / trained.SAMPLING, source.sampling()._asdict())
    agreement = None
    if options.onnx:
        from tessera.release import onnx_files

        line.say("ONNX: writing two files, and comparing them with torch on the test images ...")
        onnx_files.write(tokenizer, folder / ONNX)
        pixels = files.load_array(files.ARTIFACTS / "dataset" / "test.npy")
        agreement = onnx_files.compare(tokenizer, folder / ONNX, pixels)
        line.say(f"ONNX: {agreement.other_codes} of {agreement.codes} codes differ from torch's")
    _write(folder / models.CARD, card.of_folder(options.name, data, options.license, KINDS, agreement))
    sums.write(folder)


def _copy(source: Path, target: Path) -> None:
    target.mkdir(parents=True)
    for name in COPIED:
        shutil.copyfile(source / name, target / name)


def _write(path: Path, text: str) -> None:
    with files.writing(path) as stream:
        stream.write(text)


def _subject(name: str, kind: str, model: Model, tokenizer: Tokenizer, source: trained.Trained) -> Subject:
    parameters = sum(tensor.numel() for tensor in model.state_dict().values())
    recipe = models.read_recipe(source.folder / kind)
    return Subject(name, kind, recipe, tokenizer.image_shape, tokenizer.space, parameters, source.digest(kind))


def data_of(raw: dict[str, Any]) -> Data:
    """What params.yaml and the metrics say about the data set. Its licence is that of the header of a README.md in or beside it, as
    hubs have it. Of a path only the last part is named."""
    section, path = raw["dataset"], files.METRICS / "dataset.json"
    metrics = files.read_json(path) if path.exists() else {}
    hub = section.get(section["name"], {}).get("hub")
    source = Path(section["source"])
    pages = [folder / models.CARD for folder in (source, source.parent) if (folder / models.CARD).is_file()]
    about = card.read_header(pages[0].read_text(encoding="utf-8")) if pages and not hub else {}
    licence = about.get("license")
    return Data(
        hub or PurePosixPath(source.as_posix()).stem,
        licence if isinstance(licence, str) else "",
        metrics.get("rows", {}),
        metrics.get("families", 0) if section["split"]["by"] == "family" else 0,
    )


if __name__ == "__main__":
    sys.exit(main())
