"""Several processes decode what one does: to the bit, in the same order, with the same errors."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import example
from test_datasets_decoding import SOURCES, encoded, section

from stages import dataset as preparation
from tessera.core import seams
from tessera.core.errors import InputError
from tessera.core.seeding import numpy_generator
from tessera.decoding import forks
from tessera.runtime import process


@pytest.fixture(autouse=True)
def _parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forks, "PART", 64)


linux = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing is forked")


def zipped(path: Path, images: list[bytes]) -> Path:
    with zipfile.ZipFile(path / "set.zip", "w") as archive:
        for i, data in enumerate(images):
            archive.writestr(f"{i:03}.png", data)
    return path / "set.zip"


MANY = {**SOURCES, "huggingface zip": zipped}


def noise(count: int) -> list[np.ndarray]:
    return list(np.random.default_rng(1).integers(0, 256, (count, 40, 30, 3), dtype=np.uint8))


def prepared(name: str, folder: Path, images: list[bytes], processes: int) -> preparation.Prepared:
    folder.mkdir(exist_ok=True)
    there = next(folder.iterdir(), None)
    source = there or MANY[name](folder, images)
    source = folder if name == "emoji" else source
    plugin = seams.plugin("datasets", name.split()[0])
    config = example(plugin.Config, **({"labels": False} if name == "folder" else {}))
    loaded = plugin.load(config, source, numpy_generator(0, "dataset", "load"))
    settings, generator = section(name.split()[0], source), numpy_generator(0, "dataset", "split")
    return preparation.prepare(loaded, settings, generator, processes)


@linux
@pytest.mark.parametrize("name", MANY)
def test_the_number_of_processes_changes_no_byte(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(forks, "PART", 1)
    images = [encoded("PNG", pixels) for pixels in noise(40)]
    one, many = (prepared(name, tmp_path / "data", images, processes) for processes in (1, 4))
    assert many.images.any()
    for ours, theirs in ((one.images, many.images), (one.targets, many.targets)):
        assert np.array_equal(ours, theirs)
    assert one.table.equals(many.table)
    assert one.metrics == many.metrics
    assert all(np.array_equal(one.rows[split], many.rows[split]) for split in one.rows)


@linux
@pytest.mark.parametrize("name", MANY)
def test_several_processes_name_the_same_broken_images_in_the_same_order(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(forks, "PART", 1)
    images = [encoded("PNG", pixels) for pixels in noise(40)]
    for place in (3, 4, 20, 39):
        images[place] = images[place][:-300]
    told = []
    for processes in (1, 4):
        with pytest.raises(InputError) as caught:
            prepared(name, tmp_path / "data", images, processes)
        told.append(str(caught.value))
    assert told[0].startswith("4 of ")
    assert told[1] == told[0]


# the division of work


@linux
@pytest.mark.parametrize("count", [1, 63, 64, 65, 200])
@pytest.mark.parametrize("processes", [1, 3])
def test_results_come_in_order_and_each_once(count: int, processes: int) -> None:
    found = list(forks.spread(lambda i: (i, os.getpid()), count, processes))
    assert [i for i, _ in found] == list(range(count))
    assert ({pid for _, pid in found} == {os.getpid()}) == (processes == 1 or count <= forks.PART)


def test_elsewhere_than_on_linux_nothing_is_forked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert set(forks.spread(lambda _: os.getpid(), 200, 4)) == {os.getpid()}


@linux
def test_of_several_exceptions_the_first_in_order_is_raised() -> None:
    def work(i: int) -> int:
        if i in (70, 190):
            time.sleep(0.1 * (i == 70))  # the other one is raised earlier
            raise ArithmeticError(i)
        return i

    done = []
    with pytest.raises(ArithmeticError, match=r"^70$"):
        done.extend(forks.spread(work, 200, 3))


@linux
def test_a_killed_process_is_an_error_with_a_remedy() -> None:
    with pytest.raises(InputError, match=r"^one of 2 processes .* was killed.*set runtime\.threads lower"):
        list(forks.spread(lambda i: os.kill(os.getpid(), signal.SIGKILL) if i == 100 else i, 200, 2))


WORKS = """
import os, time
from tessera.decoding.forks import spread
for pid in spread(lambda i: (time.sleep(i), os.getpid())[1], 65, 2):
    print(pid, flush=True)
"""


@linux
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_forks_end_with_their_parent(number: int) -> None:
    command = [sys.executable, "-c", "from tessera.decoding import forks; forks.PART = 1" + WORKS]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        fork = int(parent.stdout.readline())
        parent.send_signal(number)
        assert parent.wait(10) == -number
        for _ in range(200):
            if not alive(fork):
                break
            time.sleep(0.02)
        assert not alive(fork)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize(("stated", "expected"), [("3", 3), ("5,2", 5), ("", None), ("nonsense", None), ("0", None)])
def test_the_number_of_threads_is_what_libraries_are_told(
    stated: str, expected: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", stated)
    assert process.threads() == (expected or len(os.sched_getaffinity(0)))
