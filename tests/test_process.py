"""What a process is told before it computes."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import subprocess
import sys

import pytest
import torch
from committed import project

from tessera.core.params import read
from tessera.runtime import process
from tessera.runtime.devices import Runtime
from tessera.runtime.settings import Settings

FAULTS = """
import resource, sys
sys.path.insert(0, sys.argv[1])
from tessera.runtime import process
import torch
torch.set_num_threads(1)

def faults():
    for _ in range(12):
        torch.ones(16 << 20)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        torch.ones(16 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

left = faults()
process.keep_freed_memory()
print(left, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no such setting")
def test_freed_memory_is_not_fetched_from_the_system_again():
    """5 times 64 MiB are 80,000 pages of 4 KiB. The first few blocks are new, until one that was freed is large enough."""
    src = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(process.__file__))))
    done = subprocess.run([sys.executable, "-c", FAULTS, src], capture_output=True, text=True, check=True)
    left, kept = map(int, done.stdout.split())
    if left < 10_000:
        pytest.skip("the system gives huge pages")
    assert kept < left / 10


def test_spinning_is_short_unless_the_user_says_otherwise(monkeypatch):
    monkeypatch.setattr(process, "keep_freed_memory", lambda: None)
    for given, expected in (
        ({}, "1000"),
        ({"GOMP_SPINCOUNT": "7"}, "7"),
        ({"OMP_WAIT_POLICY": "active"}, None),
    ):
        for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
            monkeypatch.delenv(name, raising=False)
        for name, value in given.items():
            monkeypatch.setenv(name, value)
        process.prepare()
        assert os.environ.get("GOMP_SPINCOUNT") == expected


@pytest.mark.parametrize("library", [OSError, AttributeError])
def test_other_c_libraries_are_left_alone(monkeypatch, library):
    class Other:
        def __init__(self, name: object) -> None:
            if library is OSError:
                raise OSError("no such library")

        @property
        def mallopt(self) -> None:
            raise AttributeError("mallopt")

    monkeypatch.setattr(ctypes, "CDLL", Other)
    process.keep_freed_memory()


POOLS = """
import json, sys
sys.path.insert(0, sys.argv[1])
from tessera.runtime import process
import numpy
found = []
for count in map(int, sys.argv[2:]):
    process.use_threads(count)
    import scipy.linalg, sklearn.cluster, torch
    from threadpoolctl import threadpool_info
    found.append(sorted({pool["num_threads"] for pool in threadpool_info()} | {torch.get_num_threads()}))
print(json.dumps(found))
"""


def test_every_library_computes_on_as_many_threads_as_it_is_told():
    """NumPy, loaded before, as well as SciPy, scikit-learn and torch: each sums in parts, one a thread. The first count is said
    before these are loaded, as stages do, the next ones after; OpenBLAS takes no more than there are cores."""
    counts = [1, 2, 1] if (os.cpu_count() or 1) > 1 else [1]
    src = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(process.__file__))))
    environment = {name: value for name, value in os.environ.items() if name not in process.POOLS}
    command = [sys.executable, "-c", POOLS, src, *map(str, counts)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert json.loads(done.stdout) == [[count] for count in counts]


@pytest.mark.parametrize(
    ("count", "said"), [(2, None), (1, "on 1 threads"), (3, "on 3 threads"), (8, "on 8 threads"), (64, "on 64 threads")]
)
def test_other_threads_than_the_committed_runs_are_said_to_give_other_bits(count, said):
    text = process.other_bits(count)
    assert text is None if said is None else said in text and "not to the bit" in text


@pytest.mark.parametrize(("has", "precision", "better"), [
    ("amx_bf16", "float32", "bf16"), ("amx_bf16", "bf16", None), ("avx512_bf16", "float32", "bf16"),
    ("avx512_bf16", "bf16", None), ("avx512_f", "float32", None), ("avx512_f", "bf16", "float32"),
])  # fmt: skip
def test_the_log_names_the_precision_that_would_be_faster_on_this_machine(monkeypatch, capsys, has, precision, better):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {has: True})
    runtime = Runtime(
        Settings.model_validate(read(project() / "params.yaml")["runtime"] | {"device": "cpu", "threads": 0})
    )
    assert runtime.faster(precision) == better
    model = torch.nn.Linear(1, 1)
    runtime.prepare(model, torch.optim.SGD(model.parameters()), precision)
    said = f"training.precision is {precision}; {better} would be faster on this machine"
    assert (said in capsys.readouterr().out) == (better is not None)
