"""A source that is several vendors' drawings laid together, and what the stage `dataset` must know of them. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Self

from tessera.core.contracts import Source


class Collection(Source):
    """A `Source` of several vendors.

    Its first `lead` images are the set that figures are compared on. They are divided as if they were alone, so that they
    stand in the splits that they have without the others; all others follow (`stages.dataset.divide`).

    Attributes:
        lead: number of these images, 0 for none.
        optional: whether an image that cannot be decoded is left out and counted, since it is of a package as it comes; any
            other stops the stage.
        vendors: index into `vendor_names` for each image.
        vendor_names: names of the vendors.
        left_out: vendor -> why -> number of its images that are not in `images`, for every vendor and the same reasons.
    """

    lead: int
    optional: Sequence[bool]
    vendors: Sequence[int]
    vendor_names: Sequence[str]
    left_out: Mapping[str, Mapping[str, int]]

    @classmethod
    def of(
        cls,
        source: Source,
        lead: int,
        optional: Sequence[bool],
        vendors: Sequence[int],
        vendor_names: Sequence[str],
        left_out: Mapping[str, Mapping[str, int]],
    ) -> Self:
        made = cls(*source)
        made.lead, made.optional, made.left_out = lead, optional, left_out
        made.vendors, made.vendor_names = vendors, vendor_names
        return made
