"""Parts of one work in forks: the same results, order and errors as one after the other."""

from __future__ import annotations

import os
import signal
import sys

import pytest
import torch

from tessera import forks
from tessera.core.errors import InputError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing is forked")


@pytest.fixture(autouse=True)
def _two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def place(part: int) -> tuple[int, int, int]:
    return part, os.getpid(), torch.get_num_threads()


def test_each_part_has_a_process_and_a_thread():
    (first, one, threads), (second, other, _) = forks.each(place, [5, 3], "cpu")
    assert (first, second, threads) == (5, 3, 1)
    assert os.getpid() not in (one, other)
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize(("threads", "parts", "device"), [(1, 2, "cpu"), (2, 1, "cpu"), (4, 2, "cpu"), (2, 2, "meta")])
def test_this_process_does_it_where_forks_would_not_help(threads, parts, device):
    torch.set_num_threads(threads)
    assert forks.each(place, range(parts), device) == [(part, os.getpid(), threads) for part in range(parts)]


def test_results_are_equal_to_the_bit():
    def drawn(seed: int) -> torch.Tensor:
        x = torch.randn(200, 300, generator=torch.Generator().manual_seed(seed))
        return (x @ x.T).softmax(1)

    forked = forks.each(lambda seed: drawn(seed).numpy(), [1, 2], "cpu")
    torch.set_num_threads(1)
    assert all((drawn(seed).numpy() == found).all() for seed, found in zip([1, 2], forked, strict=True))


def test_errors_arrive():
    def fail(part: int) -> None:
        raise InputError(f"part {part} is wrong")

    with pytest.raises(InputError, match="part 7 is wrong"):
        forks.each(fail, [7, 8], "cpu")
    with pytest.raises(InputError, match=r"one of 2 processes was killed.*set runtime\.threads to 1"):
        forks.each(lambda part: os.kill(os.getpid(), signal.SIGKILL), [1, 2], "cpu")
    assert torch.get_num_threads() == 2
