"""Files appear whole or not at all, whatever happens meanwhile, and the same content gives the same bytes."""

from __future__ import annotations

import json
import math
import os
import resource
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from tessera.core import files, models
from tessera.core.contracts import Report
from tessera.core.errors import InputError

NOBODY = 65534


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """The system refuses to let any file grow beyond `size` bytes, at the very byte, as a full disk does."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


@contextmanager
def without_rights(folder: Path, mode: int = 0o555) -> Iterator[None]:
    """`folder` cannot be written to; root, whom no mode stops, is somebody else meanwhile."""
    root = os.geteuid() == 0
    folder.chmod(mode)
    if root:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
        folder.chmod(0o755)


@pytest.fixture
def shared_folder() -> Iterator[Path]:
    """A folder whose parents everybody may enter; pytest's own are for one user only."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 kB that has 12 kB left."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    allowed = os.geteuid() == 0 and shutil.which("mount")
    if not allowed or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("no right to mount a small file system here")
    try:
        (folder / "fill").write_bytes(bytes(52 * 1024))
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def stream(path: Path, n: int) -> None:
    with files.streamed_array(path, (n,), np.uint8) as array:
        array[:] = 7


def weights(path: Path, n: int) -> None:
    import torch

    models.save_weights(path, {"w": torch.ones(n)})


WRITERS: dict[str, Callable[[Path, int], None]] = {
    "array.npy": lambda path, n: files.save_array(path, np.ones(n, np.uint8)),
    "stream.npy": stream,
    "metrics.json": lambda path, n: files.write_json(path, {"text": "x" * n}),
    "table.csv": lambda path, n: files.write_table(path, pd.DataFrame({"a": np.arange(n)})),
    "picture.png": lambda path, n: files.write_picture(
        path, np.random.default_rng(0).integers(0, 255, (n // 64, 64, 3), np.uint8)
    ),
    "model.safetensors": weights,
}


# writing


@pytest.mark.parametrize("older", [None, b"old"])
def test_an_exception_while_writing_leaves_what_was_there(tmp_path, older):
    path = tmp_path / "a.txt"
    if older:
        path.write_bytes(older)
    before = content(tmp_path)

    def write_half() -> None:
        with files.writing(path) as stream:
            stream.write("half a")
            stream.flush()
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        write_half()
    assert content(tmp_path) == before


def test_nothing_is_seen_under_the_name_before_the_end(tmp_path):
    path = tmp_path / "deep" / "er" / "a.txt"
    with files.writing(path) as stream:
        stream.write("whole")
        stream.flush()
        assert not path.exists()
    assert content(path.parent) == {"a.txt": b"whole"}


def test_content_reaches_the_disk_before_the_name(tmp_path, monkeypatch):
    """Or a crash of the machine could leave a torn file under the final name."""
    calls, sync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (calls.append("sync"), sync(handle)))
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append("replace"), replace(a, b)))
    files.write_json(tmp_path / "a.json", 1)
    assert calls == ["sync", "replace"]


def test_a_new_file_has_the_rights_of_any_other(tmp_path):
    files.write_json(tmp_path / "a.json", 1)
    (tmp_path / "other").touch()
    assert (tmp_path / "a.json").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_text_is_utf8_with_unix_line_ends(tmp_path):
    with files.writing(tmp_path / "a.txt") as stream:
        stream.write("é\n")
    assert (tmp_path / "a.txt").read_bytes() == b"\xc3\xa9\n"


@pytest.mark.parametrize("name", WRITERS)
def test_full_disk_names_the_file_and_leaves_the_old_one(tmp_path, name):
    path = tmp_path / name
    WRITERS[name](path, 200)
    before = content(tmp_path)
    with pytest.raises(InputError, match=r"the file there is intact.*Free space") as caught, largest_file(1000):
        WRITERS[name](path, 20_000)
    assert str(path) in str(caught.value)
    assert content(tmp_path) == before


@pytest.mark.parametrize("name", WRITERS)
def test_a_disk_that_fills_with_the_last_byte_is_noticed(tmp_path, name):
    """`np.save` notices nothing then: the last 4 kB stay in a buffer whose fate nobody asks for."""
    path = tmp_path / name
    WRITERS[name](path, 1000)
    size = path.stat().st_size
    path.unlink()
    with pytest.raises(InputError, match="cannot write") as caught, largest_file(size - 1):
        WRITERS[name](path, 1000)
    assert "intact" not in str(caught.value)
    assert content(tmp_path) == {}
    with largest_file(size):
        WRITERS[name](path, 1000)


@pytest.mark.parametrize("name", WRITERS)
def test_full_file_system(full_disk, name):
    path = full_disk / name
    WRITERS[name](path, 100)
    before = content(full_disk)
    with pytest.raises(InputError, match="No space left on device; the file there is intact"):
        WRITERS[name](path, 40_000)
    assert content(full_disk) == before


def test_streamed_array_reserves_its_blocks_before_the_first_row(full_disk):
    """First and last block fit, the rest would not: a write to that hole of the map ends the process by a bus error."""
    with pytest.raises(InputError, match="No space left"):
        files.streamed_array(full_disk / "a.npy", (20_000,), np.uint8).__enter__()


@pytest.mark.parametrize("name", WRITERS)
def test_read_only_folder_names_the_file_and_leaves_the_old_one(shared_folder, name):
    path = shared_folder / name
    WRITERS[name](path, 100)
    before = content(shared_folder)
    with pytest.raises(InputError, match=r"Permission denied.* writable") as caught, without_rights(shared_folder):
        WRITERS[name](path, 300)
    assert str(path) in str(caught.value)
    assert "the file there is intact" in str(caught.value)
    assert content(shared_folder) == before


def test_a_folder_that_cannot_even_be_entered(shared_folder):
    inner = shared_folder / "closed"
    inner.mkdir()
    with pytest.raises(InputError, match="Permission denied"), without_rights(inner, 0o000):
        files.write_json(inner / "a.json", 1)


def test_a_file_where_a_folder_should_be(tmp_path):
    (tmp_path / "metrics").write_text("")
    with pytest.raises(InputError, match=r"cannot write .*metrics/a\.json"):
        files.write_json(tmp_path / "metrics" / "a.json", 1)


# arrays


@given(hnp.arrays(st.sampled_from([np.uint8, np.int64, np.float32]), hnp.array_shapes(min_dims=0, min_side=0)))
def test_arrays_come_back_as_they_were(array):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.npy"
        files.save_array(path, array)
        loaded = files.load_array(path)
        assert loaded.dtype == array.dtype
        assert loaded.shape == array.shape
        assert loaded.tobytes() == array.tobytes()
        assert path.read_bytes()[:6] == b"\x93NUMPY"


def test_transposed_array(tmp_path):
    array = np.arange(6).reshape(2, 3).T
    files.save_array(tmp_path / "a.npy", array)
    np.testing.assert_array_equal(files.load_array(tmp_path / "a.npy"), array)


def test_loaded_array_is_mapped_and_read_only(tmp_path):
    files.save_array(tmp_path / "a.npy", np.arange(5))
    loaded = files.load_array(tmp_path / "a.npy")
    assert isinstance(loaded, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        loaded[0] = 1


def test_streamed_array_is_what_save_array_writes(tmp_path):
    array = np.arange(24, dtype=np.int32).reshape(4, 6)
    with files.streamed_array(tmp_path / "a.npy", array.shape, "int32") as out:
        for row in range(4):
            out[row] = array[row]
    files.save_array(tmp_path / "b.npy", array)
    np.save(tmp_path / "c.npy", array)
    assert len(set(content(tmp_path).values())) == 1


@pytest.mark.parametrize("kept", [0, 5, 50, 127, 128, 129, 1000, 8127])
def test_array_cut_short_is_named(tmp_path, kept):
    path = tmp_path / "a.npy"
    files.save_array(path, np.arange(1000))
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(InputError, match=r"a\.npy is not a whole \.npy file .*; delete it and run `dvc repro`"):
        files.load_array(path)


def test_what_is_no_array_is_named(tmp_path):
    (tmp_path / "a.npy").write_bytes(b"version https://git-lfs.github.com/spec/v1\n" * 10)
    with pytest.raises(InputError, match=r"a\.npy is not a whole"):
        files.load_array(tmp_path / "a.npy")


def test_missing_files_say_how_to_get_them(tmp_path):
    for read in (files.load_array, files.read_json, models.load_weights):
        with pytest.raises(InputError, match="there is no such file; run `dvc repro` or `dvc pull`"):
            read(tmp_path / "none")


# metrics and facts


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf, np.float32("nan")])
def test_metrics_must_be_finite(workspace, wrong):
    files.write_metrics("a", {"b": {"c": 1.0}})
    with pytest.raises(InputError, match=r"metric a\.b\.c must be finite, got"):
        files.write_metrics("a", {"b": {"c": wrong}})
    assert json.loads(Path("metrics/a.json").read_text()) == {"b": {"c": 1.0}}


def test_metrics_are_rounded_to_six_digits_and_whole_numbers_stay_whole(workspace):
    values = {"a": 1 / 3, "b": 123456789, "c": 1234567.8, "d": np.float32(0.1)}
    values |= {"e": np.int64(7), "f": True, "g": np.bool_(False)}
    files.write_metrics("x/y", values)
    text = Path("metrics/x/y.json").read_text()
    stored = json.loads(text)
    assert stored == {"a": 0.333333, "b": 123456789, "c": 1234570.0, "d": 0.1, "e": 7, "f": 1, "g": 0}
    assert all(type(stored[name]) is int for name in "befg")
    assert text.endswith("}\n")


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_rounding_changes_at_most_the_seventh_digit(value):
    assert files._rounded(value, "") == pytest.approx(value, rel=5.1e-6, abs=0)


def test_json_is_strict(tmp_path):
    """NaN is no JSON: other readers stop at it."""
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(tmp_path / "a.json", {"a": math.nan})
    assert content(tmp_path) == {}


def test_json_keeps_text_readable(tmp_path):
    files.write_json(tmp_path / "a.json", {"names": ["grün", "日"]})
    assert "grün" in (tmp_path / "a.json").read_text(encoding="utf-8")
    assert files.read_json(tmp_path / "a.json") == {"names": ["grün", "日"]}


@pytest.mark.parametrize("broken", [b"", b'{"a": 1', b'{"a": "\xff"}'])
def test_broken_json_is_named(tmp_path, broken):
    (tmp_path / "facts.json").write_bytes(broken)
    with pytest.raises(InputError, match=r"facts\.json is not a whole JSON file"):
        files.read_json(tmp_path / "facts.json")


# tables


def test_text_of_a_table_stays_text(tmp_path):
    """pandas would read "NA" and the empty text as missing."""
    names = ["NA", "null", "", "keycap: 0", 'a "b", c', "日本", "nan"]
    table = pd.DataFrame({"name": names, "label": range(len(names))})
    files.write_table(tmp_path / "t.csv", table)
    again = files.read_table(tmp_path / "t.csv")
    assert list(again["name"]) == names
    assert again["label"].dtype == np.int64
    assert b"\r" not in (tmp_path / "t.csv").read_bytes()


@pytest.mark.parametrize("odd", ["a\rb", "\r", "a\nb", "a\r\nb", 'q"r', "a,b", 'all\r"\n,'])
def test_names_that_look_like_ends_of_lines_come_back(tmp_path, odd):
    table = pd.DataFrame({"name": ["plain", odd, "NA"], "label": [0, 1, 2], "x": [0.5, 1 / 3, 2.0]})
    files.write_table(tmp_path / "t.csv", table)
    again = files.read_table(tmp_path / "t.csv", text=("name",))
    assert list(again["name"]) == list(table["name"])
    assert list(again["label"]) == [0, 1, 2]
    assert list(again["x"]) == [0.5, 0.333333, 2]


def test_only_a_carriage_return_quotes_what_need_not_be(tmp_path):
    files.write_table(tmp_path / "t.csv", pd.DataFrame({"name": ["a b", "c,d", "e\nf"], "n": [1, 2, 3]}))
    assert (tmp_path / "t.csv").read_text() == 'name,n\na b,1\n"c,d",2\n"e\nf",3\n'


def test_columns_that_are_text_stay_so_where_every_value_looks_like_a_number(tmp_path):
    files.write_table(tmp_path / "t.csv", pd.DataFrame({"name": ["007", "1"], "label": [0, 1]}))
    assert list(files.read_table(tmp_path / "t.csv", text=("name",))["name"]) == ["007", "1"]


def test_numbers_of_a_table_have_six_digits(tmp_path):
    files.write_table(tmp_path / "t.csv", pd.DataFrame({"x": [1 / 3, 2.0], "n": [1, 123456789]}))
    assert (tmp_path / "t.csv").read_text() == "x,n\n0.333333,1\n2,123456789\n"


def test_history_has_one_row_per_evaluation(workspace):
    files.write_history("tokenizer", [{"epoch": 1, "lr": 0.5}, {"epoch": 2, "lr": 0.25}])
    assert Path("plots/tokenizer.csv").read_text() == "epoch,lr\n1,0.5\n2,0.25\n"


# pictures


@pytest.mark.parametrize("shape", [(5, 4, 3), (5, 4, 1), (5, 4)])
def test_picture_of_an_array_comes_back(tmp_path, shape):
    picture = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    files.write_picture(tmp_path / "a.png", picture)
    stored = np.asarray(Image.open(tmp_path / "a.png"))
    np.testing.assert_array_equal(stored, picture.reshape(stored.shape))


def test_pictures_have_the_same_bytes_twice_and_no_date(tmp_path):
    from matplotlib.figure import Figure

    for name in ("a", "b"):
        figure = Figure(figsize=(1, 1))
        figure.subplots().plot([1, 3, 2])
        files.write_picture(tmp_path / f"{name}.png", figure)
        files.write_picture(tmp_path / f"{name}2.png", np.arange(48, dtype=np.uint8).reshape(4, 4, 3))
    stored = content(tmp_path)
    assert stored["a.png"] == stored["b.png"]
    assert stored["a2.png"] == stored["b2.png"]
    assert set(Image.open(tmp_path / "a.png").info) <= {"dpi"}  # no Software, no Creation Time


def test_report_goes_to_metrics_and_plots(workspace):
    report = Report({"a": 1}, {"t": pd.DataFrame({"x": [1]})}, {"p": np.zeros((2, 2, 3), np.uint8)})
    files.write_report("diagnostics/usage", report)
    written = {path.as_posix() for path in Path().rglob("*") if path.is_file()}
    plots = "plots/diagnostics/usage"
    assert written == {"metrics/diagnostics/usage.json", f"{plots}/p.png", f"{plots}/t.csv"}


def test_report_without_plots_leaves_its_folder(workspace):
    """It is declared as an output in dvc.yaml: without it the stage fails."""
    files.write_report("diagnostics/none", Report({"applies": 0}))
    assert list(Path("plots/diagnostics/none").iterdir()) == []
