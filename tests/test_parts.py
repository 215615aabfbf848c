"""A batch in parts (`autoregression/forks.py`)."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from tessera.autoregression import forks

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing is forked")


@pytest.fixture
def cores(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def seen(rows: slice) -> tuple[Tensor, ...]:
    """Rows, and which process works on them with how many threads."""
    return torch.arange(100)[rows], torch.tensor([os.getpid(), torch.get_num_threads()])


@pytest.mark.parametrize(
    ("cores", "n", "sizes", "processes", "each"),
    [(3, 3, [3], 1, 3), (3, 10, [3, 3, 4], 3, 1), (3, 7, [3, 4], 2, 1), (4, 7, [3, 4], 1, 2), (1, 50, [50], 1, 1)],
    indirect=["cores"],
)
def test_shares_in_order_and_who_takes_them(cores: int, n: int, sizes: list[int], processes: int, each: int) -> None:
    parts = forks.spread(seen, n, least=3)
    assert torch.cat([rows for rows, _ in parts]).tolist() == list(range(n))
    assert [len(rows) for rows, _ in parts] == sizes
    who = torch.stack([who for _, who in parts])
    assert len(who[:, 0].unique()) == processes
    assert os.getpid() in who[:, 0]
    assert who[:, 1].eq(each).all()
    assert torch.get_num_threads() == cores, "of the caller"
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(torch.get_num_threads).result() == cores, "of threads to come"


@pytest.mark.parametrize("cores", [2], indirect=True)
def test_a_daemon_may_have_no_children_and_takes_threads(cores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(forks.multiprocessing.current_process()._config, "daemon", True)
    assert {int(who[0]) for _, who in forks.spread(seen, 2, 1)} == {os.getpid()}


@pytest.mark.parametrize("cores", [2, 3], indirect=True)
@pytest.mark.parametrize("failing", [0, 1])
def test_what_the_work_raises_is_raised_here_and_no_process_stays(cores: int, failing: int) -> None:
    def work(rows: slice) -> tuple[Tensor, ...]:
        if rows.start == failing:
            raise ValueError(f"row {rows.start} is wrong")
        return seen(rows)

    with pytest.raises(ValueError, match=f"row {failing} is wrong"):
        forks.spread(work, cores, 1)
    assert not forks.multiprocessing.active_children()
    assert torch.get_num_threads() == cores


@pytest.mark.parametrize("cores", [2], indirect=True)
def test_a_killed_process_is_named(cores: int) -> None:
    def work(rows: slice) -> tuple[Tensor, ...]:
        if rows.start:
            os.kill(os.getpid(), signal.SIGKILL)
        return seen(rows)

    with pytest.raises(RuntimeError, match="was killed; is there enough memory"):
        forks.spread(work, 2, 1)


@pytest.mark.parametrize("cores", [2], indirect=True)
def test_after_a_training_step_on_many_threads_forks_still_work(cores: int) -> None:
    """OpenMP's and autograd's threads exist by then, and are gone in a fork."""
    layer, x = torch.nn.Conv2d(8, 8, 3), torch.randn(32, 8, 32, 32)
    layer(x).sum().backward()

    def work(rows: slice) -> tuple[Tensor, ...]:
        with torch.no_grad():
            return (layer(x[rows]),)

    torch.testing.assert_close(torch.cat([part for (part,) in forks.spread(work, 32, 1)]), layer(x).detach())
