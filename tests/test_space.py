"""core/space: how codes fold, in NumPy and in torch."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
import torch

from tessera.core.errors import InputError
from tessera.core.space import CodeSpace

SPACE = CodeSpace(((1, 2), (2, 3), (2, 3)), (2, 5, 7))


def test_codes_fold_level_by_level_then_depth_by_depth_in_raster_order() -> None:
    coarse, fine = torch.arange(2 * 1 * 1 * 2).view(2, 1, 1, 2), torch.arange(2 * 2 * 2 * 3).view(2, 2, 2, 3) + 100
    codes = SPACE.join([coarse, fine])
    assert codes[0].tolist() == [0, 1, *range(100, 112)]
    parts = SPACE.split(codes)
    assert torch.equal(parts[0], coarse[:, 0])
    assert torch.equal(torch.stack(parts[1:], 1), fine)
    assert torch.equal(SPACE.join(parts), codes)
    assert all(part.data_ptr() - codes.data_ptr() == start * 8 for part, start in zip(parts, (0, 2, 8), strict=True))


def test_arrays_fold_as_tensors_do() -> None:
    codes = np.arange(28).reshape(2, 14)
    parts = SPACE.split(codes)
    for part, same in zip(parts, SPACE.split(torch.from_numpy(codes)), strict=True):
        np.testing.assert_array_equal(part, same.numpy())
        assert np.shares_memory(part, codes)
    np.testing.assert_array_equal(SPACE.join(parts), codes)
    assert SPACE.join(SPACE.split(codes[:0])).shape == (0, 14)


def test_facts_of_a_space() -> None:
    assert (SPACE.lengths, SPACE.length) == ((2, 6, 6), 14)
    assert SPACE.bits == pytest.approx(2 + 6 * math.log2(5) + 6 * math.log2(7))
    places = [SPACE.locate(t) for t in range(14)]
    assert places == [(grid, place) for grid, length in enumerate(SPACE.lengths) for place in range(length)]
    assert CodeSpace.of_facts({"grids": [[1, 2], [2, 3], [2, 3]], "codebook_sizes": [2, 5, 7]}) == SPACE
    assert CodeSpace.of_facts(SPACE.facts) == SPACE


def test_without_grids_there_are_no_codes() -> None:
    nothing = CodeSpace((), ())
    assert (nothing.length, nothing.bits) == (0, 0)
    assert nothing.join([torch.zeros(3, 0, 2, 2)]).shape == (3, 0)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="14 columns"):
        SPACE.split(torch.zeros(2, 13))
    with pytest.raises(ValueError, match="must hold 14 codes"):
        SPACE.join(SPACE.split(np.zeros((2, 14)))[1:])
    for t in (-1, 14):
        with pytest.raises(ValueError, match=f"from 0 to 13 .* got {t}"):
            SPACE.locate(t)
    with pytest.raises(InputError, match="one per grid"):
        CodeSpace(((1, 2),), (2, 2))


def test_readers_of_arrays_need_no_torch() -> None:
    code = (
        "import sys, numpy as np; from tessera.core.space import CodeSpace; s = CodeSpace(((1, 2),), (3,)); "
        "s.join(s.split(np.zeros((2, 2)))); raise SystemExit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
