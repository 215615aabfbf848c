"""What the tests share: tiny configs from the `examples` of their fields, tiny images, tiny runs."""

from __future__ import annotations

import contextlib
import copy
import gc
import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dvc  # noqa: F401  its log goes to the stdout that it was loaded under: not that of one test, which is closed
import hypothesis
import numpy as np
import pandas as pd
import pytest
import torch
from committed import project
from pydantic import BaseModel
from ruamel.yaml import YAML

from tessera.core import files, models, seams
from tessera.core.params import CHOOSES, PLURAL, Params, read
from tessera.core.run import SPLITS, Run
from tessera.core.seeding import seed_globally
from tessera.images.arrays import to_model
from tessera.runtime import provenance
from tessera.runtime.validation import sections

# Libraries read it once, when the first of them is imported: timm by one test would decide for the data sets of another.
os.environ["HF_HUB_OFFLINE"] = "1"
ROOT = Path(__file__).resolve().parent.parent
LABELS = ("round", "square")
LONGEST = (
    "test_pipeline",
    "test_scale",
    "test_tokenizers",
    "test_studies",
    "test_stages",
    "test_diagnostics",
    "test_scripts",
)

hypothesis.settings.register_profile("tests", deadline=None, derandomize=True, database=None, max_examples=50)
hypothesis.settings.load_profile("tests")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest modules begin, so that both processes end at about the same time; that of the pipeline is the longest, and the
    many short ones fill the other process."""
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


def pytest_collection_finish() -> None:
    """Modules and tests stay until the end: Python need not look through them for garbage again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Sums of several threads may differ in the last bit, and tests run side by side."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _same_text_is_parsed_once() -> Iterator[None]:
    """params.yaml is read thousands of times, at 10 ms each: half the time of the tests of studies. Each reader gets values of
    its own; what cannot be parsed is tried again."""
    load, parsed = YAML.load, {}

    def once(yaml: YAML, stream: Any) -> Any:
        if not isinstance(stream, str) or yaml.typ != ["safe"]:
            return load(yaml, stream)
        key = (stream, yaml.pure, yaml.version)
        if key not in parsed:
            parsed[key] = pickle.dumps(load(yaml, stream))
        return pickle.loads(parsed[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(YAML, "load", once)
        yield


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Modules are initialised from torch's global generator: a test must not depend on those that ran before it."""
    torch.manual_seed(0)


# configs


def example(config: type[BaseModel], **values: Any) -> Any:
    """An instance of `config` from the first example of each field; `values` are put in their place."""
    return config.model_validate(examples(config) | values)


def examples(model: type[BaseModel]) -> dict[str, Any]:
    found = {}
    for name, field in model.model_fields.items():
        nested = isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
        assert nested or field.examples, f"{model.__module__}.{model.__name__}.{name} has no example"
        found[name] = examples(field.annotation) if nested else copy.deepcopy(field.examples[0])
    return found


@pytest.fixture
def tiny() -> Callable[..., Any]:
    """`tiny(module.Config, beta=1.0)`: a `Config` from its own examples, shared keys included."""
    return example


TINY = {
    "dataset": {"image_size": 8, "target_size": 16, "colour": "rgb"},
    "scorer": {"name": "classifier"},
    "tokenizer": {"keep": "best", "keep_every": 0, "snapshot_epochs": [0, 1]},
    "codes": {"batch_size": 4},
    "reconstruction": {"batch_size": 4},
    "probe": {"channels": 8, "layers": 2, "dropout": 0.1, "count": 8},
    "prior": {"conditional": False, "label_dropout": 0.0, "augmented": 0.9, "annealing": 0.0},
    "infiller": {"channels": 8, "layers": 1, "heads": 2, "steps": 3},
    "samples": {"count": 4, "batch_size": 2},
    "features": {"batch_size": 4, "decoded": 8, "smallest_group": 2},
    "runtime": {"device": "cpu", "devices": 1, "nodes": 1, "threads": 1, "checkpoint_seconds": 0.0, "keep_scratch": 2},
}


def shrunk(raw: dict[str, Any]) -> dict[str, Any]:
    """params.yaml with the same names chosen, and every other value as small as its `examples`."""
    small = copy.deepcopy(raw)
    for section, model in sections().items():
        for name, field in model.model_fields.items():
            if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel) and name != "split":
                small[section][name] = examples(field.annotation)
        small[section] |= TINY.get(section, {})
    for section, seam in CHOOSES.items():
        for name in [key for key in small[section] if key in seams.names(seam)]:
            own = examples(seams.plugin(seam, name).Config)
            shared = {key for key in own if key in small[section]}
            small[section] |= {key: own[key] for key in shared}
            small[section][name] = {key: value for key, value in own.items() if key not in shared}
    for section in PLURAL:
        small[section] = {key: examples(seams.plugin(section, key).Config) for key in small[section]}
    for name in small["losses"]:  # as in params.yaml: what is off stays off
        small["losses"][name]["weight"] = raw["losses"][name]["weight"]
    return small


@pytest.fixture(scope="session")
def _raw() -> dict[str, Any]:
    return shrunk(read(project() / "params.yaml"))


@pytest.fixture
def raw(_raw: dict[str, Any]) -> dict[str, Any]:
    """A small, valid params.yaml as plain dictionaries, to be changed at will."""
    return copy.deepcopy(_raw)


# images


def pictures(n: int, height: int = 8, width: int = 8, channels: int = 3) -> np.ndarray:
    """uint8 [N,H,W,C]: a disc or a square of one colour on white, at a place of its own."""
    draws = np.random.default_rng(0)
    rows, columns = np.mgrid[:height, :width]
    images = np.full((n, height, width, channels), 255, np.uint8)
    for index, image in enumerate(images):
        y, x = draws.uniform(0.25, 0.75, 2) * (height, width)
        far = [np.hypot(rows - y, columns - x), np.maximum(abs(rows - y), abs(columns - x))][index % 2]
        image[far < min(height, width) / 3] = draws.integers(0, 200, channels)
    return images


@pytest.fixture(scope="session")
def make_images() -> Callable[..., np.ndarray]:
    """`make_images(n, height=8, width=8, channels=3)`"""
    return pictures


@pytest.fixture
def images() -> np.ndarray:
    """uint8 [12,8,8,3]"""
    return pictures(12)


# runs


class FakeRuntime:
    """What `fit` asks of `tessera.runtime.devices.Runtime`, on the CPU, without scratch and without Accelerate."""

    main = True

    def __init__(self, rank: int = 0, ranks: int = 1) -> None:
        self.rank, self.ranks, self.device = rank, ranks, torch.device("cpu")

    def progress(self, **options: Any) -> Any:
        return SimpleNamespace(set_postfix=lambda **_: None, update=lambda *_: None, close=lambda: None)

    def unsupported(self, precision: str) -> None:
        return None

    def prepare(self, model: Any, optimizer: Any, precision: str) -> tuple[Any, Any]:
        return model, optimizer

    def autocast(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def backward(self, loss: torch.Tensor) -> None:
        loss.backward()

    def clip_gradients(self, parameters: Any, norm: float) -> torch.Tensor:
        return torch.nn.utils.clip_grad_norm_(parameters, norm)

    def resume(self, task: str) -> None:
        return None

    def checkpoint(self, task: str, pack: Any, force: bool = False) -> None:
        pass


@pytest.fixture
def runtime() -> FakeRuntime:
    return FakeRuntime()


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder as the root of the repository: artefacts, metrics, plots and scratch go there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    return tmp_path


@pytest.fixture
def tiny_run(
    workspace: Path, raw: dict[str, Any], runtime: FakeRuntime, _artifacts: Path
) -> Callable[[str | None], Run]:
    """`tiny_run(key)`: a `Run` on a tiny dataset, its codes, and a tokenizer, prior and feature networks for it."""
    shutil.copytree(_artifacts, files.ARTIFACTS)
    params = Params(raw)
    return lambda key=None: Run(params, key, runtime)


@pytest.fixture(scope="session")
def _artifacts(_raw: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    with contextlib.chdir(folder):
        run = Run(Params(copy.deepcopy(_raw)))
        _write_dataset(run)
        _write_models(run)
        for made in files.ARTIFACTS.iterdir():
            files.write_json(made / provenance.MADE_FROM, {})  # of nothing that another stage made
        provenance.write_code([files.ARTIFACTS.as_posix()])
    return folder / files.ARTIFACTS


def _write_dataset(run: Run) -> None:
    sizes = {"train": 12, "val": 6, "test": 5}
    everything, start, tables = pictures(sum(sizes.values())), 0, []
    larger = pictures(sum(sizes.values()), 16, 16)
    for split, n in sizes.items():
        files.save_array(run.folder("dataset") / f"{split}.npy", everything[start : start + n])
        files.save_array(run.folder("targets") / f"{split}.npy", larger[start : start + n])
        rows = np.arange(start, start + n)
        columns = {"name": [f"picture {i}" for i in rows], "family": [f"family {i // 2}" for i in rows]}
        labels = rows % len(LABELS)
        tables.append(
            pd.DataFrame({"split": split, **columns, "label": labels, "label_name": np.array(LABELS)[labels]})
        )
        start += n
    files.write_table(run.folder("dataset") / "table.csv", pd.concat(tables))
    files.write_json(run.folder("dataset") / "facts.json", {"label_names": LABELS})


def _write_models(run: Run) -> None:
    seed_globally(0, "tests")
    recipe = models.tokenizer_recipe(run.params, run.image_shape)
    write_tokenizer(trained(models.build(recipe), to_model(run.images("train"))), recipe, run)
    recipe = models.prior_recipe(run.params, run.space, 0)
    models.save(run.folder("prior"), models.build(recipe), recipe, "")
    for section in ("perceptual", "scorer"):
        recipe = models.extractor_recipe(run.params, section, run.image_shape, len(LABELS))
        models.save(run.folder(section), models.build(recipe), recipe, "")


def write_tokenizer(tokenizer: Any, recipe: models.Recipe, run: Run) -> None:
    """A tokenizer and its codes of every split."""
    models.save(run.folder("tokenizer"), tokenizer, recipe, "")
    for split in SPLITS:
        with torch.no_grad():
            codes = tokenizer.encode(to_model(run.images(split)))
        files.save_array(run.folder("codes") / f"{split}.npy", codes.numpy().astype(np.int32))
    files.write_json(run.folder("codes") / "facts.json", tokenizer.space.facts)


@pytest.fixture(scope="session")
def train() -> Callable[..., Any]:
    """`train(tokenizer, x)`: the tokenizer in eval mode, after a moment of training."""
    return trained


def trained(tokenizer: Any, x: torch.Tensor, steps: int = 60) -> Any:
    """A tokenizer whose pictures differ from each other, as those of a freshly initialised one hardly do."""
    optimizer = torch.optim.Adam(tokenizer.train().parameters(), lr=0.02)
    for _ in range(steps):
        output = tokenizer(x)
        terms = [(output.reconstruction - x).square().mean(), *(sum(q.losses.values()) for q in output.quantized)]
        optimizer.zero_grad()
        sum(terms).backward()
        optimizer.step()
    return tokenizer.eval()
