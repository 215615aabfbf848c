"""A source that is several vendors' drawings laid together, and what the stage `dataset` must know of them. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Self

from tessera.core.contracts import Source


class Collection(Source):
    """A `Source` of several vendors.

    Its first `lead` images are the set that figures are compared on. They are divided as if they were alone, so that they
    stand in the splits that they have without the others; all others follow (`stages.dataset.divide`). An image that
    cannot be decoded stops the stage if it is one of these; any other is left out and counted.

    Attributes:
        lead: number of these images, 0 for none.
        vendors: index into `vendor_names` for each image.
        vendor_names: names of the vendors.
        left_out: vendor -> why -> number of its images that are not in `images`, for every vendor and the same reasons.
    """

    lead: int
    vendors: Sequence[int]
    vendor_names: Sequence[str]
    left_out: Mapping[str, Mapping[str, int]]

    @classmethod
    def of(
        cls,
        source: Source,
        lead: int,
        vendors: Sequence[int],
        vendor_names: Sequence[str],
        left_out: Mapping[str, Mapping[str, int]],
    ) -> Self:
        made = cls(*source)
        made.lead, made.vendors, made.vendor_names, made.left_out = lead, vendors, vendor_names, left_out
        return made
