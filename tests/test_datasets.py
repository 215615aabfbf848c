"""Dataset plug-ins, decoding and preparation: every file of the seam against its contract, each rule by brute force."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import socket
import struct
import subprocess
import sys
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from stages import dataset as preparation
from stages.dataset import Settings as Dataset
from stages.dataset import Split
from tessera.core import files, seams
from tessera.core.contracts import SPLITS, Source
from tessera.core.errors import InputError
from tessera.core.params import Params
from tessera.core.run import Run
from tessera.core.seeding import numpy_generator
from tessera.datasets import folder, huggingface, noto
from tessera.decoding import compressed, squares

ROOT = Path(__file__).resolve().parents[1]
SHARES = {"by": "family", "train": 0.8, "val": 0.1, "test": 0.1, "withheld": []}


@pytest.fixture(autouse=True)
def _workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Working files and caches go to a folder of the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # the plug-in sets it too; set here, it is taken back after the test


# what the tests are made of


def section(**changes: Any) -> Dataset:
    values = {
        "name": "noto",
        "source": "somewhere",
        "image_size": 8,
        "target_size": 16,
        "colour": "rgb",
        "aspect": "pad",
        "near_duplicate_rmse": 4.0,
        "split": SHARES,
    }
    return Dataset.model_validate({**values, **changes})


def example(plugin: Any, **changes: Any) -> Any:
    return plugin.Config(
        **{**{name: field.examples[0] for name, field in plugin.Config.model_fields.items()}, **changes}
    )


def generator(seed: int = 0) -> np.random.Generator:
    return numpy_generator(seed, "dataset", "split")


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encoded(pixels: np.ndarray | Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def source(images: Sequence[np.ndarray], **changes: Any) -> Source:
    ids = [str(i) for i in range(len(images))]
    return Source(images, ids, ids, None, [], None)._replace(**changes)


def write_parquet(
    path: Path, images: list[bytes | None], features: dict[str, Any] | None = None, **columns: list
) -> Path:
    """A file as `datasets` writes it; `features` describe columns that are no plain values."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({
        "image": pa.array([{"bytes": data, "path": None} for data in images],
                          pa.struct({"bytes": pa.binary(), "path": pa.string()})),
        **columns,
    })  # fmt: skip
    known = {"image": {"_type": "Image"}, **(features or {})}
    for field in table.schema:
        known.setdefault(field.name, {"_type": "Value", "dtype": str(field.type)})
    metadata = {"huggingface": json.dumps({"info": {"features": known}})}
    pq.write_table(table.replace_schema_metadata(metadata), path)
    return path


def noto_file(path: Path) -> Path:
    codepoints = ["1f600", "1f44b", "1f44b-1f3fb", "1f44b-1f3ff", "1f680"]
    groups = ["Smileys", "People", "People", "People", "Travel"]
    pictures = [encoded(noise(12, 12, 3, seed=i)) for i in range(5)]
    return write_parquet(path / "noto.parquet", pictures, name=[f"emoji {i}" for i in range(5)], group=groups,
                         subgroup=groups, codepoints=codepoints)  # fmt: skip


def parquet_folder(path: Path, rows: int = 6) -> Path:
    for split, first in (("train", 0), ("test", 100)):
        images = [encoded(noise(12, 10, 3, seed=first + i)) for i in range(rows)]
        features = {"label": {"_type": "ClassLabel", "names": ["cat", "dog"]}}
        write_parquet(path / "set" / f"{split}.parquet", images, features, label=[i % 2 for i in range(rows)],
                      title=[f"{split} {i}" for i in range(rows)])  # fmt: skip
    return path / "set"


def image_folder(path: Path) -> Path:
    for i, name in enumerate(("b/2.png", "a/1.PNG", "a/deep/3.jpg", "b/note.txt", "a/.hidden.png", ".cache/4.png")):
        (path / "pictures" / name).parent.mkdir(parents=True, exist_ok=True)
        (path / "pictures" / name).write_bytes(encoded(noise(9, 9, 3, seed=i), "JPEG" if "jpg" in name else "PNG"))
    return path / "pictures"


def emoji_folder(path: Path) -> Path:
    noto_file(path / "vendors")
    for i, name in enumerate(("twemoji/1f600.png", "twemoji/1f44b-1f3fd.png")):
        (path / "vendors" / name).parent.mkdir(parents=True, exist_ok=True)
        (path / "vendors" / name).write_bytes(encoded(noise(9, 9, 4, seed=10 + i)))
    return path / "vendors"


def idx_folder(path: Path) -> Path:
    (path / "digits").mkdir()
    for part, n in (("train", 6), ("t10k", 3)):
        for kind, values in (("images-idx3", noise(n, 9, 9)), ("labels-idx1", np.arange(n, dtype=np.uint8) % 2)):
            begun = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes()
            (path / "digits" / f"{part}-{kind}-ubyte.gz").write_bytes(gzip.compress(begun + values.tobytes()))
    return path / "digits"


SOURCES: dict[str, Callable[[Path], Path]] = {
    "noto": noto_file,
    "huggingface": parquet_folder,
    "folder": image_folder,
    "emoji": emoji_folder,
    "idx": idx_folder,
}


# the contract of the seam


def test_every_plugin_has_a_source_to_be_tested_with() -> None:
    assert set(seams.names("datasets")) == set(SOURCES)


@pytest.mark.parametrize("name", seams.names("datasets"))
def test_a_plugin_keeps_the_contract(name: str, tmp_path: Path) -> None:
    plugin, path = seams.plugin("datasets", name), SOURCES[name](tmp_path)
    loaded = plugin.load(example(plugin), path, generator())
    n = len(loaded.images)
    assert n > 0
    assert n == len(loaded.names) == len(loaded.families) == len(set(loaded.names))
    assert all(isinstance(text, str) for text in (*loaded.names, *loaded.families, *loaded.label_names))
    if loaded.labels is None:
        assert not loaded.label_names
    else:
        assert len(loaded.labels) == n
        assert set(loaded.labels) <= set(range(len(loaded.label_names)))
    assert loaded.splits is None or set(loaded.splits) <= {*SPLITS, None}
    for pixels in loaded.images:
        assert pixels.dtype == np.uint8
        assert pixels.ndim == 2 or pixels.shape[2] in (3, 4)
    with pytest.raises(IndexError):
        loaded.images[n]


@pytest.mark.parametrize("name", seams.names("datasets"))
def test_a_plugin_loads_the_same_twice(name: str, tmp_path: Path) -> None:
    plugin, path = seams.plugin("datasets", name), SOURCES[name](tmp_path)
    first, second = (plugin.load(example(plugin), path, generator(seed)) for seed in (0, 0))
    assert first[1:] == second[1:]
    assert all(np.array_equal(a, b) for a, b in zip(first.images, second.images, strict=True))


@pytest.mark.parametrize("name", seams.names("datasets"))
def test_a_missing_source_is_named(name: str, tmp_path: Path) -> None:
    plugin = seams.plugin("datasets", name)
    with pytest.raises(InputError, match=r"dataset\.source '.*nowhere'.*no such"):
        plugin.load(example(plugin), tmp_path / "nowhere", generator())


def test_neither_preparation_nor_a_plugin_imports_torch() -> None:
    modules = ["stages.dataset", *(f"tessera.datasets.{name}" for name in seams.names("datasets"))]
    code = f"import sys, importlib; [importlib.import_module(m) for m in {modules}]; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


# noto


@pytest.mark.parametrize(
    ("codepoints", "expected"),
    [
        ("1f600", "1f600"),
        ("1f44b-1f3fb", "1f44b"),  # waving hand, light skin
        ("263a-fe0f", "263a"),
        ("1f9d4-1f3fd-200d-2640-fe0f", "1f9d4"),  # woman, medium skin, beard
        ("1f468-1f3fb-200d-1f9b0", "1f9d1"),  # man, light skin, red hair
        ("1f469-200d-1f680", "1f9d1-1f680"),  # woman astronaut
        ("1f9d1-1f3ff-200d-1f680", "1f9d1-1f680"),
        ("1f46c-1f3fb", "1f9d1-1f91d-1f9d1"),  # men holding hands, one tone
        ("1f469-1f3fb-200d-1f91d-200d-1f468-1f3fc", "1f9d1-1f91d-1f9d1"),  # and two tones
        ("1f48f", "1f9d1-2764-1f48b-1f9d1"),
        ("1f468-200d-2764-fe0f-200d-1f48b-200d-1f468", "1f9d1-2764-1f48b-1f9d1"),
        ("1f491-1f3fc", "1f9d1-2764-1f9d1"),
        ("1f91d-1f3fb", "1faf1-1faf2"),  # handshake, one tone
        ("1faf1-1f3fb-200d-1faf2-1f3fc", "1faf1-1faf2"),  # and two tones
        ("1faf1-1f3fb", "1faf1"),
        ("2640-fe0f", "2640-fe0f"),  # the sign itself
        ("1f3fb", "1f3fb"),  # a sample of the tone
        ("1f9b0", "1f9b0"),
        ("30-fe0f-20e3", "30-20e3"),
        ("1f1e6-1f1e9", "1f1e6-1f1e9"),
    ],
)
def test_family_of_an_emoji(codepoints: str, expected: str) -> None:
    assert noto.family(codepoints) == expected


def toneless(name: str) -> str:
    return re.sub(r"(: |, )?(medium-light|medium-dark|light|medium|dark) skin tone", "", name)


def test_tones_of_one_emoji_never_stand_in_two_splits() -> None:
    loaded = noto.load(noto.Config(label="subgroup"), ROOT / "data" / "noto-emoji.parquet", generator())
    splits = divide(loaded.families, loaded.labels)
    where: dict[str, set[str]] = {}
    for name, split_name in zip(loaded.names, splits, strict=True):
        where.setdefault(toneless(name), set()).add(split_name)
    where.pop("")  # the samples of the tones themselves
    assert [name for name, stands in where.items() if len(stands) > 1] == []
    assert Counter(splits)["train"] == pytest.approx(0.8 * len(splits), abs=2)


def test_noto_labels_are_named_in_the_order_of_the_file(tmp_path: Path) -> None:
    loaded = noto.load(example(noto), noto_file(tmp_path), generator())
    assert loaded.label_names == ["Smileys", "People", "Travel"]
    assert loaded.labels == [0, 1, 1, 1, 2]
    assert np.array_equal(loaded.images[3], noise(12, 12, 3, seed=3))


def test_noto_names_the_columns_that_lack(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"lacks the columns group, subgroup, codepoints; it has image, name"):
        noto.load(example(noto), write_parquet(tmp_path / "x.parquet", [b""], name=["a"]), generator())
    (tmp_path / "text.parquet").write_text("no parquet")
    with pytest.raises(InputError, match=r"text\.parquet' is not a whole parquet file"):
        noto.load(example(noto), tmp_path / "text.parquet", generator())


@pytest.mark.parametrize(
    ("column", "values", "said"),
    [
        ("image", [b"x", b"y"], r"column image must hold images as structs .*, got binary"),
        ("codepoints", [1, 2], r"column codepoints must hold text, got int64"),
        ("codepoints", ["1f600", None], r"column codepoints is empty in row 1"),
        ("group", [None, None], r"column group must hold text, got null"),
    ],
)
def test_noto_names_a_column_of_another_kind(column: str, values: list, said: str, tmp_path: Path) -> None:
    table = pq.read_table(noto_file(tmp_path)).slice(0, 2)
    pq.write_table(table.set_column(table.column_names.index(column), column, pa.array(values)), tmp_path / "x.parquet")
    with pytest.raises(InputError, match=said):
        noto.load(example(noto), tmp_path / "x.parquet", generator())


# huggingface


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    attempts: list[str] = []

    def refuse(*where: Any, **_: Any) -> None:
        attempts.append(str(where))
        raise OSError("the test allows no network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    return attempts


def load_huggingface(path: Path, **changes: Any) -> Source:
    return huggingface.load(example(huggingface, **changes), path, generator())


def test_local_parquet_needs_no_network(tmp_path: Path, no_network: list[str]) -> None:
    loaded = load_huggingface(parquet_folder(tmp_path), label_column="label", name_column="title")
    assert no_network == []
    assert loaded.splits == ["train"] * 6 + ["test"] * 6
    assert loaded.label_names == ["cat", "dog"]
    assert loaded.labels == [0, 1] * 6
    assert loaded.names[5:7] == ["train 5", "test 0"]
    assert loaded.families[5:7] == ["train-5", "test-0"]
    assert np.array_equal(loaded.images[7], noise(12, 10, 3, seed=101))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["artifacts", "set"]
    assert not list((tmp_path / "artifacts").iterdir())  # the rows stand in a file without a name


def test_a_single_file_has_no_splits_of_its_own(tmp_path: Path) -> None:
    loaded = load_huggingface(parquet_folder(tmp_path) / "train.parquet")
    assert len(loaded.images) == 6
    assert loaded.splits is None
    assert loaded.labels is None


def test_an_edited_local_file_is_read_anew(tmp_path: Path) -> None:
    path = parquet_folder(tmp_path) / "train.parquet"
    load_huggingface(path)
    write_parquet(path, [encoded(noise(5, 5, 3, seed=7))])
    os.utime(path, (1e9, 1e9))
    loaded = load_huggingface(path)
    assert len(loaded.images) == 1
    assert np.array_equal(loaded.images[0], noise(5, 5, 3, seed=7))


def test_class_folders_under_split_folders_are_read(tmp_path: Path) -> None:
    for i, name in enumerate(("train/cat/1.png", "train/dog/2.png", "test/cat/3.png")):
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / name).write_bytes(encoded(noise(6, 6, seed=i)))
    loaded = load_huggingface(tmp_path / "set", label_column="label")
    assert loaded.splits == ["train", "train", "test"]
    assert [loaded.label_names[label] for label in loaded.labels or ()] == ["cat", "dog", "cat"]
    assert np.array_equal(loaded.images[2], noise(6, 6, seed=2))


@pytest.mark.parametrize("key", ["image_column", "label_column", "name_column", "family_column"])
def test_a_column_that_is_not_there(key: str, tmp_path: Path) -> None:
    expected = rf"dataset\.huggingface\.{key}: .* has no column 'img'; there is image, label, title"
    with pytest.raises(InputError, match=expected):
        load_huggingface(parquet_folder(tmp_path), **{key: "img"})


def test_a_column_of_text_is_no_column_of_images(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"image_column: 'title' of .* no images"):
        load_huggingface(parquet_folder(tmp_path), image_column="title")


@pytest.mark.parametrize(
    ("values", "names", "labels"),
    [(["b", "a", "b"], ["a", "b"], [1, 0, 1]), ([10, 9, 10], ["9", "10"], [1, 0, 1])],
)
def test_labels_that_are_no_class_indices_keep_their_names(
    values: list, names: list[str], labels: list[int], tmp_path: Path
) -> None:
    images = [encoded(noise(4, 4, seed=i)) for i in range(3)]
    loaded = load_huggingface(write_parquet(tmp_path / "x.parquet", images, kind=values), label_column="kind")
    assert (loaded.label_names, loaded.labels) == (names, labels)


@pytest.mark.parametrize("label", [None, -1])
def test_a_row_without_a_label_is_named(label: int | None, tmp_path: Path) -> None:
    features = {"kind": {"_type": "ClassLabel", "names": ["cat", "dog"]}}
    images = [encoded(noise(4, 4, seed=i)) for i in range(2)]
    path = write_parquet(tmp_path / "x.parquet", images, features, kind=pa.array([0, label], pa.int64()))
    with pytest.raises(InputError, match=rf"label_column: row 1 of .* has the label {label}, no class"):
        load_huggingface(path, label_column="kind")


def test_a_row_with_a_broken_image_is_named(tmp_path: Path) -> None:
    good = encoded(noise(4, 4))
    loaded = load_huggingface(write_parquet(tmp_path / "x.parquet", [good, good[:-30], None]))
    with pytest.raises(InputError, match=r"x\.parquet, split train, row 1 is corrupt, cut short or no image"):
        loaded.images[1]
    with pytest.raises(InputError, match=r"x\.parquet, split train, row 2 cannot be read \(the row has no image\)"):
        loaded.images[2]


def test_a_hub_set_is_pinned_and_its_splits_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import datasets

    asked: dict[str, Any] = {}

    def rows(n: int, family: str) -> datasets.Dataset:
        images = [{"bytes": encoded(noise(4, 4, seed=i)), "path": None} for i in range(n)]
        features = datasets.Features({"image": datasets.Image(), "family": datasets.Value("string")})
        return datasets.Dataset.from_dict({"image": images, "family": [family] * n}, features)

    def load_dataset(**arguments: Any) -> dict[str, datasets.Dataset]:
        asked.update(arguments)
        return {"train": rows(2, "a"), "extra": rows(1, "a"), "validation": rows(1, "b"), "test": rows(2, "c")}

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    loaded = load_huggingface(tmp_path / "unused", hub="owner/name", revision="0123456789abcdef" * 2 + "01234567",
                              configuration="big", family_column="family")  # fmt: skip
    assert asked["path"] == "owner/name"
    assert asked["revision"] == "0123456789abcdef" * 2 + "01234567"
    assert asked["name"] == "big"
    assert "trust_remote_code" not in asked
    assert loaded.splits == ["train", "train", None, "val", "test", "test"]
    assert loaded.families == ["a", "a", "a", "b", "c", "c"]
    assert loaded.names[2] == "extra-0"


@pytest.mark.parametrize("revision", ["", "main", "0123456", "g" * 40])
def test_a_hub_set_needs_a_commit(revision: str) -> None:
    with pytest.raises(ValueError, match=f"revision must be a commit of owner/name, 40 hex digits, got '{revision}'"):
        example(huggingface, hub="owner/name", revision=revision)


def test_what_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"cannot load .*empty: "):
        load_huggingface(tmp_path / "empty")
    with pytest.raises(InputError, match=r"cannot load .*'nope' not found\. Available: \['default'\]"):
        load_huggingface(parquet_folder(tmp_path), configuration="nope")


def test_rows_without_a_family_are_families_of_their_own(tmp_path: Path) -> None:
    images = [encoded(noise(4, 4, seed=i)) for i in range(5)]
    path = write_parquet(tmp_path / "x.parquet", images, family=[None, "a", "a", None, "train-0"])
    assert load_huggingface(path, family_column="family").families == ["train-0-", "a", "a", "train-3", "train-0"]


def test_a_cause_without_text_is_no_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import datasets

    def refuse(**_: Any) -> None:
        raise ConnectionError("no route to the hub") from TimeoutError()

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(InputError, match=r"ConnectionError: no route to the hub$"):
        load_huggingface(tmp_path, hub="owner/name", revision="0" * 40)


# folder


def test_folder_takes_sorted_visible_image_files(tmp_path: Path) -> None:
    path = image_folder(tmp_path)
    loaded = folder.load(example(folder, labels=True, extensions=[".png", "JPG"]), path, generator())
    assert loaded.names == ["a/1.PNG", "a/deep/3.jpg", "b/2.png"]
    assert loaded.families == ["a/1", "a/deep/3", "b/2"]
    assert (loaded.label_names, loaded.labels) == (["a", "b"], [0, 0, 1])
    assert np.array_equal(loaded.images[2], noise(9, 9, 3, seed=0))
    only = folder.load(example(folder, labels=False, extensions=["png"]), path, generator())
    assert only.names == ["a/1.PNG", "b/2.png"]
    assert only.labels is None


def test_an_empty_folder_names_itself_and_what_was_looked_for(tmp_path: Path) -> None:
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "readme.txt").touch()
    with pytest.raises(InputError, match=r"bare' holds no file that ends in \.png, \.jpg"):
        folder.load(example(folder), tmp_path / "bare", generator())


def test_a_file_outside_of_all_classes_is_named(tmp_path: Path) -> None:
    path = image_folder(tmp_path)
    (path / "stray.png").write_bytes(encoded(noise(4, 4)))
    with pytest.raises(InputError, match=r"stray\.png stands in no sub-folder.*labels to false"):
        folder.load(example(folder, labels=True), path, generator())


def test_a_class_without_images_is_named_and_so_is_a_link(tmp_path: Path) -> None:
    path = image_folder(tmp_path)
    (path / "c").mkdir()
    (path / "c" / "1.bmp").touch()
    with pytest.raises(InputError, match=r"pictures/c holds no file that ends in \.png, \.jpg, at any depth"):
        folder.load(example(folder, labels=True), path, generator())
    assert folder.load(example(folder, labels=False), path, generator()).names[0] == "a/1.PNG"
    (path / "a" / "linked").symlink_to(path / "b")
    with pytest.raises(InputError, match=r"a/linked is a link to a folder"):
        folder.load(example(folder, labels=False), path, generator())


def test_a_name_that_is_not_utf_8_is_named(tmp_path: Path) -> None:
    path = image_folder(tmp_path)
    try:
        os.rename(path / "b" / "2.png", os.fsencode(path) + b"/b/caf\xe9.png")
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    with pytest.raises(InputError, match=r"caf\\udce9\.png' is not UTF-8"):
        folder.load(example(folder), path, generator())


def test_a_broken_or_vanished_file_is_named(tmp_path: Path) -> None:
    path = image_folder(tmp_path)
    loaded = folder.load(example(folder, labels=False), path, generator())
    (path / "a" / "1.PNG").write_bytes(b"no image at all")
    (path / "b" / "2.png").unlink()
    with pytest.raises(InputError, match=r"1\.PNG is corrupt, cut short or no image"):
        loaded.images[0]
    with pytest.raises(InputError, match=r"2\.png cannot be read \(No such file"):
        loaded.images[2]


# decoding


def decode(data: bytes) -> np.ndarray:
    return compressed.decode(data, "picture 7")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_a_truncated_file_is_never_filled_up(kind: str) -> None:
    data = encoded(noise(40, 40, 3), kind)
    assert decode(data).shape == (40, 40, 3)
    with pytest.raises(InputError, match=r"picture 7 is corrupt, cut short or no image \(.+\)\. Replace or remove it"):
        decode(data[: len(data) // 2])


def test_random_and_empty_bytes_are_refused() -> None:
    for data in (b"", b"\x00" * 50, noise(500).tobytes(), b"\x89PNG\r\n\x1a\n" + noise(80).tobytes()):
        with pytest.raises(InputError, match="picture 7 is corrupt"):
            decode(data)


def bomb(width: int, height: int) -> bytes:
    """A PNG of some dozen bytes that claims to be this large."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 9)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(("width", "height"), [(8193, 8192), (10_000, 10_000), (50_000, 60_000)])
def test_a_decompression_bomb_is_refused_with_its_size_and_the_limit(width: int, height: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with pytest.raises(
            InputError, match=rf"picture 7 is refused: .*{width * height} pixels.* exceed.* limit of \d+"
        ):
            decode(bomb(width, height))


def test_the_largest_image_passes_the_limit() -> None:
    compressed.require_pixels(8192, 8192, "picture 7")


def test_kinds_of_pixels() -> None:
    grey = noise(6, 6)
    assert np.array_equal(decode(encoded(grey)), grey)
    assert np.array_equal(decode(encoded(noise(6, 6, 4))), noise(6, 6, 4))
    ramp = np.arange(256, dtype=np.uint16).reshape(16, 16)
    assert np.array_equal(decode(encoded(ramp * 257)), ramp)  # 16 bits
    assert np.array_equal(decode(encoded(Image.fromarray(grey > 127))), np.where(grey > 127, 255, 0))  # 1 bit
    assert decode(encoded(Image.new("CMYK", (4, 4), (0, 255, 255, 0)), "TIFF"))[0, 0].tolist() == [255, 0, 0]
    assert decode(encoded(Image.new("LA", (4, 4), (10, 20))))[0, 0].tolist() == [10, 10, 10, 20]
    with pytest.raises(InputError, match="picture 7 has 32-bit pixels"):
        decode(encoded(Image.new("F", (4, 4)), "TIFF"))


def test_palettes_and_transparent_colours() -> None:
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 9, 8, 7])
    assert decode(encoded(palette))[0, 0].tolist() == [9, 8, 7]
    assert decode(encoded(palette, transparency=1))[0, 0].tolist() == [9, 8, 7, 0]
    assert decode(encoded(Image.new("L", (4, 4), 5), transparency=5))[0, 0].tolist() == [5, 5, 5, 0]
    assert decode(encoded(Image.new("RGB", (4, 4), (1, 2, 3)), transparency=(1, 2, 3)))[0, 0, 3] == 0


def test_of_an_animation_the_first_frame_is_taken() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    for kind in ("GIF", "WEBP", "PNG"):
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)
        assert decode(data)[0, 0].tolist() == [255, 0, 0], kind


def test_a_photograph_is_turned_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # Orientation: turn by 90 degrees clockwise
    pixels = noise(5, 7, 3)
    assert np.array_equal(decode(encoded(pixels, exif=exif)), np.rot90(pixels, -1))


# pixels


def test_alpha_compositing_is_exact() -> None:
    colour, alpha = np.meshgrid(np.arange(256), np.arange(256))
    pixels = np.stack([colour, 255 - colour, colour // 2, alpha], axis=-1).astype(np.uint8)
    c, a = pixels[..., :3].astype(float), pixels[..., 3:] / 255
    assert np.array_equal(squares.on_white(pixels), np.rint(a * c + (1 - a) * 255))


def test_the_colour_of_transparent_pixels_never_shows() -> None:
    pixels = np.zeros((16, 16, 4), np.uint8)
    pixels[::2] = (255, 0, 0, 255)  # every other row red, the rest invisible black
    small, _ = preparation.render(pixels, section())
    assert np.unique(small.reshape(-1, 3), axis=0).tolist() == [[255, 128, 128]]


def blocks(pixels: np.ndarray, size: int) -> np.ndarray:
    h, w, c = pixels.shape
    return pixels.reshape(size, h // size, size, w // size, c).mean(axis=(1, 3))


def test_resizing_averages_areas() -> None:
    for pixels in (noise(64, 64, 3), noise(64, 64, 4)):
        for result in preparation.render(pixels, section()):
            error = np.abs(result - blocks(squares.on_white(pixels).astype(float), len(result)))
            assert error.max() <= 1  # Pillow rounds between its two passes
            assert error.mean() < 0.4


def test_colour_and_grey() -> None:
    pixels = noise(8, 8)
    for result in preparation.render(pixels, section(target_size=8)):
        assert np.array_equal(result, pixels[..., None].repeat(3, axis=2))
    red = np.broadcast_to(np.array([255, 0, 0], np.uint8), (8, 8, 3))
    small, large = preparation.render(red, section(colour="grey"))
    assert small.shape == (8, 8, 1)
    assert large.shape == (16, 16, 1)
    assert np.unique(large) == [76]  # 0.299 * 255


def test_aspect() -> None:
    pixels = np.zeros((8, 16), np.uint8)
    pixels[:, 4:12] = 100
    padded, cropped, stretched = (
        preparation.render(pixels, section(colour="grey", aspect=aspect))[0][..., 0]
        for aspect in ("pad", "crop", "stretch")
    )
    assert padded[:2].min() == 255
    assert padded[6:].min() == 255
    assert padded[2:6].tolist() == [[0, 0, 100, 100, 100, 100, 0, 0]] * 4
    assert (cropped == 100).all()
    wide = noise(8, 12)
    for whole, kept in ((wide, wide[:, 2:10]), (wide.T, wide.T[2:10]), (wide[:, :9], wide[:, :8])):
        result = preparation.render(whole, section(colour="grey", aspect="crop"))[0][..., 0]
        assert np.array_equal(result, kept)
    assert stretched.tolist() == [[0, 0, 100, 100, 100, 100, 0, 0]] * 8
    upright = preparation.render(pixels.T, section(colour="grey"))[0][..., 0]
    assert np.array_equal(upright, padded.T)


def test_padding_a_strip_into_a_giant_square_is_refused() -> None:
    strip = np.zeros((1, 9000), np.uint8)
    with pytest.raises(InputError, match=r"strip, padded to a square, is refused: .*81000000 pixels.*aspect to crop"):
        preparation.render(strip, section(), "strip")
    assert preparation.render(strip, section(aspect="crop"), "strip")[0].max() == 0


# duplicates


def test_the_first_of_identical_images_is_kept() -> None:
    kept, across = preparation.unique([b"a", b"b", b"a", b"c", b"b"], ["train"] * 5)
    assert kept.tolist() == [0, 1, 3]
    assert across == 0


def test_of_identical_images_in_several_splits_that_of_test_is_kept() -> None:
    digests = [b"a", b"a", b"a", b"b", b"b", b"c", b"c", b"d"]
    own = ["train", "test", "test", "train", "val", "val", "test", "train"]
    kept, across = preparation.unique(digests, own)
    assert kept.tolist() == [1, 4, 6, 7]
    assert across == 3


def test_duplicates_are_removed_counted_and_reported() -> None:
    images = [noise(16, 16, 3, seed=i) for i in range(50)]
    images += [images[0], images[1][:, :, [0, 1, 2]].copy()]
    own = ["train"] * 40 + ["test"] * 11 + ["train"]  # 50 repeats 0 in test, 51 repeats 1 in train
    prepared = preparation.prepare(source(images, splits=own), section(), generator())
    assert prepared.metrics["duplicates_removed"] == 2
    names = prepared.table.groupby("split")["name"].agg(set)
    assert "50" in names["test"]
    assert "0" not in names["train"] | names["val"]
    assert "51" not in names["train"] | names["val"]
    assert prepared.notes == ("1 images stand in several of the source's own splits; kept in test, or else in val",)


def test_images_that_differ_only_at_full_size_are_duplicates() -> None:
    fine, coarse = np.full((16, 16), 100, np.uint8), np.full((16, 16), 100, np.uint8)
    fine[::2, ::2], fine[1::2, 1::2], fine[::2, 1::2], fine[1::2, ::2] = 90, 90, 110, 110
    images = [*(noise(16, 16, seed=i) for i in range(50)), fine, coarse]
    assert preparation.prepare(source(images), section(colour="grey"), generator()).metrics["duplicates_removed"] == 1


def test_thumbnails_are_exact_area_averages() -> None:
    for size in (4, 8, 12, 20, 32):
        images = noise(3, size, size, 3, seed=size)
        fine = images.astype(float).repeat(8, axis=1).repeat(8, axis=2)  # divisible by 8 whatever the size
        expected = np.stack([blocks(image, 8) for image in fine])[[2, 0]].reshape(2, -1)
        assert np.allclose(preparation.thumbnails(images, np.array([2, 0])), expected, atol=1e-3)


@pytest.mark.parametrize("rmse", [0.0, 3.0, 12.0, 60.0, 255.0])
def test_near_duplicates_as_by_brute_force(rmse: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparation, "BLOCK", 16)  # several blocks
    draw = np.random.default_rng(1)
    centres = draw.uniform(20, 235, (40, 12))
    small = (centres[draw.integers(0, 40, 150)] + draw.normal(0, 4, (150, 12))).astype(np.float32)
    families, train = draw.integers(0, 60, 150), draw.random(150) < 0.7
    distance = np.sqrt(((small[:, None].astype(float) - small[None]) ** 2).mean(axis=2))
    close = (distance < rmse) & (families[:, None] != families[None])
    near, near_train = preparation.near_pairs(small, families, train, rmse)
    assert np.array_equal(near, close.any(axis=1))
    assert np.array_equal(near_train, (close & train).any(axis=1))
    assert close.any() == (rmse > 0)


def test_near_duplicates_of_other_families_are_counted_by_split() -> None:
    images = [noise(8, 8, 3, seed=i) // 2 + 64 for i in range(30)]
    images += [images[0] + 1, images[1] + 1, images[28] + 1]  # of train, of val's family, of test
    own = [*["train"] * 20, *["val"] * 5, *["test"] * 5, "test", "val", "test"]
    families = [str(i) for i in range(33)]
    families[31] = "1"  # a variant of 1: no near duplicate
    prepared = preparation.prepare(source(images, splits=own, families=families), section(), generator())
    assert prepared.metrics["near_duplicates"] == {"images": 4, "val_near_train": 0, "test_near_train": 1}
    assert "1 families stand in several" in prepared.notes[0]


# splits


def drawn(seed: int, rows: int = 900, labels: int = 5, largest: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Families of 1 to `largest` rows, in random order; all rows of a family have one label."""
    draw = np.random.default_rng(seed)
    family = np.repeat(np.arange(rows), draw.integers(1, largest + 1, rows))[:rows]
    label = draw.integers(0, labels, rows)[family]
    order = draw.permutation(rows)
    return np.array([f"family {i}" for i in family[order]]), label[order]


def divide(families: Any, labels: Any, seed: int = 0, own: Any = None, **changes: Any) -> np.ndarray:
    split = Split.model_validate({**SHARES, **changes})
    own = ["train"] * len(families) if own is None else own
    return preparation.divide(families, np.asarray(labels), own, split, generator(seed))


@pytest.mark.parametrize("seed", range(5))
def test_a_family_stands_in_one_split_and_shares_are_kept(seed: int) -> None:
    families, labels = drawn(seed)
    splits = divide(families, labels, seed)
    assert pd.Series(splits).groupby(families).nunique().max() == 1
    largest = Counter(families).most_common(1)[0][1]
    for name in SPLITS:
        # of k = 3 gaps that sum to the rows left, the widest is at least a third: a family overshoots by 2/3 at most
        assert (splits == name).sum() <= SHARES[name] * len(splits) + 2 / 3 * largest
        for label in range(5):
            share = (splits[labels == label] == name).mean()
            assert share == pytest.approx(SHARES[name], abs=0.09)


def test_a_big_family_leaves_no_split_short() -> None:
    families = ["big"] * 30 + [f"small {i}" for i in range(70)]
    for seed in range(20):
        assert Counter(divide(families, np.zeros(100, int), seed)) == {"train": 80, "val": 10, "test": 10}


def test_families_of_every_size_that_fits_come_into_test() -> None:
    families = np.repeat(np.arange(100), np.where(np.arange(100) % 2, 10, 1)).astype(str)  # of ten rows, and of one
    in_test = np.concatenate([families[divide(families, np.zeros(550, int), seed) == "test"] for seed in range(10)])
    assert np.mean([int(family) % 2 for family in in_test]) == pytest.approx(500 / 550, abs=0.05)


def test_a_hundred_tiny_labels_fill_every_split() -> None:
    families = np.arange(200).astype(str)
    rows = Counter(divide(families, np.arange(200) // 2))
    assert rows["train"] == pytest.approx(160, abs=2)
    assert rows["val"] == pytest.approx(20, abs=2)
    assert rows["test"] == pytest.approx(20, abs=2)


def test_every_label_stands_in_every_split_where_there_is_enough_of_it() -> None:
    labels = np.repeat(np.arange(4), [20, 40, 100, 400])
    splits = divide(np.arange(560).astype(str), labels)
    counts = pd.crosstab(labels, splits)[list(SPLITS)].to_numpy()
    assert np.abs(counts - np.outer([20, 40, 100, 400], [0.8, 0.1, 0.1])).max() <= 1


def test_the_label_of_a_family_is_the_most_frequent_of_its_rows() -> None:
    families = np.repeat(np.arange(60), 3).astype(str)
    labels = np.tile([0, 1, 1], 60)
    labels[90:] = np.tile([0, 0, 1], 30)
    splits = divide(families, labels)
    for half in (splits[:90], splits[90:]):  # each is a stratum of 30 families of its own
        assert Counter(half) == {"train": 72, "val": 9, "test": 9}


def test_splits_are_determined_by_the_seed() -> None:
    families, labels = drawn(0)
    assert np.array_equal(divide(families, labels, 1), divide(families, labels, 1))
    assert not np.array_equal(divide(families, labels, 1), divide(families, labels, 2))


def test_random_splits_tear_families_apart_and_keep_the_shares_of_labels() -> None:
    families, labels = drawn(0)
    splits = divide(families, labels, by="random")
    assert pd.Series(splits).groupby(families).nunique().max() > 1
    for label in range(5):
        for name in SPLITS:
            of_label = splits[labels == label]
            assert (of_label == name).sum() == pytest.approx(SHARES[name] * len(of_label), abs=2)


def test_a_test_split_of_the_source_is_kept_and_val_is_taken_from_train() -> None:
    families, labels = drawn(3)
    own = np.where(np.arange(900) < 300, "test", "train")
    splits = divide(families, labels, own=own, train=0.6, val=0.2, test=0.2)
    assert np.array_equal(splits == "test", own == "test")
    assert (splits == "val").sum() == pytest.approx(600 * 0.2 / 0.8, abs=12)
    assert pd.Series(splits[300:]).groupby(families[300:]).nunique().max() == 1


def test_a_val_split_of_the_source_is_kept_and_test_is_taken_from_train() -> None:
    own = np.array(["val"] * 50 + ["train"] * 100)
    splits = divide(np.arange(150).astype(str), np.zeros(150, int), own=own, train=0.6, val=0.2, test=0.2)
    assert np.array_equal(splits == "val", own == "val")
    assert (splits == "test").sum() == 25


def test_a_source_with_all_three_splits_stays_as_it_is() -> None:
    own = np.array(["train", "val", "test"] * 10)
    assert np.array_equal(divide(np.arange(30).astype(str), np.zeros(30, int), own=own), own)


@pytest.mark.parametrize(
    ("n", "own", "small", "rows", "remedy"),
    [
        (1, None, "train", 1, r"Take a source with more images, or raise dataset\.split"),
        (30, None, "val", 3, r"Take a source with more images, or raise dataset\.split"),
        (30, ["test"] * 5 + ["train"] * 25, "val", 3, r"Take a source with more images, or raise dataset\.split"),
        (5, ["test"] * 5, "train", 0, "All but 0 stand in the source's own test: .*take it alone as dataset.source"),
        (
            12,
            ["test"] * 5 + ["val"] * 5 + ["train"] * 2,
            "train",
            2,
            "All but 2 stand in the source's own val and test",
        ),
        (
            25,
            ["val"] * 20 + ["train"] * 5,
            "test",
            1,
            "All but 5 stand in the source's own val: .*rename the folder or",
        ),
        (
            9,
            ["train"] * 6 + ["val"] * 3,
            "val",
            3,
            "It is the source's own: add images to it, or rename .* called val$",
        ),
        (49, ["train"] * 46 + ["test"] * 3, "test", 3, "It is the source's own: .* called test$"),
    ],
)
def test_a_split_that_is_too_small_is_an_error_with_a_remedy(
    n: int, own: Any, small: str, rows: int, remedy: str
) -> None:
    message = rf"the {small} split must have at least 4 images, got {rows} \({n} images, .*\)\. {remedy}"
    with pytest.raises(InputError, match=message):
        divide([str(i) for i in range(n)], [0] * n, own=own)


def test_one_family_cannot_be_divided_but_its_rows_can() -> None:
    with pytest.raises(
        InputError,
        match=r"val split must have at least 4 images, got 0 \(40 images, 1 families.*set dataset\.split\.by to random",
    ):
        divide(["same"] * 40, [0] * 40)
    assert set(divide(["same"] * 40, [0] * 40, by="random")) == set(SPLITS)


# preparation as a whole


class Once(Sequence):
    """Images that may be asked for once each: decoding is the expensive part."""

    def __init__(self, images: list[np.ndarray]) -> None:
        self.images, self.asked = images, Counter()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> np.ndarray:
        self.asked[i] += 1
        return self.images[i]


def test_every_image_is_decoded_once_and_saved_with_its_row(tmp_path: Path) -> None:
    images = Once([noise(16, 16, 3, seed=i) for i in range(40)])
    labels = [i % 2 for i in range(40)]
    prepared = preparation.prepare(source(images, labels=labels, label_names=["even", "odd"]), section(), generator())
    assert set(images.asked.values()) == {1}
    prepared.save(tmp_path / "a", tmp_path / "b")
    assert list(prepared.table.columns) == ["split", "name", "family", "label", "label_name"]
    assert list(dict.fromkeys(prepared.table["split"])) == list(SPLITS)
    for split in SPLITS:
        table = prepared.table[prepared.table["split"] == split]
        small, large = (
            files.load_array(tmp_path / "a" / f"{split}.npy"),
            files.load_array(tmp_path / "b" / f"{split}.npy"),
        )
        assert prepared.metrics["rows"][split] == len(table) == len(small) == len(large)
        for row, pixels, target in zip(table.itertuples(), small, large, strict=True):
            assert np.array_equal(target, images.images[int(row.name)])
            assert np.array_equal(pixels, preparation.render(target, section())[0])
            assert (row.label, row.label_name) == (int(row.name) % 2, ["even", "odd"][int(row.name) % 2])


def test_a_set_without_labels() -> None:
    prepared = preparation.prepare(source([noise(8, 8, seed=i) for i in range(50)]), section(), generator())
    assert set(prepared.table["label"]) == {-1}
    assert set(prepared.table["label_name"]) == {""}
    assert prepared.metrics["classes"] == 0


def test_an_empty_source_is_an_error() -> None:
    with pytest.raises(InputError, match=r"dataset\.source 'somewhere' holds no images"):
        preparation.prepare(source([]), section(), generator())


def test_a_full_disk_is_an_error_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    images = Once([noise(8, 8, seed=i) for i in range(20)])
    with pytest.raises(InputError, match=r"working space in artifacts \(No space left on device\)\. Free space"):
        preparation.prepare(source(images), section(), generator())
    assert not images.asked


# the stage


class Quiet:
    """What the stage asks of the runtime."""

    def progress(self, iterable: Any, **_: Any) -> Any:
        return iterable


def run_stage(monkeypatch: pytest.MonkeyPatch, seed: int = 0, **changes: Any) -> Run:
    monkeypatch.syspath_prepend(str(ROOT))
    from stages import dataset as stage

    raw = {"seed": seed, "dataset": {**section(**changes).model_dump(), "noto": {"label": "group"}}}
    run = Run(Params(raw), runtime=Quiet())
    stage.main(run)
    return run


def contents(*folders: str) -> dict[str, bytes]:
    return {
        str(path): path.read_bytes() for name in folders for path in sorted(Path(name).rglob("*")) if path.is_file()
    }


def test_the_stage_writes_what_the_next_ones_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"emoji {i}" for i in range(40)]
    groups = [f"group {i % 3}" for i in range(40)]
    pictures = [encoded(noise(16, 16, 4, seed=i)) for i in range(40)]
    path = write_parquet(tmp_path / "x.parquet", pictures, name=names, group=groups, subgroup=groups,
                         codepoints=[f"1f{i:03x}" for i in range(40)])  # fmt: skip
    run = run_stage(monkeypatch, source=str(path))
    written = contents("artifacts", "metrics", "plots")
    assert set(written) == {
        *(f"artifacts/{part}/{split}.npy" for part in ("dataset", "targets") for split in SPLITS),
        "artifacts/dataset/table.csv",
        "artifacts/dataset/facts.json",
        "metrics/dataset.json",
        "plots/dataset/examples.png",
    }
    assert run.image_shape == (3, 8, 8)
    assert run.images("val", "targets").shape[1:] == (16, 16, 3)
    assert run.label_names == ("group 0", "group 1", "group 2")
    assert len(run.labels("train")) == len(run.images("train")) == 32
    metrics = json.loads(Path("metrics/dataset.json").read_text())
    assert metrics["rows"] == {"train": 32, "val": 4, "test": 4}
    assert (metrics["families"], metrics["classes"], metrics["duplicates_removed"]) == (40, 3, 0)
    run_stage(monkeypatch, source=str(path))
    assert contents("artifacts", "metrics", "plots") == written  # byte for byte
    run_stage(monkeypatch, seed=1, source=str(path))
    assert contents("artifacts")["artifacts/dataset/table.csv"] != written["artifacts/dataset/table.csv"]
