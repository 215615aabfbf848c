"""The values of `evaluation.words`."""

from __future__ import annotations

from string import Formatter
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from tessera.core.errors import listed
from tessera.core.params import Strict
from tessera.evaluation.words.pixel_recognition import Config as Network

SETS = ORIGINALS, RECONSTRUCTIONS, SAMPLES, OTHER, RETRIEVED = (
    "originals",
    "reconstructions",
    "samples",
    "other_concept",
    "retrieved",
)
VENDOR = "vendor"
FIGURES = ("top_1", "top_5", "vendor_right", "top_1_and_vendor", "top_5_and_vendor")
COMPOSITIONS, EVERY, ALL = "compositions", "every", "all"
(
    COMPOSED,
    COMPOSED_ORIGINALS,
    COMPOSED_RECONSTRUCTIONS,
) = (  # compositions that test images have: samples, and the ceilings
    "compositions_drawn",
    "compositions_originals",
    "compositions_reconstructions",
)


class Config(Strict):
    count: int = Field(ge=1, description="held-out images of each vendor, at most, chosen by the seed", examples=[4])
    samples: int = Field(ge=1, le=64, description="samples for each of them", examples=[2])
    batch_size: int = Field(ge=1, description="images per forward pass", examples=[8])
    temperature: float = Field(gt=0, description="divides the logits", examples=[1.0])
    guidance: dict[Literal["words", "vendor"], Annotated[list[Annotated[float, Field(ge=0)]], Field(min_length=1)]] = (
        Field(
            description="of each, strengths to choose from on the validation split, by how often concept (of five) and vendor are "
            "right together: 1 is p(codes | words, vendor), 0 forgets it, more exaggerates it; 1 where it is not named",
            examples=[{"words": [1.0]}],
        )
    )
    choice: int = Field(ge=1, description="held-out validation images of each vendor, at most, one sample each, by which guidance "
                        "is chosen", examples=[4])  # fmt: skip
    attributes: dict[Annotated[str, Field(pattern="^[a-z][a-z0-9_]*$")], Annotated[list[str], Field(min_length=2)]] = Field(
        description="what a name may say beside the concept: the values of each, as names have them",
        examples=[{"size": ["small", "large"]}],
    )  # fmt: skip
    compositions: list[str] = Field(
        description="names to compose, where {attribute} stands for each of its values; those whose words all stand together in "
        "training names are left out", examples=[["{size} circle"]]
    )  # fmt: skip
    dimensions: int = Field(ge=1, description="principal components of the features that judges see", examples=[8])
    penalty: float = Field(gt=0, description="C of the judges' logistic regression, the inverse of the weight of |w|^2 / 2",
                           examples=[1.0])  # fmt: skip
    iterations: int = Field(ge=1, description="of L-BFGS for it, at most; with a thousand classes it need not converge",
                            examples=[100])  # fmt: skip
    network: Network = Field(description="that judges of few classes may have, of vendors and attributes")
    quantile: float = Field(gt=0, lt=1, description="of the test images' distances in codes; a sample no farther is a near-copy",
                            examples=[0.25])  # fmt: skip
    resamplings: int = Field(ge=100, le=100000, description="of families, for intervals", examples=[100])
    shown: int = Field(
        ge=1, le=64, description="concepts in each picture, chosen by the seed; and the worst", examples=[2]
    )

    @model_validator(mode="after")
    def _known(self) -> Self:
        if EVERY in self.attributes:
            raise ValueError(f"attributes must not name one {EVERY!r}, which stands for all of them")
        for name in self.compositions:
            held = placeholders(name)
            if not held or not held <= self.attributes.keys():
                raise ValueError(
                    f"compositions must each hold at least one of {listed(f'{{{each}}}' for each in self.attributes)} and no "
                    f"other, got {name!r}"
                )
        return self


def placeholders(name: str) -> set[str]:
    """Attributes that a composition holds. A brace that is not closed is one, of no attribute."""
    try:
        return {field for _, field, _, _ in Formatter().parse(name) if field is not None}
    except ValueError:
        return {name}
