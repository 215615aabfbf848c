"""Local sets under dataset.name=huggingface: what is found is read or named, whatever words stand in names; nothing is cached."""

from __future__ import annotations

import gzip
import io
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import example
from PIL import Image

from tessera.core.contracts import Source
from tessera.core.errors import InputError
from tessera.datasets import emoji, folder, huggingface, idx
from tessera.datasets.huggingface import imagefolder

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def _workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def png(seed: int = 0) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels(seed)).save(stream, "PNG")
    return stream.getvalue()


def pixels(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)


def write(path: Path, content: Any = None, seed: int = 0) -> None:
    """An image by default; rows where `content` is a number; a zip of such where it is a dictionary."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, int):
        images = [{"bytes": png(seed + i), "path": None} for i in range(content)]
        kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
        with path.open("wb") as stream:
            pq.write_table(pa.table({"image": pa.array(images, kind)}), stream)
    elif isinstance(content, dict):
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in content.items():
                archive.writestr(name, png(seed) if data is None else data)
    else:
        path.write_bytes(png(seed) if content is None else content)


def make(source: Path, files: dict[str, Any]) -> Path:
    for i, (name, content) in enumerate(files.items()):
        write(source / name, content, 100 * i)
    return source


def load(source: Path, **values: Any) -> Source:
    return huggingface.load(example(huggingface.Config, **values), source, np.random.default_rng(0))


def rows(loaded: Source) -> dict[str, int]:
    """Rows by split, of which all can be decoded; None counts as train, as it does for the stage."""
    assert len([image for image in loaded.images if image.dtype == np.uint8]) == len(loaded.names)
    return dict(Counter(split or "train" for split in loaded.splits or [None] * len(loaded.names)))


def images(*folders: str, count: int = 3, ending: str = "png") -> dict[str, None]:
    return dict.fromkeys(f"{name}/{i}.{ending}" for name in folders for i in range(count))


# splits


WHOLE: dict[str, tuple[dict[str, Any], dict[str, int]]] = {
    "a class that is called train": (images("car", "bus", "train", "plane"), {"train": 12}),
    "a folder beside train and test": (images("train", "test", "more"), {"train": 6, "test": 3}),
    "a table without a word": ({"train-0.parquet": 4, "extra.parquet": 4}, {"train": 8}),
    "a word within a table's name": ({"a.parquet": 5, "training-notes.parquet": 5}, {"train": 10}),
    "capitals": ({"Train.parquet": 5, "Test.parquet": 2}, {"train": 5, "test": 2}),
    "capitals throughout": ({"TRAIN.PARQUET": 5, "VALID.PARQUET": 3, "TEST.PARQUET": 2}, {"train": 5, "val": 3, "test": 2}),
    "training beside test": ({"training.parquet": 4, "test.parquet": 2}, {"train": 4, "test": 2}),
    "shards": (
        {"data/train-00000-of-00002.parquet": 2, "data/train-00001-of-00002.parquet": 3,
         "data/validation-00000-of-00001.parquet": 2, "data/test-00000-of-00001.parquet": 1, "data/odd-0.parquet": 1},
        {"train": 6, "val": 2, "test": 1},
    ),
    "images called by words": (
        dict.fromkeys(["train.png", "test_tube.png", *(f"e{i}.png" for i in range(6))]), {"train": 8},
    ),
    "images that all say a split": (
        dict.fromkeys([*(f"train_{i}.png" for i in range(4)), "test_0.png", "Val-1.png"]), {"train": 4, "test": 1, "val": 1},
    ),
    "folders and capitals": (images("Train/cat", "TEST/cat", "Dev/dog"), {"train": 3, "test": 3, "val": 3}),
    "a class under a split": (images("test/train", "train/test_tube", count=2), {"test": 2, "train": 2}),
    "years": (images("train2017", "val2017", count=2), {"train": 2, "val": 2}),
    "two domains": (images("trainA", "trainB", "testA", "testB"), {"train": 6, "test": 6}),
    "sets": (images("trainset", "testset", "ValSet"), {"train": 3, "test": 3, "val": 3}),
    "eval and evaluation": (images("eval", "training"), {"test": 3, "train": 3}),
    "mixed depth": (dict.fromkeys(["1.png", "train/2.png", "test/a/3.png", "b/c/4.png"]), {"train": 3, "test": 1}),
    "zips by split": ({"train.zip": {"cat/1.png": None, "dog/2.png": None}, "test.zip": {"3.png": None}}, {"train": 2, "test": 1}),
    "splits in a zip": ({"all.zip": {"train/1.png": None, "Test/2.png": None, "x/3.png": None}}, {"train": 2, "test": 1}),
    "a zip beside images": ({"more.zip": {"1.png": None}, "a.png": None}, {"train": 2}),
    "endings": (dict.fromkeys(["a.PNG", "b.jpg", "c.jpeg", "d.WebP", "e.tif", "f.avif", "g", "h.png.bak"]), {"train": 8}),
    "double underscores": (images("__more", "a"), {"train": 6}),
    "signs in names": (dict.fromkeys(["a[1].png", "b*.png", "c?.png", "d::e.png", "f#g%20.png"]), {"train": 5}),
    "brackets in a table's name": ({"a[1].parquet": 2, "b*.parquet": 1}, {"train": 3}),
    "a table without rows": ({"a.parquet": 3, "test.parquet": 0}, {"train": 3}),
    "other files": ({**images("a"), "README.md": b"# A set", "LICENSE": b"MIT", "notes.txt": b"x"}, {"train": 3}),
}  # fmt: skip


@pytest.mark.parametrize("place", ["set", "my-test-project/set", "brackets [1]*?/s[e]t"])
@pytest.mark.parametrize("case", WHOLE)
def test_all_that_is_there_is_read_in_its_split(case: str, place: str, tmp_path: Path) -> None:
    files, expected = WHOLE[case]
    assert rows(load(make(tmp_path / place, files))) == expected


def test_the_log_tells_which_split_is_of_what_and_what_is_not_read(tmp_path: Path) -> None:
    source = make(tmp_path / "set", {**images("Test", count=9), "Train/x.png": None, "notes.txt": b"x", ".a.png": None})
    assert load(source).notes == (
        f"{source}: 1 rows of split train, from Train/x.png",
        f"{source}: 9 rows of split test, from Test/",
        f"{source}: not read: .a.png, notes.txt",
    )


@pytest.mark.parametrize(
    ("names", "split"),
    [
        (["train"], "train"), (["Validation"], "validation"), (["dev"], "validation"), (["evaluation"], "test"),
        (["test-00000-of-00002"], "test"), (["my test"], "test"), (["val.2"], "validation"),
        (["trainset"], "train"), (["TestSet"], "test"), (["testA"], "test"), (["trainB"], "train"), (["val_set"], "validation"),
        (["testa"], None), (["asset"], None), (["sunset"], None),
        (["contest"], None), (["test_tube", "train"], "train"), (["train", "test"], "train"), (["a", "b_test"], "test"), ([], None),
    ],
)  # fmt: skip
def test_the_split_that_names_say(names: list[str], split: str | None) -> None:
    assert imagefolder.said(names) == split


def test_classes_are_the_innermost_folders_where_all_stand_equally_deep(tmp_path: Path) -> None:
    loaded = load(make(tmp_path / "set", images("Train/cat", "Train/dog", "test/dog", count=1)), label_column="label")
    assert (loaded.label_names, loaded.labels) == (["cat", "dog"], [0, 1, 1])
    loaded = load(make(tmp_path / "zips", {"a.zip": {"cat/1.png": None, "dog/2.png": None}}), label_column="label")
    assert (loaded.label_names, loaded.labels) == (["cat", "dog"], [0, 1])


# what would be lost


LOST: dict[str, tuple[dict[str, Any], str]] = {
    "parquet beside png": ({**images("a"), "x.parquet": 2}, r"several kinds.*x\.parquet"),
    "csv beside jpg": ({**images("a", ending="jpg"), "labels.csv": b"a,b\n"}, r"labels\.csv.*metadata\.csv"),
    "csv beside parquet": ({"a.parquet": 2, "b.csv": b"a\n1\n"}, r"a\.parquet.*b\.csv"),
    "jsonl beside png": ({**images("a"), "rows.jsonl": b"{}\n"}, r"rows\.jsonl"),
    "a tar beside png": ({**images("a"), "more.tar": b"x"}, r"more\.tar"),
    "a packed table": ({"a.parquet": 2, "b.parquet.gz": b"x"}, r"b\.parquet\.gz\. Unpack"),
    "arrays": ({**images("a"), "b.npz": b"x"}, r"b\.npz"),
    "a csv in a zip": ({"a.zip": {"1.png": None, "labels.csv": b"a\n"}}, r"a\.zip/labels\.csv"),
    "a zip in a zip": ({"a.zip": {"1.png": None, "more.zip": b"PK"}}, r"a\.zip/more\.zip\. Unpack"),
    "text only": ({"notes.txt": b"x", "LICENSE": b"x"}, r"neither images nor tables; there is LICENSE, notes\.txt"),
    "nothing": ({}, "neither images nor tables$"),
    "broken zips": ({"a.zip": b"x", "b.zip": b"", **images("c")}, r"a\.zip \(.*\), .*b\.zip \(it is empty"),
    "broken parquets": ({"a.parquet": b"x", "b.parquet": b"", "c.parquet": 2}, r"a\.parquet \(.*, .*b\.parquet \(it is empty"),
    "pointers": ({"a.parquet": b"version https://git-lfs.github.com/spec/v1\n"}, r"a\.parquet \(it is a Git LFS pointer.*lfs pull"),
    "a web page": ({"a.tar": b"<!doctype html>"}, r"a\.tar \(it is a web page\. Download"),
    "a pointer to a csv": ({"a.csv": b"version https://git-lfs.github.com/spec/v1\n"}, r"a\.csv \(it is a Git LFS pointer"),
    "a pointer to an arrow": ({"a.arrow": b"version https://git-lfs.github.com/spec/v1\n"}, r"a\.arrow \(it is a Git LFS pointer"),
    "an empty json": ({"a.json": b""}, r"a\.json \(it is empty"),
    "hdf5": ({"a.h5": b"x", "b.HDF5": b"x"}, r"cannot be read: a\.h5, b\.HDF5\. .*save it as parquet"),
    "a cut zip": ({"a.zip": b"PK\x03\x04\x14\0"}, r"a\.zip \(it is cut short or damaged"),
    "a broken arrow": ({"a.arrow": b"ARROW1\0\0"}, r"a\.arrow \(it is cut short or damaged"),
    "an arrow that only ends well": ({"a.arrow": b"ARROW1\0\0ARROW1"}, r"cannot load .*a\.arrow"),
    "a tiny arrow": ({"a.arrow": b"x"}, r"a\.arrow \(it is cut short or damaged"),
    "no rows": ({"a.parquet": 0}, r"no row is in .*a\.parquet"),
}  # fmt: skip


@pytest.mark.parametrize("case", LOST)
def test_what_would_not_be_read_is_an_error_that_names_it(case: str, tmp_path: Path) -> None:
    files, said = LOST[case]
    (tmp_path / "set").mkdir()
    with pytest.raises(InputError, match=said):
        load(make(tmp_path / "set", files))


def tar(count: int = 8, first: int = 0) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for i in range(first, first + count):
            data = png(i)
            member = tarfile.TarInfo(f"{i}.png")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return stream.getvalue()


WHOLE_TAR, MEMBER = tar(), 1024  # a header and a block of data
DAMAGED = {
    "within a header": WHOLE_TAR[: 3 * MEMBER + 200],
    "between two files": WHOLE_TAR[: 3 * MEMBER],
    "within a file": WHOLE_TAR[: 3 * MEMBER + 600],
    "before the end": WHOLE_TAR[: 8 * MEMBER],
    "a checksum": WHOLE_TAR[: 3 * MEMBER + 150] + b"\xff" + WHOLE_TAR[3 * MEMBER + 151 :],
    "the first checksum": WHOLE_TAR[:150] + b"\xff" + WHOLE_TAR[151:],
    "zeros": tar(20)[: 3 * MEMBER] + bytes(20 * MEMBER),
    "two in one": WHOLE_TAR + tar(first=8),
    "packed, then cut": gzip.compress(WHOLE_TAR)[:-300],
    "cut, then packed": gzip.compress(WHOLE_TAR[: 3 * MEMBER]),
    "no file": bytes(10240),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_tar_that_is_not_whole_is_named(case: str, tmp_path: Path) -> None:
    source = make(tmp_path / "set", {"a.tar": DAMAGED[case], "b.tar": WHOLE_TAR})
    what = "there is no file in it" if case == "no file" else "it is cut short or damaged"
    with pytest.raises(InputError, match=rf"^cannot be read as webdataset files: .*a\.tar \(.*({what})"):
        load(source, image_column="png")


@pytest.mark.parametrize("data", [WHOLE_TAR, WHOLE_TAR[: 9 * MEMBER], gzip.compress(WHOLE_TAR), tar(1), tar(20)])
def test_a_whole_tar_is_read(data: bytes, tmp_path: Path) -> None:
    assert rows(load(make(tmp_path / "set", {"a.tar": data}), image_column="png"))["train"] in (1, 8, 20)


@pytest.mark.parametrize("new", [pa.ipc.new_stream, pa.ipc.new_file])
def test_an_arrow_that_is_cut_between_two_batches_is_named(new: Any, tmp_path: Path) -> None:
    table, stream = pa.table({"image": [{"bytes": png(), "path": None}] * 4}), io.BytesIO()
    with new(stream, table.schema) as writer:
        writer.write_table(table)
        cut = stream.tell()
        writer.write_table(table)
    source = make(tmp_path / "set", {"a.arrow": stream.getvalue()})
    assert rows(load(source)) == {"train": 8}
    write(source / "a.arrow", stream.getvalue()[:cut])
    with pytest.raises(InputError, match=r"a\.arrow \(it is cut short or damaged"):
        load(source)


def by_path(path: Path, *names: str) -> None:
    images = [{"bytes": None, "path": name} for name in names] + [{"bytes": png(), "path": "whatever.png"}]
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image": pa.array(images, pa.struct({"bytes": pa.binary(), "path": pa.string()}))}), path)


@pytest.mark.parametrize("name", ["pics/0.png", "../pics/0.png", "{}/pics/0.png", ".link/0.png", "a/../../pics/0.png"])
@pytest.mark.parametrize("single", [True, False])
def test_rows_that_name_images_outside_the_source_are_named(name: str, single: bool, tmp_path: Path) -> None:
    write(tmp_path / "pics" / "0.png")
    source = tmp_path / "set"
    by_path(source / "a.parquet", "0.png", name.format(tmp_path))
    (source / ".link").symlink_to(tmp_path / "pics")
    if single or name == "pics/0.png":
        source /= "a.parquet"
    said = r"split train of .* names images that do not lie in the folder dataset\.source.*row 1: .*0\.png.*Store their"
    with pytest.raises(InputError, match=said):
        load(source)


@pytest.mark.parametrize("name", ["pics/0.png", "./pics/0.png", "{}/pics/0.png"])
def test_rows_may_name_images_inside_the_source(name: str, tmp_path: Path) -> None:
    source = tmp_path / "set"
    write(source / "pics" / "0.png", seed=5)
    by_path(source / "a.parquet", name.format(source))
    write(source / "README.md", b"---\nconfigs:\n- config_name: default\n  data_files: a.parquet\n---\n")
    assert np.array_equal(load(source).images[0], pixels(5))


@pytest.mark.parametrize("name", ["test", "test.zip", "test.parquet", "val.tar", "test.png"])
def test_what_the_source_is_called_says_no_split(name: str, tmp_path: Path) -> None:
    content = {".zip": {"a.png": None}, ".parquet": 1, ".tar": tar(1), ".png": None, "": None}[Path(name).suffix]
    write(tmp_path / name / "a.png" if name == "test" else tmp_path / name, content)
    assert rows(load(tmp_path / name, image_column="png" if name == "val.tar" else "image")) == {"train": 1}


def test_folders_of_the_only_zip_say_the_splits(tmp_path: Path) -> None:
    write(tmp_path / "test.zip", {"train/1.png": None, "Val/2.png": None})
    assert rows(load(tmp_path / "test.zip")) == {"train": 1, "val": 1}


SHARDS: dict[str, tuple[list[str], str]] = {
    "the middle": (["train-00000-of-00003.parquet", "train-00002-of-00003.parquet"], "^1 .*/train-00001-of-00003.parquet\\."),
    "the first": (["d/train-00001-of-00002.parquet"], "^1 .*/d/train-00000-of-00002.parquet"),
    "the last": (["x-000-of-002.csv"], "/x-001-of-002.csv"),
    "with a hash": (["test-00001-of-00002-ab12.parquet", "train.parquet"], "^1 .*/test-00000-of-00002.parquet"),
    "zips": (["train-00000-of-00003.zip"], "^2 .*/train-00001-of-00003.zip, .*/train-00002-of-00003.zip"),
    "tars of two splits": (["a-00000-of-00001.tar", "b-00001-of-00003.tar"], "^2 .*/b-00000-of-00003.tar, .*/b-00002"),
}  # fmt: skip


@pytest.mark.parametrize("case", SHARDS)
def test_shards_that_are_not_there_are_named(case: str, tmp_path: Path) -> None:
    names, said = SHARDS[case]
    content = {".parquet": 2, ".csv": b"image\n1\n", ".zip": {"a.png": None}, ".tar": WHOLE_TAR}
    source = make(tmp_path / "set", {name: content[Path(name).suffix] for name in names})
    with pytest.raises(InputError, match=said):
        load(source)


@pytest.mark.parametrize(
    "names",
    [
        ["a-00000-of-00001.parquet"],
        ["a-00001-of-00002.parquet", "a-00002-of-00002.parquet"],
        ["a-00000-of-00002-ff.parquet", "a-00001-of-00002-0a.parquet"],
        ["page-1-of-9.parquet"],
    ],
)
def test_whole_sets_of_shards_are_read(names: list[str], tmp_path: Path) -> None:
    assert rows(load(make(tmp_path / "set", dict.fromkeys(names, 2)))) == {"train": 2 * len(names)}
    write(tmp_path / "train-00003-of-00009.parquet", 3)
    assert rows(load(tmp_path / "train-00003-of-00009.parquet")) == {"train": 3}


def test_tables_of_different_columns_are_named(tmp_path: Path) -> None:
    make(tmp_path / "set", {"a.parquet": 2})
    pq.write_table(pa.table({"other": [1]}), tmp_path / "set" / "b.parquet")
    with pytest.raises(InputError, match=r"b\.parquet has the columns other, and a\.parquet has image"):
        load(tmp_path / "set")


@pytest.mark.parametrize("name", ["a.png", "a.txt", "deep/er/a.parquet", "test/a"])
@pytest.mark.parametrize("plugin", ["huggingface", "folder", "emoji"])
def test_a_link_that_leads_nowhere_is_named(plugin: str, name: str, tmp_path: Path) -> None:
    source = make(tmp_path / "set", images("cat"))
    (source / name).parent.mkdir(parents=True, exist_ok=True)
    (source / name).symlink_to("nowhere")
    module = {"huggingface": huggingface, "folder": folder, "emoji": emoji}[plugin]
    with pytest.raises(InputError, match=f"{name}: a link that leads nowhere"):
        module.load(example(module.Config), source, np.random.default_rng(0))


def test_a_link_to_a_folder_is_named(tmp_path: Path) -> None:
    source = make(tmp_path / "set", images("cat"))
    (source / "dog").symlink_to(source / "cat")
    with pytest.raises(InputError, match="set/dog is a link to a folder"):
        load(source)


def test_all_files_without_a_class_are_named_by_folder(tmp_path: Path) -> None:
    source = make(tmp_path / "set", {**images("cat"), "x.png": None, "y.JPG": None})
    with pytest.raises(InputError, match=r"x\.png, .*y\.JPG stand in no sub-folder"):
        folder.load(example(folder.Config, labels=True), source, np.random.default_rng(0))


@pytest.mark.parametrize("name", ["cat/a.bmp", "b.TIFF", "LICENSE", ".hidden.png", "cat/c"])
def test_folder_names_what_it_does_not_read(name: str, tmp_path: Path) -> None:
    source = make(tmp_path / "set", {**images("cat"), name: None})
    loaded = folder.load(example(folder.Config, labels=True), source, np.random.default_rng(0))
    assert len(loaded.names) == 3
    assert loaded.notes[0].endswith(f".png, .jpg: {name}")


# metadata and cards


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_metadata_describes_images_of_all_splits(ending: str, tmp_path: Path) -> None:
    source = make(tmp_path / "set", dict.fromkeys(["train/1.png", "train/2.png", "test/3.png"]))
    table = pa.table({"file_name": ["test/3.png", "./train/1.png", "train/2.png"], "kind": ["c", "a", "b"]}).to_pandas()
    {"csv": lambda path: table.to_csv(path, index=False), "parquet": table.to_parquet,
     "jsonl": lambda path: table.to_json(path, orient="records", lines=True)}[ending](source / f"metadata.{ending}")  # fmt: skip
    loaded = load(source, label_column="kind", name_column="kind")
    assert list(zip(loaded.names, loaded.splits or (), strict=True)) == [("a", "train"), ("b", "train"), ("c", "test")]
    assert np.array_equal(loaded.images[2], pixels(200))


def test_metadata_stands_beside_its_images_and_may_name_several_columns(tmp_path: Path) -> None:
    source = make(tmp_path / "set", dict.fromkeys(["train/1.png", "train/2.png", "test/1.png", "test/2.png"]))
    for name in ("train", "test"):
        (source / name / "metadata.csv").write_text("file_name,mask_file_name\n1.png,2.png\n")
    loaded = load(source, image_column="mask")
    assert rows(loaded) == {"train": 1, "test": 1}
    assert np.array_equal(loaded.images[0], pixels(100))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("file_name\n1.png\n", r"^1 image is named in no metadata file.*: 2\.png"),
        (
            "file_name\n1.png\n2.png\n3.png\n",
            r"^1 images that metadata names are not there: 3\.png \(of metadata\.csv\)",
        ),
        ("file_name\n1.png\n2.png\n../1.png\n", r"not there: \.\./1\.png"),
        ("name\n1.png\n2.png\n", r"metadata\.csv has no column file_name .*; there is name"),
        ("", r"metadata\.csv is no whole table"),
        ("file_name,y,y\n1.png,1,2\n2.png,1,2\n", r"metadata\.csv is no whole table.*several columns are called y"),
        ("file_name,image\n1.png,1\n2.png,2\n", r"file_name becomes the column image, which is there, too"),
        (
            "file_name,image_file_name\n1.png,1.png\n2.png,2.png\n",
            r"file_name, image_file_name becomes the column image",
        ),
        ("x_file_name\n1\n2\n", r"metadata\.csv calls an image 1, which is no text"),
    ],
)
def test_metadata_that_does_not_fit_the_images(text: str, said: str, tmp_path: Path) -> None:
    source = make(tmp_path / "set", dict.fromkeys(["1.png", "2.png"]))
    (source / "metadata.csv").write_text(text)
    with pytest.raises(InputError, match=said):
        load(source)


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (("file_name,y\n1.png,1\n", "file_name,y\n1.png,x\n"), r"do not fit together \(.*y.*int64.*one type"),
        (("file_name,y\n1.png,1\n", "file_name,y\n1.png,2020-01-01\n"), "a/metadata.csv, b/metadata.csv do not fit"),
        (("file_name\n1.png\n", "file_name,image\n1.png,x\n"), "becomes the column image"),
        (("file_name\n1.png\n", "x_file_name,image\n1.png,3\n"), "becomes the column image"),
        (("file_name\n1.png\n", "image_file_name\n1.png\n"), "becomes the column image"),
    ],
)
def test_metadata_files_that_do_not_fit_each_other(texts: tuple[str, str], said: str, tmp_path: Path) -> None:
    source = make(tmp_path / "set", {"a/1.png": None, "b/1.png": None})
    for name, text in zip("ab", texts, strict=True):
        (source / name / "metadata.csv").write_text(text)
    with pytest.raises(InputError, match=said):
        load(source)


@pytest.mark.parametrize(("column", "splits"), [("A", {"train": 3}), ("B", {"test": 3})])
def test_of_several_images_in_a_row_the_wanted_one_says_the_split(
    column: str, splits: dict[str, int], tmp_path: Path
) -> None:
    source = make(tmp_path / "set", images("train", "test"))
    lines = [f"train/{i}.png,test/{i}.png" for i in range(3)]
    (source / "metadata.csv").write_text("\n".join(["A_file_name,B_file_name", *lines]))
    assert rows(load(source, image_column=column)) == splits


CARD = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: d/[a-b]*.png
  - split: Test
    path: [d/test-cc.png]
- config_name: all
  data_dir: d
---
"""


@pytest.mark.parametrize("place", ["set", "[x]/s*t"])
def test_a_card_states_the_splits(place: str, tmp_path: Path) -> None:
    names = dict.fromkeys(["d/a.png", "d/b.png", "d/test-cc.png", "d/dd.png", "test.png"])
    source = make(tmp_path / place, {**names, "README.md": CARD.encode()})
    loaded = load(source)
    assert rows(loaded) == {"train": 2, "test": 1}
    assert loaded.notes[-1].endswith("not read: README.md, d/dd.png, test.png")
    assert rows(load(source, configuration="all")) == {"train": 4}
    with pytest.raises(InputError, match=r"'none' not found\. Available: \['default', 'all'\]"):
        load(source, configuration="none")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("---\nconfigs: [a]\n---\n", r"the card of .*README\.md: configs must .* got \['a'\]"),
        ("---\nconfigs: a\n---\n", r"configs must be a list"),
        ("---\nconfigs:\n  a: b\n---\n", r"configs must be a list"),
        ("---\nconfigs:\n- data_files: a.png\n---\n", r"entries that have a config_name"),
        ("---\nconfigs:\n- config_name: [a]\n---\n", r"entries that have a config_name"),
        ("---\nconfigs:\n- config_name: a\n  data_files: 5\n---\n", r"cannot load the card of"),
        ("---\nconfigs:\n- config_name: a\n  data_dir: [b]\n---\n", r"cannot load the card of"),
        ("---\nconfigs:\n- config_name: a\n  data_files: {train: [[a.png]]}\n---\n", r"cannot load the card of"),
        ("---\n: [\n---\n", r"cannot load the card of .*ParserError"),
        (
            "---\nconfigs:\n- config_name: default\n  data_files: x/*.png\n---\n",
            r"states the files 'x/\*\.png', which are not",
        ),
        (
            "---\nconfigs:\n- config_name: a\n- config_name: b\n---\n",
            r"several configurations, set one\. .*\['a', 'b'\]",
        ),
    ],
)
def test_a_card_that_does_not_fit(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=said):
        load(make(tmp_path / "set", {"a.png": None, "README.md": text.encode()}))


def test_a_card_names_the_classes_of_a_table(tmp_path: Path) -> None:
    features = "[{name: image, dtype: image}, {name: y, dtype: {class_label: {names: {'0': cat, '1': dog}}}}]"
    source = make(tmp_path / "set", {"README.md": f"---\ndataset_info:\n  features: {features}\n---\n".encode()})
    images = pa.array([{"bytes": png(), "path": None}] * 2, pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    pq.write_table(pa.table({"image": images, "y": [1, 0]}), source / "train.parquet")
    loaded = load(source, label_column="y")
    assert (loaded.label_names, loaded.labels) == (["cat", "dog"], [1, 0])


# nothing old, nothing left


STALE: dict[str, tuple[Any, Any]] = {
    "parquet": (3, 3),
    "rows.parquet": (3, 5),
    "folder/train/1.png": (None, None),
    "zips/a.zip": ({"1.png": None}, {"1.png": None}),
    "alone.zip": ({"a/1.png": None}, {"a/1.png": None, "b/2.png": None}),
}


@pytest.mark.parametrize("name", STALE)
def test_another_file_under_the_same_name_and_time_is_read(name: str, tmp_path: Path) -> None:
    path = tmp_path / ("x.parquet" if name == "parquet" else name)
    source = path if path.parent == tmp_path else tmp_path / name.split("/")[0]
    for content, seed in zip(STALE[name], (7, 8), strict=True):
        write(path, content, seed)
        os.utime(path, (1e9, 1e9))
        loaded = load(source)
        assert np.array_equal(loaded.images[0], pixels(seed))
        expected = content if isinstance(content, int) else len(content or [1])
        assert len(loaded.images) == expected


def test_a_folder_that_takes_the_place_of_another_is_read(tmp_path: Path) -> None:
    """As `tar` and `cp -p` leave it, with all times as they were."""
    for seed in (1, 2):
        shutil.rmtree(tmp_path / "set", ignore_errors=True)
        write(tmp_path / "set" / "train.parquet", 4, seed)
        for path in (tmp_path / "set" / "train.parquet", tmp_path / "set"):
            os.utime(path, (1e9, 1e9))
        assert np.array_equal(load(tmp_path / "set").images[3], pixels(seed + 3))


@pytest.mark.parametrize("name", ["a.parquet", "train/1.png", "a.zip", "deep/b.parquet"])
def test_nothing_is_left_behind(name: str, tmp_path: Path) -> None:
    source = make(tmp_path / "set", {name: {"a.png": None} if name == "a.zip" else 3 if "parquet" in name else None})
    load(source)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [source / name]


def test_nothing_is_left_behind_by_a_process_that_is_killed(tmp_path: Path) -> None:
    write(tmp_path / "set" / "a.parquet", 50)
    code = f"""if True:
        import mmap, os, signal
        from pathlib import Path
        from tessera.datasets import huggingface
        mmap.mmap = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)  # all rows are written
        huggingface.load(huggingface.Config(**{example(huggingface.Config).model_dump()!r}), Path("set"), None)"""
    (tmp_path / "temporary").mkdir()
    places = {"PYTHONPATH": str(ROOT / "src"), "TMPDIR": str(tmp_path / "temporary"), "HOME": str(tmp_path)}
    ended = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, **places}, check=False)
    assert ended.returncode == -signal.SIGKILL
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / "set" / "a.parquet"]


# idx files

IDX = {"train": 7, "t10k": 3}  # images


def idx_file(values: np.ndarray) -> bytes:
    return b"\0\0\x08" + bytes([values.ndim]) + np.array(values.shape, ">u4").tobytes() + values.tobytes()


@pytest.fixture
def digits() -> Path:
    """A set of idx files, its test split not packed."""
    for seed, (part, n) in enumerate(IDX.items()):
        images = np.random.default_rng(seed).integers(0, 256, (n, 5, 6), dtype=np.uint8)
        write(Path(f"digits/{part}-images-idx3-ubyte"), idx_file(images))
        write(Path(f"digits/{part}-labels-idx1-ubyte"), idx_file((np.arange(n) % 3).astype(np.uint8)))
    for kind in ("images-idx3", "labels-idx1"):
        path = Path(f"digits/train-{kind}-ubyte")
        write(path.with_name(f"{path.name}.gz"), gzip.compress(path.read_bytes()))
        path.unlink()
    return Path("digits")


def read_idx(source: Path, **values: Any) -> Source:
    return idx.load(example(idx.Config, **values), source, np.random.default_rng(0))


def test_idx_files_are_read_whole(digits):
    found = read_idx(digits)
    for where, (seed, n) in zip((slice(0, 7), slice(7, 10)), enumerate(IDX.values()), strict=True):
        np.testing.assert_array_equal(
            found.images[where], np.random.default_rng(seed).integers(0, 256, (n, 5, 6), dtype=np.uint8)
        )
    assert found.splits == ["train"] * 7 + ["test"] * 3
    assert found.labels == [0, 1, 2, 0, 1, 2, 0, 0, 1, 2]
    assert found.label_names == ["0", "1", "2"]
    assert found.notes == ()
    write(digits / "notes.txt", b"")
    assert read_idx(digits).notes == ("1 files are not read, being none of the four of a set: notes.txt",)
    assert (found.names[0], found.names[9]) == ("train-00000", "test-00002")
    assert read_idx(digits, label_names=["bag", "coat", "shirt", "boot"]).label_names[3] == "boot"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("train-images-idx3-ubyte.gz", b"no gzip", "must be an idx file: Not a gzipped file"),
        ("t10k-images-idx3-ubyte", b"", "must be an idx file of bytes in 3 dimensions"),
        ("t10k-images-idx3-ubyte", idx_file(np.zeros(4, np.uint8)), "must be an idx file of bytes in 3 dimensions"),
        ("t10k-images-idx3-ubyte", b"\0\0\x0d\x03" + bytes(12), "must be an idx file of bytes in 3 dimensions"),
        ("t10k-labels-idx1-ubyte", idx_file(np.zeros(3, np.uint8))[:-1], "must hold 3 values, as its first bytes say, got 2"),
        ("t10k-labels-idx1-ubyte", idx_file(np.zeros(3, np.uint8)) + b"0", "must hold 3 values, as its first bytes say, got more"),
        ("t10k-labels-idx1-ubyte", idx_file(np.zeros(4, np.uint8)), "there are 3 images of t10k and 4 labels"),
        ("t10k-images-idx3-ubyte", idx_file(np.zeros((3, 5, 5), np.uint8)), "of one size, got (5, 6) in train and (5, 5)"),
        ("t10k-labels-idx1-ubyte", None, "there is no such file as t10k-labels-idx1-ubyte or "),
    ],
)  # fmt: skip
def test_a_wrong_idx_file_is_named(digits, name, content, said):
    path = digits / name
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError) as raised:
        read_idx(digits)
    assert said in str(raised.value)
    assert "digits" in str(raised.value)


def test_a_truncated_gzip_of_idx_is_named(digits):
    path = digits / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match=r"train-images-idx3-ubyte\.gz must be an idx file: "):
        read_idx(digits)


def test_each_class_of_idx_files_has_a_name_of_its_own(digits):
    with pytest.raises(InputError, match="must name each of the classes 0 to 2, got 2 names"):
        read_idx(digits, label_names=["bag", "coat"])
    (line,) = example(idx.Config, label_names=["bag", "bag"]).rule(None)
    assert line.startswith("dataset.idx.label_names: must differ")
