"""Presets: overrides that are valid, printed as dvc takes them; each whole system runs, at tiny size, in one process."""

from __future__ import annotations

import importlib
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from committed import project
from PIL import Image

from tessera import presets, upsampling
from tessera.core import models, seams
from tessera.core.errors import InputError
from tessera.core.params import CHOOSES, Params, closed_form, pretrained, read
from tessera.core.run import Run
from tessera.runtime.validation import problems, sections

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def _root(monkeypatch):
    monkeypatch.chdir(project())


NAMES = sorted(path.stem for path in (ROOT / "presets").glob("*.yaml"))


@pytest.fixture(scope="module")
def whole() -> dict[str, Any]:
    """params.yaml; read once, since that takes longer than all that is done with it."""
    return read(project() / "params.yaml")


@pytest.mark.parametrize("name", NAMES)
def test_preset_is_valid_and_changes_something(name, whole):
    assert presets.applied(whole, presets.overrides(name)) != whole or name == "vqvae-medium"


def unused(raw: dict[str, Any], name: str) -> bool:
    """Whether no stage reads the value of a dotted name under the choices of `raw`: it is of a plug-in that is not chosen, not a
    field of the one that is, or of a training that does not take place."""
    params, (section, key, *_) = Params(raw), [*name.split("."), ""]
    if section == "quantizer" and params.value("tokenizer.name") == "pixels":
        return True
    if section not in CHOOSES:
        return False
    seam, chosen = CHOOSES[section], params.value(f"{section}.name")
    if key in seams.names(seam):
        return key != chosen and not (section == "prior" and key == params.value("samples.baseline"))
    if key in ("training", "augmentation"):
        trained = {
            "scorer": not pretrained(params.value("scorer.name")),
            "perceptual": params.perceptual_network and not pretrained(params.value("perceptual.name")),
            "tokenizer": params.value("tokenizer.name") != "pixels",
            "prior": not closed_form(params.value("prior.name")),
            "upsampler": upsampling.unused(params) is None,
        }
        return not trained[section]
    return key in {k for of in seams.names(seam) for k in fields(seam, of)} - set(fields(seam, chosen)) - set(
        own(section)
    )


def fields(seam: str, plugin: str) -> dict[str, Any]:
    return seams.plugin(seam, plugin).Config.model_fields


def own(section: str) -> dict[str, Any]:
    """Values that the stage of a section reads."""
    return sections()[section].model_fields


@pytest.mark.parametrize("name", NAMES)
def test_every_value_of_a_preset_is_read_under_its_own_choices(name, whole):
    """One that nothing reads says what does not happen: epochs of a network whose weights come from a file."""
    values = presets.overrides(name)
    raw = presets.changed(whole, values)
    assert [key for key in values if not key.startswith("~") and unused(raw, key)] == []


@pytest.mark.parametrize("name", NAMES)
def test_arguments_hold_every_override_and_no_space_within(name):
    values = presets.overrides(name)
    printed = presets.arguments(values)
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
    values = {"quantizer.fsq.levels": [8, 5, 5], "quantizer.name": "fsq", "upsampler.enabled": True, "seed": 1}
    expected = "-S quantizer.fsq.levels=[8,5,5] -S quantizer.name=fsq -S upsampler.enabled=true -S seed=1"
    assert presets.shell(presets.arguments(values)) == expected


def test_a_removed_name_is_not_run(whole):
    values = {"~diagnostics.usage": None, "seed": 1}
    assert presets.arguments(values) == ["-S", "~diagnostics.usage", "-S", "seed=1"]
    assert "usage" not in presets.applied(whole, values)["diagnostics"]
    with pytest.raises(InputError, match=r"~diagnostics\.usages: params\.yaml has no such value"):
        presets.applied(whole, {"~diagnostics.usages": None})


def test_a_preset_can_be_run_again_on_the_params_that_it_left(whole):
    values = presets.overrides("quick")
    assert presets.remaining(whole, values) == values
    left = presets.applied(whole, values)
    again = presets.remaining(left, values)
    assert [name for name in values if name not in again] == [name for name in values if name.startswith("~")]
    assert presets.applied(left, again) == left


@pytest.mark.parametrize("name", ["quick", "rotation-cifar10"])  # removed names, and lists
def test_dvc_makes_of_the_arguments_what_is_validated(name, whole, tmp_path):
    """As `-S` does it, in front of one more override: that one wins, and every other value is that of the preset."""
    from dvc.utils.hydra import apply_overrides

    shutil.copy("params.yaml", tmp_path)
    values = presets.overrides(name)
    apply_overrides(tmp_path / "params.yaml", [*presets.arguments(values)[1::2], "quantizer.beta=0.75"])
    assert read(tmp_path / "params.yaml") == presets.applied(whole, {**values, "quantizer.beta": 0.75})


AWKWARD = [
    "",
    "a b",
    "Über/日本",
    "q\"uo'te",
    "a,b",
    "[1]",
    "x=y",
    "1",
    "true",
    "null",
    "back\\slash",
    "end\\",
    "a:b",
    "~",
]


@pytest.mark.parametrize("text", AWKWARD)
def test_dvc_reads_any_text_and_so_does_a_shell(text, tmp_path):
    from dvc.utils.hydra import apply_overrides

    shutil.copy("params.yaml", tmp_path)
    values = {"dataset.source": text, "extensions.interpolation.modes": ["index", text]}
    arguments = presets.arguments(values)
    apply_overrides(tmp_path / "params.yaml", arguments[1::2])
    raw = read(tmp_path / "params.yaml")
    assert (raw["dataset"]["source"], raw["extensions"]["interpolation"]["modes"]) == (text, ["index", text])
    line = presets.shell(arguments)
    assert (shlex.split(line) if re.search(r"\s", text) else line.split(" ")) == arguments


def test_make_runs_a_preset_as_an_experiment_and_stops_at_an_unknown_one(tmp_path):
    if shutil.which("make") is None:
        pytest.skip("there is no make here")
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "PRESET"))}

    def line(*arguments: str) -> str:
        """The last one that `make repro` would run."""
        command = ["make", "--dry-run", "repro", *arguments]
        done = subprocess.run(command, cwd=ROOT, env=plain, capture_output=True, text=True, check=True)
        return done.stdout.splitlines()[-1]

    dvc = "python -m tessera.runtime.command"
    assert line() == f"{dvc} repro"
    assert line("PRESET=quick") == f"arguments=$(python -m tessera.presets quick) && {dvc} exp run $arguments"
    script = f"""#!/bin/sh
case "$*" in
  *tessera.runtime.command*) echo dvc was run;;
  *) exec {sys.executable} "$@";;
esac
"""
    (tmp_path / "python").write_text(script)
    (tmp_path / "python").chmod(0o755)
    path = os.pathsep.join([str(tmp_path), str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(["sh", "-c", line("PRESET=quikc")], cwd=ROOT, env=plain | {"PATH": path}, capture_output=True,
                          text=True, check=False)  # fmt: skip
    assert done.returncode != 0
    assert "presets/quikc.yaml: there is no such preset; there are bf16, cifar10, emoji-64" in done.stderr
    assert "dvc was run" not in done.stdout


def test_main_prints_the_arguments_and_of_an_unknown_preset_what_dvc_refuses(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["presets", "vqvae-small"])
    assert presets.main() == 0
    assert capsys.readouterr().out.strip() == " ".join(presets.arguments(presets.overrides("vqvae-small")))
    monkeypatch.setattr(sys, "argv", ["presets", "vqvae-tiny"])
    assert presets.main() == 1
    assert capsys.readouterr().out.strip() == "--no-such-preset"


def test_unknown_names_are_refused():
    with pytest.raises(InputError, match=r"there are .*vqvae-"):
        presets.overrides("vqvae-tiny")
    with pytest.raises(InputError, match=r"quantizer\.betta: params\.yaml has no such value"):
        presets.applied(read(), {"quantizer.betta": 1})
    with pytest.raises(InputError, match=r"seed\.x: params\.yaml has no such value"):
        presets.applied(read(), {"seed.x": 1})
    with pytest.raises(InputError, match=r"quantizer\.beta: .*-1"):
        presets.applied(read(), {"quantizer.beta": -1.0})


def test_applying_leaves_the_original():
    raw = read()
    presets.applied(raw, {"seed": 5})
    assert raw == read()


@pytest.mark.parametrize("size", ["small", "large", "xlarge"])
def test_sizes_of_rotation_differ_in_their_size_alone(size):
    values = presets.overrides("rotation-cifar10") | presets.overrides(f"vqvae-{size}")
    assert presets.overrides(f"rotation-cifar10-{size}") == values


# whole systems

SYSTEMS = {  # preset: pixels of a tiny image, its channels, grids of its codes
    "bf16": (8, 3, ((2, 2),)),
    "cifar10": (8, 3, ((2, 2),)),
    "emoji-64": (8, 3, ((2, 2),)),
    "emoji-vendors": (8, 3, ((2, 2),)),
    "emoji-words": (8, 3, ((2, 2),)),
    "fashion-mnist": (8, 1, ((2, 2),)),
    "geodesic-mnist": (8, 1, ((2, 2),)),
    "pixels-mnist": (8, 1, ((8, 8),)),
    "pixels-mnist-rnn": (8, 1, ((8, 8),)),
    "quick": (8, 3, ((2, 2),)),
    "rotation-cifar10": (8, 3, ((2, 2),)),
    "vae-mnist": (8, 1, ((2, 2),)),
    "vq-mnist": (8, 1, ((2, 2),)),
    "vqvae-emoji": (8, 3, ((2, 2),)),
    "vqvae-emoji-32": (8, 3, ((2, 2),)),
    "vqvae2-emoji": (8, 3, ((1, 1), (2, 2))),
}
SIZES = {  # last parts of the names whose values stay tiny; all other values are the preset's
    "image_size", "target_size", "snapshot_epochs", "epochs", "batch_size", "warmup_steps", "restart_epochs", "evaluate_every",
    "keep_every", "channels", "outer_channels", "blocks", "block_channels", "levels", "codebook_size", "code_dim", "latent_dim",
    "latents", "neighbours", "iterations", "layers", "kernel_size", "first_kernel_size", "heads", "embedding", "hidden",
    "copies", "count", "pairs", "resamplings", "shift", "withheld",
}  # fmt: skip


def test_every_preset_is_run_or_is_a_size():
    assert set(NAMES) == {*SYSTEMS, *(name for name in NAMES if re.search(r"-(small|medium|large|xlarge)$", name))}


def encoded(images: np.ndarray, size: int) -> list[dict[str, Any]]:
    """As the hub's parquet files hold them."""
    found = []
    for image in images:
        stream = io.BytesIO()
        Image.fromarray(image.squeeze()).resize((size, size)).save(stream, "PNG")
        found.append({"bytes": stream.getvalue(), "path": None})
    return found


@pytest.fixture(scope="module")
def sources(tmp_path_factory, make_images) -> Path:
    """A folder `data` with a few rows of all that presets name as `dataset.source`, in the same form."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    data = tmp_path_factory.mktemp("sources") / "data"
    table = pq.read_table(ROOT / "data" / "noto-emoji.parquet")
    (data / "mnist").mkdir(parents=True)
    (data / "cifar10").mkdir()
    few = table.take(list(range(0, table.num_rows, 100)))
    pq.write_table(few, data / "noto-emoji.parquet")
    vendors = read(ROOT / "presets" / "emoji-vendors.yaml")["dataset.emoji.vendors"]
    for name in vendors:  # as folders of their images: there is no resvg here for the packages that hold SVG
        (data / "vendors" / name).mkdir(parents=True)
        for codepoints, image in zip(few["codepoints"].to_pylist()[:8], make_images(8), strict=True):
            turned = np.roll(image, vendors.index(name), axis=1)
            Image.fromarray(turned).save(data / "vendors" / name / f"{codepoints}.png")
    pq.write_table(few, data / "vendors" / "noto.parquet")
    for name, column, channels, size in (("mnist", "image", 1, 28), ("cifar10", "img", 3, 32)):
        stored = encoded(make_images(48, channels=channels), size)
        for split, where in {"train": slice(0, 42), "test": slice(42, 48)}.items():
            labels = [index % 3 for index in range(48)][where]
            pq.write_table(pa.table({column: stored[where], "label": labels}), data / name / f"{split}.parquet")
    (data / "fashion-mnist").mkdir()
    pictures = make_images(48, channels=1)
    for split, where in {"train": slice(0, 42), "t10k": slice(42, 48)}.items():
        of_set = {"images-idx3": pictures[where].squeeze(3), "labels-idx1": np.arange(48, dtype=np.uint8)[where] % 3}
        for kind, values in of_set.items():
            head = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes()
            (data / "fashion-mnist" / f"{split}-{kind}-ubyte").write_bytes(head + values.tobytes())
    return data


@pytest.mark.parametrize("name", SYSTEMS)
def test_system_runs_from_images_to_samples(name, raw, sources, workspace, runtime, monkeypatch):
    """Structure is the preset's, sizes are tiny: what it names exists together, whatever the figures."""
    size, channels, grids = SYSTEMS[name]
    values = read(ROOT / "presets" / f"{name}.yaml")
    structure = {key: value for key, value in values.items() if key.rpartition(".")[2] not in SIZES}
    put(raw, {key: value for key, value in structure.items() if not key.startswith("~")})
    copies = min(2, values.get("codes.copies", 2))
    raw["dataset"] |= {"image_size": size, "target_size": size}
    raw["codes"]["copies"] = copies
    raw["samples"]["count"], raw["tokenizer"]["snapshot_epochs"] = 4, []
    for section in ("scorer", "perceptual", "tokenizer", "prior"):
        raw[section]["training"] |= {"epochs": 1, "batch_size": 24}
    assert problems(raw) == []
    params = Params(raw)
    (workspace / "data").symlink_to(sources)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # which the stage sets for itself
    monkeypatch.syspath_prepend(str(ROOT))
    bar = runtime.progress
    monkeypatch.setattr(
        runtime, "progress", lambda iterable=None, **options: bar(**options) if iterable is None else iterable
    )
    run = Run(params, runtime=runtime)
    for stage in ("dataset", "scorer", "perceptual", "tokenizer", "codes", "reconstruction", "prior", "samples"):
        importlib.import_module(f"stages.{stage}").main(run)
    assert run.image_shape == (channels, size, size)
    assert run.space.grids == grids
    assert len(run.augmented_codes()) == copies
    assert run.samples().shape == (4, size, size, channels)
    assert Path("artifacts/samples/samples/conditions.csv").exists() == bool(params.conditions)


def put(raw: dict[str, Any], values: dict[str, Any]) -> None:
    """As `presets.applied`, but judged later: together with tiny sizes."""
    for name, value in values.items():
        *place, last = name.split(".")
        section = raw
        for part in place:
            section = section[part]
        section[last] = value
