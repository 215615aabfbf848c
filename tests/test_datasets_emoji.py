"""Emoji of several vendors in one folder: one split and one class per emoji, the same whatever a vendor calls its files."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import example
from PIL import Image

from stages import dataset as preparation
from stages.dataset import Settings as Dataset
from tessera.core.errors import InputError
from tessera.core.seeding import numpy_generator
from tessera.datasets import emoji, noto
from tessera.decoding.collection import Collection
from tessera.decoding.emoji import spelling

ROOT = Path(__file__).resolve().parent.parent
ROWS = (  # name, codepoints, group, subgroup
    ("grinning face", "1f600", "Smileys", "face"),
    ("waving hand", "1f44b", "People", "hand"),
    ("waving hand: light skin tone", "1f44b-1f3fb", "People", "hand"),
    ("man technologist", "1f468-200d-1f4bb", "People", "role"),
    ("female sign", "2640-fe0f", "Symbols", "gender"),
    ("keycap: #", "23-fe0f-20e3", "Symbols", "keycap"),
)


@pytest.fixture(autouse=True)
def _workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def png(seed: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(noise(seed)).save(stream, "PNG")
    return stream.getvalue()


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (9, 9, 3), dtype=np.uint8)


def write_parquet(path: Path, rows: Any = ROWS, first_seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [{"bytes": png(first_seed + i), "path": None} for i in range(len(rows))]
    columns = dict(zip(("name", "codepoints", "group", "subgroup"), map(list, zip(*rows, strict=True)), strict=True))
    pq.write_table(pa.table({"image": images, **columns}), path)


def write_images(folder: Path, *names: str, first_seed: int = 100) -> None:
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(png(first_seed + i))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    write_parquet(tmp_path / "set" / "noto.parquet")
    return tmp_path / "set"


def load(path: Path, **values: Any) -> Collection:
    return emoji.load(example(emoji.Config, **values), path, numpy_generator(0, "dataset", "load"))


def described(loaded: Collection) -> dict[str, tuple[str, str]]:
    """Name -> family and class."""
    labels = [loaded.label_names[label] for label in loaded.labels or ()]
    return dict(zip(loaded.names, zip(loaded.families, labels, strict=True), strict=True))


# one emoji, several vendors


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("1f600.png", "grinning face"),
        ("1F600.PNG", "grinning face"),
        ("u1f600.png", "grinning face"),
        ("U+1F600.png", "grinning face"),
        ("emoji_u1f600.png", "grinning face"),
        ("1f44b-1f3fb.png", "waving hand: light skin tone"),
        ("1f468-200d-1f4bb.png", "man technologist"),
        ("emoji_u1f468_200d_1f4bb.png", "man technologist"),
        ("2640.png", "female sign"),
        ("2640-fe0f.png", "female sign"),
        ("23-20e3.png", "keycap: #"),
        ("emoji_u0023_20e3.png", "keycap: #"),
        ("0023-FE0F-20E3.png", "keycap: #"),
    ],
)
def test_a_file_is_the_emoji_of_its_name_however_spelt(source: Path, file: str, expected: str) -> None:
    write_images(source, f"other/{file}")
    found = described(load(source))
    assert found[f"other/{expected}"] == found[f"noto/{expected}"]
    assert len(found) == len(ROWS) + 1


def test_an_emoji_that_no_row_has_takes_family_and_class_of_its_relatives(source: Path) -> None:
    write_images(source, "other/1f44b-1f3ff.png", "other/1f469-1f3fd-200d-1f4bb.png")  # dark skin; woman technologist
    found = described(load(source, label="subgroup"))
    assert found["other/1f44b-1f3ff"] == found["noto/waving hand"] == ("1f44b", "hand")
    assert found["other/1f469-1f3fd-200d-1f4bb"] == found["noto/man technologist"] == ("1f9d1-1f4bb", "role")


def test_a_second_parquet_is_a_vendor_too(source: Path) -> None:
    write_parquet(source / "own.parquet", [("wave", "1f44b", "Mine", "mine"), ("rocket", "1f680", "Travel", "space")])
    found = described(load(source))
    assert found["own/waving hand"] == found["noto/waving hand"]  # the first file decides
    assert found["own/rocket"] == ("1f680", "Travel")
    assert load(source).label_names == ["Smileys", "People", "Symbols", "Travel"]


def test_of_a_family_the_first_row_gives_the_class(source: Path) -> None:
    write_parquet(source / "own.parquet", [("wave", "1f44b-1f3ff", "Mine", "mine")])
    write_images(source, "other/1f44b-1f3fd.png")
    found = described(load(source))
    assert found["own/wave"] == ("1f44b", "Mine")
    assert found["other/1f44b-1f3fd"] == ("1f44b", "People")


def test_images_are_those_of_the_files(source: Path) -> None:
    write_images(source, "b/1f44b.png", "a/72x72/1f600.png")
    loaded = load(source)
    assert loaded.names[-2:] == ["a/grinning face", "b/waving hand"]
    for i, seed in enumerate([*range(len(ROWS)), 101, 100]):
        assert np.array_equal(loaded.images[i], noise(seed))
    (source / "a/72x72/1f600.png").write_bytes(png(0)[:-30])
    with pytest.raises(InputError, match=r"set/a/72x72/1f600\.png is corrupt"):
        load(source).images[len(ROWS)]


def test_order_is_by_name_whatever_the_folder_lists_first(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(source, "b/1f600.png", "a/1f600.png", "a/1f44b.png")
    first = load(source)
    listed = os.walk
    monkeypatch.setattr(os, "walk", lambda *where, **how: reversed(list(listed(*where, **how))))
    again = load(source)
    assert first[1:] == again[1:]
    assert list(first.names[len(ROWS) :]) == ["a/waving hand", "a/grinning face", "b/grinning face"]
    assert all(np.array_equal(a, b) for a, b in zip(first.images, again.images, strict=True))


def test_hidden_and_other_files_are_left_out(source: Path) -> None:
    write_images(source, "a/1f600.png", "a/.1f44b.png", ".cache/1f44b.png", ".DS_Store", "a/LICENSE", "README.md")
    assert len(load(source).names) == len(ROWS) + 1


# beside noto


def test_noto_alone_gives_what_the_plugin_noto_gives(tmp_path: Path) -> None:
    own = ROOT / "data" / "noto-emoji.parquet"
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "noto.parquet").symlink_to(own)
    for label in ("group", "subgroup"):
        expected = noto.load(noto.Config(label=label), own, numpy_generator(0, "dataset", "load"))
        loaded = load(tmp_path / "set", label=label)
        assert loaded[2:] == expected[2:]
        assert loaded.names == [f"noto/{name}" for name in expected.names]
        assert all(np.array_equal(loaded.images[i], expected.images[i]) for i in (0, 1000, 3663))


def section() -> Dataset:
    split = {"by": "family", "train": 0.6, "val": 0.2, "test": 0.2, "withheld": []}
    return Dataset(name="emoji", source="set", image_size=8, target_size=8, colour="rgb", aspect="pad",
                   near_duplicate_rmse=1.0, split=split)  # fmt: skip


def test_an_emoji_of_all_vendors_stands_in_one_split(tmp_path: Path) -> None:
    points = [f"1f9{i:02x}" for i in range(0x20, 0x38)]  # 24 emoji with two tones each, and a third at the other vendor
    spelt = [point + tone for point in points for tone in ("", "-1f3fb", "-1f3ff")]
    rows = [(f"emoji {point}", point, f"group {i % 2}", "x") for i, point in enumerate(spelt)]
    write_parquet(tmp_path / "set" / "noto.parquet", rows)
    write_images(tmp_path / "set", *(f"twemoji/{point}{tone}.png" for point in points for tone in ("", "-1f3fd")))
    prepared = preparation.prepare(load(tmp_path / "set"), section(), numpy_generator(0, "dataset", "split"))
    table = prepared.table
    assert len(table) == 24 * 5
    assert set(table["family"]) == set(points)
    assert table.groupby("family")["split"].nunique().max() == 1
    for _, split in table.groupby("split"):
        assert set(split["name"].str.partition("/")[0]) == {"noto", "twemoji"}


# what is refused


def test_a_folder_without_a_parquet(tmp_path: Path) -> None:
    write_images(tmp_path / "set", "twemoji/1f600.png")
    with pytest.raises(InputError, match=r"set holds no parquet .* Copy data/noto-emoji\.parquet into it"):
        load(tmp_path / "set")


@pytest.mark.parametrize("name", ["smile.png", "1f600 (2).png", "1f600-.png", "emoji_1f600x.png", "1f6001f44b.png"])
def test_a_name_that_is_no_code_points_has_no_class(source: Path, name: str) -> None:
    write_images(source, f"twemoji/{name}")
    loaded = load(source)
    assert len(loaded.names) == len(ROWS)
    assert loaded.left_out["twemoji"] == {"without_class": 1, "twice": 0}
    assert loaded.notes[0].startswith("twemoji: left out are 1 without a class")
    assert loaded.notes[0].endswith(f": {name}")


def test_all_that_is_left_out_of_a_set_is_counted_and_named(source: Path) -> None:
    """Of twemoji seven without a class, of `a` two doubled and one misnamed; the rest is read."""
    flags = [f"1f1e{i}.png" for i in range(2, 9)]
    doubled = ["1f600.png", "1F600-fe0f.png", "x/1f44b.png", "y/1f44b.png"]
    write_images(source, *(f"twemoji/{name}" for name in flags), *(f"a/{name}" for name in [*doubled, "smile.png"]))
    loaded = load(source)
    assert loaded.names[len(ROWS) :] == ["a/grinning face", "a/waving hand"]
    none = {"without_class": 0, "twice": 0}
    counts = {"noto": none, "a": {"without_class": 1, "twice": 2}, "twemoji": {"without_class": 7, "twice": 0}}
    assert loaded.left_out == counts
    told = {note.partition(":")[0]: note for note in loaded.notes if "without a class" in note}
    assert all(name in told["twemoji"] for name in flags)
    assert told["a"].endswith(": smile.png")
    (twice,) = [note for note in loaded.notes if "drew twice" in note]
    assert twice.endswith(": 1f600.png, y/1f44b.png")  # of those that are kept the names are first


@pytest.mark.parametrize("name", ["twemoji/1f44b.svg", "twemoji/LICENSE", "x.txt", "twemoji/.1f44b.png", ".cache"])
def test_what_is_not_read_is_named_in_the_log(source: Path, name: str) -> None:
    write_images(source, "twemoji/1f600.png", name)
    (note,) = load(source).notes
    assert note.startswith("1 files are not read")
    assert note.endswith(name)


@pytest.mark.parametrize("pair", [("1F600-fe0f.png", "1f600.png"), ("36x36/1f600.png", "72x72/1f600.png")])
def test_of_two_images_of_one_emoji_and_vendor_the_first_is_kept(source: Path, pair: tuple[str, str]) -> None:
    write_images(source, *(f"twemoji/{name}" for name in pair))
    loaded = load(source)
    assert loaded.left_out["twemoji"] == {"without_class": 0, "twice": 1}
    assert loaded.names[len(ROWS) :] == ["twemoji/grinning face"]
    assert np.array_equal(loaded.images[len(ROWS)], noise(100))


def test_two_rows_of_one_emoji(source: Path) -> None:
    write_parquet(source / "noto.parquet", [ROWS[0], ROWS[0], ROWS[1]])
    loaded = load(source)
    assert loaded.names == ["noto/grinning face", "noto/waving hand"]
    assert loaded.lead == 2
    assert loaded.left_out["noto"] == {"without_class": 0, "twice": 1}


def test_a_folder_called_like_a_parquet(source: Path) -> None:
    write_images(source, "noto/1f600.png")
    with pytest.raises(InputError, match=r"noto\.parquet and .*/noto are both 'noto'\. Remove one, or rename its"):
        load(source)


def test_an_image_in_no_folder(source: Path) -> None:
    write_images(source, "1f600.png")
    with pytest.raises(InputError, match=r"set/1f600\.png stands in no folder\. Move it"):
        load(source)


def test_a_folder_without_images_of_the_extensions(source: Path) -> None:
    write_images(source, "twemoji/1f600.png", "openmoji/1f600.svg")
    with pytest.raises(InputError, match=r"set/openmoji holds no file that ends in \.png, \.webp"):
        load(source)


@pytest.mark.parametrize("link", ["linked", "twemoji/linked"])
def test_a_link_to_a_folder(source: Path, tmp_path: Path, link: str) -> None:
    write_images(source, "twemoji/1f600.png")
    write_images(tmp_path / "elsewhere", "1f44b.png")
    (source / link).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=rf"{link} is a link to a folder"):
        load(source)


def test_a_file_that_is_no_parquet_of_emoji(source: Path) -> None:
    (source / "x.parquet").write_text("text")
    with pytest.raises(InputError, match=r"x\.parquet' is not a whole parquet file"):
        load(source)


def test_a_pointer_in_place_of_the_parquet(source: Path) -> None:
    (source / "noto.parquet").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(InputError, match=r"not a whole parquet file \(it is a Git LFS pointer\. Run `git lfs pull`"):
        load(source)


def test_spellings_of_the_embedded_set_are_unique() -> None:
    points = pq.read_table(ROOT / "data" / "noto-emoji.parquet", columns=["codepoints"])["codepoints"].to_pylist()
    assert len(set(map(spelling, points))) == len(points)
    assert [point for point in points if spelling(point) != point.replace("-fe0f", "")] == []
